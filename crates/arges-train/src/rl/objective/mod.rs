//! The one objective, in which CISPO, GRPO, DAPO and REINFORCE are settings.
//!
//! With `p` the log-probability of a sampled token now, `q` that of the anchor, `A` the advantage of its response:
//! ```text
//! r = exp(clamp(p - q, -20, 20))                       importance ratio
//! s = clip(r, is_min, is_max)                          detached: no gradient flows through it
//! M = 0 where A > 0 and r > 1 + high, or A < 0 and r < 1 - low; else 1
//! J = sum over tokens of  w M c s A p                  dJ/dp = w M c s A
//! ```
//! `w` is the share of the token ([`Aggregation`]). `c` is 1, or with a correction of the rollouts (Yao et al., "Your
//! efficient RL framework secretly brings you off-policy RL training", 2025) `min(exp(old - rollout), most)`, detached
//! too. CISPO is of the MiniMax-M1 report (2025). That GRPO's `min(r A, clip(r) A)` has the gradient `M r A` is derived
//! in docs/rl.md and shown by the tests.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

/// Largest difference of log-probabilities whose exponential is taken.
const MAX_LOG_RATIO: f64 = 20.0;

/// What the importance ratio is taken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anchor {
    /// The log-probabilities at which the tokens were sampled.
    Rollout,
    /// Log-probabilities computed anew, with the weights that the batch begins with.
    Old,
}

/// How tokens share in the objective of a step. A response's tokens are those that the model sampled; masked ones count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Aggregation {
    /// Every token alike (DAPO).
    Token,
    /// Every response alike, and within it every token (GRPO).
    Sample,
    /// Every prompt alike, within it every response, and within that every token.
    Prompt,
    /// Every prompt alike, and within it every token: `1 / sum_i |o_i|` over a prompt's responses, as in M1's report.
    Combined,
}

/// Where tokens stop to count: beyond these ratios a step in the direction of the advantage has gone far enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenMask {
    /// Below `1 - low` tokens of negative advantage are masked.
    pub low: f64,
    /// Above `1 + high` tokens of positive advantage are masked.
    pub high: f64,
}

/// The objective's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// What ratios are taken to.
    pub anchor: Anchor,
    /// Least weight of a ratio: absolute, not `1 - …`.
    pub is_min: f64,
    /// Largest weight of a ratio: absolute, not `1 + …`.
    pub is_max: f64,
    /// Which tokens are left out; none when absent.
    pub mask: Option<TokenMask>,
    /// Shares of the tokens.
    pub aggregation: Aggregation,
    /// With anchor `old`, the largest weight that corrects for rollouts of other log-probabilities.
    pub rollout_correction: Option<f64>,
}

/// The algorithms that are settings of the objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// M1's: weights clipped, no token left out.
    Cispo,
    /// Shao et al., "DeepSeekMath", 2024, without the KL term.
    Grpo,
    /// Yu et al., "DAPO", 2025.
    Dapo,
    /// Williams, 1992: no ratio at all.
    Reinforce,
}

impl Algorithm {
    /// Its settings.
    pub fn objective(self) -> Objective {
        let all = Objective {
            anchor: Anchor::Rollout,
            is_min: 0.0,
            is_max: f64::INFINITY,
            mask: None,
            aggregation: Aggregation::Token,
            rollout_correction: None,
        };
        match self {
            Self::Cispo => Objective { is_max: 5.0, aggregation: Aggregation::Combined, ..all },
            Self::Grpo => Objective {
                mask: Some(TokenMask { low: 0.2, high: 0.2 }),
                aggregation: Aggregation::Sample,
                ..all
            },
            Self::Dapo => Objective { mask: Some(TokenMask { low: 0.2, high: 0.28 }), ..all },
            Self::Reinforce => Objective { is_min: 1.0, is_max: 1.0, ..all },
        }
    }
}

/// The log-probabilities of a sampled token, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprobs {
    /// Under the weights that learn.
    pub now: f32,
    /// Under those the batch began with; equal to `rollout` where they were not computed.
    pub old: f32,
    /// When it was sampled.
    pub rollout: f32,
}

/// What the objective makes of a token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenTerm {
    /// `p - q`, not clamped.
    pub log_ratio: f64,
    /// `r`.
    pub ratio: f64,
    /// `M c s`: the weight of `A p`.
    pub weight: f64,
    /// Whether `r` was outside of `is_min` to `is_max`, where those leave it a choice.
    pub clipped: bool,
    /// Whether the mask leaves it out.
    pub masked: bool,
}

impl Objective {
    /// What a token of that advantage counts, its share aside.
    pub fn token(&self, logprobs: TokenLogprobs, advantage: f64) -> TokenTerm {
        let TokenLogprobs { now, old, rollout } = logprobs;
        let anchor = match self.anchor {
            Anchor::Rollout => rollout,
            Anchor::Old => old,
        };
        let log_ratio = f64::from(now) - f64::from(anchor);
        let ratio = ratio(now, anchor);
        let weight = ratio.clamp(self.is_min, self.is_max);
        let masked = self.mask.is_some_and(|TokenMask { low, high }| {
            (advantage > 0.0 && ratio > 1.0 + high) || (advantage < 0.0 && ratio < 1.0 - low)
        });
        let corrected = match (self.anchor, self.rollout_correction) {
            (Anchor::Old, Some(most)) => self::ratio(old, rollout).min(most),
            _ => 1.0,
        };
        TokenTerm {
            log_ratio,
            ratio,
            weight: if masked { 0.0 } else { weight * corrected },
            clipped: weight != ratio && self.is_min < self.is_max,
            masked,
        }
    }

    /// `dJ/dp` of a token of that advantage and share.
    pub fn gradient(&self, logprobs: TokenLogprobs, advantage: f64, share: f64) -> f64 {
        share * self.token(logprobs, advantage).weight * advantage
    }
}

/// `exp` of a difference of log-probabilities, which is kept within ±20.
fn ratio(now: f32, then: f32) -> f64 {
    (f64::from(now) - f64::from(then)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
}

/// A response among those of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// Number of its prompt.
    pub group: u64,
    /// Tokens that the model sampled.
    pub tokens: usize,
}

impl Aggregation {
    /// The share of each token of each response. The shares of all tokens add up to 1; responses without tokens have none.
    pub fn shares(self, responses: &[Response]) -> Vec<f64> {
        let counted = || responses.iter().filter(|response| response.tokens > 0);
        let of_group = |group: u64| counted().filter(move |response| response.group == group);
        let mut groups: Vec<u64> = counted().map(|response| response.group).collect();
        groups.sort_unstable();
        groups.dedup();
        let all: usize = responses.iter().map(|response| response.tokens).sum();
        let count = |n: usize| n as f64;
        let share = |response: &Response| {
            let tokens = count(response.tokens);
            match self {
                _ if response.tokens == 0 => 0.0,
                Self::Token => 1.0 / count(all),
                Self::Sample => 1.0 / (count(counted().count()) * tokens),
                Self::Prompt => {
                    1.0 / (count(groups.len()) * count(of_group(response.group).count()) * tokens)
                }
                Self::Combined => {
                    let of_prompt: usize = of_group(response.group).map(|response| response.tokens).sum();
                    1.0 / (count(groups.len()) * count(of_prompt))
                }
            }
        };
        responses.iter().map(share).collect()
    }
}
