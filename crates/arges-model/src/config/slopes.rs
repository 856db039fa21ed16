//! Decay slopes of lightning attention.

use super::{Config, Dialect};

/// Slopes of a head count that is a power of two: `2^(-8(h+1)/H)` for `h = 0..H`
/// (Press et al., "Train Short, Test Long", 2022).
fn power_series(heads: usize) -> impl Iterator<Item = f64> {
    (1..=heads).map(move |h| (-8.0 * h as f64 / heads as f64).exp2())
}

/// ALiBi's slopes for any head count: those of the largest power of two below it, then every
/// other slope of twice that count.
fn interleaved(heads: usize) -> Vec<f64> {
    if heads.is_power_of_two() {
        return power_series(heads).collect();
    }
    let below = 1usize << heads.ilog2();
    power_series(below).chain(power_series(2 * below).step_by(2)).take(heads).collect()
}

impl Config {
    /// Decay slope `s` of every head in layer `layer` (absolute index, 0-based): the state of a
    /// head is multiplied by `exp(-s)` at each token. `[num_heads]`, in f64; round once, at the end.
    ///
    /// The official models scale ALiBi's slopes by `1 - l/(L-1) + 1e-5`; transformers' own model
    /// uses the plain power series at any head count and `1 - l/(L-1+1e-5) + 1e-5`. With a single
    /// layer the official quotient is taken as 0.
    pub fn lightning_slopes(&self, layer: usize) -> Vec<f64> {
        let layer = layer as f64;
        let last = self.num_layers.saturating_sub(1) as f64;
        let (base, depth) = match self.dialect {
            Dialect::MiniMaxM1 | Dialect::MiniMaxText01 => {
                (interleaved(self.num_heads), if last > 0.0 { layer / last } else { 0.0 })
            }
            Dialect::MiniMax => (power_series(self.num_heads).collect(), layer / (last + 1e-5)),
        };
        let factor = 1.0 - depth + 1e-5;
        base.into_iter().map(|slope| slope * factor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::SynthShape;

    fn config(dialect: Dialect, heads: usize, layers: usize) -> Config {
        let shape = SynthShape { dialect, heads, kv_heads: 1, layers, ..SynthShape::default() };
        shape.config().unwrap()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= 1e-15 * expected.abs(), "{found} is not {expected}");
        }
    }

    #[test]
    fn four_heads_decay_by_quarter_powers() {
        // 2^-2, 2^-4, 2^-6, 2^-8; layer 0 scales by 1 + 1e-5, the last of 8 by 1e-5.
        let base = [0.25, 0.0625, 0.015625, 0.00390625];
        let config = config(Dialect::MiniMaxM1, 4, 8);
        assert_close(&config.lightning_slopes(0), &base.map(|s| s * 1.00001));
        assert_close(&config.lightning_slopes(7), &base.map(|s| s * (1.0 - 1.0 + 1e-5)));
    }

    #[test]
    fn six_heads_interleave_the_series_of_four_and_of_eight() {
        // Four heads: 2^-2, 2^-4, 2^-6, 2^-8; then the first and third of eight: 2^-1, 2^-3.
        let base = [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125];
        let config = config(Dialect::MiniMaxText01, 6, 4);
        assert_close(&config.lightning_slopes(1), &base.map(|s| s * (1.0 - 1.0 / 3.0 + 1e-5)));
    }

    #[test]
    fn sixty_four_heads_decay_by_eighth_powers() {
        let slopes = config(Dialect::MiniMaxM1, 64, 80).lightning_slopes(0);
        // Head 0: 2^(-1/8); head 7: 2^-1; head 63: 2^-8.
        assert_close(
            &[slopes[0], slopes[7], slopes[63]],
            &[0.917_004_043_204_671_2 * 1.00001, 0.5 * 1.00001, 0.003_906_25 * 1.00001],
        );
    }

    #[test]
    fn the_transformers_dialect_uses_a_plain_series_and_its_own_depth() {
        let slopes = config(Dialect::MiniMax, 6, 4).lightning_slopes(1);
        let factor = 1.0 - 1.0 / 3.00001 + 1e-5;
        // 2^(-8/6), 2^(-16/6), 2^-4, 2^(-32/6), 2^(-40/6), 2^-8
        assert_close(
            &slopes,
            &[
                0.396_850_262_992_049_9 * factor,
                0.157_490_131_236_859_15 * factor,
                0.0625 * factor,
                0.024_803_141_437_003_12 * factor,
                0.009_843_133_202_303_697 * factor,
                0.003_906_25 * factor,
            ],
        );
    }

    #[test]
    fn a_single_layer_has_finite_slopes_in_every_dialect() {
        for dialect in [Dialect::MiniMaxM1, Dialect::MiniMaxText01, Dialect::MiniMax] {
            let slopes = config(dialect, 2, 1).lightning_slopes(0);
            assert_close(&slopes, &[0.0625 * 1.00001, 0.00390625 * 1.00001]);
        }
    }
}
