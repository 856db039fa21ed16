//! Whether tiles compute and keep what they should, tried once before they are relied on.

use std::time::Duration;

use super::*;
use crate::device::cpu::simd::f32_to_bf16;

const STEPS: usize = 3;
const K: usize = STEPS * K_STEP;

/// Whether products of blocks of several sizes are right, and tiles outlast a change of threads.
pub(super) fn tiles_work(tiles: &mut impl Tiles) -> bool {
    let right =
        [1, TILE_ROWS, TILE_ROWS + 1, 29, TILES_BLOCK].into_iter().all(|m| product_is_right(tiles, m))
            && tiles_outlast_sleep(tiles);
    // SAFETY: the caller gives tiles that can be used.
    unsafe { tiles.release() };
    right
}

/// Input `k` of row `r`. Inputs and weights are small integers, so that sums are exact in any order.
fn input(r: usize, k: usize) -> i32 {
    ((7 * r + 3 * k) % 13) as i32 - 6
}

/// Weight of input `k` in column `c`.
fn weight(c: usize, k: usize) -> i32 {
    ((5 * c + 11 * k) % 17) as i32 - 8
}

fn pair(first: i32, second: i32) -> u32 {
    u32::from(f32_to_bf16(first as f32)) | u32::from(f32_to_bf16(second as f32)) << 16
}

/// Compares one product with plain loops; what lies below it must stay as it was.
fn product_is_right(tiles: &mut impl Tiles, m: usize) -> bool {
    let mut block = vec![0; m * K / 2];
    let mut panel = vec![0; PANEL * K / 2];
    for k in (0..K).step_by(2) {
        for r in 0..m {
            block[(k / K_STEP * m + r) * (K_STEP / 2) + k % K_STEP / 2] = pair(input(r, k), input(r, k + 1));
        }
        for c in 0..PANEL {
            panel[k / 2 * PANEL + c] = pair(weight(c, k), weight(c, k + 1));
        }
    }
    let untouched = f32::MAX;
    let mut out = Tile([[untouched; PANEL]; TILES_BLOCK]);
    let mut product = TileProduct { tiles, steps: STEPS, configured: 0 };
    let weights = panel.as_ptr().cast();
    let panel = Panel { weights, fetch: weights, fetch_step: 0 };
    // SAFETY: the caller gives tiles that can be used; block and panel hold `STEPS` steps.
    unsafe { product.tile(&block, m, panel, &mut out) };
    out.0.iter().enumerate().all(|(r, row)| {
        row.iter().enumerate().all(|(c, got)| {
            let sum: i32 = (0..K).map(|k| input(r, k) * weight(c, k)).sum();
            *got == if r < m { sum as f32 } else { untouched }
        })
    })
}

fn tiles_outlast_sleep(tiles: &mut impl Tiles) -> bool {
    let before: [u8; TILE_ROWS * ROW_BYTES] = std::array::from_fn(|i| (i % 251) as u8);
    let mut after = [0; TILE_ROWS * ROW_BYTES];
    // SAFETY: the caller gives tiles that can be used; both arrays hold a whole tile.
    unsafe {
        tiles.configure(&Configuration::for_rows(TILE_ROWS));
        tiles.load::<UPPER_LEFT>(before.as_ptr(), ROW_BYTES);
        std::thread::sleep(Duration::from_millis(1));
        tiles.store::<UPPER_LEFT>(after.as_mut_ptr(), ROW_BYTES);
    }
    before == after
}
