//! A stored parameter, as bytes in the mapped file.

use std::ops::Range;

use half::{bf16, f16};

use crate::dtype::DType;

/// A parameter where it lies in the mapped file: row-major, little-endian, at any alignment.
#[derive(Clone, Copy, Debug)]
pub struct WeightView<'a> {
    /// Name of the tensor that holds it.
    pub name: &'a str,
    /// How its numbers are stored.
    pub dtype: DType,
    /// Rows: the outputs of a matrix, the length of a vector.
    pub rows: usize,
    /// Columns: the inputs of a matrix, 1 for a vector.
    pub cols: usize,
    /// Its `rows * cols` numbers.
    pub data: &'a [u8],
}

impl<'a> WeightView<'a> {
    /// Number of weights.
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }

    /// The bytes of some rows.
    ///
    /// # Panics
    /// If the range goes beyond `rows`.
    pub fn row_bytes(&self, rows: Range<usize>) -> &'a [u8] {
        let row = self.cols * self.dtype.size();
        &self.data[rows.start * row..rows.end * row]
    }

    /// Widens all weights to f32, exactly.
    ///
    /// # Panics
    /// If `out` does not hold `rows * cols` numbers.
    pub fn read_f32(&self, out: &mut [f32]) {
        self.read_rows_f32(0..self.rows, out);
    }

    /// Widens some rows to f32, exactly.
    ///
    /// # Panics
    /// If the range goes beyond `rows`, or `out` does not hold its rows times `cols` numbers.
    pub fn read_rows_f32(&self, rows: Range<usize>, out: &mut [f32]) {
        let data = self.row_bytes(rows);
        match self.dtype {
            DType::F32 => convert(data, out, f32::from_le_bytes),
            DType::Bf16 => convert(data, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            DType::F16 => convert(data, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
        }
    }

    /// Brings all weights to bf16, rounding to nearest even where the stored type is finer.
    ///
    /// # Panics
    /// If `out` does not hold `rows * cols` numbers.
    pub fn read_bf16(&self, out: &mut [bf16]) {
        self.read_rows_bf16(0..self.rows, out);
    }

    /// Brings some rows to bf16, rounding to nearest even where the stored type is finer.
    ///
    /// # Panics
    /// If the range goes beyond `rows`, or `out` does not hold its rows times `cols` numbers.
    pub fn read_rows_bf16(&self, rows: Range<usize>, out: &mut [bf16]) {
        let data = self.row_bytes(rows);
        match self.dtype {
            DType::F32 => convert(data, out, |bytes| bf16::from_f32(f32::from_le_bytes(bytes))),
            DType::Bf16 => convert(data, out, bf16::from_le_bytes),
            DType::F16 => convert(data, out, |bytes| bf16::from_f32(f16::from_le_bytes(bytes).to_f32())),
        }
    }

    /// All weights in f32.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.elements()];
        self.read_f32(&mut out);
        out
    }
}

fn convert<const N: usize, T>(data: &[u8], out: &mut [T], from: impl Fn([u8; N]) -> T) {
    let (numbers, rest) = data.as_chunks::<N>();
    assert!(
        numbers.len() == out.len() && rest.is_empty(),
        "{} stored numbers for {}",
        numbers.len(),
        out.len()
    );
    for (out, bytes) in out.iter_mut().zip(numbers) {
        *out = from(*bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(dtype: DType, data: &[u8]) -> WeightView<'_> {
        WeightView { name: "w", dtype, rows: 2, cols: 2, data }
    }

    #[test]
    fn every_storage_type_reads_the_same_values_at_an_odd_address() {
        let values = [1.5f32, -2.0, 0.25, 1024.0];
        let stored = |bytes: Vec<u8>| [vec![0], bytes].concat();
        let f32s = stored(values.iter().flat_map(|v| v.to_le_bytes()).collect());
        let bf16s = stored(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect());
        let f16s = stored(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect());
        for (dtype, data) in [(DType::F32, f32s), (DType::Bf16, bf16s), (DType::F16, f16s)] {
            let view = view(dtype, &data[1..]);
            assert_eq!(view.to_f32(), values);
            let mut row = [0.0; 2];
            view.read_rows_f32(1..2, &mut row);
            assert_eq!(row, values[2..]);
            let mut narrow = [bf16::ZERO; 4];
            view.read_bf16(&mut narrow);
            assert_eq!(narrow.map(bf16::to_f32), values);
        }
    }

    #[test]
    fn narrowing_to_bf16_rounds_to_nearest_even() {
        // Halfway between two neighbours of bf16 (8 bits of mantissa), then just above halfway.
        let values = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 1.0 / 256.0 + 1e-6, 0.0f32];
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut out = [bf16::ZERO; 4];
        view(DType::F32, &data).read_bf16(&mut out);
        assert_eq!(out.map(bf16::to_f32), [1.0, 1.0 + 4.0 / 256.0, 1.0 + 2.0 / 256.0, 0.0]);
    }
}
