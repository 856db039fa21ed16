//! Passes over whole rows, written so that they compile to vector instructions.

use super::SampleError;
use super::select::Cut;

/// Entries whose weights are summed together; also the steps in which a draw walks through a row.
pub(super) const BLOCK: usize = 1024;
/// Entries of which [`group_maxima`] gives the largest.
pub(super) const GROUP: usize = 64;
/// Independent sums within a block. Fixed, so that a sum does not depend on the width of the machine.
const LANES: usize = 16;

/// The largest logit.
///
/// # Errors
/// A logit that is NaN or positive infinity, and a row without a finite one.
pub(super) fn finite_max(logits: &[f32]) -> Result<f32, SampleError> {
    let (max, bad) = max_and_bad(logits);
    if bad {
        let id = logits.iter().position(|l| l.is_nan() || *l == f32::INFINITY).unwrap_or_default();
        return Err(SampleError::NotANumber { id, logit: logits[id] });
    }
    if max == f32::NEG_INFINITY {
        return Err(SampleError::NothingAllowed);
    }
    Ok(max)
}

/// `sum(exp(logits - max))`, block by block.
pub(super) fn sum_exp(logits: &[f32], max: f32) -> f64 {
    logits.chunks(BLOCK).map(|block| sum_exp_block(block, max)).sum()
}

/// Fills `weights` with `exp((logits - max) / temperature)` and `sums` with their sums, block by block.
pub(super) fn exp_weights(logits: &[f32], max: f32, temperature: f32, weights: &mut [f32], sums: &mut [f64]) {
    let blocks = logits.chunks(BLOCK).zip(weights.chunks_mut(BLOCK));
    for ((logits, weights), sum) in blocks.zip(sums) {
        *sum = exp_block(logits, max, temperature, weights);
    }
}

/// Sets the weights to 0 that are past the cut or below `lowest`, and renews the sums of the blocks.
pub(super) fn keep(cut: Cut, lowest: f32, logits: &[f32], weights: &mut [f32], sums: &mut [f64]) {
    let blocks = logits.chunks(BLOCK).zip(weights.chunks_mut(BLOCK));
    for (index, ((logits, weights), sum)) in blocks.zip(sums).enumerate() {
        *sum = keep_block(cut, lowest, (index * BLOCK) as u32, logits, weights);
    }
}

/// Whether a logit is above the threshold.
#[inline]
pub(super) fn any_above(logits: &[f32], threshold: f32) -> bool {
    logits.iter().fold(false, |any, &logit| any | (logit > threshold))
}

/// Defines a function that runs its body compiled for the widest vectors at hand. The arithmetic is the same
/// in each (Rust contracts nothing), so the bits are too.
macro_rules! widest {
    ($(
        $(#[$doc:meta])*
        $visibility:vis fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty $body:block
    )*) => {$(
        $(#[$doc])*
        $visibility fn $name($($arg: $type),*) -> $result {
            #[inline(always)]
            fn body($($arg: $type),*) -> $result $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
                fn avx512($($arg: $type),*) -> $result { body($($arg),*) }

                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) -> $result { body($($arg),*) }

                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                {
                    // SAFETY: the processor has all features the function is compiled for.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has the feature the function is compiled for.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    )*};
}

widest! {
    fn max_and_bad(logits: &[f32]) -> (f32, bool) {
        let mut max = [f32::NEG_INFINITY; LANES];
        let mut bad = [false; LANES];
        let (groups, rest) = logits.as_chunks::<LANES>();
        for group in groups {
            for lane in 0..LANES {
                max[lane] = if group[lane] > max[lane] { group[lane] } else { max[lane] };
                bad[lane] |= is_bad(group[lane]);
            }
        }
        let rest_max = rest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let rest_bad = rest.iter().any(|&logit| is_bad(logit));
        (max.into_iter().fold(rest_max, f32::max), bad.contains(&true) || rest_bad)
    }

    fn sum_exp_block(logits: &[f32], max: f32) -> f64 {
        let mut sums = [0.0f64; LANES];
        let (groups, rest) = logits.as_chunks::<LANES>();
        for group in groups {
            for lane in 0..LANES {
                sums[lane] += f64::from(exp(group[lane] - max));
            }
        }
        for (sum, &logit) in sums.iter_mut().zip(rest) {
            *sum += f64::from(exp(logit - max));
        }
        sums.iter().sum()
    }

    fn exp_block(logits: &[f32], max: f32, temperature: f32, weights: &mut [f32]) -> f64 {
        let mut sums = [0.0f64; LANES];
        let (groups, rest) = logits.as_chunks::<LANES>();
        let (weight_groups, weight_rest) = weights.as_chunks_mut::<LANES>();
        for (group, out) in groups.iter().zip(weight_groups) {
            for lane in 0..LANES {
                out[lane] = exp((group[lane] - max) / temperature);
                sums[lane] += f64::from(out[lane]);
            }
        }
        for ((sum, &logit), out) in sums.iter_mut().zip(rest).zip(weight_rest) {
            *out = exp((logit - max) / temperature);
            *sum += f64::from(*out);
        }
        sums.iter().sum()
    }

    fn keep_block(cut: Cut, lowest: f32, first: u32, logits: &[f32], weights: &mut [f32]) -> f64 {
        let mut sums = [0.0f64; LANES];
        let (groups, rest) = logits.as_chunks::<LANES>();
        let (weight_groups, weight_rest) = weights.as_chunks_mut::<LANES>();
        let mut id = first;
        for (group, weights) in groups.iter().zip(weight_groups) {
            for lane in 0..LANES {
                weights[lane] = kept(cut, lowest, id + lane as u32, group[lane], weights[lane]);
                sums[lane] += f64::from(weights[lane]);
            }
            id += LANES as u32;
        }
        for ((id, sum), (&logit, weight)) in (id..).zip(&mut sums).zip(rest.iter().zip(weight_rest)) {
            *weight = kept(cut, lowest, id, logit, *weight);
            *sum += f64::from(*weight);
        }
        sums.iter().sum()
    }

    /// The largest logit of each group.
    pub(super) fn group_maxima(logits: &[f32], maxima: &mut [f32]) -> () {
        for (group, max) in logits.chunks(GROUP).zip(maxima) {
            let mut lanes = [f32::NEG_INFINITY; LANES];
            for part in group.chunks(LANES) {
                for (lane, &logit) in lanes.iter_mut().zip(part) {
                    *lane = if logit > *lane { logit } else { *lane };
                }
            }
            *max = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
        }
    }
}

/// NaN or positive infinity.
#[inline(always)]
fn is_bad(logit: f32) -> bool {
    logit.is_nan() | (logit == f32::INFINITY)
}

/// The weight, or 0 if it is past the cut or below `lowest`.
#[inline(always)]
fn kept(cut: Cut, lowest: f32, id: u32, logit: f32, weight: f32) -> f32 {
    if cut.keeps(id, logit) & (weight >= lowest) { weight } else { 0.0 }
}

/// `e^x` for `x <= 0`, within 1.5 units in the last place; 0 below -87, where f32 leaves its normal range.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; a degree-6 polynomial for `e^r` and `n` put into the exponent.
/// Without branches or calls, so that loops over it vectorise.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    // Adding 1.5 * 2^23 leaves the rounded integer in the low bits of the significand.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 as a sum; n times the first part is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > LOWEST { x } else { LOWEST };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < LOWEST { 0.0 } else { p * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_right_to_two_units_in_the_last_place() {
        for step in 0..=870_000 {
            let x = -(step as f32) * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}): relative error {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-87.1), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }
}
