//! `arges bench train` on a GPU.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use arges_kernels::adamw::AdamW;
use arges_kernels::device::cuda::Cuda;
use arges_kernels::device::cuda::limits::{copy_bandwidth, matrix_rate};
use arges_kernels::matmul::Compute;
use arges_model::Config;
use arges_model::training::TrainingBatch;
use arges_model::training::cuda::{CudaMoments, CudaTrainer};
use serde_json::json;

use super::cuda::{COPY_BYTES, PRODUCT};
use super::train::{TrainBenchArgs, step_flops};
use super::{Limits, RandomTokens};
use crate::loading::Opened;
use crate::output;

/// Trains on random tokens and prints the report.
pub fn run(args: &TrainBenchArgs, ordinal: usize) -> Result<()> {
    let cuda = Cuda::open(ordinal)?;
    let limits =
        Limits { bytes: copy_bandwidth(&cuda, COPY_BYTES, 5)?, flops: matrix_rate(&cuda, PRODUCT, 5)? };
    let compute = args.model.dtype.asked().unwrap_or(Compute::Bf16);
    let plan = args.plan();
    let (trainer, name) = match args.dummy {
        Some(seed) => {
            let path = Path::new(args.model.asked());
            let config = if path.is_dir() { Config::from_dir(path) } else { Config::from_file(path) };
            let name = format!("{}, random weights", path.display());
            (CudaTrainer::random(&config?, compute, &cuda, plan, seed)?, name)
        }
        None => {
            let opened = Opened::open(&args.model)?;
            let name = opened.source.name().to_owned();
            (CudaTrainer::new(args.parameters(opened.checkpoint)?, compute, &cuda, plan)?, name)
        }
    };
    let mut bench = Bench::new(trainer)?;
    let mut random = RandomTokens::new(bench.trainer.model().config().vocab_size);
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    for _ in 0..=args.runs {
        let batch = args.batch(&mut random);
        let start = Instant::now();
        losses.push(bench.step(&batch)?);
        cuda.synchronize()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let mut counted = seconds.split_off(1);
    counted.sort_by(f64::total_cmp);
    let median = counted[counted.len() / 2];
    let flops = step_flops(bench.trainer.model().config(), args);
    let mut report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": env!("ARGES_COMMIT"),
        "device": {
            "name": cuda.facts().name,
            "driver": cuda.facts().driver,
            "copy_bytes_per_second": limits.bytes,
            "matrix_flops_per_second": limits.flops,
        },
        "model": { "name": name, "compute": compute.to_string(),
            "parameters": bench.trainer.parameters().values().len() },
        "memory": {
            "trainer_bytes": bench.trainer.bytes() + bench.moments.bytes(),
            "peak_bytes": cuda.allocated().1,
        },
        "case": {
            "case": "train",
            "sequences": args.sequences,
            "tokens": args.tokens,
            "adapters": args.adapters,
            "rounded_head": args.rounded_head,
            "recompute": format!("{:?}", bench.trainer.recompute()).to_lowercase(),
            "seconds": median,
            "runs": counted,
            "tokens_per_second": plan.max_tokens as f64 / median,
            "flops": flops,
            "share_of_matrix_rate": flops / median / limits.flops,
            "losses": losses,
        },
    });
    if args.profile {
        let batch = args.batch(&mut random);
        let times = Arc::clone(&cuda).profile(|| bench.step(&batch).map(|_| ()))?;
        let rows = times.iter().map(
            |time| json!({ "kernel": time.name, "calls": time.calls, "milliseconds": 1e3 * time.seconds }),
        );
        report["kernels"] = rows.collect();
    }
    output::line(&serde_json::to_string_pretty(&report)?)
}

struct Bench {
    trainer: CudaTrainer,
    moments: CudaMoments,
    step: u64,
}

impl Bench {
    fn new(trainer: CudaTrainer) -> Result<Self> {
        let zeros = vec![0.0; trainer.parameters().values().len()];
        let moments = trainer.moments(&zeros, &zeros)?;
        Ok(Self { trainer, moments, step: 0 })
    }

    /// One step, clipped to a gradient norm of 1; gives the loss before it.
    fn step(&mut self, batch: &TrainingBatch) -> Result<f64> {
        self.step += 1;
        let targets = batch.targets.len() as f32;
        self.trainer.zero_gradients();
        let output = self.trainer.accumulate(batch, -1.0 / targets, 0.001)?;
        let loss = -output.logprobs.iter().map(|p| f64::from(*p)).sum::<f64>() / f64::from(targets);
        let scale = (1.0 / self.trainer.gradient_norm()?).min(1.0) as f32;
        let settings =
            AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-15, weight_decay: 0.1, step: self.step };
        let all = 0..self.trainer.parameters().values().len();
        self.trainer.adamw(scale, &[(all, settings)], &mut self.moments)?;
        self.trainer.publish()?;
        Ok(loss)
    }
}
