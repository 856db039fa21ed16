//! The weight files of a checkpoint, mapped, and the tensors in them.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use safetensors::Dtype;
use serde::Deserialize;

use super::error::CheckpointError;
use super::files::Files;
use super::header::{self, UniqueMap};
use super::mapping::Mapping;

/// Name of the file that says which shard holds which tensor.
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";
/// Name of the weight file where there is but one.
pub(super) const SINGLE_FILE: &str = "model.safetensors";
/// Longest index that is read; MiniMax-M1's has 0.8 MB.
const MAX_INDEX: u64 = 1 << 30;

/// One mapped weight file.
pub(super) struct Shard {
    pub path: PathBuf,
    pub mapping: Mapping,
}

/// A tensor as it stands in a weight file.
pub(super) struct StoredTensor {
    pub shard: usize,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Range<usize>,
}

/// All weight files of a checkpoint.
pub(super) struct Shards {
    pub shards: Vec<Shard>,
    pub tensors: HashMap<String, StoredTensor>,
    /// The file that lists the tensors: the index, or the single weight file.
    pub listing: PathBuf,
}

#[derive(Deserialize)]
struct Index {
    weight_map: UniqueMap<String>,
}

impl Shards {
    /// Maps the weight files and reads their headers. A single `model.safetensors` comes before an
    /// index, as in transformers.
    pub fn open(files: &Files) -> Result<Shards, CheckpointError> {
        if files.exists(SINGLE_FILE) {
            let listing = files.path(SINGLE_FILE);
            let mut shards = Shards { shards: Vec::new(), tensors: HashMap::new(), listing };
            shards.add(files, SINGLE_FILE)?;
            return Ok(shards);
        }
        if !files.exists(INDEX_FILE) {
            return Err(CheckpointError::NoWeights { directory: files.directory().to_owned() });
        }
        Self::open_indexed(files)
    }

    fn open_indexed(files: &Files) -> Result<Shards, CheckpointError> {
        let weight_map = read_index(files)?;
        let mut names: Vec<&String> = weight_map.iter().map(|(_, name)| name).collect();
        names.sort();
        names.dedup();
        let listing = files.path(INDEX_FILE);
        let mut shards = Shards { shards: Vec::new(), tensors: HashMap::new(), listing };
        for name in &names {
            if !stays_inside(name) {
                let reason = format!("the shard name {name:?} leads out of the directory");
                return Err(CheckpointError::Index { file: shards.listing, reason });
            }
            shards.add(files, name)?;
        }
        let position: HashMap<&str, usize> =
            names.iter().enumerate().map(|(shard, name)| (name.as_str(), shard)).collect();
        let listed = weight_map.iter().map(|(name, file)| (name.as_str(), position[file.as_str()]));
        shards.compare_with_index(listed)?;
        Ok(shards)
    }

    fn add(&mut self, files: &Files, name: &str) -> Result<(), CheckpointError> {
        let path = files.path(name);
        let mapping =
            files.map(name).map_err(|source| CheckpointError::Read { file: path.clone(), source })?;
        let entries = header::parse(mapping.bytes())
            .map_err(|source| CheckpointError::Header { file: path.clone(), source })?;
        let shard = self.shards.len();
        for entry in entries {
            let tensor = StoredTensor { shard, dtype: entry.dtype, shape: entry.shape, bytes: entry.bytes };
            if let Some(other) = self.tensors.get(&entry.name) {
                let first = self.shards[other.shard].path.clone();
                return Err(CheckpointError::Duplicate { tensor: entry.name, first, second: path });
            }
            self.tensors.insert(entry.name, tensor);
        }
        self.shards.push(Shard { path, mapping });
        Ok(())
    }

    /// `listed`: each tensor of the index with the position of its shard.
    fn compare_with_index<'a>(
        &self,
        listed: impl Iterator<Item = (&'a str, usize)>,
    ) -> Result<(), CheckpointError> {
        let mut names = HashSet::new();
        for (name, shard) in listed {
            if self.tensors.get(name).is_none_or(|found| found.shard != shard) {
                let file = self.shards[shard].path.clone();
                return Err(CheckpointError::NotInShard { tensor: name.to_owned(), file });
            }
            names.insert(name);
        }
        let unlisted = self.tensors.iter().filter(|(name, _)| !names.contains(name.as_str()));
        match unlisted.min_by_key(|(name, _)| *name) {
            None => Ok(()),
            Some((name, tensor)) => {
                let file = self.path_of(tensor).to_owned();
                Err(CheckpointError::Unlisted { tensor: name.clone(), file })
            }
        }
    }

    pub fn path_of(&self, tensor: &StoredTensor) -> &Path {
        &self.shards[tensor.shard].path
    }

    pub fn bytes_of(&self, tensor: &StoredTensor) -> &[u8] {
        &self.shards[tensor.shard].mapping.bytes()[tensor.bytes.clone()]
    }
}

fn read_index(files: &Files) -> Result<Vec<(String, String)>, CheckpointError> {
    let read = |source| CheckpointError::Read { file: files.path(INDEX_FILE), source };
    let wrong = |reason| CheckpointError::Index { file: files.path(INDEX_FILE), reason };
    let length = files.length(INDEX_FILE).map_err(read)?;
    if length > MAX_INDEX {
        return Err(wrong(format!("the index has {length} bytes, more than the {MAX_INDEX} that are read")));
    }
    let text = files.read(INDEX_FILE).map_err(read)?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|error| wrong(format!("not an index of safetensors shards: {error}")))?;
    let UniqueMap(weight_map) = index.weight_map;
    if weight_map.is_empty() {
        return Err(wrong("the index lists no tensor".into()));
    }
    Ok(weight_map)
}

/// Whether a shard's name in the index cannot lead out of the directory.
fn stays_inside(name: &str) -> bool {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    plain && !name.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_name_cannot_leave_the_directory() {
        assert!(stays_inside("a.safetensors") && stays_inside("b/a.safetensors"));
        for name in ["", "..", "../a", "/etc/passwd", "b/../../a", "./../a"] {
            assert!(!stays_inside(name), "{name}");
        }
    }
}
