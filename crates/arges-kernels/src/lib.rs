//! Operations of the MiniMax-M1 family, each in a folder of its own: what it computes (`mod.rs`), plain f64
//! loops that say so exactly (`reference.rs`), the forms for the CPU (`cpu.rs`) and for GPUs (`cuda.rs`, `*.cu`),
//! and tests that hold them to the reference.
//!
//! [`device::cpu::Cpu`] and [`device::cuda::Cuda`] are what operations run on. On the CPU instruction sets are
//! chosen at run time; results do not depend on how rows are batched, how sequences are split into steps, or how
//! many threads there are.
//!
//! This crate knows tensors and nothing of models, files or requests. It is the only crate but for the file
//! mapping of checkpoints that contains `unsafe` code.

pub mod adamw;
pub mod adapter;
pub mod device;
pub mod embed;
pub mod lightning;
pub mod loss;
pub mod matmul;
pub mod moe;
pub mod norm;
pub mod rope;
pub mod sample;
pub mod softmax_attention;
#[cfg(test)]
mod testing;
