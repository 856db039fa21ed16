//! How the blocks of the stream's norm divide rows, and what they are compiled for.

use super::super::Division;
use crate::device::cuda::Define;
use crate::matmul::Element;

/// Rows of a block of the gated norm's, whose gradients by the weight are summed together.
pub(super) const BLOCK: usize = 16;
/// The same of the stream's norm at least, and blocks at most.
const LEAST_PART: usize = 16;
const MOST_PARTS: usize = 256;

/// Bytes of rows at most that a block of it copies ahead of their use; two blocks share a multiprocessor.
const COPY_BYTES: usize = 100 << 10;
/// Rows that it has room for then, and what it copies of each besides those that its token chose.
const ROWS_AHEAD: usize = 4;
const OPERANDS: usize = 2;

/// Threads of a block of the stream's norm at most, and values of sums of a router's gradient that one has registers for.
const MOST_THREADS: usize = 384;
const MOST_SUMS: usize = 64;

/// What the gradients of a stream's norms are compiled for.
#[derive(Debug, Clone, Copy)]
pub struct StreamShape {
    /// Rows at most.
    pub rows: usize,
    /// Width of the stream.
    pub width: usize,
    /// Width of gated norms at most.
    pub gated: usize,
    /// Rows of each token that a mixture chooses, and experts it chooses from; 0 without one.
    pub choices: usize,
    /// See there.
    pub experts: usize,
}

impl StreamShape {
    /// How a block divides a row of the stream.
    pub(super) fn division(&self, activations: Element) -> Division {
        Division::of(self.width, activations, MOST_THREADS)
    }

    /// Rows of the small matrix whose gradient is summed on the way through the norm before it, a router's: where a
    /// thread has registers for the sums of all experts, and else none.
    pub(super) fn summed(&self, activations: Element) -> usize {
        let Division { values, groups, .. } = self.division(activations);
        if self.experts * values * groups <= MOST_SUMS { self.experts } else { 0 }
    }

    /// What the kernels are compiled for.
    #[must_use]
    pub fn defines(&self, activations: Element) -> [Define; 8] {
        let Division { values, groups, threads } = self.division(activations);
        [
            ("ACTIVATIONS_BF16", i64::from(activations == Element::Bf16)),
            ("ROWS", BLOCK as i64),
            ("VALUES", values as i64),
            ("GROUPS", groups as i64),
            ("THREADS", threads as i64),
            ("CHOICES", self.choices.max(1) as i64),
            ("SMALL", self.summed(activations) as i64),
            ("COPIES", i64::from(self.copies(activations, self.choices.max(1)) > 0)),
        ]
    }

    /// Shared memory for rows that are copied ahead of their use, where each has so many of a branch; none where they do
    /// not fit.
    pub(super) fn copies(&self, activations: Element, branches: usize) -> usize {
        let Division { values, groups, threads } = self.division(activations);
        let size = if activations == Element::Bf16 { 2 } else { 4 };
        let of_branches = |branches| (OPERANDS + branches) * ROWS_AHEAD * groups * threads * values * size;
        if of_branches(self.choices.max(1)) <= COPY_BYTES { of_branches(branches) } else { 0 }
    }

    /// Values of all parts of gradients by weights.
    pub(super) fn parts(&self, activations: Element) -> usize {
        let (_, blocks) = parts_of(self.rows);
        (blocks * (1 + self.summed(activations)) * self.width).max(self.rows.div_ceil(BLOCK) * self.gated)
    }
}

/// Rows that one block of the stream's norm takes, and blocks.
pub(super) fn parts_of(rows: usize) -> (usize, usize) {
    let part = rows.div_ceil(MOST_PARTS).next_multiple_of(2).max(LEAST_PART);
    (part, rows.div_ceil(part))
}
