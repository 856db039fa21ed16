//! Arguments that several subcommands share, and how they are read.

use arges_engine::{SamplingParams, StopConditions};
use arges_kernels::device::cpu::Isa;
use arges_kernels::matmul::Compute;
use clap::{Args, ValueEnum};

use crate::failure::usage;
use crate::nano;

/// Which model, and on what it runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Directory of a checkpoint in Hugging Face layout, or a Hugging Face id (owner/name, owner/name@revision),
    /// which is downloaded once into the Hugging Face cache; a path that exists comes first
    /// [default: arges-nano, the small model that is part of the program]
    #[arg(short, long, value_name = "DIR|ID")]
    pub model: Option<String>,
    /// What to run on: auto (the first GPU where there is one, and its driver and compiler, and the model fits; else the
    /// CPU), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = str::parse::<DeviceChoice>)]
    pub device: DeviceChoice,
    /// Precision to compute in; auto is that of the stored weights
    #[arg(long, value_enum, default_value_t = ComputeType::Auto)]
    pub dtype: ComputeType,
    /// Threads to compute with [default: one a core]
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    pub threads: Option<usize>,
    /// Instruction set: plain, avx2, avx512, avx512bf16 or amx [default: the best this machine has]
    #[arg(long, value_name = "NAME", value_parser = instruction_set)]
    pub isa: Option<Isa>,
}

impl ModelArgs {
    /// The model as it was asked for.
    pub fn asked(&self) -> &str {
        self.model.as_deref().unwrap_or(nano::NAME)
    }
}

/// What a model is to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    Auto,
    Cpu,
    Cuda(usize),
}

impl std::str::FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |n: &str| n.parse().map_err(|error| format!("`{n}` is no number of a GPU: {error}"));
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => match text.strip_prefix("cuda:") {
                Some(n) => number(n).map(Self::Cuda),
                None => Err("expected auto, cpu, cuda or cuda:N".to_owned()),
            },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ComputeType {
    Auto,
    F32,
    Bf16,
}

impl ComputeType {
    /// The precision asked for, if any was.
    pub fn asked(self) -> Option<Compute> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(Compute::F32),
            Self::Bf16 => Some(Compute::Bf16),
        }
    }
}

/// Sizes fixed at the start; what is not given is planned from the model and the free memory.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Sizes (planned from the model and the free memory unless given)")]
pub struct EngineArgs {
    /// Longest prompt and answer together, in tokens
    #[arg(long, value_name = "TOKENS", value_parser = at_least_1)]
    pub context: Option<usize>,
    /// Sequences that may run at once
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    pub max_sequences: Option<usize>,
    /// Tokens in the key-value cache, over all sequences
    #[arg(long, value_name = "TOKENS", value_parser = at_least_1)]
    pub kv_tokens: Option<usize>,
    /// Most tokens of one step: larger reads prompts faster, smaller lets running answers wait less
    #[arg(long, value_name = "TOKENS", value_parser = at_least_1)]
    pub step_tokens: Option<usize>,
    /// Requests that may wait; only a server has a flag for it
    #[arg(skip)]
    pub max_queue: Option<usize>,
    /// Memory for states of earlier requests, from which those that begin alike go on; such as 4G or 512M, or `off`. On a
    /// GPU, the GPU's
    #[arg(long, value_name = "SIZE|off", value_parser = memory_size)]
    pub prefix_cache: Option<u64>,
    /// The host's memory to which a GPU's states are moved when that is full
    #[arg(long, value_name = "SIZE", value_parser = memory_size)]
    pub prefix_cache_host: Option<u64>,
    /// Try guesses of what an answer says next, `ngram` or `ngram:MOST`, taken from where its own tokens, prompt included,
    /// said the same before; or `off`. They are tried where they pay, and change no token [default: ngram:8]
    #[arg(long, value_name = "ngram[:MOST]|off", value_parser = drafts)]
    pub speculate: Option<usize>,
    /// On a GPU, give every token's log-probability the same bits alone or in any batch; slower. The CPU always does
    #[arg(long)]
    pub exact: bool,
}

/// How tokens are chosen. The temperature's default is the subcommand's.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Keep the fewest most likely tokens that together have this probability; 1 keeps all
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true)]
    pub top_p: f32,
    /// Keep this many of the most likely tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Keep tokens at least this many times as likely as the most likely one; 0 keeps all
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    pub min_p: f32,
    /// Divide the logits of tokens seen so far, prompt included; 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    pub repetition_penalty: f32,
    /// Take this off a token's logit for every time it was generated
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Take this off the logit of every token generated so far
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Add X to the logit of token ID; may be repeated
    #[arg(long, value_name = "ID=X", value_parser = logit_bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random choices; equal seeds give equal answers [default: a new one each time]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl SamplingArgs {
    /// The parameters at that temperature.
    ///
    /// # Errors
    /// The first one out of its range.
    pub fn params(&self, temperature: f32) -> anyhow::Result<SamplingParams> {
        let params = SamplingParams {
            temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            repetition_penalty: self.repetition_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
        };
        let flag = |name: &str| format!("--{}", name.replace('_', "-"));
        params.validate().map_err(|error| usage(format!("{} {}", flag(error.name), error.reason)))?;
        Ok(params)
    }
}

/// When an answer ends, beside its length.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "End of the answer")]
pub struct StopArgs {
    /// End before this text; may be repeated
    #[arg(long, value_name = "TEXT", value_parser = not_empty)]
    pub stop: Vec<String>,
    /// End after this token; may be repeated
    #[arg(long, value_name = "ID")]
    pub stop_token: Vec<u32>,
    /// Go on past the model's own end token
    #[arg(long)]
    pub ignore_eos: bool,
    /// Do not end before this many tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub min_tokens: usize,
}

impl StopArgs {
    pub fn conditions(&self) -> StopConditions {
        StopConditions {
            strings: self.stop.clone(),
            tokens: self.stop_token.clone(),
            ignore_eos: self.ignore_eos,
            min_tokens: self.min_tokens,
            repetition: None,
        }
    }
}

/// Bytes, from a number with an optional unit of 1024, or `off`.
fn memory_size(text: &str) -> Result<u64, String> {
    if text == "off" {
        return Ok(0);
    }
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].trim_end_matches("iB").trim_end_matches('B') {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        unit => return Err(format!("`{unit}` is no unit; expected K, M, G or T")),
    };
    let number: u64 =
        digits.parse().map_err(|_| "expected a size such as 512M or 4G, or `off`".to_owned())?;
    number.checked_mul(1_u64 << shift).ok_or_else(|| "is larger than memory can be".to_owned())
}

/// Guesses of a step.
fn drafts(text: &str) -> Result<usize, String> {
    match text.split_once(':') {
        None if text == "off" => Ok(0),
        None if text == "ngram" => Ok(crate::plan::DRAFTS),
        Some(("ngram", most)) => match at_least_1(most)? {
            most @ 1..=63 => Ok(most),
            most => Err(format!("at most 63 tokens can be guessed at once, not {most}")),
        },
        _ => Err("expected `ngram`, `ngram:MOST` or `off`".to_owned()),
    }
}

/// A number from 1.
pub fn at_least_1(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}

pub fn instruction_set(name: &str) -> Result<Isa, String> {
    name.parse::<Isa>().and_then(Isa::require).map_err(|error| error.to_string())
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once('=').ok_or("expected a token id and a number, as in 42=-1.5")?;
    let id = id.parse().map_err(|error| format!("`{id}` is not a token id: {error}"))?;
    let bias = bias.parse().map_err(|error| format!("`{bias}` is not a number: {error}"))?;
    Ok((id, bias))
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn a_bias_is_an_id_and_a_number() {
        assert_eq!(logit_bias("42=-1.5"), Ok((42, -1.5)));
        for wrong in ["42", "x=1", "1=x"] {
            assert!(logit_bias(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_units_of_1024_and_off_is_nothing() {
        let sizes = ["off", "0", "100", "3K", "512M", "4GiB", "2tB"].map(memory_size);
        let expected = [0, 0, 100, 3 << 10, 512 << 20, 4 << 30, 2 << 40];
        assert_eq!(sizes, expected.map(Ok));
        for bad in ["", "G", "4X", "-1", "1.5G", "99999999999T"] {
            assert!(memory_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn guesses_are_off_or_so_many() {
        let counts = ["off", "ngram", "ngram:1", "ngram:63"].map(drafts);
        assert_eq!(counts, [0, crate::plan::DRAFTS, 1, 63].map(Ok));
        for bad in ["", "on", "ngram:", "ngram:0", "ngram:64", "model:3"] {
            assert!(drafts(bad).is_err(), "{bad}");
        }
    }
}
