//! What can be wrong with a file or folder.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A file or folder that cannot be used. Messages name it, and never what lies beside it.
#[derive(Debug, Error)]
pub enum FileError {
    /// An output folder that is not below the base path.
    #[error("output_directory {directory:?} is not below {}: give a folder in it, or set MINIMAX_MCP_BASE_PATH", .base.display())]
    Outside { directory: String, base: PathBuf },
    /// A folder that cannot be made or written to.
    #[error("cannot write to {}: {source}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    /// An input that cannot be found by a relative path.
    #[error(
        "{path:?} is a relative path: give an absolute one, or set MINIMAX_MCP_BASE_PATH to what it is relative to"
    )]
    Relative { path: String },
    /// An input that does not exist.
    #[error("the file {path:?} does not exist")]
    Absent { path: String },
    /// An input that is a folder, for one.
    #[error("{path:?} is not a file")]
    NotAFile { path: String },
    /// An input that a client on another machine may not name.
    #[error("{path:?} is not below the server's base path, and clients over HTTP may name no other files")]
    NotShared { path: String },
    /// An input of another kind than asked for.
    #[error("{path:?} is not an audio file (by its name: {expected})")]
    NotAudio { path: String, expected: String },
    /// An input larger than what may be sent.
    #[error("{path:?} has {size} bytes, more than the {limit} that may be sent")]
    TooLarge { path: String, size: u64, limit: u64 },
    /// An input that cannot be read.
    #[error("cannot read {path:?}: {source}")]
    Read { path: String, source: io::Error },
}
