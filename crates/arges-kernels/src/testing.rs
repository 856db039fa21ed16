//! What the tests of several operations need.

use std::sync::Arc;

use crate::device::cpu::simd::{bf16_to_f32, f32_to_bf16};
use crate::device::cuda::{Architecture, Cuda, CudaError, Define, Source, compile};

/// The first GPU, see [`Cuda::for_test`].
pub fn gpu() -> Option<Arc<Cuda>> {
    Cuda::for_test()
}

/// A card of each generation: Ampere, Hopper, Blackwell.
pub const CARDS: [Architecture; 3] = [
    Architecture { major: 8, minor: 0 },
    Architecture { major: 9, minor: 0 },
    Architecture { major: 10, minor: 0 },
];

/// Asserts that kernels compile for some cards. Without a compiler a line says so, unless
/// `ARGES_REQUIRE_NVRTC` is set.
pub fn assert_compiles(source: Source, defines: &[Define], cards: &[Architecture]) {
    for &card in cards {
        match compile(source, defines, card) {
            Ok(image) => assert!(image.starts_with(b"\x7fELF"), "{}", source.name),
            Err(error @ CudaError::NoCompiler) if std::env::var_os("ARGES_REQUIRE_NVRTC").is_none() => {
                return println!("skipped: {error}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// A small generator of test data (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Values of mean 0 and standard deviation 1 (the sum of 12 uniform ones).
    pub fn normal(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| ((0..12).map(|_| self.uniform()).sum::<f64>() - 6.0) as f32).collect()
    }
}

pub fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

pub fn bytes_of(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|x| x.to_le_bytes()).collect()
}

pub fn bf16_round(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| bf16_to_f32(f32_to_bf16(*x))).collect()
}

/// Asserts that every value is within `tolerance` of the expected one, relative to that one's size plus the root
/// mean square of all.
pub fn assert_close(got: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let scale = (expected.iter().map(|x| x * x).sum::<f64>() / expected.len() as f64).sqrt();
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(
            error <= tolerance * (scale + expected.abs()),
            "{what}: element {i} is {got}, not {expected}"
        );
    }
}

/// Asserts that `gradient` is that of `f` at `x`, by central differences.
pub fn assert_gradient(f: impl Fn(&[f64]) -> f64, x: &[f64], gradient: &[f64], what: &str) {
    const STEP: f64 = 1e-5;
    assert_eq!(x.len(), gradient.len(), "{what}");
    for (i, expected) in gradient.iter().enumerate() {
        let at = |step: f64| {
            let mut moved = x.to_vec();
            moved[i] += step;
            f(&moved)
        };
        let difference = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        assert!(
            (difference - expected).abs() < 1e-7 * (1.0 + expected.abs()),
            "{what}: the derivative along {i} is {difference}, not {expected}"
        );
    }
}
