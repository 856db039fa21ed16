//! `arges bench op`: single operations of M1's shapes on a GPU, timed by the device's own clock over a graph of several
//! calls.

mod products;
mod training;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use arges_kernels::device::cuda::limits::{copy_bandwidth, matrix_rate};
use arges_kernels::device::cuda::{Activations, Buffer, Cuda, CudaError, Fill, Timer};
use arges_kernels::lightning::cuda::{DeviceCache, DeviceDecays, Inputs, LightningCuda};
use arges_kernels::lightning::{CHUNK, Decays, Shape};
use arges_kernels::matmul::Element;
use arges_kernels::rope::Frequencies;
use arges_kernels::rope::cuda::DeviceAngles;
use arges_kernels::softmax_attention::cuda::{DevicePages, SoftmaxCuda};
use arges_kernels::softmax_attention::{self, PAGE};
use arges_model::Config;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::args::{DeviceChoice, at_least_1};
use crate::failure::usage;
use crate::output;

/// Calls of one replay.
const CALLS: usize = 4;
const HEADS: usize = 64;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const ROTARY_DIM: usize = 64;

#[derive(Debug, Args)]
pub struct OpArgs {
    /// The operation
    #[arg(value_enum)]
    op: Op,
    /// cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cuda", value_parser = str::parse::<DeviceChoice>)]
    device: DeviceChoice,
    /// Prompt lengths, with --backward those of the sequences, or for products the tokens of a step
    #[arg(long, value_name = "TOKENS", value_delimiter = ',', default_values_t = [2048, 8192, 32768, 131_072])]
    prefill: Vec<usize>,
    /// Batch sizes to decode at
    #[arg(long, value_name = "SEQUENCES", value_delimiter = ',', default_values_t = [1, 8, 32, 128, 256])]
    decode: Vec<usize>,
    /// Of products: a model's directory or config.json, whose products are measured
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Measure training instead: the forward pass, the backward pass, and both; products with their gradients
    #[arg(long)]
    backward: bool,
    /// Heads of lightning attention
    #[arg(long, value_name = "N", default_value_t = HEADS, value_parser = at_least_1)]
    heads: usize,
    /// Sequences of each length in a batch, for lightning attention's --backward
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_1)]
    sequences: usize,
    /// Tokens that a sequence holds when its decode is measured; their places in a chunk are random
    #[arg(long, value_name = "TOKENS", default_value_t = 1024, value_parser = at_least_1)]
    context: usize,
    /// Replays, of which the median is reported; one more goes first and does not count
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = at_least_1)]
    runs: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Op {
    /// Lightning attention of heads of 128 channels, bf16
    Lightning,
    /// Softmax attention of 64 heads over 8 key-value heads of 128 channels, bf16
    Softmax,
    /// The products of a layer of a model and of its head, bf16
    Products,
}

fn config(path: &Path) -> Result<Config> {
    let config = if path.is_dir() { Config::from_dir(path) } else { Config::from_file(path) };
    config.with_context(|| format!("the model {}", path.display()))
}

/// Measures the operation and prints the report.
pub fn run(args: &OpArgs) -> Result<()> {
    let DeviceChoice::Cuda(ordinal) = args.device else {
        return Err(usage("`arges bench op` is for --device cuda"));
    };
    if args.op != Op::Lightning && args.heads != HEADS {
        return Err(usage("--heads is for lightning attention"));
    }
    if args.sequences != 1 && !(args.op == Op::Lightning && args.backward) {
        return Err(usage("--sequences is for lightning attention's --backward"));
    }
    let config = match (args.op, &args.model) {
        (Op::Products, None) => return Err(usage("products are those of a model: name one with --model")),
        (Op::Products, Some(path)) => Some(config(path)?),
        (_, Some(_)) => return Err(usage("--model is for products")),
        (_, None) => None,
    };
    let cuda = Cuda::open(ordinal)?;
    let bench = Bench {
        bandwidth: copy_bandwidth(&cuda, 2 << 30, 5)?,
        rate: matrix_rate(&cuda, 8192, 5)?,
        fill: Fill::new(&cuda)?,
        timer: Timer::new(&cuda)?,
        cuda,
        runs: args.runs,
        context: args.context,
        heads: args.heads,
    };
    let mut cases = Vec::new();
    for &tokens in &args.prefill {
        match (args.op, args.backward, &config) {
            (Op::Lightning, false, _) => cases.push(bench.lightning_prefill(tokens)?),
            (Op::Lightning, true, _) => cases.push(bench.lightning_training(args.sequences, tokens)?),
            (Op::Softmax, false, _) => cases.push(bench.softmax_prefill(tokens)?),
            (Op::Softmax, true, _) => cases.push(bench.softmax_training(tokens)?),
            (Op::Products, backward, Some(config)) => {
                cases.extend(bench.products(config, tokens, backward)?);
            }
            (Op::Products, _, None) => {}
        }
    }
    for &sequences in if args.backward { &[][..] } else { &args.decode } {
        match args.op {
            Op::Lightning => cases.push(bench.lightning_decode(sequences)?),
            Op::Softmax => cases.push(bench.softmax_decode(sequences)?),
            // Decoding is of the bytes of the weights: see `arges bench`.
            Op::Products => {}
        }
    }
    let facts = bench.cuda.facts();
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": env!("ARGES_COMMIT"),
        "device": {
            "name": facts.name,
            "copy_bytes_per_second": bench.bandwidth,
            "matrix_flops_per_second": bench.rate,
        },
        "op": format!("{:?}", args.op).to_lowercase(),
        "heads": args.heads,
        "sequences": args.sequences,
        "cases": cases,
    });
    output::line(&serde_json::to_string_pretty(&report)?)
}

struct Bench {
    cuda: Arc<Cuda>,
    bandwidth: f64,
    rate: f64,
    fill: Fill,
    timer: Timer,
    runs: usize,
    context: usize,
    /// Of lightning attention.
    heads: usize,
}

impl Bench {
    fn random(&self, len: usize) -> Result<Activations, CudaError> {
        let mut values = Activations::zeroed(&self.cuda, Element::Bf16, len)?;
        self.fill.normal(&mut values, len as u64, 1.0)?;
        Ok(values)
    }

    /// Median seconds of one of the calls that `body` makes, given their number.
    fn time(&self, mut body: impl FnMut(usize) -> Result<(), CudaError>) -> Result<f64, CudaError> {
        let mut graph = self.cuda.capture(|| (0..CALLS).try_for_each(&mut body))?;
        let mut seconds = Vec::new();
        for _ in 0..=self.runs {
            self.timer.start()?;
            graph.replay()?;
            seconds.push(self.timer.stop()? / CALLS as f64);
        }
        seconds.remove(0);
        seconds.sort_by(f64::total_cmp);
        Ok(seconds[seconds.len() / 2])
    }

    fn case(&self, name: &str, size: usize, seconds: f64, bytes: f64, flops: f64) -> Value {
        json!({
            "case": name,
            "size": size,
            "milliseconds": 1e3 * seconds,
            "bytes": bytes,
            "share_of_copy_bandwidth": bytes / seconds / self.bandwidth,
            "flops": flops,
            "share_of_matrix_rate": flops / seconds / self.rate,
        })
    }

    /// Places that sequences have come to, somewhere in the chunk around the context.
    fn position(&self, sequence: usize) -> usize {
        self.context / CHUNK * CHUNK + sequence.wrapping_mul(2_654_435_761) / 64 % CHUNK
    }

    fn lightning(&self) -> Result<(LightningCuda, DeviceDecays), CudaError> {
        let heads = self.heads;
        let slopes: Vec<f64> = (1..=heads).map(|h| (-8.0 * h as f64 / heads as f64).exp2()).collect();
        let shape = Shape { heads, head_dim: HEAD_DIM };
        let decays = DeviceDecays::new(&self.cuda, &Decays::new(&slopes))?;
        Ok((LightningCuda::new(&self.cuda, shape, Element::Bf16)?, decays))
    }

    fn lightning_prefill(&self, tokens: usize) -> Result<Value> {
        let (op, decays) = self.lightning()?;
        let stride = 4 * self.heads * HEAD_DIM;
        let projected = self.random(tokens * stride)?;
        let mut out = Activations::zeroed(&self.cuda, Element::Bf16, tokens * self.heads * HEAD_DIM)?;
        let shape = Shape { heads: self.heads, head_dim: HEAD_DIM };
        let mut cache = DeviceCache::new(&self.cuda, shape, Element::Bf16, 1)?;
        let spans = Buffer::from_slice(&self.cuda, &[[0, tokens as i32, 0, 0]])?;
        let inputs = Inputs {
            decays: &decays,
            projected: &projected,
            stride,
            spans: &spans,
            first_span: 0,
            span_count: 1,
        };
        let seconds = self.time(|_| op.prefill(&inputs, &mut cache, &mut out))?;
        let width = (self.heads * HEAD_DIM) as f64;
        let bytes = 8.0 * tokens as f64 * width;
        // q k^T and its product with v within a chunk, and both with the state.
        let flops = tokens as f64 * width * (4 * CHUNK + 4 * HEAD_DIM) as f64;
        Ok(self.case("prefill", tokens, seconds, bytes, flops))
    }

    fn lightning_decode(&self, sequences: usize) -> Result<Value> {
        let (op, decays) = self.lightning()?;
        let shape = Shape { heads: self.heads, head_dim: HEAD_DIM };
        let stride = 4 * self.heads * HEAD_DIM;
        // So many slots that no state is still in the cache when its turn comes again.
        let slots = sequences.max(256 / sequences * sequences);
        let mut cache = DeviceCache::new(&self.cuda, shape, Element::Bf16, slots)?;
        cache.fill_random(&self.fill, 1)?;
        let projected = self.random(sequences * stride)?;
        let mut out = Activations::zeroed(&self.cuda, Element::Bf16, sequences * self.heads * HEAD_DIM)?;
        let span = |i: usize| [(i % sequences) as i32, 1, self.position(i) as i32, i as i32];
        let spans = Buffer::from_slice(&self.cuda, &(0..slots).map(span).collect::<Vec<_>>())?;
        let seconds = self.time(|call| {
            let inputs = Inputs {
                decays: &decays,
                projected: &projected,
                stride,
                spans: &spans,
                first_span: call * sequences % slots,
                span_count: sequences,
            };
            op.decode(&inputs, &mut cache, &mut out)
        })?;
        let state = (4 * HEAD_DIM * HEAD_DIM) as f64;
        let row = (2 * HEAD_DIM) as f64;
        // State and unfinished chunk are read; the new key and value, or the new state, written; and q, k, v, o.
        let of_head = |i: usize| {
            let place = self.position(i) % CHUNK;
            let written = if place + 1 == CHUNK { state } else { 2.0 * row };
            state + 2.0 * row * place as f64 + written + 4.0 * row
        };
        let bytes = (0..sequences).map(of_head).sum::<f64>() * self.heads as f64;
        let flops = (sequences * self.heads * 4 * HEAD_DIM * HEAD_DIM) as f64;
        let mut case = self.case("decode", sequences, seconds, bytes, flops);
        // What an engine moves that reads and writes the whole state, with q, k, v and o in f32.
        let whole = (sequences * self.heads) as f64 * (2.0 * state + 8.0 * row);
        case["share_of_reading_and_writing_whole_states"] = json!(bytes / whole);
        Ok(case)
    }

    fn softmax_shape() -> softmax_attention::Shape {
        softmax_attention::Shape {
            heads: HEADS,
            kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            rotary_dim: ROTARY_DIM,
        }
    }

    /// Runs an attention over `sequences` of `rows` new tokens after `position` old ones; `decode` says which way.
    fn softmax(&self, sequences: usize, rows: usize, position: usize, decode: bool) -> Result<f64> {
        let shape = Self::softmax_shape();
        let mut op = SoftmaxCuda::new(&self.cuda, shape, Element::Bf16)?;
        let (count, stride) = (sequences * rows, (HEADS + 2 * KV_HEADS) * HEAD_DIM);
        let per_sequence = (position + rows).div_ceil(PAGE);
        let mut pages = DevicePages::new(&self.cuda, shape, sequences * per_sequence, Element::Bf16)?;
        self.fill.normal(pages.data_mut(), 3, 1.0)?;
        let table: Vec<i32> = (0..(sequences * per_sequence) as i32).collect();
        let tables = Buffer::from_slice(&self.cuda, &table)?;
        let span = |i: usize| [(i * rows) as i32, rows as i32, position as i32, i as i32];
        let spans = Buffer::from_slice(&self.cuda, &(0..sequences).map(span).collect::<Vec<_>>())?;
        let mut projected = self.random(count * stride)?;
        let mut out = Activations::zeroed(&self.cuda, Element::Bf16, count * HEADS * HEAD_DIM)?;
        let mut angles = DeviceAngles::new(&self.cuda, &Frequencies::new(1e7, ROTARY_DIM), count)?;
        angles.fill(&spans, 0, sequences, count)?;
        let inputs = softmax_attention::cuda::Inputs {
            rows: count,
            spans: &spans,
            first_span: 0,
            span_count: sequences,
            tables: &tables,
            table_stride: per_sequence,
        };
        op.append(&mut projected, stride, &inputs, &angles, &mut pages)?;
        let context = position + rows;
        Ok(self.time(|_| match decode {
            true => op.decode(&projected, stride, &inputs, context, &pages, &mut out),
            false => op.prefill(&projected, stride, &inputs, &pages, &mut out),
        })?)
    }

    fn softmax_prefill(&self, tokens: usize) -> Result<Value> {
        let seconds = self.softmax(1, tokens, 0, false)?;
        let (t, width) = (tokens as f64, (HEADS * HEAD_DIM) as f64);
        let bytes = 2.0 * t * (2.0 * width + (2 * KV_HEADS * HEAD_DIM) as f64);
        Ok(self.case("prefill", tokens, seconds, bytes, 4.0 * width * t * (t + 1.0) / 2.0))
    }

    fn softmax_decode(&self, sequences: usize) -> Result<Value> {
        let seconds = self.softmax(sequences, 1, self.context, true)?;
        let keys = (sequences * (self.context + 1)) as f64;
        let bytes = keys * (2 * 2 * KV_HEADS * HEAD_DIM) as f64;
        let flops = keys * (4 * HEADS * HEAD_DIM) as f64;
        let mut case = self.case("decode", sequences, seconds, bytes, flops);
        case["context"] = json!(self.context);
        Ok(case)
    }
}
