//! From rewards of a group to advantages, and what length takes off a reward.

use serde::{Deserialize, Serialize};

/// `A_i = (R_i - mean) / std` over a group, with the deviation of the group itself (divided by its size). All 0 where
/// no reward differs from another. Without `by_deviation` only the mean is taken off.
pub fn group_advantages(rewards: &[f64], by_deviation: bool) -> Vec<f64> {
    if !differ(rewards) {
        return vec![0.0; rewards.len()];
    }
    let count = rewards.len() as f64;
    let mean = rewards.iter().sum::<f64>() / count;
    let variance = rewards.iter().map(|reward| (reward - mean).powi(2)).sum::<f64>() / count;
    let scale = if by_deviation { variance.sqrt() } else { 1.0 };
    rewards.iter().map(|reward| (reward - mean) / scale).collect()
}

/// Whether there is anything to learn from a group: dynamic sampling (DAPO, M1) drops those where there is not.
pub fn differ(rewards: &[f64]) -> bool {
    rewards.iter().any(|reward| *reward != rewards[0])
}

/// DAPO's soft penalty for length: nothing up to `max - buffer` tokens, then linearly down to -1 at `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OverlongPenalty {
    /// Tokens before the window's end from which on it is taken off.
    pub buffer: usize,
}

impl OverlongPenalty {
    /// `min(-(length - (max - buffer)) / buffer, 0)`, which is added to the reward.
    pub fn of(self, length: usize, max: usize) -> f64 {
        let over = length as f64 - (max as f64 - self.buffer as f64);
        (-over / self.buffer as f64).clamp(-1.0, 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advantages_have_mean_0_and_deviation_1() {
        let advantages = group_advantages(&[1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0], true);
        let square: f64 = advantages.iter().map(|a| a * a).sum();
        assert!(advantages.iter().sum::<f64>().abs() < 1e-12 && (square / 8.0 - 1.0).abs() < 1e-12);
        assert!((advantages[0] - 0.75 / (0.25f64 * 0.75).sqrt()).abs() < 1e-12);
        assert_eq!(group_advantages(&[1.0, 0.0], false), [0.5, -0.5]);
    }

    #[test]
    fn a_group_that_always_or_never_succeeds_teaches_nothing() {
        for rewards in [[1.0; 4], [0.0; 4], [0.3; 4]] {
            assert!(!differ(&rewards));
            assert_eq!(group_advantages(&rewards, true), [0.0; 4]);
        }
        assert!(differ(&[0.0, 1e-9]));
    }

    #[test]
    fn length_costs_nothing_then_more_and_at_the_window_1() {
        let penalty = OverlongPenalty { buffer: 100 };
        assert_eq!(penalty.of(900, 1000), 0.0);
        assert_eq!(penalty.of(10, 1000), 0.0);
        assert_eq!(penalty.of(950, 1000), -0.5);
        assert_eq!(penalty.of(1000, 1000), -1.0);
    }
}
