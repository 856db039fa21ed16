//! Layouts of packed weights and packed rows.

use std::ops::Range;

use half::f16;

use super::{Compute, K_STEP, PANEL};
use crate::device::cpu::simd::{Simd, bf16_to_f32, f32_to_bf16, simd_dispatch};
use crate::device::cpu::{AlignedBuffer, Cpu, Isa, SharedMut};

/// Packs some inputs of a row, `(inputs, panel, column, row)`.
type PutRow<'a> = dyn Fn(Range<usize>, usize, usize, &[u8]) + Sync + 'a;

/// Inputs of a panel that are packed together: 128 of f32 are 16 KiB.
const FILL_STEP: usize = 128;

/// Number format of packed weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    Bf16,
}

/// Number format of weights as they lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// IEEE single precision.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl Stored {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// Element `i` of little-endian `data`, widened to f32.
    #[inline]
    pub fn read(self, data: &[u8], i: usize) -> f32 {
        let half = || u16::from_le_bytes([data[2 * i], data[2 * i + 1]]);
        match self {
            Self::F32 => f32::from_le_bytes([data[4 * i], data[4 * i + 1], data[4 * i + 2], data[4 * i + 3]]),
            Self::Bf16 => bf16_to_f32(half()),
            Self::F16 => f16::from_bits(half()).to_f32(),
        }
    }
}

/// A row-major matrix as it lies in a file: little endian, of any alignment.
#[derive(Clone, Copy)]
pub struct RowMajor<'a> {
    /// Format of its elements.
    pub stored: Stored,
    /// Rows, which are outputs of a product.
    pub rows: usize,
    /// Columns, which are inputs.
    pub cols: usize,
    /// `rows * cols` elements.
    pub data: &'a [u8],
}

enum Data {
    F32(AlignedBuffer<f32>),
    Bf16(AlignedBuffer<u16>),
}

/// Weights in panels of [`PANEL`] outputs: f32 as `[panel, K, 32]`, bf16 as `[panel, K / 2, 32, 2]`.
pub struct PackedMatrix {
    outputs: usize,
    k: usize,
    data: Data,
}

impl PackedMatrix {
    /// A matrix of zeros, `[outputs, k]`.
    pub fn zeroed(outputs: usize, k: usize, element: Element) -> Self {
        let len = outputs.div_ceil(PANEL) * PANEL * k.next_multiple_of(K_STEP);
        let data = match element {
            Element::F32 => Data::F32(AlignedBuffer::zeroed(len)),
            Element::Bf16 => Data::Bf16(AlignedBuffer::zeroed(len)),
        };
        Self { outputs, k, data }
    }

    /// Makes it a matrix of another shape, in the same memory where that is large enough. What it held is lost.
    pub(super) fn reshape(&mut self, outputs: usize, k: usize) {
        let len = outputs.div_ceil(PANEL) * PANEL * k.next_multiple_of(K_STEP);
        let held = match &self.data {
            Data::F32(data) => data.len(),
            Data::Bf16(data) => data.len(),
        };
        if len > held {
            *self = Self::zeroed(outputs, k, self.element());
        }
        (self.outputs, self.k) = (outputs, k);
    }

    /// Panels in use, each of [`PANEL`] times the padded `K` elements, to be written by several tasks.
    pub(super) fn shared(&mut self) -> SharedPanels<'_> {
        match &mut self.data {
            Data::F32(data) => SharedPanels::F32(SharedMut::new(data)),
            Data::Bf16(data) => SharedPanels::Bf16(SharedMut::new(data)),
        }
    }

    /// Elements of one panel.
    pub(super) fn panel_len(&self) -> usize {
        PANEL * self.k_padded()
    }

    /// One panel.
    pub(super) fn panel_elements(&self, panel: usize) -> Panels<'_> {
        let range = panel * self.panel_len()..(panel + 1) * self.panel_len();
        match &self.data {
            Data::F32(data) => Panels::F32(&data[range]),
            Data::Bf16(data) => Panels::Bf16(&data[range]),
        }
    }

    /// Packs a whole matrix.
    pub fn pack(cpu: &Cpu, source: RowMajor<'_>, element: Element) -> Self {
        let mut packed = Self::zeroed(source.rows, source.cols, element);
        packed.fill(cpu, source, |row| row);
        packed
    }

    /// A matrix for [`super::Output::GateUp`]: panels of the gate and of the up projection in turn.
    pub fn pack_gate_up(cpu: &Cpu, gate: RowMajor<'_>, up: RowMajor<'_>, element: Element) -> Self {
        let mut packed = Self::zeroed_gate_up(gate.rows, gate.cols, element);
        packed.fill_gate(cpu, gate);
        packed.fill_up(cpu, up);
        packed
    }

    /// Zeros in the form of [`PackedMatrix::pack_gate_up`] for projections of `width` outputs each.
    pub fn zeroed_gate_up(width: usize, k: usize, element: Element) -> Self {
        Self::zeroed(2 * width.next_multiple_of(PANEL), k, element)
    }

    /// Packs the gate of a matrix of that form.
    pub fn fill_gate(&mut self, cpu: &Cpu, gate: RowMajor<'_>) {
        self.fill(cpu, gate, |row| row / PANEL * (2 * PANEL) + row % PANEL);
    }

    /// Packs the up projection of a matrix of that form.
    pub fn fill_up(&mut self, cpu: &Cpu, up: RowMajor<'_>) {
        self.fill(cpu, up, |row| row / PANEL * (2 * PANEL) + PANEL + row % PANEL);
    }

    /// Copies the rows of `source` to the outputs that `place` gives them; `place` maps no two rows to one.
    ///
    /// # Panics
    /// When an output is out of range, or the width is another.
    pub fn fill(&mut self, cpu: &Cpu, source: RowMajor<'_>, place: impl Fn(usize) -> usize + Sync) {
        assert_eq!(source.cols, self.k, "width of the source");
        assert_eq!(
            source.data.len(),
            source.rows * source.cols * source.stored.bytes(),
            "size of the source"
        );
        let (k, k_padded, outputs) = (self.k, self.k_padded(), self.outputs);
        let row_bytes = k * source.stored.bytes();
        let position = |row: usize| {
            let output = place(row);
            assert!(output < outputs, "output {output} of {outputs}");
            (output / PANEL * PANEL * k_padded, output % PANEL)
        };
        let (stored, data) = (source.stored, source.data);
        // Runs `put(inputs, panel, column, row)` over a few inputs of 32 rows, then the next inputs: what is written
        // then stays in the first-level cache until its lines are full.
        let for_rows = |put: &PutRow<'_>| {
            cpu.for_rows(source.rows, PANEL, |rows| {
                for first in (0..k).step_by(FILL_STEP) {
                    for row in rows.clone() {
                        let (panel, column) = position(row);
                        let bytes = &data[row * row_bytes..][..row_bytes];
                        put(first..(first + FILL_STEP).min(k), panel, column, bytes);
                    }
                }
            });
        };
        // SAFETY (all writes below): every row has its own column of its own panel, so that no element is
        // written twice, and indices stay below the panel's `PANEL * k_padded` elements.
        match &mut self.data {
            Data::F32(packed) => {
                let packed = SharedMut::new(packed);
                for_rows(&|inputs, panel, column, bytes| {
                    for i in inputs {
                        let at = panel + i * PANEL + column;
                        debug_assert!(at < packed.len());
                        // SAFETY: see above.
                        unsafe { *packed.as_mut_ptr().add(at) = stored.read(bytes, i) };
                    }
                });
            }
            Data::Bf16(packed) => {
                let packed = SharedMut::new(packed);
                for_rows(&|inputs, panel, column, bytes| {
                    for i in inputs {
                        let at = panel + (i / 2 * PANEL + column) * 2 + i % 2;
                        debug_assert!(at < packed.len());
                        let value = match stored {
                            Stored::Bf16 => u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]),
                            _ => f32_to_bf16(stored.read(bytes, i)),
                        };
                        // SAFETY: see above.
                        unsafe { *packed.as_mut_ptr().add(at) = value };
                    }
                });
            }
        }
    }

    /// Outputs, `N`.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Inputs, `K`.
    pub fn inputs(&self) -> usize {
        self.k
    }

    /// Number format.
    pub fn element(&self) -> Element {
        match self.data {
            Data::F32(_) => Element::F32,
            Data::Bf16(_) => Element::Bf16,
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(data) => data.bytes(),
            Data::Bf16(data) => data.bytes(),
        }
    }

    pub(super) fn k_padded(&self) -> usize {
        self.k.next_multiple_of(K_STEP)
    }

    pub(super) fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// Bytes from one panel to the next.
    pub(super) fn panel_bytes(&self) -> usize {
        let size = match self.element() {
            Element::F32 => 4,
            Element::Bf16 => 2,
        };
        PANEL * self.k_padded() * size
    }

    pub(super) fn panel(&self, panel: usize) -> *const u8 {
        assert!(panel < self.panels());
        let start = match &self.data {
            Data::F32(data) => data.as_ptr().cast::<u8>(),
            Data::Bf16(data) => data.as_ptr().cast::<u8>(),
        };
        // SAFETY: the buffer holds `panels` panels of that size.
        unsafe { start.add(panel * self.panel_bytes()) }
    }
}

/// Elements of panels.
pub(super) enum Panels<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
}

/// Elements of all panels, for tasks that write panels of their own.
pub(super) enum SharedPanels<'a> {
    F32(SharedMut<'a, f32>),
    Bf16(SharedMut<'a, u16>),
}

/// The most rows of a block of vector instructions.
pub(super) const VECTOR_BLOCK: usize = 12;
/// Rows of a block of AMX tiles: two tiles, each of which is multiplied with all weights that are loaded.
pub(super) const TILES_BLOCK: usize = 32;

/// How the rows of one block (at most [`Format::block_rows`] of them, `m` here) lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// f32, `[K, m]`.
    F32,
    /// Rounded to bf16 and widened again, `[K, m]`: bf16 products for machines without them.
    RoundedF32,
    /// Pairs of bf16, `[K / 2, m, 2]`.
    Pairs,
    /// AMX tiles of bf16, `[K / 32, m, 32]`.
    Tiles,
}

impl Format {
    pub(super) fn of(compute: Compute, isa: Isa) -> Self {
        match (compute, isa) {
            (Compute::F32, _) => Self::F32,
            (Compute::Bf16, Isa::Amx) => Self::Tiles,
            (Compute::Bf16, Isa::Avx512Bf16) => Self::Pairs,
            (Compute::Bf16, _) => Self::RoundedF32,
        }
    }

    /// Rows in a block, the unit of the inner kernels. The last block of a segment may have fewer.
    pub(super) fn block_rows(self, isa: Isa) -> usize {
        match self {
            Self::Tiles => TILES_BLOCK,
            _ if isa >= Isa::Avx512 => VECTOR_BLOCK,
            _ => 4,
        }
    }

    /// 32-bit words that a row takes.
    fn row_words(self, k_padded: usize) -> usize {
        match self {
            Self::F32 | Self::RoundedF32 => k_padded,
            Self::Pairs | Self::Tiles => k_padded / 2,
        }
    }
}

/// Activation rows, packed for products. Holds up to a fixed number of words; its width changes with each use.
pub struct PackedRows {
    pub(super) format: Format,
    pub(super) isa: Isa,
    pub(super) k: usize,
    data: AlignedBuffer<u32>,
}

impl PackedRows {
    /// Room for `rows` rows of up to `k` values for products in `compute`.
    pub fn new(cpu: &Cpu, compute: Compute, rows: usize, k: usize) -> Self {
        Self::with_format(Format::of(compute, cpu.isa()), cpu.isa(), rows, k)
    }

    /// As [`PackedRows::new`], in a given format.
    pub(super) fn with_format(format: Format, isa: Isa, rows: usize, k: usize) -> Self {
        let words = rows * format.row_words(k.next_multiple_of(K_STEP));
        Self { format, isa, k, data: AlignedBuffer::zeroed(words) }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.bytes()
    }

    /// Packs rows of `x[_, k]`. Packed row `i` is row `source(i)` of `x`. Each segment starts a block of its own.
    ///
    /// # Panics
    /// When the rows do not fit.
    pub fn pack(
        &mut self,
        cpu: &Cpu,
        x: &[f32],
        k: usize,
        segments: &[super::Segment],
        source: impl Fn(usize) -> usize + Sync,
    ) {
        self.set_width(k, segments);
        let (format, isa) = (self.format, self.isa);
        let k_padded = k.next_multiple_of(K_STEP);
        let block_rows = format.block_rows(isa);
        let row_words = format.row_words(k_padded);
        let data = SharedMut::new(&mut self.data);
        for segment in segments {
            cpu.for_rows(segment.rows, block_rows, |rows| {
                let m = rows.len();
                let first = segment.first + rows.start;
                // SAFETY: blocks do not overlap.
                let block = unsafe { data.slice(first * row_words, m * row_words) };
                for r in 0..m {
                    let row = &x[source(first + r) * k..][..k];
                    // SAFETY: the block holds `m` rows of this width.
                    unsafe { pack_row_on(isa, format, row, block, m, r) };
                }
            });
        }
    }

    /// Prepares for rows of width `k` that cover `segments`, without writing them.
    pub(super) fn set_width(&mut self, k: usize, segments: &[super::Segment]) {
        self.k = k;
        let end = segments.iter().map(|segment| segment.first + segment.rows).max().unwrap_or(0);
        assert!(
            end * self.format.row_words(k.next_multiple_of(K_STEP)) <= self.data.len(),
            "{end} rows of {k} values do not fit"
        );
    }

    pub(super) fn block_rows(&self) -> usize {
        self.format.block_rows(self.isa)
    }

    /// Words per packed row at the present width.
    pub(super) fn row_words(&self) -> usize {
        self.format.row_words(self.k.next_multiple_of(K_STEP))
    }

    /// The words of `m` rows from packed row `first` on.
    pub(super) fn block(&self, first: usize, m: usize) -> &[u32] {
        &self.data[first * self.row_words()..][..m * self.row_words()]
    }

    /// Makes room for `rows` rows of width `k` in one segment, without writing them.
    pub(super) fn reshape(&mut self, rows: usize, k: usize) {
        let words = rows * self.format.row_words(k.next_multiple_of(K_STEP));
        if words > self.data.len() {
            self.data = AlignedBuffer::zeroed(words);
        }
        self.k = k;
    }

    pub(super) fn shared(&mut self) -> SharedMut<'_, u32> {
        SharedMut::new(&mut self.data)
    }
}

simd_dispatch!(
    fn pack_row_on(format: Format, row: &[f32], block: &mut [u32], m: usize, r: usize) => pack_row
);

/// Writes row `r` of the `m` rows of a block and zeros its padding.
#[inline(always)]
unsafe fn pack_row<S: Simd>(format: Format, row: &[f32], block: &mut [u32], m: usize, r: usize) {
    for (step, values) in row.chunks(K_STEP).enumerate() {
        let mut padded = [0.0f32; K_STEP];
        let values = match values.try_into() {
            Ok(values) => values,
            Err(_) => {
                padded[..values.len()].copy_from_slice(values);
                &padded
            }
        };
        // SAFETY: the caller's promise.
        unsafe { format.store_step::<S>(values, block, m, r, step) };
    }
}

impl Format {
    /// Writes values `32 * step..` of row `r` of a block of `m` rows.
    ///
    /// # Safety
    /// The machine has the instruction set of `S`.
    #[inline(always)]
    pub(super) unsafe fn store_step<S: Simd>(
        self,
        values: &[f32; K_STEP],
        block: &mut [u32],
        m: usize,
        r: usize,
        step: usize,
    ) {
        match self {
            Self::F32 => {
                let block = &mut block[step * K_STEP * m..][..K_STEP * m];
                for (value, slots) in values.iter().zip(block.chunks_exact_mut(m)) {
                    slots[r] = value.to_bits();
                }
            }
            Self::RoundedF32 => {
                let block = &mut block[step * K_STEP * m..][..K_STEP * m];
                for (value, slots) in values.iter().zip(block.chunks_exact_mut(m)) {
                    slots[r] = u32::from(f32_to_bf16(*value)) << 16;
                }
            }
            Self::Pairs | Self::Tiles => {
                const PAIRS: usize = K_STEP / 2;
                let block = &mut block[step * PAIRS * m..][..PAIRS * m];
                let (first, stride) = if self == Self::Pairs { (r, m) } else { (r * PAIRS, 1) };
                assert!(r < m);
                for i in (0..PAIRS).step_by(S::LANES) {
                    // SAFETY: places `first + i * stride` for i below 16 lie within the block of 16 * m words.
                    unsafe {
                        let out = block.as_mut_ptr().add(first + i * stride);
                        S::store_bf16_pairs(values.as_ptr().add(2 * i), out, stride);
                    }
                }
            }
        }
    }
}
