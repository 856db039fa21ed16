//! Does a reward follow the length of answers?

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Watches the correlation (Pearson's) of rewards with lengths over the last answers. The M1 report names the bias of a
/// generative reward model towards long answers as what has to be watched while training, since a policy finds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LengthBias {
    /// Rewards and lengths.
    pairs: VecDeque<(f64, f64)>,
    window: usize,
    threshold: f64,
}

impl LengthBias {
    /// Over the last `window` answers; [`is_biased`](Self::is_biased) where the correlation is above `threshold`.
    pub fn new(window: usize, threshold: f64) -> Self {
        Self { pairs: VecDeque::new(), window: window.max(2), threshold }
    }

    /// Takes an answer's reward, and its length in tokens. Answers whose reward is unknown are not for here.
    pub fn record(&mut self, reward: f64, length: usize) {
        if self.pairs.len() == self.window {
            self.pairs.pop_front();
        }
        self.pairs.push_back((reward, length as f64));
    }

    /// From −1 to 1; `None` where there are fewer than two answers, or all have the same reward or length.
    pub fn correlation(&self) -> Option<f64> {
        let count = self.pairs.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| self.pairs.iter().map(of).sum::<f64>() / count;
        let (reward, length) = (mean(|pair| pair.0), mean(|pair| pair.1));
        let mut moments = [0.0; 3];
        for pair in &self.pairs {
            let (r, l) = (pair.0 - reward, pair.1 - length);
            moments[0] += r * r;
            moments[1] += l * l;
            moments[2] += r * l;
        }
        let [rewards, lengths, both] = moments;
        (rewards > 0.0 && lengths > 0.0).then(|| (both / (rewards * lengths).sqrt()).clamp(-1.0, 1.0))
    }

    /// Whether a full window's correlation is above the threshold.
    pub fn is_biased(&self) -> bool {
        self.pairs.len() == self.window && self.correlation().is_some_and(|value| value > self.threshold)
    }
}
