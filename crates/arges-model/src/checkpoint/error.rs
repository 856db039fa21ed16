//! Why a checkpoint cannot be opened or written.

use std::io;
use std::path::PathBuf;

use super::header::HeaderError;
use crate::config::ConfigError;
use crate::params::Param;

/// Why a checkpoint cannot be used. Every variant names the file, and the tensor where there is one.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read {}: {source}", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error(
        "{} holds no weights: neither model.safetensors nor model.safetensors.index.json is there",
        directory.display()
    )]
    NoWeights { directory: PathBuf },
    #[error("{}: {reason}", file.display())]
    Index { file: PathBuf, reason: String },
    #[error("{}: {source}", file.display())]
    Header { file: PathBuf, source: HeaderError },
    #[error("tensor `{tensor}` with shape {expected:?} is missing from {}{}", file.display(), and_more(*others))]
    Missing { tensor: String, expected: Vec<usize>, file: PathBuf, others: usize },
    #[error(
        "{}: tensor `{tensor}` with shape {shape:?} is no part of the model that config.json describes{}",
        file.display(), and_more(*others)
    )]
    Extra { tensor: String, shape: Vec<usize>, file: PathBuf, others: usize },
    #[error("{}: tensor `{tensor}` has shape {found:?}, but config.json asks for {expected:?}", file.display())]
    Misshapen { tensor: String, expected: Vec<usize>, found: Vec<usize>, file: PathBuf },
    #[error("{}: tensor `{tensor}` is stored as {found}; f32, bf16 and f16 are supported", file.display())]
    DType { tensor: String, found: String, file: PathBuf },
    #[error("tensor `{tensor}` is in both {} and {}", first.display(), second.display())]
    Duplicate { tensor: String, first: PathBuf, second: PathBuf },
    #[error("tensor `{tensor}` should be in {} by the index, but is not", file.display())]
    NotInShard { tensor: String, file: PathBuf },
    #[error("{}: tensor `{tensor}` is not listed in the index", file.display())]
    Unlisted { tensor: String, file: PathBuf },
    #[error(
        "{}: `tie_word_embeddings` is true, but tensor `{tensor}` differs from the embedding",
        file.display()
    )]
    HeadNotTied { tensor: String, file: PathBuf },
    #[error("the model has no parameter {param:?}")]
    NoSuchParam { param: Param },
}

/// Why a checkpoint cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot write {}: {source}", file.display())]
    Write { file: PathBuf, source: io::Error },
    #[error("cannot copy {}: {source}", file.display())]
    Copy { file: PathBuf, source: io::Error },
    #[error("{} is not empty; choose another directory or ask for overwriting", directory.display())]
    NotEmpty { directory: PathBuf },
    #[error("the model has no parameter {param:?}")]
    NoSuchParam { param: Param },
    #[error("tensor `{tensor}` was begun twice")]
    Twice { tensor: String },
    #[error("tensor `{tensor}` takes {expected} bytes, but {found} were given")]
    Length { tensor: String, expected: u64, found: u64 },
    #[error("tensor `{tensor}` was never written{}", and_more(*others))]
    Unwritten { tensor: String, others: usize },
}

fn and_more(others: usize) -> String {
    match others {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    }
}
