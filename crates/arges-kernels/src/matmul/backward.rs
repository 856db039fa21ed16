//! Gradients of products: by the inputs, `dx = dy · W`, and by the weights, `dW += dy^T · x`.
//!
//! Both are products of the forward kind. `dx` needs the weights transposed; `dW` is the product of the columns
//! of `dy` as rows and of `x` as the matrix, whose packed forms are strips of `dy` and `x` as they lie in memory:
//! nothing is transposed for it. Its inner dimension is the number of rows, taken [`CHUNK_ROWS`] at a time, the
//! chunks added one after the other.

use std::ops::Range;

use super::pack::{Format, Panels, SharedPanels};
use super::{Compute, Element, K_STEP, Output, PANEL, PackedMatrix, PackedRows, Segment, matmul};
use crate::device::cpu::simd::{Simd, f32_to_bf16, simd_dispatch};
use crate::device::cpu::{Cpu, SharedMut};

/// Rows whose products are summed in one accumulator: packed strips of that length fit in the second-level cache.
const CHUNK_ROWS: usize = 1024;

impl PackedMatrix {
    /// Makes this the transpose of `source`, of the same element type, in the same memory where that is large
    /// enough.
    ///
    /// # Panics
    /// When the element types differ.
    pub fn set_transposed(&mut self, cpu: &Cpu, source: &PackedMatrix) {
        assert_eq!(self.element(), source.element(), "number formats");
        self.reshape(source.inputs(), source.outputs());
        let (panels, panel_len, k_padded) = (self.panels(), self.panel_len(), self.k_padded());
        match self.shared() {
            SharedPanels::F32(out) => cpu.pool().run(panels, |panel, _| {
                // SAFETY: panels do not overlap.
                let out = unsafe { out.slice(panel * panel_len, panel_len) };
                transpose_panel(source, panel, k_padded, |at, block| {
                    if let Panels::F32(block) = block {
                        for (r, out) in out[at * PANEL..][..PANEL * PANEL].chunks_exact_mut(PANEL).enumerate()
                        {
                            for (c, out) in out[..block.len() / PANEL].iter_mut().enumerate() {
                                *out = block[c * PANEL + r];
                            }
                            out[block.len() / PANEL..].fill(0.0);
                        }
                    }
                });
            }),
            SharedPanels::Bf16(out) => cpu.pool().run(panels, |panel, _| {
                // SAFETY: panels do not overlap.
                let out = unsafe { out.slice(panel * panel_len, panel_len) };
                transpose_panel(source, panel, k_padded, |at, block| {
                    if let Panels::Bf16(block) = block {
                        let columns = block.len() / PANEL;
                        let out = &mut out[at * PANEL..][..PANEL * PANEL];
                        for (i, value) in out.iter_mut().enumerate() {
                            // Element `i` is of pair `i / 64`, column `i / 2 % 32`; so are those of the source.
                            let (r, c) = (i / (2 * PANEL) * 2 + i % 2, i / 2 % PANEL);
                            *value = if c < columns { block[(c / 2 * PANEL + r) * 2 + c % 2] } else { 0 };
                        }
                    }
                });
            }),
        }
    }
}

/// Shows every 32 by 32 block of `source` that panel `panel` of its transpose is made of to `put(row, block)`: the block holds inputs `32 * panel..` of the source, as many as there are, of outputs `row..`.
fn transpose_panel(source: &PackedMatrix, panel: usize, rows: usize, mut put: impl FnMut(usize, Panels<'_>)) {
    let column = panel * PANEL;
    // The source's own padding of its inputs is zeros, so that pairs may be taken whole.
    let columns = (source.k_padded() - column).min(PANEL);
    for row in (0..rows).step_by(PANEL) {
        let range = column * PANEL..(column + columns) * PANEL;
        let block = match source.panel_elements(row / PANEL) {
            Panels::F32(data) => Panels::F32(&data[range]),
            Panels::Bf16(data) => Panels::Bf16(&data[range]),
        };
        put(row, block);
    }
}

/// `dx[i, K] = dy[i, N] · W`, or added to what is there, for the rows of every segment. A matrix in the form of
/// [`PackedMatrix::pack_gate_up`] takes `dy` in the order of its panels. `transposed` is overwritten.
///
/// # Panics
/// When shapes do not agree.
pub fn input_gradient(
    cpu: &Cpu,
    dy: &PackedRows,
    segments: &[Segment],
    matrices: &[PackedMatrix],
    transposed: &mut PackedMatrix,
    out: Output<'_>,
) {
    let (out, add) = match out {
        Output::Rows(out) => (out, false),
        Output::Add(out) => (out, true),
        Output::GateUp(..) => panic!("gradients by inputs are rows"),
    };
    for segment in segments {
        transposed.set_transposed(cpu, &matrices[segment.matrix]);
        let out = if add { Output::Add(&mut *out) } else { Output::Rows(&mut *out) };
        let segment = [Segment { matrix: 0, ..*segment }];
        matmul(cpu, dy, &segment, std::slice::from_ref(transposed), out);
    }
}

/// Rows and columns of activations that lie in memory as rows of `stride` values.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    data: &'a [f32],
    stride: usize,
    rows: Rows<'a>,
    columns: Places,
}

#[derive(Clone, Copy)]
enum Rows<'a> {
    First(usize),
    Listed(&'a [u32]),
}

#[derive(Clone, Copy)]
enum Places {
    /// `count` columns from `first` on.
    Range { first: usize, count: usize },
    /// `count` columns in the order of a gate-up matrix's panels, from `first` on.
    Panels { first: usize, count: usize },
}

impl Places {
    fn count(self) -> usize {
        match self {
            Self::Range { count, .. } | Self::Panels { count, .. } => count,
        }
    }

    fn place(self, column: usize) -> usize {
        match self {
            Self::Range { first, .. } => first + column,
            Self::Panels { first, .. } => first + column / PANEL * (2 * PANEL) + column % PANEL,
        }
    }
}

impl<'a> Columns<'a> {
    /// All `columns` columns of the first `rows` rows.
    pub fn all(data: &'a [f32], columns: usize, rows: usize) -> Self {
        Self::range(data, columns, rows, 0..columns)
    }

    /// Some columns of the first `rows` rows of `stride` values.
    pub fn range(data: &'a [f32], stride: usize, rows: usize, columns: Range<usize>) -> Self {
        let columns = Places::Range { first: columns.start, count: columns.len() };
        Self { data, stride, rows: Rows::First(rows), columns }
    }

    /// All columns of the rows listed.
    pub fn gathered(data: &'a [f32], columns: usize, rows: &'a [u32]) -> Self {
        let places = Places::Range { first: 0, count: columns };
        Self { data, stride: columns, rows: Rows::Listed(rows), columns: places }
    }

    /// The gate's `width` columns of rows in the order of a gate-up matrix's panels.
    pub fn gate(data: &'a [f32], width: usize, rows: usize) -> Self {
        Self::panels(data, width, rows, 0)
    }

    /// The up projection's `width` columns of rows in that order.
    pub fn up(data: &'a [f32], width: usize, rows: usize) -> Self {
        Self::panels(data, width, rows, PANEL)
    }

    fn panels(data: &'a [f32], width: usize, rows: usize, first: usize) -> Self {
        let stride = 2 * width.next_multiple_of(PANEL);
        Self { data, stride, rows: Rows::First(rows), columns: Places::Panels { first, count: width } }
    }

    fn row_count(&self) -> usize {
        match self.rows {
            Rows::First(count) => count,
            Rows::Listed(rows) => rows.len(),
        }
    }

    /// Row `row` of memory, from its first column on.
    #[inline]
    fn row(&self, row: usize) -> &'a [f32] {
        let row = match self.rows {
            Rows::First(_) => row,
            Rows::Listed(rows) => rows[row] as usize,
        };
        &self.data[row * self.stride..][..self.stride]
    }
}

/// Gradients by the weights of products whose inputs are the same rows. Its memory is used again and again.
pub struct WeightGradient {
    compute: Compute,
    /// Inputs as matrices, one a chunk of rows.
    inputs: Vec<PackedMatrix>,
    rows: usize,
    outputs: PackedRows,
}

impl WeightGradient {
    /// Products in `compute`.
    pub fn new(cpu: &Cpu, compute: Compute) -> Self {
        Self { compute, inputs: Vec::new(), rows: 0, outputs: PackedRows::new(cpu, compute, 0, 0) }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.inputs.iter().map(PackedMatrix::bytes).sum::<usize>() + self.outputs.bytes()
    }

    /// Takes the inputs `x[rows, K]` of the products.
    pub fn set_inputs(&mut self, cpu: &Cpu, x: Columns<'_>) {
        self.rows = x.row_count();
        let element = match self.compute {
            Compute::F32 => Element::F32,
            Compute::Bf16 => Element::Bf16,
        };
        for (chunk, rows) in chunks(self.rows).enumerate() {
            if chunk == self.inputs.len() {
                self.inputs.push(PackedMatrix::zeroed(x.columns.count(), rows.len(), element));
            }
            let matrix = &mut self.inputs[chunk];
            matrix.reshape(x.columns.count(), rows.len());
            pack_matrix(cpu, x, rows, matrix);
        }
    }

    /// `grad[N, K] += dy[rows, N]^T · x[rows, K]`, with the inputs taken last.
    ///
    /// # Panics
    /// When the number of rows is another than that of the inputs, or `grad` of another size.
    pub fn add(&mut self, cpu: &Cpu, dy: Columns<'_>, grad: &mut [f32]) {
        assert_eq!(dy.row_count(), self.rows, "rows of outputs and inputs");
        let outputs = dy.columns.count();
        for (rows, inputs) in chunks(self.rows).zip(&self.inputs) {
            assert_eq!(grad.len(), outputs * inputs.outputs(), "size of the gradient");
            pack_columns(cpu, dy, rows, &mut self.outputs);
            let segment = Segment::all(outputs);
            matmul(cpu, &self.outputs, &segment, std::slice::from_ref(inputs), Output::Add(&mut *grad));
        }
    }
}

fn chunks(rows: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(CHUNK_ROWS).map(move |first| first..(first + CHUNK_ROWS).min(rows))
}

/// Packs `x[rows, K]` as a matrix of `K` outputs: its panels are strips of 32 columns. A task takes a few rows and all
/// their columns, so that memory is read along rows.
fn pack_matrix(cpu: &Cpu, x: Columns<'_>, rows: Range<usize>, matrix: &mut PackedMatrix) {
    let (panels, panel_len, k_padded) = (matrix.panels(), matrix.panel_len(), matrix.k_padded());
    let isa = cpu.isa();
    let for_steps = |pack: &(dyn Fn(Range<usize>, usize) + Sync)| {
        cpu.for_rows(k_padded, K_STEP, |step| (0..panels).for_each(|panel| pack(step.clone(), panel)));
    };
    let place = |step: &Range<usize>, panel: usize| panel * panel_len + step.start * PANEL;
    match matrix.shared() {
        SharedPanels::F32(out) => for_steps(&|step, panel| {
            // SAFETY: steps of panels do not overlap.
            let out = unsafe { out.slice(place(&step, panel), step.len() * PANEL) };
            let values = Strip::new(x, &rows, step, panel * PANEL, PANEL);
            for (i, out) in out.chunks_exact_mut(PANEL).enumerate() {
                values.take(i, out);
            }
        }),
        SharedPanels::Bf16(out) => for_steps(&|step, panel| {
            // SAFETY: steps of panels do not overlap.
            let out = unsafe { out.slice(place(&step, panel), step.len() * PANEL) };
            let values = Strip::new(x, &rows, step, panel * PANEL, PANEL);
            // SAFETY: the machine has its own instruction set.
            unsafe { pack_pairs_on(isa, &values, out) };
        }),
    }
}

/// Up to [`PANEL`] columns of [`K_STEP`] rows.
struct Strip<'a> {
    x: Columns<'a>,
    /// Rows of `x` there are; those behind them are zeros.
    rows: Range<usize>,
    places: [usize; PANEL],
    count: usize,
}

impl<'a> Strip<'a> {
    /// Columns `first..`, up to `count`, of the rows `step` of `rows`.
    fn new(x: Columns<'a>, rows: &Range<usize>, step: Range<usize>, first: usize, count: usize) -> Self {
        let count = count.min(x.columns.count() - first);
        let places = std::array::from_fn(|i| x.columns.place(first + i.min(count - 1)));
        Self { x, rows: (rows.start + step.start).min(rows.end)..rows.end, places, count }
    }

    /// Copies the values of row `i`, and zeros behind them.
    #[inline(always)]
    fn take(&self, i: usize, out: &mut [f32]) {
        let row = self.rows.start + i;
        if row >= self.rows.end {
            return out.fill(0.0);
        }
        let row = self.x.row(row);
        // Places ascend.
        let (first, last) = (self.places[0], self.places[self.count - 1]);
        if self.count == PANEL && out.len() == PANEL && last - first + 1 == PANEL {
            // Of constant length, so that it is no call.
            out[..PANEL].copy_from_slice(&row[first..][..PANEL]);
        } else {
            for (out, place) in out.iter_mut().zip(&self.places[..self.count]) {
                *out = row[*place];
            }
            out[self.count..].fill(0.0);
        }
    }

    /// The values of rows `2 * pair` and `2 * pair + 1` as pairs of bf16, and zeros behind them.
    #[inline(always)]
    fn take_pair(&self, pair: usize) -> [u32; PANEL] {
        let mut values = [[0.0; PANEL]; 2];
        self.take(2 * pair, &mut values[0]);
        self.take(2 * pair + 1, &mut values[1]);
        let [low, high] = values;
        std::array::from_fn(|c| u32::from(f32_to_bf16(low[c])) | u32::from(f32_to_bf16(high[c])) << 16)
    }
}

simd_dispatch!(
    fn pack_pairs_on(values: &Strip<'_>, out: &mut [u16]) => pack_pairs
);

/// Writes a strip as `[K_STEP / 2, 32, 2]`.
#[inline(always)]
unsafe fn pack_pairs<S: Simd>(values: &Strip<'_>, out: &mut [u16]) {
    for (pair, out) in bytemuck::cast_slice_mut::<u16, u32>(out).chunks_exact_mut(PANEL).enumerate() {
        out.copy_from_slice(&values.take_pair(pair));
    }
}

/// Packs the columns of `dy[rows, N]` as `N` rows. A task takes a few rows and all their columns.
fn pack_columns(cpu: &Cpu, dy: Columns<'_>, rows: Range<usize>, packed: &mut PackedRows) {
    let outputs = dy.columns.count();
    packed.reshape(outputs, rows.len());
    let (format, block_rows, row_words) = (packed.format, packed.block_rows(), packed.row_words());
    let isa = cpu.isa();
    let data: SharedMut<'_, u32> = packed.shared();
    cpu.for_rows(rows.len().next_multiple_of(K_STEP), K_STEP, |step| {
        for first in (0..outputs).step_by(block_rows) {
            let values = Strip::new(dy, &rows, step.clone(), first, block_rows);
            let m = values.count;
            // Every format holds a block's steps one after the other.
            let step_words = m * row_words / (rows.len().div_ceil(K_STEP));
            let at = first * row_words + step.start / K_STEP * step_words;
            // SAFETY: steps of blocks do not overlap, and the machine has its own instruction set.
            unsafe { pack_step_on(isa, format, &values, data.slice(at, step_words)) };
        }
    });
}

simd_dispatch!(
    fn pack_step_on(format: Format, values: &Strip<'_>, out: &mut [u32]) => pack_step
);

/// Writes a step of a block, whose rows are the columns of a strip.
#[inline(always)]
unsafe fn pack_step<S: Simd>(format: Format, values: &Strip<'_>, out: &mut [u32]) {
    let m = values.count;
    match format {
        Format::F32 | Format::RoundedF32 => {
            let mut row = [0.0; PANEL];
            for (i, out) in out.chunks_exact_mut(m).enumerate() {
                values.take(i, &mut row);
                for (out, value) in out.iter_mut().zip(&row) {
                    *out = match format {
                        Format::F32 => value.to_bits(),
                        _ => u32::from(f32_to_bf16(*value)) << 16,
                    };
                }
            }
        }
        Format::Pairs => {
            for (pair, out) in out.chunks_exact_mut(m).enumerate() {
                out.copy_from_slice(&values.take_pair(pair)[..m]);
            }
        }
        Format::Tiles => {
            const PAIRS: usize = K_STEP / 2;
            let pairs: [_; PAIRS] = std::array::from_fn(|pair| values.take_pair(pair));
            for (r, out) in out.chunks_exact_mut(PAIRS).enumerate() {
                for (out, pair) in out.iter_mut().zip(&pairs) {
                    *out = pair[r];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::{CpuOptions, Isa};
    use crate::matmul::{RowMajor, Stored};
    use crate::testing::{Random, assert_close, bf16_round, bytes_of, widen};

    fn cpus() -> impl Iterator<Item = Cpu> {
        Isa::available().map(|isa| Cpu::new(CpuOptions { threads: Some(3), isa: Some(isa) }).unwrap())
    }

    fn rounded(compute: Compute, x: &[f32]) -> Vec<f64> {
        match compute {
            Compute::F32 => widen(x),
            Compute::Bf16 => widen(&bf16_round(x)),
        }
    }

    fn element(compute: Compute) -> Element {
        match compute {
            Compute::F32 => Element::F32,
            Compute::Bf16 => Element::Bf16,
        }
    }

    fn pack(cpu: &Cpu, w: &[f32], n: usize, k: usize, compute: Compute) -> PackedMatrix {
        let source = RowMajor { stored: Stored::F32, rows: n, cols: k, data: &bytes_of(w) };
        PackedMatrix::pack(cpu, source, element(compute))
    }

    const COMPUTES: [Compute; 2] = [Compute::F32, Compute::Bf16];

    #[test]
    fn gradients_by_inputs_are_products_with_the_transposed_weights_in_every_shape() {
        for cpu in cpus() {
            for compute in COMPUTES {
                let mut transposed = PackedMatrix::zeroed(1, 1, element(compute));
                for [t, n, k] in [[1, 1, 1], [5, 33, 31], [13, 64, 96], [40, 100, 70], [2, 7, 129]] {
                    let mut random = Random::new((t * n * k) as u64);
                    let (w, dy) = (random.normal(n * k), random.normal(t * n));
                    let matrix = pack(&cpu, &w, n, k, compute);
                    let segment = Segment::all(t);
                    let mut packed = PackedRows::new(&cpu, compute, t, n);
                    packed.pack(&cpu, &dy, n, &segment, |row| row);
                    let mut dx = vec![f32::NAN; t * k];
                    let matrices = std::slice::from_ref(&matrix);
                    input_gradient(&cpu, &packed, &segment, matrices, &mut transposed, Output::Rows(&mut dx));
                    let (w, dy) = (rounded(compute, &w), rounded(compute, &dy));
                    let mut expected = vec![0.0; t * k];
                    for (i, value) in expected.iter_mut().enumerate() {
                        *value = (0..n).map(|j| dy[i / k * n + j] * w[j * k + i % k]).sum();
                    }
                    let what = format!("{t}x{n}x{k} {compute} on {}", cpu.isa());
                    assert_close(&dx, &expected, 1e-5, &what);
                    input_gradient(&cpu, &packed, &segment, matrices, &mut transposed, Output::Add(&mut dx));
                    let twice: Vec<f64> = expected.iter().map(|x| 2.0 * x).collect();
                    assert_close(&dx, &twice, 1e-5, &what);
                }
            }
        }
    }

    #[test]
    fn gradients_by_weights_add_up_over_all_rows_in_every_shape() {
        for cpu in cpus() {
            for compute in COMPUTES {
                let mut product = WeightGradient::new(&cpu, compute);
                for [t, n, k] in [
                    [0, 3, 4],
                    [1, 1, 1],
                    [3, 33, 40],
                    [64, 20, 31],
                    [65, 64, 96],
                    [1000, 13, 33],
                    [2100, 7, 5],
                ] {
                    let mut random = Random::new((t * n * k) as u64);
                    let (x, dy, before) = (random.normal(t * k), random.normal(t * n), random.normal(n * k));
                    let mut grad = before.clone();
                    product.set_inputs(&cpu, Columns::all(&x, k, t));
                    product.add(&cpu, Columns::all(&dy, n, t), &mut grad);
                    let (x, dy) = (rounded(compute, &x), rounded(compute, &dy));
                    let mut expected = widen(&before);
                    for (i, value) in expected.iter_mut().enumerate() {
                        *value += (0..t).map(|j| dy[j * n + i / k] * x[j * k + i % k]).sum::<f64>();
                    }
                    assert_close(&grad, &expected, 2e-5, &format!("{t}x{n}x{k} {compute} on {}", cpu.isa()));
                }
            }
        }
    }

    #[test]
    fn rows_may_be_gathered_and_columns_be_a_range_or_stand_in_panels() {
        let cpu = Cpu::new(CpuOptions::default()).unwrap();
        let mut random = Random::new(4);
        let (t, k, width) = (9, 6, 40);
        let stride = 2 * 64;
        let (x, dy) = (random.normal(20 * k), random.normal(t * stride));
        let rows = [3, 3, 0, 19, 7, 8, 2, 1, 4];
        let mut product = WeightGradient::new(&cpu, Compute::F32);
        product.set_inputs(&cpu, Columns::gathered(&x, k, &rows));
        let expected = |place: &dyn Fn(usize) -> usize, n: usize| {
            let mut expected = vec![0.0; n * k];
            for (i, value) in expected.iter_mut().enumerate() {
                let term = |j: usize| {
                    f64::from(dy[j * stride + place(i / k)]) * f64::from(x[rows[j] as usize * k + i % k])
                };
                *value = (0..t).map(term).sum::<f64>();
            }
            expected
        };
        let mut check = |columns: Columns<'_>, expected: Vec<f64>, what: &str| {
            let mut grad = vec![0.0; expected.len()];
            product.add(&cpu, columns, &mut grad);
            assert_close(&grad, &expected, 1e-5, what);
        };
        check(Columns::range(&dy, stride, t, 5..70), expected(&|n| n + 5, 65), "range");
        let gate = |n: usize| n / 32 * 64 + n % 32;
        check(Columns::gate(&dy, width, t), expected(&gate, width), "gate");
        check(Columns::up(&dy, width, t), expected(&|n| gate(n) + 32, width), "up");
    }

    #[test]
    fn gradients_do_not_depend_on_the_number_of_threads() {
        let mut random = Random::new(5);
        let (t, n, k) = (1500, 50, 70);
        let (x, dy) = (random.normal(t * k), random.normal(t * n));
        for compute in COMPUTES {
            let of = |threads| {
                let cpu = Cpu::new(CpuOptions { threads: Some(threads), isa: None }).unwrap();
                let mut product = WeightGradient::new(&cpu, compute);
                let mut grad = vec![0.0; n * k];
                product.set_inputs(&cpu, Columns::all(&x, k, t));
                product.add(&cpu, Columns::all(&dy, n, t), &mut grad);
                grad
            };
            assert!(of(1) == of(4), "{compute}");
        }
    }
}
