//! Weights that differ from those of another version: a safetensors file, compressed with zstd.
//!
//! A tensor of which little changed is two: `NAME/gaps` (U32), how far each changed element is from the one before (the
//! first from the start), and `NAME/values`, its new value in the tensor's own type. One that changed much is there
//! whole, as `NAME`. One that did not change is not there.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::checkpoint::{Checkpoint, parse_header};
use crate::dtype::DType;
use crate::params::Param;

pub(super) const DELTA_FILE: &str = "changes.safetensors.zst";
const GAPS: &str = "/gaps";
const VALUES: &str = "/values";
const COMPRESSION: i32 = 3;

/// Changes while they are collected.
#[derive(Default)]
pub(super) struct Changes {
    infos: Vec<(String, TensorInfo)>,
    data: Vec<u8>,
}

impl Changes {
    /// Adds what differs between two values of a tensor.
    pub fn compare(&mut self, name: &str, dtype: DType, shape: &[usize], old: &[u8], new: &[u8]) {
        let size = dtype.size();
        let (mut gaps, mut values, mut last) = (Vec::new(), Vec::new(), 0);
        for (i, (old, new)) in old.chunks_exact(size).zip(new.chunks_exact(size)).enumerate() {
            if old != new {
                gaps.push((i - last) as u64);
                values.extend_from_slice(new);
                last = i;
            }
        }
        if gaps.is_empty() {
            return;
        }
        let count = gaps.len();
        let sparse = count * (size + 4) < new.len() && gaps.iter().all(|gap| u32::try_from(*gap).is_ok());
        if sparse {
            let gaps: Vec<u8> = gaps.into_iter().flat_map(|gap| (gap as u32).to_le_bytes()).collect();
            self.push(format!("{name}{GAPS}"), Dtype::U32, vec![count], &gaps);
            self.push(format!("{name}{VALUES}"), dtype.to_safetensors(), vec![count], &values);
        } else {
            self.push(name.to_owned(), dtype.to_safetensors(), shape.to_vec(), new);
        }
    }

    fn push(&mut self, name: String, dtype: Dtype, shape: Vec<usize>, bytes: &[u8]) {
        let start = self.data.len();
        self.data.extend_from_slice(bytes);
        self.infos.push((name, TensorInfo { dtype, shape, data_offsets: (start, self.data.len()) }));
    }

    /// Bytes so far.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// The file, and its length before compression.
    pub fn finish(self) -> std::io::Result<(Vec<u8>, u64)> {
        let metadata = Metadata::new(None, self.infos).map_err(std::io::Error::other)?;
        let mut raw = serde_json::to_vec(&metadata)?;
        raw.resize(raw.len().next_multiple_of(8), b' ');
        let mut file = (raw.len() as u64).to_le_bytes().to_vec();
        file.append(&mut raw);
        file.extend(self.data);
        Ok((zstd::encode_all(&file[..], COMPRESSION)?, file.len() as u64))
    }
}

/// New values of a parameter, as ranges of the decompressed file.
enum Change {
    Whole(Range<usize>),
    Sparse { gaps: Range<usize>, values: Range<usize> },
}

/// Changes that were read and fit a checkpoint.
pub(super) struct Delta {
    raw: Vec<u8>,
    changes: HashMap<Param, Change>,
}

impl Delta {
    /// Reads changes of `base`'s weights, `raw_bytes` long when decompressed.
    pub fn read(file: impl Read, raw_bytes: u64, base: &Checkpoint) -> Result<Self, String> {
        // Whole tensors with all their names are no longer than this.
        let longest = 2 * base.weight_bytes() as u64 + (64 << 20);
        if raw_bytes > longest {
            return Err(format!("{raw_bytes} bytes of changes are more than the whole model could have"));
        }
        let mut raw = Vec::new();
        zstd::Decoder::new(file)
            .and_then(|decoder| decoder.take(raw_bytes + 1).read_to_end(&mut raw))
            .map_err(|error| format!("the changes cannot be decompressed: {error}"))?;
        if raw.len() as u64 != raw_bytes {
            return Err(format!("the changes have not the {raw_bytes} bytes that the manifest says"));
        }
        let tensors = parse_header(&raw).map_err(|error| error.to_string())?;
        let mut found: HashMap<String, (Dtype, Vec<usize>, Range<usize>)> =
            tensors.into_iter().map(|t| (t.name, (t.dtype, t.shape, t.bytes))).collect();
        let mut changes = HashMap::new();
        let config = base.config();
        for param in Param::all(config) {
            let name = param.name(config);
            let view = base.param(param).map_err(|error| error.to_string())?;
            let dtype = view.dtype.to_safetensors();
            let misfit =
                |what: &str| format!("tensor `{name}{what}` has another type or shape than the base's");
            if let Some((found, shape, bytes)) = found.remove(&name) {
                if found != dtype || shape != param.tensor_shape(config) {
                    return Err(misfit(""));
                }
                changes.insert(param, Change::Whole(bytes));
            } else if let Some((found_gaps, shape, gaps)) = found.remove(&format!("{name}{GAPS}")) {
                let Some((found, values_shape, values)) = found.remove(&format!("{name}{VALUES}")) else {
                    return Err(format!("tensor `{name}{VALUES}` is missing"));
                };
                if found_gaps != Dtype::U32 || found != dtype || shape != values_shape || shape.len() != 1 {
                    return Err(misfit(VALUES));
                }
                let mut positions = positions(&raw[gaps.clone()]);
                if positions.any(|position| position >= view.elements() as u64) {
                    return Err(format!(
                        "tensor `{name}{GAPS}` leads beyond the {} weights",
                        view.elements()
                    ));
                }
                changes.insert(param, Change::Sparse { gaps, values });
            }
        }
        match found.into_keys().min() {
            Some(name) => Err(format!("tensor `{name}` holds no weights of the model")),
            None => Ok(Self { raw, changes }),
        }
    }

    /// The parameters with changes.
    pub fn params(&self) -> impl Iterator<Item = Param> {
        self.changes.keys().copied()
    }

    /// The bytes of a parameter that has changes, given the base's.
    pub fn apply(&self, param: Param, base: &[u8], size: usize) -> Option<Vec<u8>> {
        Some(match self.changes.get(&param)? {
            Change::Whole(bytes) => self.raw[bytes.clone()].to_vec(),
            Change::Sparse { gaps, values } => {
                let mut bytes = base.to_vec();
                let values = self.raw[values.clone()].chunks_exact(size);
                for (position, value) in positions(&self.raw[gaps.clone()]).zip(values) {
                    let at = position as usize * size;
                    bytes[at..at + size].copy_from_slice(value);
                }
                bytes
            }
        })
    }
}

fn positions(gaps: &[u8]) -> impl Iterator<Item = u64> {
    gaps.as_chunks::<4>().0.iter().scan(0u64, |at, gap| {
        *at += u64::from(u32::from_le_bytes(*gap));
        Some(*at)
    })
}
