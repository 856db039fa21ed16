//! `arges inspect`: what a model consists of and what it costs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use arges_model::{Accounting, Checkpoint, Config, DType, Param};
use clap::Args;
use serde::Serialize;

use crate::model_source::{find_config, is_embedded};
use crate::synth::dtype_parser;
use crate::{nano, output};

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct InspectArgs {
    /// A model's directory, its config.json alone, or a Hugging Face id
    /// [default: arges-nano, the small model that is part of the program]
    #[arg(value_name = "DIR|config.json|ID")]
    model: Option<String>,
    /// Tokens of each sequence
    #[arg(long, value_name = "TOKENS", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..))]
    context: u64,
    /// Sequences at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// How weights are stored [default: as they are, or as config.json says, or bf16]
    #[arg(long, value_parser = dtype_parser())]
    dtype: Option<DType>,
    /// How keys and values are cached [default: f32 for f32 weights, else bf16]
    #[arg(long, value_parser = dtype_parser())]
    kv_dtype: Option<DType>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
In a directory that holds weights, every tensor's name, shape and place is checked too.

Examples:
  arges inspect models/MiniMax-M1-40k
  arges inspect config.json --context 1000000 --batch 8
  arges inspect MiniMaxAI/MiniMax-M1-80k --json";

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    accounting: Accounting,
    /// The weight files, where they were looked at.
    files: Option<Files>,
}

/// Weight files that were opened and checked.
#[derive(Serialize)]
struct Files {
    count: usize,
    parameters_placed: usize,
    bytes: u64,
}

pub fn run(args: InspectArgs) -> Result<()> {
    let (config, checkpoint) = match args.model.as_deref() {
        Some(model) if !is_embedded(Some(model)) => open(model)?,
        _ => {
            let checkpoint = nano::checkpoint()?;
            (checkpoint.config().clone(), Some(checkpoint))
        }
    };
    let stored = checkpoint.as_ref().and_then(|c| Some(c.param(Param::Embedding).ok()?.dtype));
    let dtype = args.dtype.or(stored).or(config.stored_dtype).unwrap_or(DType::Bf16);
    let kv_dtype = args.kv_dtype.unwrap_or(if dtype == DType::F32 { DType::F32 } else { DType::Bf16 });
    let accounting = Accounting::of(&config, args.context, args.batch, dtype, kv_dtype);
    let files = checkpoint.map(|checkpoint| Files {
        count: checkpoint.shard_count(),
        parameters_placed: Param::all(&config).count(),
        bytes: checkpoint.weight_bytes() as u64,
    });
    if args.json {
        return output::json(&Report { accounting, files });
    }
    output::write(&text(args.model.as_deref().unwrap_or(nano::NAME), &accounting, files.as_ref())?)
}

/// A model's configuration, and its checkpoint where there are weights.
fn open(model: &str) -> Result<(Config, Option<Checkpoint>)> {
    let path = Path::new(model);
    let path = if path.exists() { path.to_owned() } else { find_config(model)? };
    let checkpoint = open_weights(&path)?;
    let config = match &checkpoint {
        Some(checkpoint) => checkpoint.config().clone(),
        None if path.is_dir() => Config::from_dir(&path)?,
        None => Config::from_file(&path)?,
    };
    Ok((config, checkpoint))
}

/// The checkpoint of a directory that holds weights.
fn open_weights(path: &PathBuf) -> Result<Option<Checkpoint>> {
    if !path.is_dir() {
        return Ok(None);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let is_weights = |entry: std::fs::DirEntry| entry.path().extension().is_some_and(|e| e == "safetensors");
    if !entries.flatten().any(is_weights) {
        return Ok(None);
    }
    let checkpoint = Checkpoint::open(path);
    checkpoint.map(Some).with_context(|| format!("{} is not sound", path.display()))
}

fn text(name: &str, accounting: &Accounting, files: Option<&Files>) -> Result<String> {
    let parameters = &accounting.parameters;
    let (total, active) = (rounded(parameters.total), rounded(parameters.active));
    let mut text = format!("{name}: {total} parameters, {active} active per token\n");
    match files {
        Some(files) => {
            let Files { count, parameters_placed, bytes } = files;
            let plural = if *count == 1 { "" } else { "s" };
            writeln!(
                text,
                "{count} weight file{plural}, sound: {parameters_placed} parameters in their places, {:.2} GiB",
                crate::plan::gib(*bytes)
            )?;
        }
        None => writeln!(text, "no weight files were looked at")?,
    }
    write!(text, "\n{accounting}")?;
    Ok(text)
}

/// A number to three significant digits: 456 B, 45.9 B, 119 M.
pub fn rounded(number: u64) -> String {
    const UNITS: [&str; 5] = ["", " K", " M", " B", " T"];
    let (mut value, mut unit) = (number as f64, 0);
    // What would round to 1000 is shown in the next unit.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_significant_digits() {
        for (number, expected) in [
            (0, "0"),
            (7, "7"),
            (999, "999"),
            (1000, "1.00 K"),
            (99_960, "100 K"),
            (999_600, "1.00 M"),
            (45_874_000_000, "45.9 B"),
            (456_089_655_296, "456 B"),
        ] {
            assert_eq!(rounded(number), expected);
        }
    }
}
