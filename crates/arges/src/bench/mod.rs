//! `arges bench`: speed of prefill, decode and training, each as a share of what the machine can do at best, and of a
//! server under load.

mod cuda;
mod op;
mod serve;
mod train;
mod train_cuda;

use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use arges_kernels::device::cpu::limits::{matrix_rate, read_bandwidth};
use arges_kernels::device::cpu::{Cpu, CpuOptions};
use arges_kernels::matmul::Compute;
use arges_model::{
    Accounting, Batch, Cache, CachePlan, DType, LoadOptions, LogitRows, Model, SequenceId, Workspace,
    WorkspacePlan,
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::args::{DeviceChoice, ModelArgs};
use crate::failure::usage;
use crate::loading::Opened;
use crate::memory::peak_resident;
use crate::output;

/// Bytes read to measure the memory: several times a processor's cache.
const PROBE_BYTES: usize = 256 << 20;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    inference: InferenceArgs,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Speed of a training step with AdamW, on random tokens
    Train(train::TrainBenchArgs),
    /// Speed of one operation on a GPU
    Op(op::OpArgs),
    /// Latency and throughput of a server under load
    Serve(Box<serve::ServeBenchArgs>),
}

#[derive(Debug, Args)]
struct InferenceArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Random weights, made on the GPU from this seed, for the configuration of --model: a directory or a config.json;
    /// for a GPU only
    #[arg(long, value_name = "SEED")]
    dummy: Option<u64>,
    /// On a GPU, compute so that a token's log-probability has the same bits in any batch
    #[arg(long)]
    exact: bool,
    /// On a GPU, also tell how long each kernel takes, in a run of its own in which kernels do not overlap
    #[arg(long)]
    profile: bool,
    /// Prompt lengths to prefill, in tokens
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_values_t = [512, 2048])]
    prefill: Vec<usize>,
    /// Batch sizes to decode at
    #[arg(long, value_name = "SEQUENCES", value_delimiter = ',', default_values_t = [1, 8, 32])]
    decode: Vec<usize>,
    /// Tokens that a sequence holds before its decode is measured
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_values_t = [32])]
    context: Vec<usize>,
    /// Steps of one decode run
    #[arg(long, value_name = "N", default_value_t = 64)]
    steps: usize,
    /// Runs of each case, of which the median is reported; one more goes first and does not count
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Most tokens of a prefill step
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    step_tokens: usize,
}

const EXAMPLES: &str = "\
Prints JSON: for each case tokens per second, the bytes of weights and caches read and the operations done in a
second, and both as shares of what this machine was measured to do at best just before.

Examples:
  arges bench --model random-model
  arges bench --model random-model --prefill 2048 --decode 1,32 --context 32,4096
  arges bench --device cuda --dummy 1 --model config.json --prefill 8192 --decode 1,128 --context 1024
  arges bench op lightning --device cuda
  arges bench train --model random-model --sequences 2 --tokens 2048
  arges bench train --device cuda --dummy 1 --model config.json --sequences 8 --tokens 2048
  arges bench serve --model random-model --clients 16 --requests 200";

/// Runs the cases and prints the report.
///
/// # Errors
/// A model that cannot be loaded, or cases without tokens.
pub fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        Some(What::Train(args)) => train::run(&args),
        Some(What::Op(args)) => op::run(&args),
        Some(What::Serve(args)) => serve::run(&args),
        None => inference(&args.inference),
    }
}

fn inference(args: &InferenceArgs) -> Result<()> {
    let sizes = [&args.prefill, &args.decode, &args.context];
    if sizes.into_iter().flatten().chain([&args.steps, &args.runs, &args.step_tokens]).any(|n| *n == 0) {
        bail!("a bench of 0 tokens, sequences, steps or runs measures nothing: give sizes of at least 1");
    }
    if let DeviceChoice::Cuda(ordinal) = args.model.device {
        return cuda::inference(args, ordinal);
    }
    if args.dummy.is_some() || args.exact || args.profile {
        return Err(usage("--dummy, --exact and --profile are for --device cuda"));
    }
    let opened = Opened::open(&args.model)?;
    let options = args.model.dtype.asked().map(|compute| LoadOptions { compute });
    let options = options.unwrap_or_else(|| LoadOptions::for_checkpoint(&opened.checkpoint));
    // Before the model is there, so that what it takes does not count as the model's.
    let limits = Limits::measure(&args.model, options.compute)?;
    let start = Instant::now();
    let model = opened.load(&args.model, options)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let mut bench = Bench::new(&model, args, limits)?;
    let mut cases = Vec::new();
    for &tokens in &args.prefill {
        cases.push(bench.prefill(tokens, args.runs)?);
    }
    for &context in &args.context {
        for &sequences in &args.decode {
            cases.push(bench.decode(sequences, context, args.steps, args.runs)?);
        }
    }
    let config = model.config();
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": env!("ARGES_COMMIT"),
        "device": device_report(model.cpu(), &bench.limits),
        "model": {
            "name": opened.source.name(),
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
            "peak_resident_bytes": peak_resident(),
        },
        "cases": cases,
    });
    output::line(&serde_json::to_string_pretty(&report)?)
}

/// The best this machine does.
struct Limits {
    bytes: f64,
    flops: f64,
}

impl Limits {
    fn measure(args: &ModelArgs, compute: Compute) -> Result<Self> {
        let cpu = Cpu::new(CpuOptions { threads: args.threads, isa: args.isa })?;
        Ok(Self { bytes: read_bandwidth(&cpu, PROBE_BYTES, 10), flops: matrix_rate(&cpu, compute, 10) })
    }
}

struct Bench<'a> {
    model: &'a Model,
    cache: Cache,
    workspace: Workspace,
    limits: Limits,
    random: RandomTokens,
}

impl<'a> Bench<'a> {
    fn new(model: &'a Model, args: &InferenceArgs, limits: Limits) -> Result<Self> {
        let sequences = args.decode.iter().copied().max().unwrap_or(1);
        let context = args.context.iter().copied().max().unwrap_or(1);
        let page = Cache::page_tokens();
        let longest = args.prefill.iter().copied().max().unwrap_or(1).next_multiple_of(page);
        let decoding = sequences * (context + args.steps).next_multiple_of(page);
        let plan = CachePlan { max_sequences: sequences, max_tokens: longest.max(decoding) };
        let workspace =
            WorkspacePlan { max_tokens: args.step_tokens.max(sequences), max_logit_rows: sequences };
        Ok(Self {
            model,
            cache: Cache::new(model, plan)?,
            workspace: Workspace::new(model, workspace),
            limits,
            random: RandomTokens::new(model.config().vocab_size),
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

    /// Runs `tokens` random tokens of a sequence in steps of the planned size.
    fn fill(&mut self, sequence: SequenceId, mut tokens: usize) -> Result<()> {
        let mut batch = Batch::new();
        while tokens > 0 {
            let piece = self.random.take(tokens.min(self.workspace.plan().max_tokens));
            tokens -= piece.len();
            batch.clear();
            batch.push(sequence, &piece, if tokens == 0 { LogitRows::Last } else { LogitRows::None });
            self.model.forward(&batch, &mut self.cache, &mut self.workspace)?;
        }
        Ok(())
    }

    fn prefill(&mut self, tokens: usize, runs: usize) -> Result<Value> {
        let mut seconds = Vec::new();
        let used = self.workspace.experts_used();
        for _ in 0..=runs {
            let sequence = self.open(tokens)?;
            let start = Instant::now();
            self.fill(sequence, tokens)?;
            seconds.push(start.elapsed().as_secs_f64());
            self.cache.close(sequence);
        }
        let steps = tokens.div_ceil(self.workspace.plan().max_tokens);
        let experts = (self.workspace.experts_used() - used) as f64 / (runs + 1) as f64;
        // The mean over a prompt of that length; the head runs for the last token only.
        let flops = self.accounting(tokens).flops;
        let flops = flops.prefill_token.total * tokens as f64 + flops.decode_token.head;
        let bytes = self.weight_bytes(steps, experts);
        let mut case = self.case(&mut seconds, tokens, bytes, flops);
        case["case"] = json!("prefill");
        case["tokens"] = json!(tokens);
        Ok(case)
    }

    fn decode(&mut self, sequences: usize, context: usize, steps: usize, runs: usize) -> Result<Value> {
        let mut seconds = Vec::new();
        let mut experts = 0;
        let mut batch = Batch::new();
        for _ in 0..=runs {
            let open =
                (0..sequences).map(|_| self.open(context + steps)).collect::<Result<Vec<SequenceId>>>()?;
            for &sequence in &open {
                self.fill(sequence, context)?;
            }
            experts = self.workspace.experts_used();
            let start = Instant::now();
            for _ in 0..steps {
                batch.clear();
                for &sequence in &open {
                    batch.push(sequence, &self.random.take(1), LogitRows::Last);
                }
                self.model.forward(&batch, &mut self.cache, &mut self.workspace)?;
            }
            seconds.push(start.elapsed().as_secs_f64());
            experts = self.workspace.experts_used() - experts;
            open.into_iter().for_each(|sequence| self.cache.close(sequence));
        }
        let middle = context + steps / 2;
        let accounting = self.accounting(middle);
        let tokens = sequences * steps;
        let caches = (accounting.memory.kv + accounting.memory.state) as f64 * tokens as f64;
        let flops = accounting.flops.decode_token.total * tokens as f64;
        let bytes = self.weight_bytes(steps, experts as f64) + caches;
        let mut case = self.case(&mut seconds, tokens, bytes, flops);
        case["case"] = json!("decode");
        case["sequences"] = json!(sequences);
        case["context"] = json!(context);
        case["steps"] = json!(steps);
        Ok(case)
    }

    /// Bytes of weights that steps read which used `experts` experts in all.
    fn weight_bytes(&self, steps: usize, experts: f64) -> f64 {
        (steps * self.model.dense_bytes()) as f64 + experts * self.model.expert_bytes() as f64
    }

    /// Figures of one case; the first run is left out.
    fn case(&self, seconds: &mut Vec<f64>, tokens: usize, bytes: f64, flops: f64) -> Value {
        seconds.remove(0);
        let runs: Vec<f64> = seconds.iter().map(|seconds| tokens as f64 / seconds).collect();
        seconds.sort_by(f64::total_cmp);
        let median = seconds[seconds.len() / 2];
        json!({
            "case": null,
            "tokens_per_second": tokens as f64 / median,
            "runs": runs,
            "seconds": median,
            "bytes_read": bytes,
            "share_of_read_bandwidth": bytes / median / self.limits.bytes,
            "flops": flops,
            "share_of_matrix_rate": flops / median / self.limits.flops,
        })
    }
}

/// Token ids without meaning, the same in every run.
struct RandomTokens {
    state: u64,
    vocab_size: u64,
}

impl RandomTokens {
    fn new(vocab_size: usize) -> Self {
        Self { state: 1, vocab_size: vocab_size as u64 }
    }

    fn take(&mut self, count: usize) -> Vec<u32> {
        let mut next = || {
            self.state =
                self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.state >> 33) % self.vocab_size) as u32
        };
        (0..count).map(|_| next()).collect()
    }
}

/// What the figures were measured on.
fn device_report(cpu: &Cpu, limits: &Limits) -> Value {
    json!({
        "name": cpu_name(),
        "isa": cpu.isa().to_string(),
        "threads": cpu.pool().threads(),
        "read_bytes_per_second": limits.bytes,
        "flops_per_second": limits.flops,
    })
}

/// The processor's name, where the system tells it.
fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
