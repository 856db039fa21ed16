//! How long responses may get: windows that widen by rule, as M1's went from 40K to 80K tokens.

use serde::{Deserialize, Serialize};

/// One window, and what changes in it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Most tokens that the model may sample in an episode.
    pub tokens: usize,
    /// Longest gradient while it lasts; `optimizer.clip` when absent.
    #[serde(default)]
    pub clip: Option<f64>,
    /// Largest weight of a ratio while it lasts; `objective.is_max` when absent.
    #[serde(default)]
    pub is_max: Option<f64>,
}

/// When the next window begins: perplexity has converged, and lengths press against the window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WindowRule {
    /// Batches over which perplexity is averaged; two such spans are compared.
    pub batches: usize,
    /// Largest relative change of perplexity from one span to the next that counts as none.
    pub tolerance: f64,
    /// Share of the window that the 99th percentile of lengths has to reach.
    pub near: f64,
}

impl Default for WindowRule {
    fn default() -> Self {
        Self { batches: 20, tolerance: 0.02, near: 0.9 }
    }
}

/// The place among the windows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WindowState {
    /// Which window it is.
    pub index: usize,
    /// Perplexities of its last batches.
    perplexities: Vec<f64>,
}

impl WindowState {
    /// Takes a batch's perplexity and 99th percentile of lengths; whether the next window begins.
    pub fn observe(&mut self, windows: &[Window], rule: &WindowRule, perplexity: f64, p99: f64) -> bool {
        let span = rule.batches;
        self.perplexities.push(perplexity);
        let surplus = self.perplexities.len().saturating_sub(2 * span);
        self.perplexities.drain(..surplus);
        let is_last = self.index + 1 >= windows.len();
        if is_last
            || self.perplexities.len() < 2 * span
            || p99 < rule.near * windows[self.index].tokens as f64
        {
            return false;
        }
        let mean = |span: &[f64]| span.iter().sum::<f64>() / span.len() as f64;
        let (before, after) = (mean(&self.perplexities[..span]), mean(&self.perplexities[span..]));
        let converged = (after - before).abs() <= rule.tolerance * before;
        if converged {
            *self = Self { index: self.index + 1, perplexities: Vec::new() };
        }
        converged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: WindowRule = WindowRule { batches: 3, tolerance: 0.1, near: 0.9 };

    fn windows() -> [Window; 2] {
        [40, 80].map(|tokens| Window { tokens, clip: None, is_max: None })
    }

    /// The batch, from 1, after which the window widened.
    fn widened(perplexity: impl Fn(usize) -> f64, p99: impl Fn(usize) -> f64) -> Option<usize> {
        let mut state = WindowState::default();
        (1..=30).find(|&batch| state.observe(&windows(), &RULE, perplexity(batch), p99(batch)))
    }

    #[test]
    fn a_window_widens_once_perplexity_has_converged_and_lengths_are_near_it() {
        assert_eq!(widened(|_| 2.0, |_| 39.0), Some(6));
        assert_eq!(widened(|_| 2.0, |_| 20.0), None);
        assert_eq!(widened(|_| 2.0, |batch| if batch >= 11 { 37.0 } else { 35.0 }), Some(11));
        // It falls until batch 10; from 13 to 15 and 10 to 12 it is the same.
        let falling = |batch: usize| if batch < 10 { 2.0 + 0.5 * (10 - batch) as f64 } else { 2.0 };
        assert!((13..=15).contains(&widened(falling, |_| 39.0).unwrap()));
    }

    #[test]
    fn a_new_window_begins_anew_and_the_last_one_stays() {
        let mut state = WindowState::default();
        let widenings: Vec<usize> =
            (1..=30).filter(|_| state.observe(&windows(), &RULE, 2.0, 80.0)).collect();
        assert_eq!(widenings, [6]);
        assert_eq!(state.index, 1);
    }
}
