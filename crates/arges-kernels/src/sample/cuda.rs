//! Greedy choice on a GPU: rows of logits need not travel to the host when only their largest is wanted.

use std::sync::Arc;

use crate::device::cuda::{Argument, Buffer, Cuda, CudaError, Kernel, LaunchShape, Source};

/// The kernels.
pub const SOURCE: Source = Source { name: "sample/greedy.cu", text: include_str!("greedy.cu") };

/// Blocks that share a row.
const PARTS: usize = 16;
/// Bytes of what the device knows of a part: a logit, a token and a sum in f64.
const PART_BYTES: usize = 16;

/// The compiled kernels for one vocabulary, with room for some rows at a time.
pub struct Greedy {
    cuda: Arc<Cuda>,
    vocabulary: usize,
    rows: usize,
    parts: Kernel,
    join: Kernel,
    scratch: Buffer<u8>,
}

impl Greedy {
    /// Compiles them, and takes scratch for `rows` rows.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(cuda: &Arc<Cuda>, vocabulary: usize, rows: usize) -> Result<Self, CudaError> {
        let module = cuda.module(SOURCE, &[])?;
        Ok(Self {
            cuda: Arc::clone(cuda),
            vocabulary,
            rows,
            parts: module.kernel("greedy_parts")?,
            join: module.kernel("greedy_join")?,
            scratch: Buffer::zeroed(cuda, rows * PARTS * PART_BYTES)?,
        })
    }

    /// Bytes of scratch.
    pub fn bytes(&self) -> usize {
        self.scratch.bytes()
    }

    /// For each of the first `rows` of `logits[_, vocabulary]` the largest below id `sampleable`, the lower id among
    /// equals, and its log-probability over the whole vocabulary.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn run(
        &mut self,
        logits: &Buffer<f32>,
        rows: usize,
        sampleable: usize,
        tokens: &mut Buffer<i32>,
        logprobs: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        assert!(logits.len() >= rows * self.vocabulary && sampleable <= self.vocabulary, "rows of logits");
        assert!(tokens.len() >= rows && logprobs.len() >= rows && rows <= self.rows, "room for {rows} rows");
        let arguments = [
            Argument::Pointer(logits.address(0)),
            Argument::I32(self.vocabulary as i32),
            Argument::I32(sampleable as i32),
            Argument::Pointer(self.scratch.address(0)),
        ];
        // SAFETY: the kernel's arguments, in order; `rows` rows of each were checked above, and there is scratch for
        // each part of them.
        unsafe {
            self.cuda.launch(&self.parts, LaunchShape::grid(PARTS, rows, 1, 512).overlap(), &arguments)?;
        }
        let arguments = [
            Argument::Pointer(self.scratch.address(0)),
            Argument::I32(PARTS as i32),
            Argument::Pointer(tokens.address(0)),
            Argument::Pointer(logprobs.address(0)),
            Argument::I32(rows as i32),
        ];
        // SAFETY: as above.
        unsafe {
            self.cuda.launch(&self.join, LaunchShape::new(rows.div_ceil(128), 128).overlap(), &arguments)
        }
    }
}
