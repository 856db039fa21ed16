//! `arges bench train`: the speed of a training step, with its optimizer.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use arges_kernels::adamw::{AdamW, adamw, sum_of_squares};
use arges_kernels::device::cpu::{AlignedBuffer, Cpu, CpuOptions};
use arges_kernels::matmul::Compute;
use arges_model::training::{
    LoraOptions, LoraTarget, Parameters, Recompute, Trainer, TrainingBatch, TrainingPlan,
};
use arges_model::{Accounting, Checkpoint, Config, DType};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Limits, RandomTokens, device_report, train_cuda};
use crate::args::{DeviceChoice, ModelArgs, at_least_1};
use crate::failure::usage;
use crate::loading::Opened;
use crate::memory::peak_resident;
use crate::output;

#[derive(Debug, Args)]
pub struct TrainBenchArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Packed sequences of a step
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least_1)]
    pub(super) sequences: usize,
    /// Tokens of each sequence
    #[arg(long, value_name = "TOKENS", default_value_t = 2048, value_parser = at_least_1)]
    pub(super) tokens: usize,
    /// Steps, of which the median is reported; one more goes first and does not count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_1)]
    pub(super) runs: usize,
    /// What the backward pass computes once more instead of keeping it: as little as a GPU's memory allows, nothing (on a
    /// GPU), what is inside attention and experts, or whole layers
    #[arg(long, value_enum, default_value_t = RecomputeChoice::Auto)]
    pub(super) recompute: RecomputeChoice,
    /// On a GPU, let the head multiply rows rounded to bf16, as most trainers do, not f32 ones
    #[arg(long)]
    pub(super) rounded_head: bool,
    /// Train adapters of this rank on every matrix of attention and experts, in place of all weights
    #[arg(long, value_name = "RANK", value_parser = at_least_1, conflicts_with = "dummy")]
    pub(super) adapters: Option<usize>,
    /// On a GPU, random weights from this seed, made there: the model is then a directory or file with a configuration
    #[arg(long, value_name = "SEED")]
    pub(super) dummy: Option<u64>,
    /// On a GPU, also tell how long each kernel takes, in a step of its own in which kernels do not overlap
    #[arg(long)]
    pub(super) profile: bool,
}

/// [`Recompute`] as an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RecomputeChoice {
    Auto,
    Nothing,
    Insides,
    Layers,
}

impl From<RecomputeChoice> for Recompute {
    fn from(choice: RecomputeChoice) -> Self {
        match choice {
            RecomputeChoice::Auto => Self::Auto,
            RecomputeChoice::Nothing => Self::Nothing,
            RecomputeChoice::Insides => Self::Insides,
            RecomputeChoice::Layers => Self::Layers,
        }
    }
}

/// Trains on random tokens and prints the report. Nothing is written.
///
/// # Errors
/// A model that cannot be loaded, or sequences too short to have a target.
pub fn run(args: &TrainBenchArgs) -> Result<()> {
    if args.tokens < 2 {
        bail!("a sequence of 1 token has nothing to predict: give --tokens of at least 2");
    }
    if let DeviceChoice::Cuda(ordinal) = args.model.device {
        return train_cuda::run(args, ordinal);
    }
    if args.dummy.is_some() || args.profile {
        return Err(usage("--dummy and --profile are for --device cuda"));
    }
    let opened = Opened::open(&args.model)?;
    let compute = args.model.dtype.asked().unwrap_or(Compute::F32);
    let limits = Limits::measure(&args.model, compute)?;
    let cpu = Arc::new(Cpu::new(CpuOptions { threads: args.model.threads, isa: args.model.isa })?);
    let plan = args.plan();
    let name = opened.source.name().to_owned();
    let parameters = args.parameters(opened.checkpoint)?;
    let mut trainer = Trainer::new(parameters, compute, cpu, plan)?;
    let mut optimizer = Optimizer::new(trainer.parameters().values().len());
    let mut random = RandomTokens::new(trainer.model().config().vocab_size);
    let (mut seconds, mut losses) = (Vec::new(), Vec::new());
    for _ in 0..=args.runs {
        let batch = args.batch(&mut random);
        let start = Instant::now();
        losses.push(optimizer.step(&mut trainer, &batch)?);
        seconds.push(start.elapsed().as_secs_f64());
    }
    let mut counted = seconds.split_off(1);
    counted.sort_by(f64::total_cmp);
    let median = counted[counted.len() / 2];
    let tokens = plan.max_tokens;
    let flops = step_flops(trainer.model().config(), args);
    output::line(&serde_json::to_string_pretty(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": env!("ARGES_COMMIT"),
        "device": device_report(trainer.cpu(), &limits),
        "model": { "name": name, "compute": compute.to_string(),
            "parameters": trainer.parameters().values().len() },
        "memory": { "trainer_bytes": trainer.bytes() + optimizer.bytes(), "peak_resident_bytes": peak_resident() },
        "case": {
            "case": "train",
            "sequences": args.sequences,
            "tokens": args.tokens,
            "adapters": args.adapters,
            "seconds": median,
            "runs": counted,
            "tokens_per_second": tokens as f64 / median,
            "flops": flops,
            "share_of_matrix_rate": flops / median / limits.flops,
            "losses": losses,
        },
    }))?)
}

impl TrainBenchArgs {
    pub(super) fn plan(&self) -> TrainingPlan {
        TrainingPlan {
            max_tokens: self.sequences * self.tokens,
            max_sequences: self.sequences,
            recompute: self.recompute.into(),
            rounded_head: self.rounded_head,
        }
    }

    /// What learns of a checkpoint.
    pub(super) fn parameters(&self, checkpoint: Checkpoint) -> Result<Parameters> {
        let Some(rank) = self.adapters else { return Ok(Parameters::full(&checkpoint)?) };
        let targets = LoraTarget::ALL.to_vec();
        let options = LoraOptions { rank, alpha: rank as f32, targets, layers: None, experts: None };
        Ok(Parameters::lora(Arc::new(checkpoint), &options, 1)?)
    }

    pub(super) fn batch(&self, random: &mut RandomTokens) -> TrainingBatch {
        let mut batch = TrainingBatch::default();
        for _ in 0..self.sequences {
            batch.push(&random.take(self.tokens));
        }
        batch
    }
}

/// Operations of a step: three times those of the forward pass, that is without what is computed again. With adapters
/// twice, as there are no gradients by most weights; products with adapters do not count.
pub(super) fn step_flops(config: &Config, args: &TrainBenchArgs) -> f64 {
    let flops = Accounting::of(config, args.tokens as u64, 1, DType::F32, DType::F32).flops;
    let targets = (args.sequences * (args.tokens - 1)) as f64;
    let tokens = (args.sequences * args.tokens) as f64;
    let passes = if args.adapters.is_some() { 2.0 } else { 3.0 };
    passes * (flops.prefill_token.total * tokens + flops.decode_token.head * targets)
}

/// AdamW with its state.
struct Optimizer {
    m: AlignedBuffer<f32>,
    v: AlignedBuffer<f32>,
    step: u64,
}

impl Optimizer {
    fn new(len: usize) -> Self {
        Self { m: AlignedBuffer::zeroed(len), v: AlignedBuffer::zeroed(len), step: 0 }
    }

    fn bytes(&self) -> usize {
        self.m.bytes() + self.v.bytes()
    }

    /// One step, clipped to a gradient norm of 1; gives the loss before it.
    fn step(&mut self, trainer: &mut Trainer, batch: &TrainingBatch) -> Result<f64> {
        self.step += 1;
        let targets = batch.targets.len() as f32;
        trainer.parameters_mut().zero_gradients();
        let output = trainer.accumulate(batch, -1.0 / targets, 0.001)?;
        let loss = -output.logprobs.iter().map(|p| f64::from(*p)).sum::<f64>() / f64::from(targets);
        let cpu = trainer.shared_cpu();
        let norm = sum_of_squares(&cpu, trainer.parameters().gradients()).sqrt();
        let scale = (1.0 / norm).min(1.0) as f32;
        let settings =
            AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-15, weight_decay: 0.1, step: self.step };
        let (values, gradients) = trainer.parameters_mut().values_and_gradients_mut();
        adamw(&cpu, settings, scale, values, gradients, &mut self.m, &mut self.v);
        trainer.publish()?;
        Ok(loss)
    }
}
