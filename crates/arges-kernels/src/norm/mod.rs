//! RMS norms and the residual sums around them, row by row in f32.
//!
//! `rms_norm(x)_i = x_i / sqrt(mean(x^2) + eps) * weight_i`. Lightning attention's output is also multiplied by
//! the sigmoid of a gate.

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

pub use backward::{gated_rms_norm_backward, rms_norm_backward, scaled};
pub use cpu::{gated_rms_norm, residual, rms_norm};
