//! Gradients of norms and residual sums.
//!
//! With `r = 1 / sqrt(mean(x^2) + eps)` and `u` the gradient by `x r weight`:
//! `dx = r (u weight - x r^2 mean(u weight x))` and `dweight = sum over rows of u x r`. Under a gate
//! `u = dy sigmoid(gate)` and `dgate = u (1 - sigmoid(gate)) x r weight`.

use super::cpu::{PIECE, inverse_rms};
use crate::device::cpu::simd::{Simd, sigmoid, simd_dispatch, sum};
use crate::device::cpu::{AlignedBuffer, Cpu, SharedMut};

/// Rows whose gradients by the weight are summed together. The sums of these blocks are then added in order, so
/// that the result does not depend on the number of threads.
const BLOCK: usize = 32;
/// Columns of one task that adds up the blocks.
const COLUMNS: usize = 512;

/// The gradient of [`super::rms_norm`] for rows `x[rows, n]` from that by its result, `dy[rows, n]`: writes
/// `dx[rows, n]` and adds to `dweight[n]`.
///
/// # Panics
/// When sizes do not agree.
pub fn rms_norm_backward(
    cpu: &Cpu,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
) {
    let n = weight.len();
    assert_eq!(dweight.len(), n);
    assert_eq!(x.len() % n, 0);
    assert!(x.len() == dy.len() && x.len() == dx.len());
    let dx = SharedMut::new(dx);
    add_rows(cpu, x.len() / n, dweight, |row, dweight| {
        let (x, dy) = (&x[row * n..][..n], &dy[row * n..][..n]);
        // SAFETY: rows do not overlap; slices are all `n` long.
        unsafe { norm_row_on(cpu.isa(), x, weight, eps, dy, dx.slice(row * n, n), dweight) };
    });
}

/// The gradient of [`super::gated_rms_norm`] for rows `x[rows, n]` as they were before the norm, from that by its
/// result, `dy[rows, n]`: writes `dx[rows, n]` and the rows of `dgate`, and adds to `dweight[n]`. Rows of `gate`
/// and of `dgate` are `gate_stride` apart; what lies between them is left alone.
///
/// # Panics
/// When sizes do not agree.
#[allow(clippy::too_many_arguments)]
pub fn gated_rms_norm_backward(
    cpu: &Cpu,
    x: &[f32],
    gate: &[f32],
    gate_stride: usize,
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dgate: &mut [f32],
    dweight: &mut [f32],
) {
    let n = weight.len();
    assert_eq!(dweight.len(), n);
    assert_eq!(x.len() % n, 0);
    assert!(x.len() == dy.len() && x.len() == dx.len());
    assert!(gate_stride >= n, "rows of gates {gate_stride} apart that are {n} long");
    let (dx, dgate) = (SharedMut::new(dx), SharedMut::new(dgate));
    add_rows(cpu, x.len() / n, dweight, |row, dweight| {
        let gate = &gate[row * gate_stride..][..n];
        let (x, dy) = (&x[row * n..][..n], &dy[row * n..][..n]);
        // SAFETY: rows do not overlap, those of `dgate` because they are at least `n` apart; slices are all `n`
        // long.
        unsafe {
            let (dx, dgate) = (dx.slice(row * n, n), dgate.slice(row * gate_stride, n));
            gated_row_on(cpu.isa(), x, gate, weight, eps, dy, dx, dgate, dweight);
        }
    });
}

/// `out = factor * x`: the gradient by one side of [`super::residual`], from that by the sum.
///
/// # Panics
/// When sizes do not agree.
pub fn scaled(cpu: &Cpu, x: &[f32], factor: f32, out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    let out = SharedMut::new(out);
    cpu.for_rows(x.len(), PIECE, |range| {
        // SAFETY: ranges do not overlap.
        let out = unsafe { out.slice(range.start, range.len()) };
        // SAFETY: both are of the range's length.
        unsafe { scaled_on(cpu.isa(), &x[range], factor, out) };
    });
}

/// `total[n] += ` the sum of what `add(row, sum)` adds, over all rows.
fn add_rows(cpu: &Cpu, rows: usize, total: &mut [f32], add: impl Fn(usize, &mut [f32]) + Sync) {
    let n = total.len();
    let mut sums = AlignedBuffer::<f32>::zeroed(rows.div_ceil(BLOCK) * n);
    let blocks = SharedMut::new(&mut sums);
    cpu.for_rows(rows, BLOCK, |range| {
        // SAFETY: each range is a block with a sum of its own.
        let sum = unsafe { blocks.slice(range.start / BLOCK * n, n) };
        range.for_each(|row| add(row, sum));
    });
    let total = SharedMut::new(total);
    cpu.for_rows(n, COLUMNS, |columns| {
        // SAFETY: columns do not overlap.
        let total = unsafe { total.slice(columns.start, columns.len()) };
        for sum in sums.chunks_exact(n) {
            total.iter_mut().zip(&sum[columns.clone()]).for_each(|(total, sum)| *total += sum);
        }
    });
}

simd_dispatch!(fn scaled_on(x: &[f32], factor: f32, out: &mut [f32]) => scaled_piece);
simd_dispatch!(fn norm_row_on(x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dweight: &mut [f32]) => norm_row);
simd_dispatch!(fn gated_row_on(x: &[f32], gate: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dgate: &mut [f32], dweight: &mut [f32]) => gated_row);

/// A plain loop, which the compiler turns into vectors of the instruction set it is inlined for.
#[inline(always)]
unsafe fn scaled_piece<S: Simd>(x: &[f32], factor: f32, out: &mut [f32]) {
    out.iter_mut().zip(x).for_each(|(out, x)| *out = factor * x);
}

#[inline(always)]
unsafe fn norm_row<S: Simd>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
) {
    // SAFETY: the slices are equally long (the caller's promise), and S is the instruction set we run on.
    let (scale, dot) = unsafe { (inverse_rms::<S>(x, eps), triple_dot::<S>(dy, weight, x)) };
    let along = scale * scale * dot / x.len() as f32;
    let gradients = dx.iter_mut().zip(dweight);
    for ((((dx, dweight), x), weight), dy) in gradients.zip(x).zip(weight).zip(dy) {
        *dx = scale * (dy * weight - along * x);
        *dweight += dy * (x * scale);
    }
}

/// The sum of `a b c`.
#[inline(always)]
unsafe fn triple_dot<S: Simd>(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let n = a.len();
    let whole = n / S::LANES * S::LANES;
    let rest: f32 = (whole..n).map(|i| a[i] * b[i] * c[i]).sum();
    // SAFETY: all slices are `n` long (the caller's promise), and S is the instruction set we run on.
    unsafe {
        let mut sums = S::splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            let product = S::mul(S::load(a.as_ptr().add(i)), S::load(b.as_ptr().add(i)));
            sums = S::fma(product, S::load(c.as_ptr().add(i)), sums);
        }
        sum::<S>(sums) + rest
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn gated_row<S: Simd>(
    x: &[f32],
    gate: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dgate: &mut [f32],
    dweight: &mut [f32],
) {
    let n = x.len();
    let whole = n / S::LANES * S::LANES;
    // SAFETY: all slices are `n` long (the caller's promise), the arrays at least LANES, and S is the
    // instruction set we run on.
    let (scale, dot) = unsafe {
        let scale = inverse_rms::<S>(x, eps);
        let mut dots = S::splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            let inputs = [x, gate, weight, dy].map(|values| values.as_ptr().add(i));
            let outputs = [&mut *dx, dgate, dweight].map(|values| values.as_mut_ptr().add(i));
            dots = S::add(dots, gated_vector::<S>(scale, inputs, outputs));
        }
        let rest = n - whole;
        let inputs = [x, gate, weight, dy].map(|values| padded(&values[whole..]));
        let mut outputs = [[0.0; 16], [0.0; 16], padded(&dweight[whole..])];
        dots = S::add(
            dots,
            gated_vector::<S>(
                scale,
                inputs.each_ref().map(|v| v.as_ptr()),
                outputs.each_mut().map(|v| v.as_mut_ptr()),
            ),
        );
        for (values, tail) in [&mut *dx, dgate, dweight].into_iter().zip(outputs) {
            values[whole..].copy_from_slice(&tail[..rest]);
        }
        (scale, sum::<S>(dots))
    };
    let along = scale * scale * dot / n as f32;
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = scale * (*dx - along * x);
    }
}

/// Up to 16 values, followed by zeros.
#[inline(always)]
fn padded(values: &[f32]) -> [f32; 16] {
    let mut array = [0.0; 16];
    array[..values.len()].copy_from_slice(values);
    array
}

/// One vector from `[x, gate, weight, dy]` to `[dx, dgate, dweight]`, but that `dx` gets `u weight` only, with
/// which the products `u weight x` are returned.
#[inline(always)]
unsafe fn gated_vector<S: Simd>(scale: f32, inputs: [*const f32; 4], outputs: [*mut f32; 3]) -> S::F {
    // SAFETY: the caller gives LANES valid values everywhere, and S is the instruction set we run on.
    unsafe {
        let [x, gate, weight, dy] = inputs.map(|values| S::load(values));
        let [dx, dgate, dweight] = outputs;
        let sigmoid = sigmoid::<S>(gate);
        let u = S::mul(dy, sigmoid);
        let normed = S::mul(x, S::splat(scale));
        S::store(dweight, S::fma(u, normed, S::load(dweight)));
        let through = S::mul(u, weight);
        S::store(dgate, S::mul(S::mul(through, normed), S::sub(S::splat(1.0), sigmoid)));
        S::store(dx, through);
        S::mul(through, x)
    }
}
