//! Low-rank adapters: weights `W + s B A` with `A` `[rank, inputs]` and `B` `[outputs, rank]`, and the gradients by `A` and
//! `B` from those by the outputs:
//! ```text
//! dA = s (dY B)^T X        dB = s dY^T (X A^T)
//! ```
//! These are `s B^T dW` and `s dW A^T` of the gradient `dW = dY^T X` by the merged weights, which is not made: products with
//! `A` and `B` are as many times smaller than that one as the rank is smaller than the matrix.

pub mod cuda;
#[cfg(test)]
mod cuda_tests;
pub mod reference;
