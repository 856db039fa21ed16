//! Mixture of experts: routing, grouping rows by expert, and the weighted sum of expert outputs.
//!
//! Router: softmax over the experts, the `k` largest, renormalised to sum 1; equal probabilities go to the lower
//! expert first. No token is dropped. Experts are products of [`crate::matmul`] over the segments of
//! [`Routing::segments`]; a token's expert outputs are summed in the order of its choices, so that the sum does
//! not depend on the other tokens. A shared MLP, where there is one, is mixed in by a sigmoid coefficient.

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

pub use backward::{
    BalanceLoss, router_backward, scatter_add, shared_weights, shared_weights_backward, swiglu,
    swiglu_backward, weigh_backward,
};
pub use cpu::{Routing, combine, mix_shared};
