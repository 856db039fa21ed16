//! AdamW on the CPU.

use super::AdamW;
use crate::device::cpu::simd::{Simd, simd_dispatch};
use crate::device::cpu::{Cpu, SharedMut};

/// Weights of one task.
const PIECE: usize = 1 << 14;

/// The second moment is kept as `v * 2^40`, so that squares of gradients down to 1e-20 stay normal numbers and
/// those of gradients up to 1e13 do not overflow.
pub(super) const V_SCALE: f32 = (1u64 << 40) as f32;

/// The factors of one step.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub(super) gradient: f32,
    pub(super) beta1: f32,
    pub(super) rest1: f32,
    pub(super) beta2: f32,
    /// Of the scaled gradient's square.
    pub(super) rest2: f32,
    /// `lr / (1 - b1^t)`, in units of the corrected, scaled root.
    pub(super) rate: f32,
    /// `1 / sqrt((1 - b2^t) * V_SCALE)`.
    pub(super) root: f32,
    pub(super) eps: f32,
    pub(super) decay: f32,
}

impl Factors {
    /// # Panics
    /// When the step is 0.
    pub(super) fn new(settings: AdamW, gradient_scale: f32) -> Self {
        let AdamW { lr, beta1, beta2, eps, weight_decay, step } = settings;
        assert!(step > 0, "steps are counted from 1");
        let power = i32::try_from(step).unwrap_or(i32::MAX);
        Self {
            gradient: gradient_scale,
            beta1: beta1 as f32,
            rest1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            rest2: (1.0 - beta2) as f32,
            rate: (lr / (1.0 - beta1.powi(power))) as f32,
            root: (1.0 / ((1.0 - beta2.powi(power)) * f64::from(V_SCALE)).sqrt()) as f32,
            eps: eps as f32,
            decay: (lr * weight_decay) as f32,
        }
    }
}

/// One step for weights of one group: gradients are multiplied by `gradient_scale` first. The moments `m` and `v`
/// begin as zeros and belong to this function (`v` is kept in a scaled form).
///
/// # Panics
/// When sizes differ, or the step is 0.
pub fn adamw(
    cpu: &Cpu,
    settings: AdamW,
    gradient_scale: f32,
    values: &mut [f32],
    gradients: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    let len = values.len();
    assert_eq!([gradients.len(), m.len(), v.len()], [len; 3]);
    let factors = Factors::new(settings, gradient_scale);
    let (values, m, v) = (SharedMut::new(values), SharedMut::new(m), SharedMut::new(v));
    cpu.for_rows(len, PIECE, |range| {
        let (start, count) = (range.start, range.len());
        // SAFETY: pieces do not overlap and are equally long.
        unsafe {
            let (values, m, v) = (values.slice(start, count), m.slice(start, count), v.slice(start, count));
            update_on(cpu.isa(), factors, values, &gradients[range], m, v);
        }
    });
}

simd_dispatch!(
    fn update_on(factors: Factors, values: &mut [f32], gradients: &[f32], m: &mut [f32], v: &mut [f32])
        => update_piece
);

/// A plain loop, which the compiler turns into vectors.
#[inline(always)]
unsafe fn update_piece<S: Simd>(
    factors: Factors,
    values: &mut [f32],
    gradients: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    // Exact: a power of two.
    let widen = V_SCALE.sqrt();
    for (((value, gradient), m), v) in values.iter_mut().zip(gradients).zip(m).zip(v) {
        let gradient = gradient * factors.gradient;
        let wide = gradient * widen;
        *m = factors.beta1 * *m + factors.rest1 * gradient;
        *v = factors.beta2 * *v + factors.rest2 * (wide * wide);
        let update = factors.rate * *m / (v.sqrt() * factors.root + factors.eps);
        *value -= update + factors.decay * *value;
    }
}

/// Sum of squares in f64, the same whatever the number of threads.
pub fn sum_of_squares(cpu: &Cpu, x: &[f32]) -> f64 {
    let mut partials = vec![0.0f64; x.len().div_ceil(PIECE)];
    let shared = SharedMut::new(&mut partials);
    cpu.for_rows(x.len(), PIECE, |range| {
        // SAFETY: each piece has its own sum.
        let partial = unsafe { shared.slice(range.start / PIECE, 1) };
        // SAFETY: there is nothing to promise beyond the instruction set.
        unsafe { squares_on(cpu.isa(), &x[range], &mut partial[0]) };
    });
    partials.iter().sum()
}

simd_dispatch!(fn squares_on(x: &[f32], out: &mut f64) => squares_piece);

#[inline(always)]
unsafe fn squares_piece<S: Simd>(x: &[f32], out: &mut f64) {
    let mut sums = [0.0f64; 16];
    let (groups, rest) = x.as_chunks::<16>();
    for group in groups {
        for (sum, x) in sums.iter_mut().zip(group) {
            *sum += f64::from(*x) * f64::from(*x);
        }
    }
    let rest: f64 = rest.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    *out = sums.iter().sum::<f64>() + rest;
}
