//! What operations run on: the CPU's instruction sets, threads and memory.

pub mod cpu;
