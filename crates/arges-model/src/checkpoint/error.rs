//! Why a checkpoint cannot be opened or written.

use std::io;
use std::path::PathBuf;

use super::header::HeaderError;
use crate::config::ConfigError;
use crate::params::Param;

/// Why a checkpoint cannot be used. Every variant names the file, and the tensor where there is one.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file could not be read or mapped.
    #[error("cannot read {}: {source}", file.display())]
    Read { file: PathBuf, source: io::Error },
    /// The directory holds neither an index nor a single weight file.
    #[error(
        "{} holds no weights: neither model.safetensors nor model.safetensors.index.json is there",
        directory.display()
    )]
    NoWeights { directory: PathBuf },
    /// The index is no list of shards inside the directory.
    #[error("{}: {reason}", file.display())]
    Index { file: PathBuf, reason: String },
    /// A weight file is broken or cut short.
    #[error("{}: {source}", file.display())]
    Header { file: PathBuf, source: HeaderError },
    /// A parameter is in none of the files; `others` more are missing too.
    #[error("tensor `{tensor}` with shape {expected:?} is missing from {}{}", file.display(), and_more(*others))]
    Missing { tensor: String, expected: Vec<usize>, file: PathBuf, others: usize },
    /// A tensor holds no parameter; `others` more hold none either.
    #[error(
        "{}: tensor `{tensor}` with shape {shape:?} is no part of the model that config.json describes{}",
        file.display(), and_more(*others)
    )]
    Extra { tensor: String, shape: Vec<usize>, file: PathBuf, others: usize },
    /// A tensor has another shape than the configuration asks for.
    #[error("{}: tensor `{tensor}` has shape {found:?}, but config.json asks for {expected:?}", file.display())]
    Misshapen { tensor: String, expected: Vec<usize>, found: Vec<usize>, file: PathBuf },
    /// A tensor's numbers are of a type weights do not come in.
    #[error("{}: tensor `{tensor}` is stored as {found}; f32, bf16 and f16 are supported", file.display())]
    DType { tensor: String, found: String, file: PathBuf },
    /// Two files hold a tensor of the same name.
    #[error("tensor `{tensor}` is in both {} and {}", first.display(), second.display())]
    Duplicate { tensor: String, first: PathBuf, second: PathBuf },
    /// The index names a shard for a tensor that is not in it.
    #[error("tensor `{tensor}` should be in {} by the index, but is not", file.display())]
    NotInShard { tensor: String, file: PathBuf },
    /// A shard holds a tensor that the index does not know.
    #[error("{}: tensor `{tensor}` is not listed in the index", file.display())]
    Unlisted { tensor: String, file: PathBuf },
    /// The head should be the embedding, but another one is stored.
    #[error(
        "{}: `tie_word_embeddings` is true, but tensor `{tensor}` differs from the embedding",
        file.display()
    )]
    HeadNotTied { tensor: String, file: PathBuf },
    /// A parameter was asked for that the model does not have.
    #[error("the model has no parameter {param:?}")]
    NoSuchParam { param: Param },
}

/// Why a checkpoint cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file or directory could not be written.
    #[error("cannot write {}: {source}", file.display())]
    Write { file: PathBuf, source: io::Error },
    /// A file to be copied could not be read.
    #[error("cannot copy {}: {source}", file.display())]
    Copy { file: PathBuf, source: io::Error },
    /// The directory holds files, and overwriting was not asked for.
    #[error("{} is not empty; choose another directory or ask for overwriting", directory.display())]
    NotEmpty { directory: PathBuf },
    /// A parameter was given that the model does not have.
    #[error("the model has no parameter {param:?}")]
    NoSuchParam { param: Param },
    /// A parameter was begun for the second time.
    #[error("tensor `{tensor}` was begun twice")]
    Twice { tensor: String },
    /// A parameter was given more or fewer bytes than it takes.
    #[error("tensor `{tensor}` takes {expected} bytes, but {found} were given")]
    Length { tensor: String, expected: u64, found: u64 },
    /// The checkpoint was ended before a parameter was written; `others` more are missing too.
    #[error("tensor `{tensor}` was never written{}", and_more(*others))]
    Unwritten { tensor: String, others: usize },
}

fn and_more(others: usize) -> String {
    match others {
        0 => String::new(),
        n => format!(" (and {n} more)"),
    }
}
