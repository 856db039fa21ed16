//! Blocking, task division and the f32 kernels.

use std::marker::PhantomData;

use super::pack::{Format, PackedMatrix, PackedRows, VECTOR_BLOCK};
use super::{Element, K_STEP, PANEL, amx, avx512_bf16};
use crate::device::cpu::simd::{Simd, silu, simd_dispatch};
use crate::device::cpu::{Cpu, Isa, SharedMut};

/// Rows of one task, in blocks and in rows, at most: their packed form stays in the second-level cache.
const TASK_BLOCKS: usize = 16;
const TASK_ROWS: usize = 256;
/// Panels of one task, at most. Even, as [`Output::GateUp`] takes panels in twos.
const TASK_PANELS: usize = 4;
/// Bytes of weights to fetch ahead of their use. Small blocks wait for weights from memory; the fetch reaches
/// into the next panel, which is used next.
const AHEAD: usize = 4096;

/// Rows that are multiplied with one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First packed row.
    pub first: usize,
    /// Number of rows.
    pub rows: usize,
    /// Index of the matrix.
    pub matrix: usize,
}

impl Segment {
    /// All of `rows` rows, with the only matrix.
    pub fn all(rows: usize) -> [Self; 1] {
        [Self { first: 0, rows, matrix: 0 }]
    }
}

/// Where a product goes.
pub enum Output<'a> {
    /// f32 rows `[_, N]`, row `i` for packed row `i`.
    Rows(&'a mut [f32]),
    /// As [`Output::Rows`], added to what is there.
    Add(&'a mut [f32]),
    /// `silu(gate) * up` from a matrix of [`PackedMatrix::pack_gate_up`], packed again, `width` values a row.
    GateUp(&'a mut PackedRows, usize),
}

enum Sink<'a> {
    Rows { out: SharedMut<'a, f32>, outputs: usize, add: bool },
    GateUp { out: SharedMut<'a, u32>, format: Format, row_words: usize },
}

/// Multiplies every segment's rows with its matrix. `matrices` are all of one shape and format.
///
/// # Panics
/// When shapes do not agree.
pub fn matmul(
    cpu: &Cpu,
    rows: &PackedRows,
    segments: &[Segment],
    matrices: &[PackedMatrix],
    output: Output<'_>,
) {
    for_tasks(cpu, rows, segments, matrices, output, |task| task.run(cpu.isa()));
}

/// Divides products into tasks, and has the threads `run` them.
pub(super) fn for_tasks(
    cpu: &Cpu,
    rows: &PackedRows,
    segments: &[Segment],
    matrices: &[PackedMatrix],
    output: Output<'_>,
    run: impl Fn(&Task<'_>) + Sync,
) {
    let Some(matrix) = matrices.first() else { return };
    assert_eq!(rows.k, matrix.inputs(), "width of the rows");
    let sink = match output {
        Output::Rows(_) | Output::Add(_) => {
            let add = matches!(output, Output::Add(_));
            let (Output::Rows(out) | Output::Add(out)) = output else { unreachable!("matched above") };
            let end = segments.iter().map(|s| s.first + s.rows).max().unwrap_or(0);
            assert!(out.len() >= end * matrix.outputs(), "room for the product");
            Sink::Rows { out: SharedMut::new(out), outputs: matrix.outputs(), add }
        }
        Output::GateUp(out, width) => {
            assert_eq!(matrix.outputs(), 2 * width.next_multiple_of(PANEL), "gate and up panels");
            out.set_width(width, segments);
            assert_eq!(out.isa, rows.isa);
            Sink::GateUp { format: out.format, row_words: out.row_words(), out: out.shared() }
        }
    };
    let panels = matrix.panels();
    let block_rows = rows.block_rows();
    let chunk = TASK_BLOCKS.min(TASK_ROWS / block_rows) * block_rows;
    let total: usize = segments.iter().map(|s| s.rows.div_ceil(chunk) * panels).sum();
    // Enough tasks for every thread to share evenly, each long enough to pay for its hand-over.
    let group = (total / (8 * cpu.pool().threads())).clamp(2, TASK_PANELS) & !1;
    let groups = panels.div_ceil(group);
    let tasks = segments.iter().map(|s| s.rows.div_ceil(chunk) * groups).sum();
    cpu.pool().run(tasks, |task, _| {
        let (segment, task) = find_segment(segments, task, |s| s.rows.div_ceil(chunk) * groups);
        let chunks = segment.rows.div_ceil(chunk);
        let first_panel = task / chunks * group;
        let first_row = task % chunks * chunk;
        run(&Task {
            rows,
            matrix: &matrices[segment.matrix],
            panels: first_panel..(first_panel + group).min(panels),
            first: segment.first + first_row,
            count: (segment.rows - first_row).min(chunk),
            sink: &sink,
        });
    });
}

/// The segment that task number `task` falls into, and its number within that.
fn find_segment(
    segments: &[Segment],
    mut task: usize,
    tasks: impl Fn(&Segment) -> usize,
) -> (Segment, usize) {
    for segment in segments {
        let count = tasks(segment);
        if task < count {
            return (*segment, task);
        }
        task -= count;
    }
    unreachable!("the task count is the sum over segments")
}

/// `count` rows from `first` times some panels of a matrix.
pub(super) struct Task<'a> {
    pub(super) rows: &'a PackedRows,
    pub(super) matrix: &'a PackedMatrix,
    pub(super) panels: std::ops::Range<usize>,
    pub(super) first: usize,
    pub(super) count: usize,
    sink: &'a Sink<'a>,
}

/// Products of one block of up to `BLOCK` rows with one panel.
#[repr(align(64))]
pub(super) struct Tile<const BLOCK: usize>(pub(super) [[f32; PANEL]; BLOCK]);

/// A panel of weights to multiply with, and what to fetch meanwhile.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub(super) weights: *const u8,
    /// First address to fetch. It need not be valid.
    pub(super) fetch: *const u8,
    /// Bytes to fetch for each 128 bytes of weights.
    pub(super) fetch_step: usize,
}

/// The inner kernel of one format, for blocks of up to `BLOCK` rows. A trait and not a closure, so that it is
/// compiled with the instruction set of the function it is inlined into.
pub(super) trait Product<const BLOCK: usize> {
    /// `tile[m, 32] = block · panel`.
    ///
    /// # Safety
    /// The machine has the instruction set; `block` holds `m` packed rows and `panel` a panel, of one width.
    unsafe fn tile(&mut self, block: &[u32], m: usize, panel: Panel, tile: &mut Tile<BLOCK>);
}

impl Task<'_> {
    fn run(&self, isa: Isa) {
        assert_eq!(self.rows.row_words() % (K_STEP / 2), 0);
        // An `Isa` in use is one that this machine has; the task's blocks and panels lie within the rows and the
        // matrix, whose widths agree.
        match (self.rows.format, self.matrix.element()) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as said above.
            (Format::Pairs, Element::Bf16) => unsafe { avx512_bf16::run(self) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as said above.
            (Format::Tiles, Element::Bf16) => unsafe { amx::run(self) },
            // SAFETY: as said above.
            (Format::F32 | Format::RoundedF32, _) => unsafe { run_f32(isa, self) },
            (format, element) => unreachable!("{format:?} rows with {element:?} weights"),
        }
    }

    /// Multiplies every block with every panel and stores the tiles.
    ///
    /// # Safety
    /// The machine has the instruction sets of `S` and `product`.
    #[inline(always)]
    pub(super) unsafe fn for_tiles<S: Simd, const BLOCK: usize>(&self, product: &mut impl Product<BLOCK>) {
        assert!(self.rows.block_rows() <= BLOCK);
        let mut tiles = [Tile([[0.0; PANEL]; BLOCK]), Tile([[0.0; PANEL]; BLOCK])];
        let step = if matches!(self.sink, Sink::GateUp { .. }) { 2 } else { 1 };
        for panel in self.panels.clone().step_by(step) {
            let blocks = self.count.div_ceil(self.rows.block_rows());
            let mut done = 0;
            while done < self.count {
                let m = (self.count - done).min(self.rows.block_rows());
                let first = self.first + done;
                let block = self.rows.block(first, m);
                for (i, tile) in tiles.iter_mut().take(step).enumerate() {
                    let panel = self.panel(panel + i, step, done / self.rows.block_rows(), blocks);
                    // SAFETY: block and panel are of the width that the product was made for.
                    unsafe { product.tile(block, m, panel, tile) };
                }
                self.store::<S, BLOCK>(&tiles, first, m, panel);
                done += m;
            }
        }
    }

    /// The first block of rows fetches a panel's weights shortly ahead of their use; the others together fetch
    /// the panel that is used after it, so that the first finds it in the cache.
    fn panel(&self, panel: usize, step: usize, block: usize, blocks: usize) -> Panel {
        let weights = self.matrix.panel(panel);
        if block == 0 {
            return Panel { weights, fetch: weights.wrapping_add(AHEAD), fetch_step: 128 };
        }
        let bytes = self.matrix.panel_bytes();
        let share = bytes / (blocks - 1);
        let fetch = weights.wrapping_add(step * bytes + (block - 1) * share);
        Panel { weights, fetch, fetch_step: 128usize.div_ceil(blocks - 1) }
    }

    #[inline(always)]
    fn store<S: Simd, const BLOCK: usize>(
        &self,
        tiles: &[Tile<BLOCK>; 2],
        first: usize,
        m: usize,
        panel: usize,
    ) {
        match self.sink {
            Sink::Rows { out, outputs, add } => {
                let width = (outputs - panel * PANEL).min(PANEL);
                for r in 0..m {
                    // SAFETY: this task alone writes these columns of these rows.
                    let row = unsafe { out.slice((first + r) * outputs + panel * PANEL, width) };
                    let tile = &tiles[0].0[r];
                    if width == PANEL {
                        for i in (0..PANEL).step_by(S::LANES) {
                            // SAFETY: both hold PANEL values; S is the instruction set we run on.
                            unsafe {
                                let (place, sums) = (row.as_mut_ptr().add(i), S::load(tile.as_ptr().add(i)));
                                S::store(place, if *add { S::add(S::load(place), sums) } else { sums });
                            }
                        }
                    } else if *add {
                        row.iter_mut().zip(tile).for_each(|(value, sum)| *value += sum);
                    } else {
                        row.copy_from_slice(&tile[..width]);
                    }
                }
            }
            Sink::GateUp { out, format, row_words } => {
                for r in 0..m {
                    let (gate, up) = (&tiles[0].0[r], &tiles[1].0[r]);
                    let mut values = [0.0f32; PANEL];
                    for i in (0..PANEL).step_by(S::LANES) {
                        // SAFETY: in bounds of the tiles' rows; S is the instruction set we run on.
                        unsafe {
                            let gate = S::load(gate.as_ptr().add(i));
                            let up = S::load(up.as_ptr().add(i));
                            S::store(values.as_mut_ptr().add(i), S::mul(silu::<S>(gate), up));
                        }
                    }
                    // SAFETY: tasks write disjoint elements of the block; the slice is not kept.
                    unsafe {
                        let block = out.slice(first * row_words, m * row_words);
                        format.store_step::<S>(&values, block, m, r, panel / 2);
                    }
                }
            }
        }
    }
}

simd_dispatch!(fn run_f32(task: &Task<'_>) => f32_task);

#[inline(always)]
unsafe fn f32_task<S: Simd>(task: &Task<'_>) {
    let mut product = F32Product::<S> {
        k: task.matrix.k_padded(),
        bf16: task.matrix.element() == Element::Bf16,
        simd: PhantomData,
    };
    // SAFETY: by the caller's promise.
    unsafe { task.for_tiles::<S, VECTOR_BLOCK>(&mut product) }
}

struct F32Product<S> {
    k: usize,
    bf16: bool,
    simd: PhantomData<S>,
}

impl<S: Simd> Product<VECTOR_BLOCK> for F32Product<S> {
    #[inline(always)]
    unsafe fn tile(&mut self, block: &[u32], m: usize, panel: Panel, tile: &mut Tile<VECTOR_BLOCK>) {
        let a = block.as_ptr().cast::<f32>();
        macro_rules! tile {
            ($($m:literal),*) => {
                match m {
                    // SAFETY: the block holds [k, m] values, the panel [k, 32] weights.
                    $($m => unsafe {
                        if self.bf16 {
                            tile_bf16::<S, $m>(self.k, a, panel, tile);
                        } else {
                            tile_f32::<S, $m>(self.k, a, panel, tile);
                        }
                    },)*
                    _ => unreachable!("blocks of {m} rows"),
                }
            };
        }
        if S::LANES == 16 {
            tile!(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
        } else {
            tile!(1, 2, 3, 4);
        }
    }
}

/// `tile[M, 32] = a[k, M]^T · panel[k, 32]`, two vectors of columns at a time.
#[inline(always)]
unsafe fn tile_f32<S: Simd, const M: usize>(
    k: usize,
    a: *const f32,
    panel: Panel,
    tile: &mut Tile<VECTOR_BLOCK>,
) {
    // SAFETY: the caller gives blocks of these sizes.
    unsafe {
        for column in (0..PANEL).step_by(2 * S::LANES) {
            let mut sums = [[S::splat(0.0); 2]; M];
            let (mut a, mut b) = (a, panel.weights.cast::<f32>().add(column));
            let mut fetch = panel.fetch.wrapping_add(4 * column);
            for _ in 0..k {
                S::prefetch(fetch);
                fetch = fetch.wrapping_add(panel.fetch_step);
                let (b0, b1) = (S::load(b), S::load(b.add(S::LANES)));
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x = S::splat(*a.add(r));
                    *sum = [S::fma(x, b0, sum[0]), S::fma(x, b1, sum[1])];
                }
                a = a.add(M);
                b = b.add(PANEL);
            }
            store_sums::<S, M>(&sums, column, tile);
        }
    }
}

/// As [`tile_f32`], with bf16 weights `[k / 2, 32, 2]`.
#[inline(always)]
unsafe fn tile_bf16<S: Simd, const M: usize>(
    k: usize,
    a: *const f32,
    panel: Panel,
    tile: &mut Tile<VECTOR_BLOCK>,
) {
    // SAFETY: the caller gives blocks of these sizes.
    unsafe {
        for column in (0..PANEL).step_by(2 * S::LANES) {
            let mut sums = [[S::splat(0.0); 2]; M];
            let (mut a, mut b) = (a, panel.weights.cast::<u16>().add(2 * column));
            let mut fetch = panel.fetch.wrapping_add(4 * column);
            for _ in 0..k / 2 {
                S::prefetch(fetch);
                fetch = fetch.wrapping_add(panel.fetch_step);
                let (even0, odd0) = S::load_bf16_pairs(b);
                let (even1, odd1) = S::load_bf16_pairs(b.add(2 * S::LANES));
                for (r, sum) in sums.iter_mut().enumerate() {
                    let (x0, x1) = (S::splat(*a.add(r)), S::splat(*a.add(M + r)));
                    *sum = [
                        S::fma(x1, odd0, S::fma(x0, even0, sum[0])),
                        S::fma(x1, odd1, S::fma(x0, even1, sum[1])),
                    ];
                }
                a = a.add(2 * M);
                b = b.add(2 * PANEL);
            }
            store_sums::<S, M>(&sums, column, tile);
        }
    }
}

#[inline(always)]
unsafe fn store_sums<S: Simd, const M: usize>(
    sums: &[[S::F; 2]; M],
    column: usize,
    tile: &mut Tile<VECTOR_BLOCK>,
) {
    for (r, [left, right]) in sums.iter().enumerate() {
        let row = &mut tile.0[r];
        // SAFETY: the columns lie within the panel.
        unsafe {
            let out = row.as_mut_ptr().add(column);
            S::store(out, *left);
            S::store(out.add(S::LANES), *right);
        }
    }
}
