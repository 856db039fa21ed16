//! bf16 products with AMX, whose eight registers are tiles of up to 16 rows of 64 bytes.
//!
//! A step is [`K_STEP`] values along `K`. A block of up to [`TILES_BLOCK`] rows has one or two tiles of them a
//! step, a panel has two, one for each half of its columns, and the products add up in two or four further
//! tiles. A sum is therefore one chain over the steps, the same for any number of rows.
//!
//! Instructions are reached through [`Tiles`], so that the order of loads, products and stores is tested on
//! machines without AMX too.
#![cfg(target_arch = "x86_64")]

mod check;
#[cfg(test)]
mod emulator;
mod hardware;
#[cfg(test)]
mod tests;

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use super::cpu::{Panel, Product, Task, Tile};
use super::pack::TILES_BLOCK;
use super::{K_STEP, PANEL};
use crate::device::cpu::simd::{Avx512, Simd};
use hardware::Hardware;
pub(crate) use hardware::usable;

/// Rows of a tile, at most.
const TILE_ROWS: usize = 16;
/// Bytes of a row of a tile: [`K_STEP`] bf16 values, or 16 sums.
const ROW_BYTES: usize = 64;
/// Bytes of a pair of inputs of a panel, and of a row of a [`Tile`].
const PANEL_ROW_BYTES: usize = 4 * PANEL;
/// Bytes of a panel in one step.
const PANEL_STEP_BYTES: usize = TILE_ROWS * PANEL_ROW_BYTES;

// What each tile holds. Sums of the first 16 rows of a block are upper, those of the other rows lower; the
// first 16 columns of a panel are left, the others right.
const UPPER_LEFT: usize = 0;
const UPPER_RIGHT: usize = 1;
const LOWER_LEFT: usize = 2;
const LOWER_RIGHT: usize = 3;
const UPPER_ROWS: usize = 4;
const LOWER_ROWS: usize = 5;
const LEFT_WEIGHTS: usize = 6;
const RIGHT_WEIGHTS: usize = 7;

/// What products need of the tile registers.
///
/// # Safety
/// All methods need AMX, and all but `configure` and `release` a configuration in which the tiles they name
/// have shapes that fit. Loads and stores need as many valid rows as the tile has.
#[allow(clippy::missing_safety_doc)]
trait Tiles {
    /// Gives all tiles their shapes and sets them to zero.
    unsafe fn configure(&mut self, configuration: &Configuration);
    /// Ends the use of tiles: the system need not save them any more when it switches threads.
    unsafe fn release(&mut self);
    unsafe fn zero<const TILE: usize>(&mut self);
    /// Loads rows that lie `stride` bytes apart.
    unsafe fn load<const TILE: usize>(&mut self, first: *const u8, stride: usize);
    /// Stores rows `stride` bytes apart.
    unsafe fn store<const TILE: usize>(&mut self, first: *mut u8, stride: usize);
    /// `SUMS[m, 16] += ROWS[m, 32] · WEIGHTS[16, 16, 2]`, of f32 and bf16.
    unsafe fn dot<const SUMS: usize, const ROWS: usize, const WEIGHTS: usize>(&mut self);
}

/// The shapes of all tiles, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configuration {
    /// Shapes for a block of `m` rows. Tiles that it does not use have none.
    fn for_rows(m: usize) -> Self {
        assert!((1..=TILES_BLOCK).contains(&m), "blocks of {m} rows");
        let mut configuration =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let shapes = [
            (m.min(TILE_ROWS), [UPPER_LEFT, UPPER_RIGHT, UPPER_ROWS].as_slice()),
            (m.saturating_sub(TILE_ROWS), &[LOWER_LEFT, LOWER_RIGHT, LOWER_ROWS]),
            (TILE_ROWS, &[LEFT_WEIGHTS, RIGHT_WEIGHTS]),
        ];
        for (rows, tiles) in shapes.into_iter().filter(|(rows, _)| *rows > 0) {
            for &tile in tiles {
                configuration.rows[tile] = rows as u8;
                configuration.row_bytes[tile] = ROW_BYTES as u16;
            }
        }
        configuration
    }
}

/// Runs one task.
///
/// # Safety
/// AMX is [`usable`]; rows are packed as tiles and weights are bf16, both of one width.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn run(task: &Task<'_>) {
    // SAFETY: by the caller's promise; AMX is used only where AVX-512 is.
    unsafe { run_on::<Avx512>(task, &mut Hardware) }
}

/// # Safety
/// As for [`run`], with the instruction sets of `S` and `tiles`.
#[inline(always)]
unsafe fn run_on<S: Simd>(task: &Task<'_>, tiles: &mut impl Tiles) {
    let mut product = TileProduct { tiles, steps: task.matrix.k_padded() / K_STEP, configured: 0 };
    // SAFETY: by the caller's promise.
    unsafe {
        task.for_tiles::<S, TILES_BLOCK>(&mut product);
        tiles.release();
    }
}

struct TileProduct<'a, T> {
    tiles: &'a mut T,
    steps: usize,
    /// Rows of the blocks that the tiles have shapes for, 0 before the first. Only the last block of a segment
    /// has fewer rows than those before it, so that shapes seldom change.
    configured: usize,
}

impl<T: Tiles> Product<TILES_BLOCK> for TileProduct<'_, T> {
    #[inline(always)]
    unsafe fn tile(&mut self, block: &[u32], m: usize, panel: Panel, tile: &mut Tile<TILES_BLOCK>) {
        // SAFETY: the block holds `[steps, m, 32]` values, the panel `[steps, 16, 32, 2]` weights.
        unsafe {
            if self.configured != m {
                self.tiles.configure(&Configuration::for_rows(m));
                self.configured = m;
            }
            let rows = block.as_ptr().cast();
            if m > TILE_ROWS {
                product::<true>(self.tiles, self.steps, m, rows, panel, tile);
            } else {
                product::<false>(self.tiles, self.steps, m, rows, panel, tile);
            }
        }
    }
}

/// `out[m, 32] = rows[steps, m, 32] · panel[steps, 16, 32, 2]`; `LOWER` says whether `m` is above 16.
#[inline(always)]
unsafe fn product<const LOWER: bool>(
    tiles: &mut impl Tiles,
    steps: usize,
    m: usize,
    mut rows: *const u8,
    panel: Panel,
    out: &mut Tile<TILES_BLOCK>,
) {
    let (mut weights, mut fetch) = (panel.weights, panel.fetch);
    // SAFETY: the caller gives rows and weights of these sizes, and tiles that are configured for `m` rows.
    // The pointers are advanced to the end of a step, which lies within or at the end of what they point into.
    unsafe {
        tiles.zero::<UPPER_LEFT>();
        tiles.zero::<UPPER_RIGHT>();
        if LOWER {
            tiles.zero::<LOWER_LEFT>();
            tiles.zero::<LOWER_RIGHT>();
        }
        for _ in 0..steps {
            let next = fetch.wrapping_add(TILE_ROWS * panel.fetch_step);
            for line in (0..TILE_ROWS * panel.fetch_step).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(fetch.wrapping_add(line).cast());
            }
            fetch = next;
            tiles.load::<LEFT_WEIGHTS>(weights, PANEL_ROW_BYTES);
            tiles.load::<UPPER_ROWS>(rows, ROW_BYTES);
            tiles.dot::<UPPER_LEFT, UPPER_ROWS, LEFT_WEIGHTS>();
            tiles.load::<RIGHT_WEIGHTS>(weights.add(ROW_BYTES), PANEL_ROW_BYTES);
            tiles.dot::<UPPER_RIGHT, UPPER_ROWS, RIGHT_WEIGHTS>();
            if LOWER {
                tiles.load::<LOWER_ROWS>(rows.add(TILE_ROWS * ROW_BYTES), ROW_BYTES);
                tiles.dot::<LOWER_LEFT, LOWER_ROWS, LEFT_WEIGHTS>();
                tiles.dot::<LOWER_RIGHT, LOWER_ROWS, RIGHT_WEIGHTS>();
            }
            rows = rows.add(m * ROW_BYTES);
            weights = weights.add(PANEL_STEP_BYTES);
        }
        let upper = out.0.as_mut_ptr().cast::<u8>();
        tiles.store::<UPPER_LEFT>(upper, PANEL_ROW_BYTES);
        tiles.store::<UPPER_RIGHT>(upper.add(ROW_BYTES), PANEL_ROW_BYTES);
        if LOWER {
            let lower = upper.add(TILE_ROWS * PANEL_ROW_BYTES);
            tiles.store::<LOWER_LEFT>(lower, PANEL_ROW_BYTES);
            tiles.store::<LOWER_RIGHT>(lower.add(ROW_BYTES), PANEL_ROW_BYTES);
        }
    }
}
