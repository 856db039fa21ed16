//! Sums of squares of gradients, which the tensor cores' kernel has at hand when it writes them: so that their norm need
//! not read them once more. Squares are added up in f32 within a tile, widened like AdamW's second moment, and in f64
//! beyond: gradients from 1e-20 on keep their share, and those over 1e13 count as infinite.

use std::ops::Range;
use std::sync::Arc;

use crate::device::cuda::{Buffer, Cuda, CudaError};

/// Parts of the sum of squares of gradients, and which gradients they are of: as products wrote them last.
pub struct WrittenSquares {
    cuda: Arc<Cuda>,
    parts: Buffer<f64>,
    used: usize,
    written: Vec<Written>,
}

/// What one product wrote.
struct Written {
    parts: Range<usize>,
    values: Vec<Range<usize>>,
}

impl WrittenSquares {
    pub(super) fn new(cuda: &Arc<Cuda>) -> Result<Self, CudaError> {
        Ok(Self { cuda: Arc::clone(cuda), parts: Buffer::zeroed(cuda, 0)?, used: 0, written: Vec::new() })
    }

    /// The gradients whose squares are known.
    pub fn values(&self) -> impl Iterator<Item = Range<usize>> {
        self.written.iter().flat_map(|written| written.values.iter().cloned())
    }

    /// Parts of the sum of their squares: the first so many values.
    pub fn parts(&self) -> (&Buffer<f64>, usize) {
        (&self.parts, self.used)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.used = 0;
        self.written.clear();
    }

    /// Forgets what was written together with any of these gradients, as they change otherwise than by a product.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn forget(&mut self, changed: &Range<usize>) -> Result<(), CudaError> {
        let overlap = |values: &Range<usize>| values.start < changed.end && changed.start < values.end;
        while let Some(place) = self.written.iter().position(|written| written.values.iter().any(overlap)) {
            let Written { parts, .. } = self.written.remove(place);
            self.parts.clear_range(parts.start, parts.len())?;
        }
        Ok(())
    }

    /// Where a product of `blocks` blocks that writes those values puts a part for each.
    pub(super) fn place(&mut self, values: Vec<Range<usize>>, blocks: usize) -> Result<u64, CudaError> {
        let same = |written: &&Written| written.values == values && written.parts.len() == blocks;
        if let Some(before) = self.written.iter().find(same) {
            return Ok(self.parts.address(before.parts.start));
        }
        values.iter().try_for_each(|values| self.forget(values))?;
        let parts = self.used..self.used + blocks;
        if parts.end > self.parts.len() {
            let mut more = Buffer::zeroed(&self.cuda, parts.end.next_power_of_two())?;
            if self.used > 0 {
                more.copy_from(0, &self.parts, 0, self.used)?;
            }
            self.parts = more;
        }
        self.used = parts.end;
        let address = self.parts.address(parts.start);
        self.written.push(Written { parts, values });
        Ok(address)
    }

    pub(super) fn bytes(&self) -> usize {
        self.parts.bytes()
    }
}
