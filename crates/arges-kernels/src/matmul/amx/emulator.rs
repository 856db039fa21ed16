//! Tiles in plain code, after the pseudo-code of Intel's manual (volume 2, chapter "Intel AMX instruction set
//! reference" and the entries of the instructions). What the CPU would answer with an exception panics.

use super::{Configuration, ROW_BYTES, TILE_ROWS, Tiles};
use crate::device::cpu::simd::bf16_to_f32;

/// Tiles that palette 1 has.
const TILES: usize = 8;

type Rows = [[u8; ROW_BYTES]; TILE_ROWS];

const ZERO: Rows = [[0; ROW_BYTES]; TILE_ROWS];

#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    row_bytes: usize,
}

pub(super) struct Emulator {
    /// `None` while tiles are not configured.
    shapes: Option<[Shape; TILES]>,
    tiles: [Rows; TILES],
    /// How often tiles were configured.
    pub(super) configured: usize,
}

impl Emulator {
    pub(super) fn new() -> Self {
        Self { shapes: None, tiles: [ZERO; TILES], configured: 0 }
    }

    fn shape(&self, tile: usize) -> Shape {
        let shape = self.shapes.expect("tiles are configured")[tile];
        assert!(shape.rows > 0, "tile {tile} has no shape");
        assert_eq!(shape.row_bytes % 4, 0);
        shape
    }

    fn f32(&self, tile: usize, row: usize, i: usize) -> f32 {
        f32::from_le_bytes(self.tiles[tile][row][4 * i..][..4].try_into().unwrap())
    }

    fn bf16(&self, tile: usize, row: usize, i: usize) -> f32 {
        bf16_to_f32(u16::from_le_bytes(self.tiles[tile][row][2 * i..][..2].try_into().unwrap()))
    }
}

/// Denormals are zero, both as operands and as results.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

fn fma(a: f32, b: f32, c: f32) -> f32 {
    flush(flush(a).mul_add(flush(b), flush(c)))
}

fn add(a: f32, b: f32) -> f32 {
    flush(flush(a) + flush(b))
}

impl Tiles for Emulator {
    unsafe fn configure(&mut self, configuration: &Configuration) {
        // SAFETY: the structure is 64 bytes without padding.
        let bytes = unsafe { &*std::ptr::from_ref(configuration).cast::<[u8; 64]>() };
        assert_eq!(bytes[0], 1, "palette");
        assert_eq!(bytes[1], 0, "first row");
        let reserved = [&bytes[2..16], &bytes[32..48], &bytes[56..64]];
        assert!(reserved.concat().iter().all(|byte| *byte == 0), "reserved bytes and tiles 8 to 15");
        self.shapes = Some(std::array::from_fn(|tile| {
            let row_bytes = usize::from(u16::from_le_bytes([bytes[16 + 2 * tile], bytes[17 + 2 * tile]]));
            let rows = usize::from(bytes[48 + tile]);
            assert!(rows <= TILE_ROWS && row_bytes <= ROW_BYTES, "shape of tile {tile}");
            assert_eq!(rows == 0, row_bytes == 0, "shape of tile {tile}");
            Shape { rows, row_bytes }
        }));
        self.tiles = [ZERO; TILES];
        self.configured += 1;
    }

    unsafe fn release(&mut self) {
        self.shapes = None;
        self.tiles = [ZERO; TILES];
    }

    unsafe fn zero<const TILE: usize>(&mut self) {
        self.shape(TILE);
        self.tiles[TILE] = ZERO;
    }

    unsafe fn load<const TILE: usize>(&mut self, first: *const u8, stride: usize) {
        let shape = self.shape(TILE);
        self.tiles[TILE] = ZERO;
        for (r, row) in self.tiles[TILE].iter_mut().take(shape.rows).enumerate() {
            // SAFETY: the caller gives as many rows as the tile has.
            unsafe { first.add(r * stride).copy_to(row.as_mut_ptr(), shape.row_bytes) };
        }
    }

    unsafe fn store<const TILE: usize>(&mut self, first: *mut u8, stride: usize) {
        let shape = self.shape(TILE);
        for (r, row) in self.tiles[TILE].iter().take(shape.rows).enumerate() {
            // SAFETY: as for `load`.
            unsafe { first.add(r * stride).copy_from(row.as_ptr(), shape.row_bytes) };
        }
    }

    unsafe fn dot<const SUMS: usize, const ROWS: usize, const WEIGHTS: usize>(&mut self) {
        let (sums, rows, weights) = (self.shape(SUMS), self.shape(ROWS), self.shape(WEIGHTS));
        assert!(SUMS != ROWS && ROWS != WEIGHTS && SUMS != WEIGHTS);
        assert_eq!(sums.rows, rows.rows);
        assert_eq!(sums.row_bytes, weights.row_bytes);
        assert_eq!(rows.row_bytes / 4, weights.rows);
        let mut result = ZERO;
        for (m, result) in result.iter_mut().take(sums.rows).enumerate() {
            for n in 0..sums.row_bytes / 4 {
                let (mut even, mut odd) = (0.0, 0.0);
                for k in 0..rows.row_bytes / 4 {
                    even = fma(self.bf16(ROWS, m, 2 * k), self.bf16(WEIGHTS, k, 2 * n), even);
                    odd = fma(self.bf16(ROWS, m, 2 * k + 1), self.bf16(WEIGHTS, k, 2 * n + 1), odd);
                }
                let sum = add(self.f32(SUMS, m, n), add(even, odd));
                result[4 * n..][..4].copy_from_slice(&sum.to_le_bytes());
            }
        }
        self.tiles[SUMS] = result;
    }
}
