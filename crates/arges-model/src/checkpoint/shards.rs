//! The weight files of a directory, mapped, and the tensors in them.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use safetensors::Dtype;
use serde::Deserialize;

use super::error::CheckpointError;
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
    pub fn open(directory: &Path) -> Result<Shards, CheckpointError> {
        let single = directory.join(SINGLE_FILE);
        let index = directory.join(INDEX_FILE);
        if single.exists() {
            let mut shards = Shards { shards: Vec::new(), tensors: HashMap::new(), listing: single.clone() };
            shards.add(single)?;
            return Ok(shards);
        }
        if !index.exists() {
            return Err(CheckpointError::NoWeights { directory: directory.to_owned() });
        }
        Self::open_indexed(directory, index)
    }

    fn open_indexed(directory: &Path, index: PathBuf) -> Result<Shards, CheckpointError> {
        let weight_map = read_index(&index)?;
        let mut files: Vec<&String> = weight_map.iter().map(|(_, file)| file).collect();
        files.sort();
        files.dedup();
        let mut shards = Shards { shards: Vec::new(), tensors: HashMap::new(), listing: index };
        for file in &files {
            let path = inside(directory, file).ok_or_else(|| CheckpointError::Index {
                file: shards.listing.clone(),
                reason: format!("the shard name {file:?} leads out of the directory"),
            })?;
            shards.add(path)?;
        }
        let position: HashMap<&str, usize> =
            files.iter().enumerate().map(|(shard, file)| (file.as_str(), shard)).collect();
        let listed = weight_map.iter().map(|(name, file)| (name.as_str(), position[file.as_str()]));
        shards.compare_with_index(listed)?;
        Ok(shards)
    }

    fn add(&mut self, path: PathBuf) -> Result<(), CheckpointError> {
        let mapping =
            Mapping::open(&path).map_err(|source| CheckpointError::Read { file: path.clone(), source })?;
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

fn read_index(file: &Path) -> Result<Vec<(String, String)>, CheckpointError> {
    let read = |source| CheckpointError::Read { file: file.to_owned(), source };
    let wrong = |reason| CheckpointError::Index { file: file.to_owned(), reason };
    let length = std::fs::metadata(file).map_err(read)?.len();
    if length > MAX_INDEX {
        return Err(wrong(format!("the index has {length} bytes, more than the {MAX_INDEX} that are read")));
    }
    let text = std::fs::read(file).map_err(read)?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|error| wrong(format!("not an index of safetensors shards: {error}")))?;
    let UniqueMap(weight_map) = index.weight_map;
    if weight_map.is_empty() {
        return Err(wrong("the index lists no tensor".into()));
    }
    Ok(weight_map)
}

/// The path of a shard named in the index, if it cannot leave the directory.
fn inside(directory: &Path, name: &str) -> Option<PathBuf> {
    let relative = Path::new(name);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && !name.is_empty()).then(|| directory.join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_name_cannot_leave_the_directory() {
        let directory = Path::new("models");
        assert_eq!(inside(directory, "a.safetensors"), Some(directory.join("a.safetensors")));
        for name in ["", "..", "../a", "/etc/passwd", "b/../../a", "./../a"] {
            assert_eq!(inside(directory, name), None, "{name}");
        }
    }
}
