//! AdamW (Loshchilov, Hutter, "Decoupled Weight Decay Regularization", 2019):
//! ```text
//! m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
//! w <- w - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)
//! ```
//! Moments and weights are f32. M1's gradients run from 1e-18 to 1e-5, so that `eps` is 1e-15 and nothing in
//! between may vanish: the square of 1e-18 is kept, which is near the smallest normal f32.

mod cpu;
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod reference;
#[cfg(test)]
mod tests;

pub use cpu::{adamw, sum_of_squares};

/// Settings of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; a step takes off `lr` times this share of a weight.
    pub weight_decay: f64,
    /// Number of the step, from 1.
    pub step: u64,
}
