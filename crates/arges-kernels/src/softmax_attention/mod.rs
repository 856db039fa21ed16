//! Causal softmax attention with grouped queries over a paged key-value cache.
//!
//! `o_t = sum_j softmax_j(q_t·k_j / sqrt(head_dim)) v_j` over keys `j <= t`; each key-value head serves
//! `heads / kv_heads` query heads. Queries and keys are rotated first (see [`crate::rope`]).
//!
//! Pages hold [`PAGE`] tokens at absolute places, so that the running maximum and sum of a row pass over the
//! same blocks of keys in the same order whether it is computed in prefill or in decode. In a page, the keys
//! of a head lie transposed, `[head_dim, PAGE]`, and its values `[PAGE, head_dim']`, where `head_dim'` is
//! `head_dim` rounded up to 16.

mod backward;
#[cfg(test)]
mod backward_tests;
mod cpu;
pub mod cuda;
#[cfg(test)]
mod cuda_backward_tests;
#[cfg(test)]
mod cuda_tests;
pub mod reference;
#[cfg(test)]
mod tests;

pub use backward::{BackwardScratch, Forward, softmax_attention_backward};
pub use cpu::{Pages, Span, scratch_len, softmax_attention};

/// Tokens of a page.
pub const PAGE: usize = 64;

/// Heads and their width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Channels that are rotated, from the first on; even.
    pub rotary_dim: usize,
}

impl Shape {
    pub(crate) fn padded_dim(self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    pub(crate) fn head_page_len(self) -> usize {
        PAGE * (self.head_dim + self.padded_dim())
    }

    /// Elements of one page of one layer.
    pub fn page_len(self) -> usize {
        self.kv_heads * self.head_page_len()
    }
}
