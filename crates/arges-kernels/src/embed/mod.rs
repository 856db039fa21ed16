//! Token embedding: rows of a table, widened to f32.

use bytemuck::Pod;

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
        let mut embedding = Self::zeroed(source.rows, source.cols, element);
        embedding.fill(cpu, source);
        embedding
    }

    /// A table of zeros.
    pub fn zeroed(vocab: usize, hidden: usize, element: Element) -> Self {
        let len = vocab * hidden;
        let table = match element {
            Element::F32 => Table::F32(AlignedBuffer::zeroed(len)),
            Element::Bf16 => Table::Bf16(AlignedBuffer::zeroed(len)),
        };
        Self { table, hidden }
    }

    /// Copies a table of the same shape over this one.
    ///
    /// # Panics
    /// When the shapes differ.
    pub fn fill(&mut self, cpu: &Cpu, source: RowMajor<'_>) {
        assert_eq!(source.cols, self.hidden, "width of the table");
        match &mut self.table {
            Table::F32(table) => copy(cpu, source, table, |x| x),
            Table::Bf16(table) => copy(cpu, source, table, f32_to_bf16),
        }
    }

    /// How its numbers are kept.
    pub fn element(&self) -> Element {
        match &self.table {
            Table::F32(_) => Element::F32,
            Table::Bf16(_) => Element::Bf16,
        }
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

/// Columns of one task of [`embedding_gradient`].
const COLUMNS: usize = 64;

/// Adds the gradient by the rows of [`Embedding::lookup`], `dx[tokens, hidden]`, to that of the table,
/// `grad[vocab, hidden]`: the rows of one token in the order of the tokens.
///
/// # Panics
/// When sizes do not agree, or a token is not in the table.
pub fn embedding_gradient(cpu: &Cpu, tokens: &[u32], dx: &[f32], grad: &mut [f32]) {
    let Some(hidden) = dx.len().checked_div(tokens.len()) else { return };
    assert_eq!(dx.len(), tokens.len() * hidden);
    let grad = SharedMut::new(grad);
    cpu.for_rows(hidden, COLUMNS, |columns| {
        for (token, dx) in tokens.iter().zip(dx.chunks_exact(hidden)) {
            // SAFETY: tasks write columns of their own.
            let sum = unsafe { grad.slice(*token as usize * hidden + columns.start, columns.len()) };
            for (sum, value) in sum.iter_mut().zip(&dx[columns.clone()]) {
                *sum += value;
            }
        }
    });
}

fn copy<T: Pod + Send>(cpu: &Cpu, source: RowMajor<'_>, table: &mut [T], round: impl Fn(f32) -> T + Sync) {
    assert_eq!(table.len(), source.rows * source.cols, "size of the table");
    let len = table.len();
    let shared = SharedMut::new(table);
    cpu.for_rows(len, 1 << 16, |range| {
        // SAFETY: ranges do not overlap.
        let out = unsafe { shared.slice(range.start, range.len()) };
        for (out, i) in out.iter_mut().zip(range) {
            *out = round(source.stored.read(source.data, i));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::CpuOptions;
    use crate::matmul::Stored;
    use crate::testing::bytes_of;

    #[test]
    fn gradients_of_a_token_are_summed_over_its_rows() {
        let cpu = Cpu::new(CpuOptions { threads: Some(3), isa: None }).unwrap();
        let (hidden, vocab, tokens) = (150, 4, [2, 0, 2, 3, 2]);
        let dx: Vec<f32> = (0..tokens.len() * hidden).map(|i| i as f32).collect();
        let mut grad = vec![1.0; vocab * hidden];
        embedding_gradient(&cpu, &tokens, &dx, &mut grad);
        for (i, got) in grad.iter().enumerate() {
            let rows = tokens.iter().enumerate().filter(|(_, token)| **token as usize == i / hidden);
            let expected = 1.0 + rows.map(|(row, _)| dx[row * hidden + i % hidden]).sum::<f32>();
            assert_eq!(*got, expected);
        }
        embedding_gradient(&cpu, &[], &[], &mut grad);
    }

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
