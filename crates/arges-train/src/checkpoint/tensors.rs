//! Flat f32 arrays as a safetensors file, written from where they lie and read to where they belong.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

const LENGTH_BYTES: usize = 8;
/// Longest header that is read.
const MAX_HEADER_BYTES: u64 = 1 << 30;

/// A named part of a flat array.
pub struct Tensor<'a> {
    pub name: String,
    pub shape: &'a [usize],
    pub values: &'a [f32],
}

/// A named part of a flat array, to be filled.
pub struct TensorMut<'a> {
    pub name: String,
    pub shape: &'a [usize],
    pub values: &'a mut [f32],
}

/// Writes the tensors, one after the other, and brings the file to disk.
pub fn write(path: &Path, tensors: &[Tensor<'_>]) -> io::Result<()> {
    let mut end = 0;
    let mut header: Map<String, Value> = Map::new();
    for tensor in tensors {
        let start = end;
        end += size_of_val(tensor.values);
        let info = json!({ "dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end] });
        header.insert(tensor.name.clone(), info);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for tensor in tensors {
        for block in tensor.values.chunks(BLOCK) {
            write_block(&mut file, block)?;
        }
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Values that are converted at once.
const BLOCK: usize = 1 << 16;

fn write_block(file: &mut impl Write, block: &[f32]) -> io::Result<()> {
    if cfg!(target_endian = "little") {
        return file.write_all(bytemuck::cast_slice(block));
    }
    block.iter().try_for_each(|value| file.write_all(&value.to_le_bytes()))
}

/// Fills every tensor from a file that holds just these.
pub fn read(path: &Path, tensors: &mut [TensorMut<'_>]) -> io::Result<()> {
    let mut file = BufReader::new(File::open(path)?);
    let header = read_header(&mut file)?;
    let data = file.stream_position()?;
    let stored = header.keys().filter(|name| *name != "__metadata__").count();
    if stored != tensors.len() {
        return Err(invalid(format!("it holds {stored} tensors and not {}", tensors.len())));
    }
    for tensor in tensors {
        let name = &tensor.name;
        let info = header.get(name).ok_or_else(|| invalid(format!("tensor `{name}` is missing")))?;
        let start = info["data_offsets"][0].as_u64().unwrap_or(u64::MAX);
        let end = start.saturating_add(size_of_val(tensor.values) as u64);
        let expected = json!({ "dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end] });
        if *info != expected {
            return Err(invalid(format!("tensor `{name}` is {info} and not {expected}")));
        }
        file.seek(SeekFrom::Start(data.saturating_add(start)))?;
        file.read_exact(bytemuck::cast_slice_mut(tensor.values))?;
        if cfg!(target_endian = "big") {
            tensor.values.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits().swap_bytes()));
        }
    }
    Ok(())
}

fn read_header(file: &mut impl Read) -> io::Result<Map<String, Value>> {
    let mut length = [0; LENGTH_BYTES];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(invalid(format!("a header of {length} bytes is too long")));
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    if header.len() as u64 != length {
        return Err(invalid("it ends in its header".to_owned()));
    }
    serde_json::from_slice(&header).map_err(|error| invalid(format!("its header is no JSON object: {error}")))
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(values: &[f32]) -> [Tensor<'_>; 2] {
        let tensor = |name: &str, shape, values| Tensor { name: name.to_owned(), shape, values };
        [tensor("a", &[2, 3], &values[..6]), tensor("b", &[1], &values[6..])]
    }

    fn read_into(path: &Path, values: &mut [f32], second: &str) -> io::Result<()> {
        let (a, b) = values.split_at_mut(6);
        let tensor = |name: &str, shape, values| TensorMut { name: name.to_owned(), shape, values };
        read(path, &mut [tensor("a", &[2, 3], a), tensor(second, &[1], b)])
    }

    #[test]
    fn values_come_back_bit_for_bit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.safetensors");
        let values = [0.1, -0.0, f32::MIN_POSITIVE / 8.0, f32::MAX, 1.0, 2.0, 3.0];
        write(&path, &some(&values)).unwrap();
        let mut back = [0.0; 7];
        read_into(&path, &mut back, "b").unwrap();
        assert_eq!(back.map(f32::to_bits), values.map(f32::to_bits));
    }

    #[test]
    fn a_file_of_other_tensors_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.safetensors");
        write(&path, &some(&[0.0; 7])).unwrap();
        let error = read_into(&path, &mut [0.0; 7], "c").unwrap_err().to_string();
        assert_eq!(error, "tensor `c` is missing");
        let error = read(&path, &mut []).unwrap_err().to_string();
        assert_eq!(error, "it holds 2 tensors and not 0");
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.safetensors");
        write(&path, &some(&[1.0; 7])).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(read_into(&path, &mut [0.0; 7], "b").is_err(), "{length} of {}", whole.len());
        }
    }
}
