//! Weights that a trainer publishes while engines serve: a directory with a directory a version.
//!
//! ```text
//! latest.json                       {"version": 12}
//! v000000000008/manifest.json       every file with its length and CRC-32C
//!               config.json, *.safetensors        full: a checkpoint that any program can load
//! v000000000012/manifest.json       names version 8 and the checksum of its manifest
//!               changes.safetensors.zst           delta: what differs from version 8
//! ```
//!
//! A version is written under another name, brought to disk and renamed: whatever is called `v…` is whole. A delta is
//! always against a full version, never against another delta, so that two directories are enough to come from anywhere
//! to any version. Between two steps of reinforcement learning few weights change their bf16; a delta lists these.
//!
//! Readers check lengths and checksums of all files, and names, types and shapes of all tensors, before anybody gets a
//! weight of them.

mod delta;
mod manifest;
mod snapshot;
mod write;

use std::io;
use std::path::{Path, PathBuf};

pub use manifest::{Base, File, Kind, Manifest, check_file};
pub use snapshot::{Applied, Snapshot};
pub use write::{PublishOptions, Published, Publisher};

use crate::checkpoint::{CheckpointError, WriteError};

/// Name of the file that lists a version's files.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the file that names the newest version.
pub const LATEST_FILE: &str = "latest.json";

/// A publication cannot be used, or not be made.
#[derive(Debug, thiserror::Error)]
pub enum PublicationError {
    /// A file or directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// A file or directory cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// A manifest or the list of versions is not what it should be.
    #[error("{}: {reason}", file.display())]
    Malformed { file: PathBuf, reason: String },
    /// The directory has no such version.
    #[error("{} has no version {version}", directory.display())]
    NoVersion { directory: PathBuf, version: u64 },
    /// A file is shorter or longer than its manifest says.
    #[error("{} has {found} bytes, but its manifest says {expected}", file.display())]
    Length { file: PathBuf, expected: u64, found: u64 },
    /// A file's bytes are not those that were published.
    #[error("{} is damaged: its CRC-32C is {found}, but its manifest says {expected}", file.display())]
    Checksum { file: PathBuf, expected: String, found: String },
    /// A file that the manifest does not list.
    #[error("{} is not listed in the manifest", file.display())]
    Unlisted { file: PathBuf },
    /// What a delta is against is not there.
    #[error("version {version} is a delta against version {base}, {reason}")]
    Base { version: u64, base: u64, reason: String },
    /// The changes do not fit the weights that they change.
    #[error("{}: {reason}", file.display())]
    Delta { file: PathBuf, reason: String },
    /// The weights cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The weights cannot be written.
    #[error(transparent)]
    Weights(#[from] WriteError),
}

/// Name of a version's directory.
pub fn version_name(version: u64) -> String {
    format!("v{version:012}")
}

/// The versions that a directory has, rising.
///
/// # Errors
/// A directory that cannot be read.
pub fn versions(directory: &Path) -> Result<Vec<u64>, PublicationError> {
    let mut versions = Vec::new();
    for name in entries(directory)? {
        let number = name.strip_prefix('v').filter(|digits| digits.len() == 12);
        versions.extend(number.and_then(|digits| digits.parse::<u64>().ok()));
    }
    versions.sort_unstable();
    Ok(versions)
}

/// The newest version, as [`LATEST_FILE`] names it.
///
/// # Errors
/// A file that is not there or is no such list.
pub fn latest(directory: &Path) -> Result<u64, PublicationError> {
    let file = directory.join(LATEST_FILE);
    let text = std::fs::read(&file).map_err(read_error(&file))?;
    parse_latest(&text).map_err(|reason| PublicationError::Malformed { file, reason })
}

/// The version that the text of a [`LATEST_FILE`] names.
///
/// # Errors
/// What is wrong with it.
pub fn parse_latest(text: &[u8]) -> Result<u64, String> {
    let value: serde_json::Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    value["version"].as_u64().ok_or_else(|| "it names no version".to_owned())
}

fn entries(directory: &Path) -> Result<Vec<String>, PublicationError> {
    let read = || -> io::Result<Vec<String>> {
        std::fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    read().map_err(read_error(directory))
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> PublicationError {
    move |source| PublicationError::Read { path: path.to_owned(), source }
}

fn write_error(path: &Path) -> impl FnOnce(io::Error) -> PublicationError {
    move |source| PublicationError::Write { path: path.to_owned(), source }
}
