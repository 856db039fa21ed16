//! Norms on the CPU.

use crate::device::cpu::simd::{Simd, sigmoid, simd_dispatch, sum};
use crate::device::cpu::{Cpu, SharedMut};

/// Rows of one task.
const GRAIN: usize = 8;
/// Values of one task where rows do not matter.
pub(super) const PIECE: usize = 1 << 14;

/// `out[rows, n] = rms_norm(x[rows, n])`.
///
/// # Panics
/// When sizes do not agree.
pub fn rms_norm(cpu: &Cpu, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let n = weight.len();
    assert_eq!(x.len(), out.len());
    assert_eq!(x.len() % n, 0);
    let rows = x.len() / n;
    let out = SharedMut::new(out);
    cpu.for_rows(rows, GRAIN, |range| {
        for row in range {
            // SAFETY: rows do not overlap; slices are all `n` long.
            unsafe { norm_on(cpu.isa(), &x[row * n..][..n], weight, eps, out.slice(row * n, n)) };
        }
    });
}

/// `x[rows, n] = sigmoid(gate) * rms_norm(x)`; rows of `gate` are `gate_stride` apart.
///
/// # Panics
/// When sizes do not agree.
pub fn gated_rms_norm(cpu: &Cpu, x: &mut [f32], gate: &[f32], gate_stride: usize, weight: &[f32], eps: f32) {
    let n = weight.len();
    assert_eq!(x.len() % n, 0);
    let rows = x.len() / n;
    let x = SharedMut::new(x);
    cpu.for_rows(rows, GRAIN, |range| {
        for row in range {
            let gate = &gate[row * gate_stride..][..n];
            // SAFETY: rows do not overlap; slices are all `n` long.
            unsafe { gated_norm_on(cpu.isa(), x.slice(row * n, n), gate, weight, eps) };
        }
    });
}

/// `x = alpha * base + beta * y`, where `base` is `x` itself when `None`.
///
/// # Panics
/// When sizes do not agree.
pub fn residual(cpu: &Cpu, x: &mut [f32], base: Option<&[f32]>, alpha: f32, y: &[f32], beta: f32) {
    assert_eq!(x.len(), y.len());
    assert!(base.is_none_or(|base| base.len() == x.len()));
    let len = x.len();
    let x = SharedMut::new(x);
    cpu.for_rows(len, PIECE, |range| {
        // SAFETY: ranges do not overlap.
        let x = unsafe { x.slice(range.start, range.len()) };
        let y = &y[range.clone()];
        let base = base.map(|base| &base[range]);
        // SAFETY: the slices are equally long.
        unsafe { residual_on(cpu.isa(), x, base, alpha, y, beta) };
    });
}

simd_dispatch!(fn residual_on(x: &mut [f32], base: Option<&[f32]>, alpha: f32, y: &[f32], beta: f32) => residual_piece);
simd_dispatch!(fn norm_on(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) => norm_row);
simd_dispatch!(fn gated_norm_on(x: &mut [f32], gate: &[f32], weight: &[f32], eps: f32) => gated_norm_row);

/// Plain loops, which the compiler turns into vectors of the instruction set they are inlined for.
#[inline(always)]
unsafe fn residual_piece<S: Simd>(x: &mut [f32], base: Option<&[f32]>, alpha: f32, y: &[f32], beta: f32) {
    match base {
        Some(base) => {
            for ((x, base), y) in x.iter_mut().zip(base).zip(y) {
                *x = alpha * base + beta * y;
            }
        }
        None => {
            for (x, y) in x.iter_mut().zip(y) {
                *x = alpha * *x + beta * y;
            }
        }
    }
}

/// 1 / sqrt(mean(x^2) + eps).
#[inline(always)]
pub(super) unsafe fn inverse_rms<S: Simd>(x: &[f32], eps: f32) -> f32 {
    let vectors = x.chunks_exact(S::LANES);
    let rest: f32 = vectors.remainder().iter().map(|x| x * x).sum();
    // SAFETY: chunks hold LANES values, and S is the instruction set we run on.
    let total = unsafe {
        let mut squares = S::splat(0.0);
        for x in vectors {
            let x = S::load(x.as_ptr());
            squares = S::fma(x, x, squares);
        }
        sum::<S>(squares) + rest
    };
    1.0 / (total / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
unsafe fn norm_row<S: Simd>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    // SAFETY: S is the instruction set we run on.
    let scale = unsafe { inverse_rms::<S>(x, eps) };
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

#[inline(always)]
unsafe fn gated_norm_row<S: Simd>(x: &mut [f32], gate: &[f32], weight: &[f32], eps: f32) {
    let n = x.len();
    let whole = n / S::LANES * S::LANES;
    // SAFETY: all slices are `n` long (the caller's promise), and S is the instruction set we run on.
    unsafe {
        let scale = S::splat(inverse_rms::<S>(x, eps));
        for i in (0..whole).step_by(S::LANES) {
            let normed = S::mul(S::mul(S::load(x.as_ptr().add(i)), scale), S::load(weight.as_ptr().add(i)));
            S::store(x.as_mut_ptr().add(i), S::mul(normed, sigmoid::<S>(S::load(gate.as_ptr().add(i)))));
        }
        let mut gates = [0.0f32; 16];
        gates[..n - whole].copy_from_slice(&gate[whole..]);
        let mut scales = [0.0f32; 16];
        S::store(gates.as_mut_ptr(), sigmoid::<S>(S::load(gates.as_ptr())));
        S::store(scales.as_mut_ptr(), scale);
        for i in whole..n {
            x[i] = x[i] * scales[0] * weight[i] * gates[i - whole];
        }
    }
}
