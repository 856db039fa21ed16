//! The header of a safetensors file: eight bytes of length, then JSON that says where each tensor
//! lies. Written by strangers, so every figure in it is checked before it is used.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

/// Bytes of the length field before the header.
pub(super) const LENGTH_BYTES: usize = 8;
/// Longest header that is read, the limit of the safetensors library.
const MAX_HEADER: usize = 100_000_000;

/// What is wrong with the header of a safetensors file.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The file ends within the header's length.
    #[error("the file has {found} bytes, less than the {LENGTH_BYTES} of the header's length")]
    NoLength { found: usize },
    /// The header is longer than any real one.
    #[error("the header should have {length} bytes, more than the {MAX_HEADER} that are read")]
    TooLong { length: u64 },
    /// The file ends within the header.
    #[error("the file is cut short: its header has {length} bytes, the file only {file_length}")]
    Truncated { length: usize, file_length: usize },
    /// The header is no JSON of the expected form.
    #[error("the header is not what safetensors defines: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Type and shape of a tensor do not give the number of its bytes.
    #[error("tensor `{tensor}` of type {dtype} and shape {shape:?} does not fill its {bytes} bytes")]
    Size { tensor: String, dtype: Dtype, shape: Vec<usize>, bytes: usize },
    /// The data of a tensor end before they begin.
    #[error("the data of tensor `{tensor}` end at {end} before they begin at {start}")]
    Backwards { tensor: String, start: usize, end: usize },
    /// Two tensors share bytes.
    #[error("the data of tensors `{first}` and `{second}` overlap")]
    Overlap { first: String, second: String },
    /// Bytes between two tensors belong to none.
    #[error("{bytes} bytes before the data of tensor `{tensor}` belong to no tensor")]
    Gap { tensor: String, bytes: usize },
    /// The file ends within a tensor, or before it.
    #[error("the file is cut short: tensor `{tensor}` ends at byte {end}, the file at {file_length}")]
    TruncatedTensor { tensor: String, end: usize, file_length: usize },
    /// Bytes behind the last tensor belong to none.
    #[error("{bytes} bytes behind the last tensor belong to none")]
    Trailing { bytes: usize },
}

/// One tensor of a file.
#[derive(Debug, Clone)]
pub(crate) struct TensorEntry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Where its data lie in the file.
    pub bytes: Range<usize>,
}

/// Reads the header of a whole file and checks that its tensors fill the file exactly.
pub(crate) fn parse(file: &[u8]) -> Result<Vec<TensorEntry>, HeaderError> {
    let (json, data_start) = header_bytes(file)?;
    let UniqueMap(raw) = serde_json::from_slice::<UniqueMap<Entry>>(json)?;
    let mut tensors = Vec::with_capacity(raw.len());
    for (name, entry) in raw {
        if let Entry::Tensor(info) = entry {
            tensors.push(checked_entry(name, info, data_start)?);
        }
    }
    tensors.sort_by_key(|tensor| (tensor.bytes.start, tensor.bytes.end));
    check_layout(&tensors, data_start, file.len())?;
    Ok(tensors)
}

fn header_bytes(file: &[u8]) -> Result<(&[u8], usize), HeaderError> {
    let (length, rest) =
        file.split_first_chunk::<LENGTH_BYTES>().ok_or(HeaderError::NoLength { found: file.len() })?;
    let length = u64::from_le_bytes(*length);
    let too_long = HeaderError::TooLong { length };
    let length = usize::try_from(length).ok().filter(|length| *length <= MAX_HEADER).ok_or(too_long)?;
    let json = rest.get(..length).ok_or(HeaderError::Truncated { length, file_length: file.len() })?;
    Ok((json, LENGTH_BYTES + length))
}

fn checked_entry(name: String, info: TensorInfo, data_start: usize) -> Result<TensorEntry, HeaderError> {
    let TensorInfo { dtype, shape, data_offsets: (start, end) } = info;
    if end < start {
        return Err(HeaderError::Backwards { tensor: name, start, end });
    }
    let bits = shape.iter().try_fold(dtype.bitsize(), |bits, &n| bits.checked_mul(n));
    let absolute = data_start.checked_add(start).zip(data_start.checked_add(end));
    match (bits, absolute) {
        (Some(bits), Some((first, last))) if bits % 8 == 0 && bits / 8 == end - start => {
            Ok(TensorEntry { name, dtype, shape, bytes: first..last })
        }
        _ => Err(HeaderError::Size { tensor: name, dtype, shape, bytes: end - start }),
    }
}

/// `tensors` are sorted by where they begin.
fn check_layout(tensors: &[TensorEntry], data_start: usize, file_length: usize) -> Result<(), HeaderError> {
    if let Some(cut) = tensors.iter().find(|tensor| tensor.bytes.end > file_length) {
        let (tensor, end) = (cut.name.clone(), cut.bytes.end);
        return Err(HeaderError::TruncatedTensor { tensor, end, file_length });
    }
    let mut previous: Option<&TensorEntry> = None;
    for tensor in tensors {
        let end = previous.map_or(data_start, |previous| previous.bytes.end);
        if tensor.bytes.start > end {
            return Err(HeaderError::Gap { tensor: tensor.name.clone(), bytes: tensor.bytes.start - end });
        }
        if let Some(previous) = previous.filter(|_| tensor.bytes.start < end) {
            return Err(HeaderError::Overlap { first: previous.name.clone(), second: tensor.name.clone() });
        }
        previous = Some(tensor);
    }
    let end = previous.map_or(data_start, |previous| previous.bytes.end);
    if end < file_length {
        return Err(HeaderError::Trailing { bytes: file_length - end });
    }
    Ok(())
}

enum Entry {
    Tensor(TensorInfo),
    /// Free text about the file, under the name `__metadata__`.
    Metadata,
}

/// A JSON object in its own order, in which no name may stand twice.
pub(super) struct UniqueMap<V>(pub Vec<(String, V)>);

/// A value of a [`UniqueMap`], read with its name in view.
pub(super) trait NamedValue: Sized {
    fn next<'de, A: MapAccess<'de>>(map: &mut A, name: &str) -> Result<Self, A::Error>;
}

impl NamedValue for Entry {
    fn next<'de, A: MapAccess<'de>>(map: &mut A, name: &str) -> Result<Self, A::Error> {
        if name == "__metadata__" {
            return map.next_value::<IgnoredAny>().map(|_| Entry::Metadata);
        }
        let info = map.next_value::<TensorInfo>();
        info.map(Entry::Tensor).map_err(|error| A::Error::custom(format!("tensor `{name}`: {error}")))
    }
}

impl NamedValue for String {
    fn next<'de, A: MapAccess<'de>>(map: &mut A, name: &str) -> Result<Self, A::Error> {
        map.next_value().map_err(|error| A::Error::custom(format!("`{name}`: {error}")))
    }
}

impl<'de, V: NamedValue> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueMapVisitor(PhantomData))
    }
}

struct UniqueMapVisitor<V>(PhantomData<V>);

impl<'de, V: NamedValue> Visitor<'de> for UniqueMapVisitor<V> {
    type Value = UniqueMap<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a tensor under each name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut entries, mut seen) = (Vec::new(), HashSet::new());
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("`{name}` stands there twice")));
            }
            let value = V::next(&mut map, &name)?;
            entries.push((name, value));
        }
        Ok(UniqueMap(entries))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn two_tensors() -> Vec<u8> {
        let json = r#"{"__metadata__":{"format":"pt"},
            "a":{"dtype":"F32","shape":[2,3],"data_offsets":[2,26]},
            "b":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}"#;
        file(json, 26)
    }

    fn message(bytes: &[u8]) -> String {
        parse(bytes).unwrap_err().to_string()
    }

    #[test]
    fn tensors_come_in_the_order_of_their_data_at_any_alignment() {
        let tensors = parse(&two_tensors()).unwrap();
        let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(tensors[1].bytes.len(), 24);
        assert_eq!(tensors[1].shape, [2, 3]);
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_that_names_the_cut_tensor_where_the_header_is_whole() {
        let whole = two_tensors();
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_err(), "cut to {length} bytes");
        }
        assert!(message(&whole[..whole.len() - 1]).contains("cut short: tensor `a`"));
        assert!(message(&whole[..whole.len() - 25]).contains("cut short: tensor `b`"));
        assert!(message(&whole[..100]).contains("cut short: its header"));
    }

    #[test]
    fn hostile_headers_are_errors_that_say_what_is_wrong() {
        let mut endless = two_tensors();
        endless[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(message(&endless).contains("more than"));
        assert!(message(&[1, 2, 3]).contains("3 bytes"));
        for (json, data, expected) in [
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4, "does not fill its 4"),
            (r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#, 4, "tensor `a`"),
            (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, "tensor `a`"),
            (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#, 4, "before they begin"),
            (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8, "belong to no tensor"),
            (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 9, "5 bytes behind"),
            (
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                    "b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#,
                6,
                "`a` and `b` overlap",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                    "a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
                "`a` stands there twice",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,4]}}"#,
                4,
                "does not fill",
            ),
            (
                r#"{"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}}"#,
                4,
                "does not fill",
            ),
            ("[1]", 0, "not what safetensors defines"),
        ] {
            let message = message(&file(json, data));
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

        #[test]
        fn mutated_files_never_panic_and_what_parses_lies_within_the_file(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            length in any::<prop::sample::Index>(),
            cut in any::<bool>(),
        ) {
            let mut bytes = two_tensors();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if cut {
                bytes.truncate(length.index(bytes.len()));
            }
            if let Ok(tensors) = parse(&bytes) {
                for tensor in tensors {
                    prop_assert!(bytes.get(tensor.bytes).is_some());
                }
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse(&bytes).is_err() || bytes.len() >= LENGTH_BYTES);
        }
    }
}
