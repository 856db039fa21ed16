//! What operations run on: the CPU's instruction sets, threads and memory; a GPU and its memory.

pub mod cpu;
pub mod cuda;
