//! Token embedding: rows of a table, widened to f32.

use crate::device::cpu::simd::{bf16_to_f32, f32_to_bf16};
use crate::device::cpu::{AlignedBuffer, Cpu, SharedMut};
use crate::matmul::{Element, RowMajor};

/// An embedding table, `[vocab, hidden]`.
pub struct Embedding {
    table: Table,
    hidden: usize,
}

enum Table {
    F32(AlignedBuffer<f32>),
    Bf16(AlignedBuffer<u16>),
}

impl Embedding {
    /// Copies a table, in `element`.
    pub fn new(cpu: &Cpu, source: RowMajor<'_>, element: Element) -> Self {
        let len = source.rows * source.cols;
        let grain = 1 << 16;
        let table = match element {
            Element::F32 => {
                let mut table = AlignedBuffer::zeroed(len);
                let shared = SharedMut::new(&mut table);
                cpu.for_rows(len, grain, |range| {
                    // SAFETY: ranges do not overlap.
                    let out = unsafe { shared.slice(range.start, range.len()) };
                    for (out, i) in out.iter_mut().zip(range) {
                        *out = source.stored.read(source.data, i);
                    }
                });
                Table::F32(table)
            }
            Element::Bf16 => {
                let mut table = AlignedBuffer::zeroed(len);
                let shared = SharedMut::new(&mut table);
                cpu.for_rows(len, grain, |range| {
                    // SAFETY: ranges do not overlap.
                    let out = unsafe { shared.slice(range.start, range.len()) };
                    for (out, i) in out.iter_mut().zip(range) {
                        *out = f32_to_bf16(source.stored.read(source.data, i));
                    }
                });
                Table::Bf16(table)
            }
        };
        Self { table, hidden: source.cols }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.table {
            Table::F32(table) => table.bytes(),
            Table::Bf16(table) => table.bytes(),
        }
    }

    /// `out[tokens, hidden]`, one row a token.
    ///
    /// # Panics
    /// When a token is not in the table or `out` is of another size.
    pub fn lookup(&self, tokens: &[u32], out: &mut [f32]) {
        let hidden = self.hidden;
        assert_eq!(out.len(), tokens.len() * hidden);
        for (token, out) in tokens.iter().zip(out.chunks_exact_mut(hidden)) {
            let start = *token as usize * hidden;
            match &self.table {
                Table::F32(table) => out.copy_from_slice(&table[start..start + hidden]),
                Table::Bf16(table) => {
                    for (out, x) in out.iter_mut().zip(&table[start..start + hidden]) {
                        *out = bf16_to_f32(*x);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::CpuOptions;
    use crate::matmul::Stored;
    use crate::testing::bytes_of;

    #[test]
    fn lookups_return_the_rows_of_the_tokens() {
        let cpu = Cpu::new(CpuOptions::default()).unwrap();
        let data = bytes_of(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let source = RowMajor { stored: Stored::F32, rows: 3, cols: 2, data: &data };
        for element in [Element::F32, Element::Bf16] {
            let mut out = [0.0; 6];
            Embedding::new(&cpu, source, element).lookup(&[2, 0, 2], &mut out);
            assert_eq!(out, [4.0, 5.0, 0.0, 1.0, 4.0, 5.0]);
        }
    }
}
