//! Rotary position embedding on the first channels of a head, in rotate-half pairs `(i, i + rotary_dim / 2)`:
//! `(x_i, x_j) -> (x_i cos a - x_j sin a, x_j cos a + x_i sin a)` with `a = position * theta^(-2i / rotary_dim)`.
//!
//! Frequencies and angles are rounded to f32 as the official code's tables are: at long contexts the rounding
//! is part of what a model was trained with (one unit in the last place of a frequency is 0.03 rad at a million
//! tokens).

pub mod cuda;
pub mod reference;

use crate::device::cpu::{Cpu, SharedMut};

/// Rotation frequencies of one model.
pub struct Frequencies(Vec<f32>);

impl Frequencies {
    /// `theta^(-2i / rotary_dim)` for every pair `i`, rounded where torch rounds: the exponent, the power and
    /// its reciprocal.
    pub fn new(theta: f64, rotary_dim: usize) -> Self {
        let power = |i: usize| theta.powf(f64::from(2.0 * i as f32 / rotary_dim as f32)) as f32;
        Self((0..rotary_dim / 2).map(|i| 1.0 / power(i)).collect())
    }
}

/// Cosines and sines for the rows of one step.
pub struct Angles {
    /// For each row, `[cos, sin]` of every pair.
    table: Vec<f32>,
    row_len: usize,
}

impl Angles {
    /// Room for `rows` rows.
    pub fn new(rows: usize, rotary_dim: usize) -> Self {
        Self { table: vec![0.0; rows * rotary_dim], row_len: rotary_dim }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.table)
    }

    /// Computes the angles of `rows` rows; row `r` is at `position(r)`.
    pub fn fill(
        &mut self,
        cpu: &Cpu,
        frequencies: &Frequencies,
        rows: usize,
        position: impl Fn(usize) -> usize + Sync,
    ) {
        let row_len = self.row_len;
        assert_eq!(2 * frequencies.0.len(), row_len, "rotated channels");
        let table = SharedMut::new(&mut self.table);
        cpu.for_rows(rows, 32, |rows| {
            for row in rows {
                // SAFETY: rows do not overlap.
                let (cos, sin) = unsafe { table.slice(row * row_len, row_len) }.split_at_mut(row_len / 2);
                for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&frequencies.0) {
                    let angle = f64::from(position(row) as f32 * frequency);
                    (*sin, *cos) = (angle.sin() as f32, angle.cos() as f32);
                }
            }
        });
    }

    /// Cosines and sines of a row, `[cos, sin]`.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.table[row * self.row_len..][..self.row_len]
    }
}

/// Rotates one head and hands every channel to `put(channel, value)`.
#[inline(always)]
pub(crate) fn rotate(x: &[f32], angles: &[f32], mut put: impl FnMut(usize, f32)) {
    let half = angles.len() / 2;
    let (cos, sin) = angles.split_at(half);
    for i in 0..half {
        let (a, b) = (x[i], x[i + half]);
        put(i, a * cos[i] - b * sin[i]);
        put(i + half, b * cos[i] + a * sin[i]);
    }
    for (i, x) in x.iter().enumerate().skip(2 * half) {
        put(i, *x);
    }
}

/// The opposite rotation of [`rotate`], which is also its transpose: takes the gradient of a rotated head back to
/// that of the head before.
#[inline(always)]
pub(crate) fn rotate_back(x: &[f32], angles: &[f32], mut put: impl FnMut(usize, f32)) {
    let half = angles.len() / 2;
    let (cos, sin) = angles.split_at(half);
    for i in 0..half {
        let (a, b) = (x[i], x[i + half]);
        put(i, a * cos[i] + b * sin[i]);
        put(i + half, b * cos[i] - a * sin[i]);
    }
    for (i, x) in x.iter().enumerate().skip(2 * half) {
        put(i, *x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::CpuOptions;
    use crate::testing::{Random, widen};

    #[test]
    fn rotation_agrees_with_the_reference_and_leaves_the_other_channels_alone() {
        let cpu = Cpu::new(CpuOptions::default()).unwrap();
        let mut angles = Angles::new(3, 12);
        let positions = [0, 1, 777];
        angles.fill(&cpu, &Frequencies::new(1e7, 12), 3, |row| positions[row]);
        let x = Random::new(1).normal(20);
        for (row, position) in positions.into_iter().enumerate() {
            let mut got = [0.0; 20];
            rotate(&x, angles.row(row), |c, value| got[c] = value);
            for (got, expected) in got.iter().zip(reference::rotate(&widen(&x), position, 1e7, 12)) {
                assert!((f64::from(*got) - expected).abs() < 1e-4, "position {position}");
            }
            assert_eq!(got[12..], x[12..]);
        }
    }

    #[test]
    fn rotating_back_undoes_a_rotation() {
        let cpu = Cpu::new(CpuOptions::default()).unwrap();
        let mut angles = Angles::new(1, 12);
        angles.fill(&cpu, &Frequencies::new(1e4, 12), 1, |_| 777);
        let x = Random::new(2).normal(20);
        let (mut rotated, mut back) = ([0.0; 20], [0.0; 20]);
        rotate(&x, angles.row(0), |c, value| rotated[c] = value);
        rotate_back(&rotated, angles.row(0), |c, value| back[c] = value);
        let reference = reference::rotate_back(&reference::rotate(&widen(&x), 777, 1e4, 12), 777, 1e4, 12);
        for ((back, reference), x) in back.iter().zip(&reference).zip(&x) {
            assert!((back - x).abs() < 1e-6 && (reference - f64::from(*x)).abs() < 1e-12, "{back} for {x}");
        }
        assert!(rotated[..12].iter().zip(&x).any(|(rotated, x)| (rotated - x).abs() > 0.1));
    }

    #[test]
    fn angles_are_products_rounded_to_f32_as_in_the_official_tables() {
        let cpu = Cpu::new(CpuOptions::default()).unwrap();
        let mut angles = Angles::new(1, 64);
        let frequencies = Frequencies::new(1e7, 64);
        // `1.0 / (1e7 ** (torch.arange(0, 64, 2).float() / 64))` in torch, where rounding once gives others.
        assert_eq!([2, 16, 29].map(|i| frequencies.0[i].to_bits()), [0x3eba_f81b, 0x39a5_cb60, 0x34f3_499d]);
        angles.fill(&cpu, &frequencies, 1, |_| 1_000_003);
        let expected = f64::from(1_000_003.0f32 * frequencies.0[1]).cos() as f32;
        assert_eq!(angles.row(0)[1], expected);
    }
}
