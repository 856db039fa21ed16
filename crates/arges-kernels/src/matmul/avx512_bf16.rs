//! bf16 products with AVX-512's `vdpbf16ps`.
#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;

use super::PANEL;
use super::cpu::{Panel, Product, Task, Tile};
use super::pack::VECTOR_BLOCK;
use crate::device::cpu::simd::{Avx512, Simd};

/// Runs one task.
///
/// # Safety
/// The machine has avx512bf16; rows are packed as pairs and weights are bf16, both of one width.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn run(task: &Task<'_>) {
    // SAFETY: by the caller's promise.
    unsafe { task.for_tiles::<Avx512, VECTOR_BLOCK>(&mut PairProduct { pairs: task.matrix.k_padded() / 2 }) }
}

struct PairProduct {
    pairs: usize,
}

impl Product<VECTOR_BLOCK> for PairProduct {
    #[inline(always)]
    unsafe fn tile(&mut self, block: &[u32], m: usize, panel: Panel, tile: &mut Tile<VECTOR_BLOCK>) {
        let a = block.as_ptr().cast::<i32>();
        macro_rules! tile {
            ($($m:literal),*) => {
                match m {
                    // SAFETY: the block holds [pairs, m] pairs, the panel [pairs, 32] of them.
                    $($m => unsafe { product::<$m>(self.pairs, a, panel, tile) },)*
                    _ => unreachable!("blocks of {m} rows"),
                }
            };
        }
        tile!(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12);
    }
}

/// `tile[M, 32] = a[pairs, M] · panel[pairs, 32]`, each product that of two bf16 pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn product<const M: usize>(pairs: usize, a: *const i32, panel: Panel, tile: &mut Tile<VECTOR_BLOCK>) {
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    // SAFETY: the caller gives blocks of these sizes; vectors of 32-bit pairs and of bf16 are the same bits.
    unsafe {
        let (mut a, mut b) = (a, panel.weights.cast::<i32>());
        let mut fetch = panel.fetch;
        for _ in 0..pairs {
            let b0 = std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.cast()));
            let b1 = std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(b.add(16).cast()));
            Avx512::prefetch(fetch);
            fetch = fetch.wrapping_add(panel.fetch_step);
            for (r, sum) in sums.iter_mut().enumerate() {
                let x = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(a.add(r).read()));
                *sum = [_mm512_dpbf16_ps(sum[0], b0, x), _mm512_dpbf16_ps(sum[1], b1, x)];
            }
            a = a.add(M);
            b = b.add(PANEL);
        }
        for (r, [left, right]) in sums.iter().enumerate() {
            let out = tile.0[r].as_mut_ptr();
            _mm512_storeu_ps(out, *left);
            _mm512_storeu_ps(out.add(16), *right);
        }
    }
}
