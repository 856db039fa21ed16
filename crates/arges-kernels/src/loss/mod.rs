//! The head with its loss: log-probabilities of target tokens under `softmax(x · W^T)`, and the gradients of a loss
//! that is a function of them.
//!
//! With `p = softmax(logits)` of a row and `weight` the derivative of the loss by the log-probability of its target:
//! `dlogits_j = weight (1[j = target] - p_j)`, `dx = dlogits · W`, `dW = dlogits^T · x`. Cross-entropy has the
//! weight `-1 / targets`.
//!
//! Rows go through in blocks whose logits stay within [`BLOCK_BYTES`], so that `[rows, vocab]` is never held. The
//! blocks are of rows and not of the vocabulary: a block's logits are then made once and not a second time for the
//! gradient, and a row's log-probability is computed as in sampling, to the same bits.

mod cpu;
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod reference;
#[cfg(test)]
mod tests;

pub use cpu::{HeadGradient, HeadLoss};

/// Most bytes of the logits of one block, unless even [`LEAST_ROWS`] rows take more.
pub const BLOCK_BYTES: usize = 32 << 20;

/// A block has at least that many rows: with fewer, products would read the head more than they compute.
pub const LEAST_ROWS: usize = 64;

/// A block has at most that many rows.
pub const MOST_ROWS: usize = 1024;
