//! `arges synth`: a random model of any size.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use arges_model::checkpoint::{DEFAULT_SHARD_BYTES, copy_tokenizer_files};
use arges_model::synth::{SynthOptions, SynthProgress, SynthShape, write_checkpoint};
use arges_model::{Accounting, Config, DType, Dialect};
use arges_text::MIN_VOCAB_SIZE;
use arges_text::synthetic::write_tokenizer;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::args::at_least_1;
use crate::inspect::rounded;
use crate::progress::bytes_bar;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SynthArgs {
    /// Directory to write to
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Take all sizes from this config.json instead of the flags
    #[arg(long, value_name = "FILE", conflicts_with_all = SHAPE_FLAGS)]
    config: Option<PathBuf>,
    /// Seed of the weights: the same seed and sizes give the same weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// How the weights are stored
    #[arg(long, value_parser = dtype_parser(), default_value = "bf16")]
    dtype: DType,
    /// Write no tokenizer: the model then takes token ids alone
    #[arg(long)]
    no_tokenizer: bool,
    /// Most bytes of one weight file
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_SHARD_BYTES)]
    shard_bytes: u64,
    /// Write into a directory that is not empty; a checkpoint in it is replaced
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    shape: ShapeArgs,
}

const EXAMPLES: &str = "\
Weights are drawn from a normal distribution, so the model is untrained and what it writes means nothing. \
They go to disk as they are made: the size is bounded by the disk and not by memory. A tokenizer of the \
right size is written too, with a chat template in M1's format.

Examples:
  arges synth random-model
  arges synth tiny --hidden 64 --layers 8 --vocab 512 --dtype f32
  arges synth wide --config MiniMax-M1-40k/config.json --seed 7";

const SHAPE_FLAGS: [&str; 15] = [
    "dialect",
    "hidden",
    "layers",
    "heads",
    "kv_heads",
    "head_dim",
    "rotary_dim",
    "softmax_every",
    "experts",
    "experts_per_token",
    "intermediate",
    "shared_intermediate",
    "vocab",
    "max_positions",
    "tie_embeddings",
];

/// Sizes of the model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sizes of the model (M1's form, in small, unless given)")]
struct ShapeArgs {
    /// Form of configuration and tensor names
    #[arg(long, value_parser = dialect_parser(), default_value = Dialect::MiniMaxM1.model_type())]
    dialect: Dialect,
    /// Width of the residual stream
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_1)]
    hidden: usize,
    /// Layers
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_1)]
    layers: usize,
    /// Attention heads
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_1)]
    heads: usize,
    /// Key-value heads of softmax attention [default: a quarter of the heads]
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    kv_heads: Option<usize>,
    /// Channels of a head
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_1)]
    head_dim: usize,
    /// Channels of a head that rope rotates [default: half of them, all in dialect minimax, as transformers does]
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    rotary_dim: Option<usize>,
    /// Every how many layers softmax attention stands; 0 is in none
    #[arg(long, value_name = "N", default_value_t = 8)]
    softmax_every: usize,
    /// Experts of a layer; 1 is a plain MLP
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_1)]
    experts: usize,
    /// Experts that see one token [default: 2, or as many as there are]
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    experts_per_token: Option<usize>,
    /// Inner width of an expert [default: twice the hidden width]
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    intermediate: Option<usize>,
    /// Inner width of an MLP that every token passes beside its experts; 0 is none
    #[arg(long, value_name = "N", default_value_t = 0)]
    shared_intermediate: usize,
    /// Tokens of the vocabulary
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = at_least_1)]
    vocab: usize,
    /// Longest sequence that the configuration allows
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = at_least_1)]
    max_positions: usize,
    /// Use the embedding's weights for the head too
    #[arg(long)]
    tie_embeddings: bool,
}

impl ShapeArgs {
    fn shape(&self) -> SynthShape {
        // transformers rotates whole heads in its own dialect, whatever the configuration says.
        let rotated = match self.dialect {
            Dialect::MiniMax => self.head_dim,
            Dialect::MiniMaxM1 | Dialect::MiniMaxText01 => (self.head_dim / 4 * 2).max(2),
        };
        let quarter = (1..=self.heads / 4).rev().find(|kv_heads| self.heads.is_multiple_of(*kv_heads));
        SynthShape {
            dialect: self.dialect,
            hidden: self.hidden,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads.or(quarter).unwrap_or(1),
            head_dim: self.head_dim,
            rotary_dim: self.rotary_dim.unwrap_or(rotated),
            softmax_every: self.softmax_every,
            experts: self.experts,
            experts_per_token: self.experts_per_token.unwrap_or(self.experts.min(2)),
            intermediate: self.intermediate.unwrap_or(2 * self.hidden),
            shared_intermediate: self.shared_intermediate,
            vocab: self.vocab,
            max_positions: self.max_positions,
            tie_embeddings: self.tie_embeddings,
        }
    }
}

pub fn dtype_parser() -> impl TypedValueParser<Value = DType> {
    PossibleValuesParser::new(["bf16", "f32", "f16"]).try_map(|name| name.parse::<DType>())
}

fn dialect_parser() -> impl TypedValueParser<Value = Dialect> {
    PossibleValuesParser::new(Dialect::ALL.map(Dialect::model_type))
        .try_map(|name| Dialect::from_model_type(&name).ok_or_else(|| format!("unknown dialect {name}")))
}

pub fn run(args: SynthArgs) -> Result<()> {
    let mut config = match &args.config {
        Some(path) if path.is_dir() => Config::from_dir(path)?,
        Some(file) => Config::from_file(file)?,
        None => args.shape.shape().config()?,
    };
    let tokenizer = make_tokenizer(&mut config, args.no_tokenizer)?;
    let options = SynthOptions {
        seed: args.seed,
        dtype: args.dtype,
        shard_bytes: args.shard_bytes,
        overwrite: args.overwrite,
        ..SynthOptions::default()
    };
    let bar = bytes_bar("writing", 0);
    let mut progress = |state: SynthProgress| {
        bar.set_length(state.bytes_total);
        bar.set_position(state.bytes_done);
    };
    write_checkpoint(&config, &args.out, &options, &mut progress)
        .with_context(|| format!("cannot write a model to {}", args.out.display()))?;
    bar.finish_and_clear();
    if let Some(directory) = tokenizer {
        copy_tokenizer_files(directory.path(), &args.out)?;
    }
    tell(&config, &args.out, args.dtype);
    Ok(())
}

/// Makes a tokenizer in a directory of its own, for the checkpoint's is not there yet, and enters its special
/// tokens into the configuration. None for a vocabulary that is too small for one.
fn make_tokenizer(config: &mut Config, none: bool) -> Result<Option<tempfile::TempDir>> {
    if none {
        return Ok(None);
    }
    if config.vocab_size < MIN_VOCAB_SIZE {
        eprintln!(
            "no tokenizer: it needs a vocabulary of {MIN_VOCAB_SIZE} and not {}; the model takes token ids alone",
            config.vocab_size
        );
        return Ok(None);
    }
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let ids = write_tokenizer(directory.path(), config.vocab_size)?;
    config.bos_token_id = Some(ids.beginning_of_sentence);
    config.eos_token_ids = vec![ids.end_of_sentence];
    Ok(Some(directory))
}

fn tell(config: &Config, out: &Path, dtype: DType) {
    let accounting = Accounting::of(config, 1, 1, dtype, dtype);
    eprintln!(
        "{}: a random, untrained model of {} parameters, {} of them active per token, in {dtype}",
        out.display(),
        rounded(accounting.parameters.total),
        rounded(accounting.parameters.active)
    );
}
