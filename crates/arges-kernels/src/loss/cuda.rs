//! Log-probabilities and their gradients from rows of logits on a GPU (`loss.cu`).

use std::sync::Arc;

use crate::device::cuda::{
    Activations, Argument, Buffer, Cuda, CudaError, Define, Kernel, LaunchShape, Source,
};
use crate::matmul::Element;
use crate::sample::cuda::PART_THREADS;

/// The kernels.
pub const SOURCE: Source = Source {
    name: "loss/loss.cu",
    text: concat!(include_str!("../sample/log_sum.cuh"), include_str!("loss.cu")),
};

/// What the kernels are compiled for.
#[must_use]
pub fn defines(activations: Element) -> [Define; 1] {
    [("ACTIVATIONS_BF16", i64::from(activations == Element::Bf16))]
}

/// The compiled kernels for one vocabulary.
pub struct LossCuda {
    cuda: Arc<Cuda>,
    activations: Element,
    vocab: usize,
    score: Kernel,
    score_backward: Kernel,
    score_and_backward: Kernel,
}

/// What a block of rows gave, a value a row.
pub struct Scores {
    /// Log-probability of the target, in nats.
    pub logprobs: Buffer<f32>,
    /// Entropy of the distribution, in nats.
    pub entropies: Buffer<f32>,
    /// Logarithm of the sum of the logits' exponentials.
    pub log_sums: Buffer<f32>,
}

impl Scores {
    /// Room for `rows` rows.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn zeroed(cuda: &Arc<Cuda>, rows: usize) -> Result<Self, CudaError> {
        let values = || Buffer::zeroed(cuda, rows);
        Ok(Self { logprobs: values()?, entropies: values()?, log_sums: values()? })
    }
}

impl LossCuda {
    /// Compiles them for gradients in `activations`.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(cuda: &Arc<Cuda>, activations: Element, vocab: usize) -> Result<Self, CudaError> {
        let module = cuda.module(SOURCE, &defines(activations));
        Ok(Self {
            cuda: Arc::clone(cuda),
            activations,
            vocab,
            score: module.kernel("score")?,
            score_backward: module.kernel("score_backward")?,
            score_and_backward: module.kernel("score_and_backward")?,
        })
    }

    /// Scores the first `rows` rows of `logits[_, vocab]` for `targets`, which must be tokens. A log-probability has the
    /// bits with which [`DeviceSampler`](crate::sample::cuda::DeviceSampler) samples that token. NaN where a logit is not
    /// finite.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn score(
        &self,
        logits: &Buffer<f32>,
        rows: usize,
        targets: &Buffer<i32>,
        scores: &mut Scores,
    ) -> Result<(), CudaError> {
        assert!(logits.len() >= rows * self.vocab && targets.len() >= rows, "{rows} rows of logits");
        for values in [&scores.logprobs, &scores.entropies, &scores.log_sums] {
            assert!(values.len() >= rows, "room for {rows} rows");
        }
        let arguments = [
            Argument::Pointer(logits.address(0)),
            Argument::Pointer(targets.address(0)),
            Argument::Pointer(scores.logprobs.address(0)),
            Argument::Pointer(scores.entropies.address(0)),
            Argument::Pointer(scores.log_sums.address(0)),
            Argument::I32(self.vocab as i32),
        ];
        // SAFETY: the kernel's arguments, in order; `rows` rows of each were checked, and that targets are tokens is the
        // caller's promise, which the model checks on the host.
        unsafe { self.cuda.launch(&self.score, LaunchShape::new(rows, PART_THREADS).overlap(), &arguments) }
    }

    /// The gradient by those logits of the sum over rows of `weights` times log-probabilities.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn score_backward(
        &self,
        logits: &Buffer<f32>,
        rows: usize,
        targets: &Buffer<i32>,
        scores: &Scores,
        weights: &Buffer<f32>,
        out: &mut Activations,
    ) -> Result<(), CudaError> {
        let room = rows * self.vocab;
        assert!(logits.len() >= room && out.len() >= room, "{rows} rows of logits");
        assert!(targets.len() >= rows && weights.len() >= rows && scores.log_sums.len() >= rows, "rows");
        assert_eq!(out.element(), self.activations, "element of the gradients");
        let arguments = [
            Argument::Pointer(logits.address(0)),
            Argument::Pointer(targets.address(0)),
            Argument::Pointer(scores.log_sums.address(0)),
            Argument::Pointer(weights.address(0)),
            Argument::Pointer(out.address(0)),
            Argument::I32(self.vocab as i32),
        ];
        // SAFETY: as for `score`.
        unsafe {
            self.cuda.launch(&self.score_backward, LaunchShape::new(rows, PART_THREADS).overlap(), &arguments)
        }
    }

    /// [`LossCuda::score`] and [`LossCuda::score_backward`] at once, to the same bits, where all rows have the same
    /// `weight`: logits are read from memory once. The logarithms of `scores` are left alone.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn score_and_backward(
        &self,
        logits: &Buffer<f32>,
        rows: usize,
        targets: &Buffer<i32>,
        scores: &mut Scores,
        weight: f32,
        out: &mut Activations,
    ) -> Result<(), CudaError> {
        let room = rows * self.vocab;
        assert!(logits.len() >= room && out.len() >= room, "{rows} rows of logits");
        assert!(targets.len() >= rows, "targets of {rows} rows");
        assert!(scores.logprobs.len() >= rows && scores.entropies.len() >= rows, "room for {rows} rows");
        assert_eq!(out.element(), self.activations, "element of the gradients");
        let arguments = [
            Argument::Pointer(logits.address(0)),
            Argument::Pointer(targets.address(0)),
            Argument::Pointer(scores.logprobs.address(0)),
            Argument::Pointer(scores.entropies.address(0)),
            Argument::F32(weight),
            Argument::Pointer(out.address(0)),
            Argument::I32(self.vocab as i32),
        ];
        let shape = LaunchShape::new(rows, PART_THREADS).overlap();
        // SAFETY: as for `score`.
        unsafe { self.cuda.launch(&self.score_and_backward, shape, &arguments) }
    }
}
