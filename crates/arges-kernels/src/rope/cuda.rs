//! Angles on a GPU: computed once a step, used by all layers.

use std::sync::Arc;

use super::Frequencies;
use crate::device::cuda::{Argument, Buffer, Cuda, CudaError, Kernel, LaunchShape, Source};

/// The kernel of the angles.
pub const ANGLES: Source = Source { name: "rope/angles.cu", text: include_str!("angles.cu") };

/// Cosines and sines for the rows of one step, on the device.
pub struct DeviceAngles {
    cuda: Arc<Cuda>,
    kernel: Kernel,
    frequencies: Buffer<f32>,
    /// `[rows, 2, pairs]`: cosines and sines.
    table: Buffer<f32>,
}

impl DeviceAngles {
    /// Room for `rows` rows.
    ///
    /// # Errors
    /// When memory or the compiler fails.
    pub fn new(cuda: &Arc<Cuda>, frequencies: &Frequencies, rows: usize) -> Result<Self, CudaError> {
        Ok(Self {
            cuda: Arc::clone(cuda),
            kernel: cuda.module(ANGLES, &[]).kernel("angles")?,
            frequencies: Buffer::from_slice(cuda, &frequencies.0)?,
            table: Buffer::zeroed(cuda, rows * 2 * frequencies.0.len())?,
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.table.bytes() + self.frequencies.bytes()
    }

    /// Rows that there is room for; any number where nothing is rotated.
    pub fn rows(&self) -> usize {
        self.table.len().checked_div(self.rotary_dim()).unwrap_or(usize::MAX)
    }

    /// Rotated channels.
    pub fn rotary_dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Computes the angles of the first `rows` rows of a batch at the positions that `span_count` spans from
    /// `first_span` on give them (first row, rows, position, slot; a slot below 0 is padding). Rows of no span keep
    /// what they had.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When there is no room, or the spans reach beyond the end.
    pub fn fill(
        &mut self,
        spans: &Buffer<[i32; 4]>,
        first_span: usize,
        span_count: usize,
        rows: usize,
    ) -> Result<(), CudaError> {
        assert!(rows <= self.rows(), "{rows} rows of angles, room for {}", self.rows());
        assert!(first_span + span_count <= spans.len(), "spans beyond the end");
        if self.frequencies.is_empty() {
            return Ok(());
        }
        let arguments = [
            Argument::Pointer(spans.address(first_span)),
            Argument::I32(span_count as i32),
            Argument::Pointer(self.frequencies.address(0)),
            Argument::I32(self.frequencies.len() as i32),
            Argument::Pointer(self.table.address(0)),
        ];
        // SAFETY: the kernel's five arguments. It reads the spans and the frequencies, whose numbers are given, and
        // writes the table's row of each block, of which there are no more than rows.
        unsafe { self.cuda.launch(&self.kernel, LaunchShape::new(rows, 128).overlap(), &arguments) }
    }

    /// Cosines and sines, `[rows, 2, rotary_dim / 2]`.
    pub(crate) fn table(&self) -> &Buffer<f32> {
        &self.table
    }
}
