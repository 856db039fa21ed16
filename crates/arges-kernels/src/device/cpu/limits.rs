//! What this machine can do at best, measured: the limits that speeds are stated as shares of.

use std::hint::black_box;
use std::time::Instant;

use super::simd::{Simd, simd_dispatch, sum};
use super::{AlignedBuffer, Cpu};
use crate::matmul::{Compute, Element, Output, PackedMatrix, PackedRows, RowMajor, Segment, Stored, matmul};

/// Bytes a second that all threads together read from memory, the best of `rounds` passes over `bytes` bytes,
/// which should be several times the caches.
pub fn read_bandwidth(cpu: &Cpu, bytes: usize, rounds: usize) -> f64 {
    const PIECE: usize = 1 << 20;
    let mut data = AlignedBuffer::<f32>::zeroed(bytes / 4);
    // Untouched pages are all one page of zeros, which would be read from the cache.
    data.fill(1.0);
    let best = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            cpu.for_rows(data.len(), PIECE, |range| {
                let mut total = 0.0;
                // SAFETY: the kernel reads a slice.
                unsafe { sum_on(cpu.isa(), &data[range], &mut total) };
                black_box(total);
            });
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    (data.len() * 4) as f64 / best
}

simd_dispatch!(fn sum_on(x: &[f32], total: &mut f32) => sum_all);

#[inline(always)]
unsafe fn sum_all<S: Simd>(x: &[f32], total: &mut f32) {
    // SAFETY: chunks hold 4 * LANES values, and S is the instruction set we run on.
    unsafe {
        let mut sums = [S::splat(0.0); 4];
        for x in x.chunks_exact(4 * S::LANES) {
            let ahead = x.as_ptr().cast::<u8>().wrapping_add(4096);
            S::prefetch(ahead);
            S::prefetch(ahead.wrapping_add(8 * S::LANES));
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = S::add(*sum, S::load(x.as_ptr().add(i * S::LANES)));
            }
        }
        *total = sums.into_iter().map(|x| sum::<S>(x)).sum();
    }
}

/// Floating-point operations a second of a product that stays in cache, on all threads, the best of `rounds`.
pub fn matrix_rate(cpu: &Cpu, compute: Compute, rounds: usize) -> f64 {
    const N: usize = 1024;
    let element = match compute {
        Compute::F32 => Element::F32,
        Compute::Bf16 => Element::Bf16,
    };
    let data = vec![0u8; N * N * 4];
    let source = RowMajor { stored: Stored::F32, rows: N, cols: N, data: &data };
    let matrix = PackedMatrix::pack(cpu, source, element);
    let mut rows = PackedRows::new(cpu, compute, N, N);
    rows.pack(cpu, &vec![1.0; N * N], N, &Segment::all(N), |row| row);
    let mut out = vec![0.0; N * N];
    let best = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            matmul(cpu, &rows, &Segment::all(N), std::slice::from_ref(&matrix), Output::Rows(&mut out));
            black_box(&out);
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    2.0 * (N as f64).powi(3) / best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::{CpuOptions, Isa};

    #[test]
    fn limits_are_positive_on_every_instruction_set() {
        for isa in Isa::available() {
            let cpu = Cpu::new(CpuOptions { isa: Some(isa), threads: Some(2) }).unwrap();
            assert!(read_bandwidth(&cpu, 1 << 22, 1) > 1e6);
            assert!(matrix_rate(&cpu, Compute::F32, 1) > 1e6);
        }
    }
}
