//! Working memory of its own for each thread.

use super::{AlignedBuffer, Cpu, SharedMut};

/// One block of `f32` a thread, allocated once.
pub struct Scratch {
    data: AlignedBuffer<f32>,
    each: usize,
}

impl Scratch {
    /// `each` values for every thread of `cpu`.
    pub fn new(cpu: &Cpu, each: usize) -> Self {
        // Threads on cache lines of their own.
        let each = each.next_multiple_of(16);
        Self { data: AlignedBuffer::zeroed(each * cpu.pool().threads()), each }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.bytes()
    }

    pub(crate) fn each(&self) -> usize {
        self.each
    }

    /// All blocks; that of thread `i` starts at `i * each`.
    pub(crate) fn shared(&mut self) -> SharedMut<'_, f32> {
        SharedMut::new(&mut self.data)
    }
}
