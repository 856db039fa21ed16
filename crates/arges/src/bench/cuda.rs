//! The cases on a GPU.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use arges_kernels::device::cuda::Cuda;
use arges_kernels::device::cuda::limits::{copy_bandwidth, matrix_rate};
use arges_kernels::matmul::Compute;
use arges_kernels::sample::cuda::Rule;
use arges_model::cache::PAGE_TOKENS;
use arges_model::model::cuda::{CudaCache, CudaModel, CudaWorkspace};
use arges_model::{
    Accounting, Batch, CachePlan, Config, DType, LoadOptions, LogitRows, SequenceId, WorkspacePlan,
};
use serde_json::{Value, json};

use super::{InferenceArgs, Limits, RandomTokens};
use crate::loading::Opened;
use crate::output;

/// Bytes copied to measure the memory, and the size of the product to measure the multiplication.
pub(super) const COPY_BYTES: usize = 2 << 30;
pub(super) const PRODUCT: usize = 8192;

/// Runs the cases and prints the report.
pub fn inference(args: &InferenceArgs, ordinal: usize) -> Result<()> {
    let cuda = Cuda::open(ordinal)?;
    let limits =
        Limits { bytes: copy_bandwidth(&cuda, COPY_BYTES, 5)?, flops: matrix_rate(&cuda, PRODUCT, 5)? };
    let start = Instant::now();
    let (model, name) = match args.dummy {
        Some(seed) => {
            let path = Path::new(args.model.asked());
            let config = if path.is_dir() { Config::from_dir(path) } else { Config::from_file(path) };
            let compute = args.model.dtype.asked().unwrap_or(Compute::Bf16);
            let name = format!("{}, random weights", path.display());
            (CudaModel::random(&config?, compute, &cuda, seed)?, name)
        }
        None => {
            let opened = Opened::open(&args.model)?;
            let options = args.model.dtype.asked().map(|compute| LoadOptions { compute });
            let options = options.unwrap_or_else(|| LoadOptions::for_checkpoint(&opened.checkpoint));
            (opened.load_cuda(&args.model, options, &cuda)?, opened.source.name().to_owned())
        }
    };
    let load_seconds = start.elapsed().as_secs_f64();
    let mut bench = Bench::new(&model, args, limits)?;
    let mut cases = Vec::new();
    for &context in &args.context {
        for &sequences in &args.decode {
            cases.push(bench.decode(sequences, context, args.steps, args.runs)?);
        }
    }
    for &tokens in &args.prefill {
        cases.push(bench.prefill(tokens, args.runs)?);
    }
    let (config, facts) = (model.config(), cuda.facts());
    let (held, peak) = cuda.allocated();
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": env!("ARGES_COMMIT"),
        "device": {
            "name": facts.name,
            "compute_capability": facts.architecture.to_string(),
            "driver": facts.driver,
            "copy_bytes_per_second": bench.limits.bytes,
            "matrix_flops_per_second": bench.limits.flops,
        },
        "exact": args.exact,
        "model": {
            "name": name,
            "compute": model.compute().to_string(),
            "layers": config.num_layers,
            "hidden_size": config.hidden_size,
            "experts": config.num_experts,
            "parameters": bench.accounting(1).parameters.total,
            "active_parameters": bench.accounting(1).parameters.active_with_head,
        },
        "load_seconds": load_seconds,
        "memory": {
            "weight_bytes": model.weight_bytes(),
            "cache_bytes": bench.cache.bytes(),
            "workspace_bytes": bench.workspace.bytes(),
            "held_bytes": held,
            "peak_bytes": peak,
            "used_by_all": facts.memory - cuda.free_memory()?,
        },
        "cases": cases,
    });
    output::line(&serde_json::to_string_pretty(&report)?)
}

struct Bench<'a> {
    model: &'a CudaModel,
    cache: CudaCache,
    workspace: CudaWorkspace,
    limits: Limits,
    random: RandomTokens,
    profile: bool,
}

impl<'a> Bench<'a> {
    fn new(model: &'a CudaModel, args: &InferenceArgs, limits: Limits) -> Result<Self> {
        let most = |sizes: &[usize]| sizes.iter().copied().max().unwrap_or(1);
        let pages = |tokens: usize| tokens.next_multiple_of(PAGE_TOKENS);
        let decoding = args.context.iter().flat_map(|context| {
            args.decode.iter().map(move |sequences| sequences * pages(context + args.steps + 1))
        });
        let longest = decoding.chain([pages(most(&args.prefill))]).max().unwrap_or(1);
        let sequences = most(&args.decode);
        let plan = CachePlan { max_sequences: sequences, max_tokens: longest };
        let workspace =
            WorkspacePlan { max_tokens: args.step_tokens.max(sequences), max_logit_rows: sequences };
        Ok(Self {
            model,
            cache: CudaCache::new(model, plan)?,
            workspace: CudaWorkspace::new(model, workspace, args.exact)?,
            limits,
            random: RandomTokens::new(model.config().vocab_size),
            profile: args.profile,
        })
    }

    fn accounting(&self, context: usize) -> Accounting {
        let dtype = match self.model.compute() {
            Compute::F32 => DType::F32,
            Compute::Bf16 => DType::Bf16,
        };
        Accounting::of(self.model.config(), context as u64, 1, dtype, dtype)
    }

    fn open(&mut self, length: usize) -> Result<SequenceId> {
        let sequence = self.cache.open().context("the cache has a slot for every sequence of a case")?;
        self.cache.reserve(sequence, length)?;
        Ok(sequence)
    }

    /// Runs one batch and returns the tokens that are most likely to follow.
    fn step(&mut self, batch: &Batch) -> Result<Vec<u32>> {
        let vocab_size = self.model.config().vocab_size;
        let choices = vec![Some((Rule::largest(), None)); batch.logit_rows.len()];
        let Self { model, cache, workspace, .. } = self;
        let chosen = model.forward_choosing(batch, vocab_size, &choices, cache, workspace)?;
        chosen
            .tokens
            .iter()
            .map(|token| token.map(|token| token.id).context("a row of logits of no number"))
            .collect()
    }

    /// Runs a batch once more and tells the milliseconds of each of its kernels.
    fn profiled(&mut self, batch: &Batch) -> Result<Value> {
        let cuda = std::sync::Arc::clone(self.model.cuda());
        let times = cuda.profile(|| self.step(batch).map(|_| ()))?;
        let rows = times.iter().map(
            |time| json!({ "kernel": time.name, "calls": time.calls, "milliseconds": 1e3 * time.seconds }),
        );
        Ok(rows.collect())
    }

    fn prefill(&mut self, tokens: usize, runs: usize) -> Result<Value> {
        let mut seconds = Vec::new();
        let piece = self.workspace.plan().max_tokens;
        let mut used = 0;
        // Seconds at which every hundred thousand tokens were done, in the last run.
        let mut marks = Vec::new();
        for run in 0..=runs {
            let sequence = self.open(tokens)?;
            // One step is enough to warm up.
            let prompt = self.random.take(if run == 0 { tokens.min(piece) } else { tokens });
            let mut batch = Batch::new();
            marks.clear();
            if run == 1 {
                used = self.workspace.experts_used()?;
            }
            let start = Instant::now();
            for (done, part) in prompt.chunks(piece).enumerate() {
                batch.clear();
                let last = (done + 1) * piece >= prompt.len();
                batch.push(sequence, part, if last { LogitRows::Last } else { LogitRows::None });
                self.step(&batch)?;
                if (done * piece) / 100_000 < (done * piece + part.len()) / 100_000 {
                    marks.push(start.elapsed().as_secs_f64());
                }
            }
            seconds.push(start.elapsed().as_secs_f64());
            self.cache.close(sequence);
        }
        let experts = f64::from(self.workspace.experts_used()?.wrapping_sub(used)) / runs as f64;
        let flops = self.accounting(tokens).flops;
        let flops = flops.prefill_token.total * tokens as f64 + flops.decode_token.head;
        let bytes = (tokens.div_ceil(piece) * self.model.dense_bytes()) as f64
            + experts * self.model.expert_bytes() as f64;
        let mut case = self.case(&mut seconds, 1, tokens, bytes, flops);
        case["case"] = json!("prefill");
        case["tokens"] = json!(tokens);
        case["step_tokens"] = json!(piece);
        case["seconds_at_each_100k"] = json!(marks);
        if self.profile {
            let sequence = self.open(tokens.min(piece))?;
            let prompt = self.random.take(tokens.min(piece));
            let mut batch = Batch::new();
            batch.push(sequence, &prompt, LogitRows::Last);
            case["kernels_of_first_step"] = self.profiled(&batch)?;
            self.cache.close(sequence);
        }
        Ok(case)
    }

    /// Decodes from sequences that are `context` tokens long; what their caches hold is random.
    fn decode(&mut self, sequences: usize, context: usize, steps: usize, runs: usize) -> Result<Value> {
        self.cache.fill_random(context as u64)?;
        let (mut seconds, mut experts, mut kernels) = (Vec::new(), 0, Value::Null);
        let mut batch = Batch::new();
        for _ in 0..=runs {
            let mut open = Vec::new();
            for place in 0..sequences {
                let sequence = self.open(context + steps + 1)?;
                // At different places of a chunk, as in service.
                self.cache.skip(sequence, context - (place * 29) % 64.min(context));
                open.push(sequence);
            }
            let mut tokens = self.random.take(sequences);
            let before = self.workspace.experts_used()?;
            let start = Instant::now();
            for _ in 0..steps {
                batch.clear();
                for (sequence, token) in open.iter().zip(&tokens) {
                    batch.push(*sequence, &[*token], LogitRows::Last);
                }
                tokens = self.step(&batch)?;
            }
            seconds.push(start.elapsed().as_secs_f64());
            experts = self.workspace.experts_used()?.wrapping_sub(before);
            if self.profile && kernels.is_null() {
                // The first run does not count, so that a step more does no harm.
                kernels = self.profiled(&batch)?;
            }
            open.into_iter().for_each(|sequence| self.cache.close(sequence));
        }
        let accounting = self.accounting(context + steps / 2);
        let count = sequences * steps;
        let caches = (accounting.memory.kv + accounting.memory.state) as f64 * count as f64;
        let expert_bytes = f64::from(experts) * self.model.expert_bytes() as f64;
        let bytes = (steps * self.model.dense_bytes()) as f64 + expert_bytes + caches;
        let flops = accounting.flops.decode_token.total * count as f64;
        let mut case = self.case(&mut seconds, steps, count, bytes, flops);
        case["case"] = json!("decode");
        case["sequences"] = json!(sequences);
        case["context"] = json!(context);
        case["steps"] = json!(steps);
        if self.profile {
            case["kernels"] = kernels;
        }
        case["expert_bytes_per_step"] = json!(expert_bytes / steps as f64);
        case["experts_per_layer"] =
            json!(f64::from(experts) / (steps * self.model.config().num_layers) as f64);
        Ok(case)
    }

    /// Figures of one case; the first run is left out.
    fn case(&self, seconds: &mut Vec<f64>, steps: usize, tokens: usize, bytes: f64, flops: f64) -> Value {
        seconds.remove(0);
        let runs: Vec<f64> = seconds.iter().map(|seconds| 1e3 * seconds / steps as f64).collect();
        seconds.sort_by(f64::total_cmp);
        let median = seconds[seconds.len() / 2];
        json!({
            "case": null,
            "milliseconds": 1e3 * median / steps as f64,
            "runs_milliseconds": runs,
            "tokens_per_second": tokens as f64 / median,
            "bytes": bytes / steps as f64,
            "share_of_copy_bandwidth": bytes / median / self.limits.bytes,
            "flops": flops / steps as f64,
            "share_of_matrix_rate": flops / median / self.limits.flops,
        })
    }
}
