//! Random weights by counter: a weight depends on the seed, its tensor's name and its place in
//! the tensor alone, so neither shards, threads nor the order of writing change it.
//!
//! The uniform bits are those of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom
//! Number Generators", 2014), which is a function of a counter. The normal is the sum of eight
//! 16-bit uniforms: within the standard error of a weight's tensor it has the mean and deviation
//! asked for, its excess kurtosis is -0.15 and it ends at 4.9 deviations. All but the last
//! multiplication is in integers, so that every machine makes the same weights.

use crate::checkpoint::DType;
use crate::checkpoint::narrow;

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
/// Mean of the sum of eight 16-bit uniforms.
const SUM_MEAN: f32 = 8.0 * 65_535.0 / 2.0;
/// Deviation of that sum: `sqrt(8 (2^32 - 1) / 12)`.
const SUM_DEVIATION: f64 = 53_509.919_9;

/// The output function of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The key of a tensor's stream: FNV-1a of its name, mixed with the seed.
pub(super) fn key(seed: u64, name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    mix(mix(seed.wrapping_add(GOLDEN_GAMMA)) ^ hash)
}

/// Fills `out` with the weights of a stream from index `first` on.
pub(super) fn fill(key: u64, first: u64, deviation: f32, out: &mut [f32]) {
    const LANES: u64 = 0x0000_ffff_0000_ffff;
    let scale = (f64::from(deviation) / SUM_DEVIATION) as f32;
    let mut counter = key.wrapping_add(first.wrapping_mul(2).wrapping_mul(GOLDEN_GAMMA));
    for value in out {
        let a = mix(counter.wrapping_add(GOLDEN_GAMMA));
        counter = counter.wrapping_add(GOLDEN_GAMMA.wrapping_mul(2));
        let b = mix(counter);
        // Four 16-bit lanes of each word, added two by two into 32-bit lanes.
        let lanes = (a & LANES) + ((a >> 16) & LANES) + (b & LANES) + ((b >> 16) & LANES);
        let sum = (lanes as u32) + (lanes >> 32) as u32;
        *value = (sum as f32 - SUM_MEAN) * scale;
    }
}

/// Stores the weights of a stream from index `first` on, in `dtype`, filling `bytes`.
pub(super) fn fill_bytes(key: u64, first: u64, deviation: f32, dtype: DType, bytes: &mut [u8]) {
    const BLOCK: usize = 1024;
    let mut block = [0.0f32; BLOCK];
    let mut first = first;
    for bytes in bytes.chunks_mut(BLOCK * dtype.size()) {
        let block = &mut block[..bytes.len() / dtype.size()];
        fill(key, first, deviation, block);
        narrow(block, dtype, bytes);
        first += block.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(key: u64, count: usize) -> Vec<f32> {
        let mut out = vec![0.0; count];
        fill(key, 0, 0.02, &mut out);
        out
    }

    #[test]
    fn weights_have_the_mean_deviation_and_shape_of_a_normal() {
        let values = sample(key(1, "w"), 1 << 20);
        let n = values.len() as f64;
        let moment = |power: i32| values.iter().map(|v| (f64::from(*v) / 0.02).powi(power)).sum::<f64>() / n;
        assert!(moment(1).abs() < 4.0 / n.sqrt(), "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 4.0 * (2.0 / n).sqrt(), "variance {}", moment(2));
        assert!(moment(3).abs() < 4.0 * (15.0 / n).sqrt(), "skewness {}", moment(3));
        assert!((moment(4) - 2.85).abs() < 0.05, "kurtosis {}", moment(4));
        let beyond =
            |deviations: f32| values.iter().filter(|v| v.abs() > 0.02 * deviations).count() as f64 / n;
        assert!((beyond(1.0) - 0.3173).abs() < 0.01);
        assert!((beyond(2.0) - 0.0455).abs() < 0.004);
    }

    #[test]
    fn a_weight_depends_on_its_index_and_not_on_where_filling_began() {
        let whole = sample(key(7, "w"), 1000);
        let mut part = vec![0.0; 300];
        fill(key(7, "w"), 700, 0.02, &mut part);
        assert_eq!(part, whole[700..]);
    }

    #[test]
    fn streams_differ_by_seed_and_by_name() {
        let base = sample(key(1, "a"), 64);
        for other in [key(2, "a"), key(1, "b"), key(0, "")] {
            let other = sample(other, 64);
            assert!(base.iter().zip(&other).filter(|(a, b)| a == b).count() < 4);
        }
    }

    #[test]
    fn neighbouring_weights_and_streams_do_not_correlate() {
        let n = 1 << 18;
        let (a, b) = (sample(key(1, "layers.0"), n), sample(key(1, "layers.1"), n));
        let product = |x: &[f32], y: &[f32]| {
            x.iter().zip(y).map(|(x, y)| f64::from(x * y) / 4e-4).sum::<f64>() / (x.len() as f64).sqrt()
        };
        assert!(product(&a, &b).abs() < 4.0);
        assert!(product(&a[1..], &a[..n - 1]).abs() < 4.0);
    }
}
