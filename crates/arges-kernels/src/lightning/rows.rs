//! What is done to single rows: SiLU with its derivative, and scaling.

use crate::device::cpu::simd::{Simd, sigmoid, silu, simd_dispatch};

simd_dispatch!(pub(super) fn silu_on(x: &[f32], out: &mut [f32]) => silu_row);
simd_dispatch!(
    pub(super) fn silu_gradient_on(x: &[f32], out: &mut [f32], derivatives: &mut [f32]) => silu_gradient_row
);
simd_dispatch!(pub(super) fn multiply_on(x: &mut [f32], by: &[f32]) => multiply_row);
simd_dispatch!(pub(super) fn scale_on(x: &mut [f32], by: f32) => scale_row);

/// `out = silu(x)`, with zeros after it up to whole vectors.
#[inline(always)]
pub(super) unsafe fn silu_row<S: Simd>(x: &[f32], out: &mut [f32]) {
    let whole = x.len() / S::LANES * S::LANES;
    // SAFETY: every chunk and the buffer hold LANES values.
    unsafe {
        for (x, out) in x.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
            S::store(out.as_mut_ptr(), silu::<S>(S::load(x.as_ptr())));
        }
        if whole < x.len() {
            // SiLU of 0 is 0.
            let mut buffer = [0.0f32; 16];
            buffer[..x.len() - whole].copy_from_slice(&x[whole..]);
            let out = &mut out[whole..];
            out.fill(0.0);
            S::store(buffer.as_mut_ptr(), silu::<S>(S::load(buffer.as_ptr())));
            out[..S::LANES].copy_from_slice(&buffer[..S::LANES]);
        }
    }
}

/// `out = silu(x)`, with zeros after it up to whole vectors, and its derivatives.
#[inline(always)]
unsafe fn silu_gradient_row<S: Simd>(x: &[f32], out: &mut [f32], derivatives: &mut [f32]) {
    let whole = x.len() / S::LANES * S::LANES;
    let (x, tail) = x.split_at(whole);
    let (derivatives, tail_derivatives) = derivatives.split_at_mut(whole);
    let (out, tail_out) = out.split_at_mut(whole);
    // SAFETY: every chunk and the buffers hold LANES values.
    unsafe {
        for ((x, out), derivatives) in x
            .chunks_exact(S::LANES)
            .zip(out.chunks_exact_mut(S::LANES))
            .zip(derivatives.chunks_exact_mut(S::LANES))
        {
            let (value, derivative) = silu_gradient::<S>(S::load(x.as_ptr()));
            S::store(out.as_mut_ptr(), value);
            S::store(derivatives.as_mut_ptr(), derivative);
        }
        tail_out.fill(0.0);
        if !tail.is_empty() {
            let (mut buffer, mut slopes) = ([0.0f32; 16], [0.0f32; 16]);
            buffer[..tail.len()].copy_from_slice(tail);
            let (value, derivative) = silu_gradient::<S>(S::load(buffer.as_ptr()));
            S::store(buffer.as_mut_ptr(), value);
            S::store(slopes.as_mut_ptr(), derivative);
            tail_out[..tail.len()].copy_from_slice(&buffer[..tail.len()]);
            tail_derivatives.copy_from_slice(&slopes[..tail.len()]);
        }
    }
}

/// With `g = sigmoid(x)` and `y = x g`: `y` and `y' = g + y (1 - g)`.
#[inline(always)]
unsafe fn silu_gradient<S: Simd>(x: S::F) -> (S::F, S::F) {
    // SAFETY: the caller runs with the instruction set of S.
    unsafe {
        let gate = sigmoid::<S>(x);
        let value = S::mul(x, gate);
        (value, S::fma(value, S::sub(S::splat(1.0), gate), gate))
    }
}

#[inline(always)]
unsafe fn multiply_row<S: Simd>(x: &mut [f32], by: &[f32]) {
    x.iter_mut().zip(by).for_each(|(x, by)| *x *= by);
}

#[inline(always)]
unsafe fn scale_row<S: Simd>(x: &mut [f32], by: f32) {
    x.iter_mut().for_each(|x| *x *= by);
}
