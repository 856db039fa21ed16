//! Greedy choice on a GPU: rows of logits need not travel to the host when only their largest is wanted.

use std::sync::Arc;

use crate::device::cuda::{Argument, Buffer, Cuda, CudaError, Kernel, LaunchShape, Source};

/// The kernel.
pub const SOURCE: Source = Source { name: "sample/greedy.cu", text: include_str!("greedy.cu") };

/// The compiled kernel for one vocabulary.
pub struct Greedy {
    cuda: Arc<Cuda>,
    vocabulary: usize,
    kernel: Kernel,
}

impl Greedy {
    /// Compiles it.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(cuda: &Arc<Cuda>, vocabulary: usize) -> Result<Self, CudaError> {
        let kernel = cuda.module(SOURCE, &[])?.kernel("greedy")?;
        Ok(Self { cuda: Arc::clone(cuda), vocabulary, kernel })
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
        &self,
        logits: &Buffer<f32>,
        rows: usize,
        sampleable: usize,
        tokens: &mut Buffer<i32>,
        logprobs: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        assert!(logits.len() >= rows * self.vocabulary && sampleable <= self.vocabulary, "rows of logits");
        assert!(tokens.len() >= rows && logprobs.len() >= rows, "room for {rows} rows");
        let arguments = [
            Argument::Pointer(logits.address(0)),
            Argument::I32(self.vocabulary as i32),
            Argument::I32(sampleable as i32),
            Argument::Pointer(tokens.address(0)),
            Argument::Pointer(logprobs.address(0)),
        ];
        // SAFETY: the kernel's arguments, in order; `rows` rows of each were checked above.
        unsafe { self.cuda.launch(&self.kernel, LaunchShape::new(rows, 1024).overlap(), &arguments) }
    }
}
