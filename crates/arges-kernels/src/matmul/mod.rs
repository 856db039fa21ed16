//! Products of activation rows with weight matrices: `y[T, N] = x[T, K] · W[N, K]^T`.
//!
//! Weights are packed once into panels of [`PANEL`] outputs ([`PackedMatrix`]); rows are packed, and rounded to
//! bf16 where the compute type says so, before each product ([`PackedRows`]). One call multiplies several
//! segments of rows, each with a matrix of its own, which is what a mixture of experts needs; an ordinary
//! product is one segment.
//!
//! Every output element is one chain of multiply-adds along `K` in ascending order, in one accumulator (with
//! bf16 dot products in pairs, with AMX in steps of 32). How many rows come together, and how work is split
//! among threads, therefore never changes a bit of the result.

pub(crate) mod amx;
mod avx512_bf16;
mod backward;
pub(crate) mod blocks;
mod cpu;
pub mod cuda;
#[cfg(test)]
mod cuda_backward_tests;
#[cfg(test)]
mod cuda_tests;
mod pack;
pub mod reference;
pub(crate) mod small;
#[cfg(test)]
mod tests;

pub use backward::{Columns, WeightGradient, input_gradient};
pub use cpu::{Output, Segment, matmul};
pub use pack::{Element, PackedMatrix, PackedRows, RowMajor, Stored};

/// Outputs in a panel of packed weights.
pub const PANEL: usize = 32;

/// `K` is padded with zeros to a multiple of this: one AMX tile of bf16 pairs.
pub(crate) const K_STEP: usize = 32;

/// In what precision products are computed. Sums are f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compute {
    /// Activations and products in f32; weights as they are stored.
    F32,
    /// Activations and weights rounded to bf16.
    Bf16,
}

impl std::fmt::Display for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}
