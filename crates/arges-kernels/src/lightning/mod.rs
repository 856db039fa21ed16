//! Lightning attention: linear attention with a decay of its own for each head.
//!
//! With `q_t`, `k_t`, `v_t` of `head_dim` channels after SiLU and the head's slope `s`:
//! ```text
//! S_t = e^-s S_(t-1) + k_t v_t^T        o_t = q_t S_t
//! ```
//! (MiniMax-M1's modeling file; there is no scaling by the head width and no rotary embedding.)
//!
//! It is computed on an absolute grid of chunks of [`CHUNK`] tokens, counted from the start of the sequence.
//! A sequence keeps the state at the last grid point and the keys and values of the unfinished chunk; token
//! `i` of a chunk gives
//! ```text
//! o_i = e^(-s(i+1)) q_i S + sum_(j<=i) e^(-s(i-j)) (q_i·k_j) v_j
//! ```
//! and at the chunk's end `S <- e^(-s CHUNK) S + sum_j e^(-s(CHUNK-1-j)) k_j v_j^T`. Prefill in any pieces and
//! decode thus compute the same sums in the same order, and decode writes no state between grid points.

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
mod rows;
mod snapshot;
#[cfg(test)]
mod tests;

pub use backward::{backward_scratch_len, lightning_attention_backward};
pub use cpu::{Span, lightning_attention, materialize_state, scratch_len};
pub use snapshot::{load_state, save_state};

/// Tokens of a chunk.
pub const CHUNK: usize = 64;

/// Heads and their width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Heads.
    pub heads: usize,
    /// Channels of a head's query, key and value.
    pub head_dim: usize,
}

impl Shape {
    /// Width of a value row in memory: whole vectors.
    pub(crate) fn padded_dim(self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    /// f32 values that one head of one sequence keeps: state `[D, D']`, keys of the unfinished chunk
    /// `[D, CHUNK]` and its values `[CHUNK, D']`, where `D'` is `D` rounded up to 16.
    pub fn head_cache_len(self) -> usize {
        self.head_dim * self.padded_dim() + self.head_dim * CHUNK + CHUNK * self.padded_dim()
    }

    /// f32 values of one sequence's state in one layer, `[heads, D, D']`: what a snapshot holds.
    pub fn state_len(self) -> usize {
        self.heads * self.head_dim * self.padded_dim()
    }

    /// f32 values that one sequence keeps in one layer.
    pub fn cache_len(self) -> usize {
        self.heads * self.head_cache_len()
    }
}

/// `e^(-s n)` for each head of a layer, computed in f64 and rounded once.
pub struct Decays {
    /// For each head: `[e^0, e^-s, …, e^(-s CHUNK)]`, then `[e^(-s(CHUNK-1)), …, e^0, 0, …, 0]`, in which the
    /// window of `CHUNK` values that ends at a row's place is that row's causal mask.
    tables: Vec<f32>,
}

const POWERS: usize = CHUNK + 1;
const WINDOW: usize = 2 * CHUNK;

impl Decays {
    /// Tables from the slopes of a layer's heads.
    pub fn new(slopes: &[f64]) -> Self {
        let mut tables = Vec::with_capacity(slopes.len() * (POWERS + WINDOW));
        for slope in slopes {
            let power = |n: usize| (-slope * n as f64).exp() as f32;
            tables.extend((0..POWERS).map(power));
            tables.extend((0..CHUNK).rev().map(power));
            tables.extend([0.0; WINDOW - CHUNK]);
        }
        Self { tables }
    }

    /// Heads.
    pub fn heads(&self) -> usize {
        self.tables.len() / (POWERS + WINDOW)
    }

    /// `e^(-s n)` at `n`, for `n` up to [`CHUNK`].
    pub(crate) fn powers(&self, head: usize) -> &[f32] {
        &self.tables[head * (POWERS + WINDOW)..][..POWERS]
    }

    /// `CHUNK` values: what key `j` weighs for the token at place `i` of the chunk, 0 for keys after it.
    pub(crate) fn mask(&self, head: usize, i: usize) -> &[f32] {
        &self.tables[head * (POWERS + WINDOW) + POWERS + CHUNK - 1 - i..][..CHUNK]
    }
}
