//! Training: gradients of everything that learns, from packed sequences.
//!
//! The forward pass is [`Model::forward`]'s own, with the same kernels in the same order, so that a token's
//! log-probability here is that of inference, bit for bit. Of each layer little is kept ([`Recompute`]); the backward
//! pass computes its other activations once more before it needs them. Logits are made for a block of targets
//! at a time.
//!
//! Gradients add up over calls of [`Trainer::accumulate`] until they are zeroed. They do not depend on the
//! number of threads.

mod backward;
mod batch;
mod buffers;
pub mod cuda;
mod device;
mod lora;
mod parameters;

use std::sync::Arc;

use arges_kernels::device::cpu::Cpu;
use arges_kernels::device::cuda::CudaError;
use arges_kernels::matmul::Compute;

pub use batch::{Target, TrainingBatch};
pub use device::{DeviceTrainer, TrainingDevice};
pub use lora::{LoraOptions, LoraTarget};
pub use parameters::{Parameters, TrainableTensor};

use crate::cache::{Cache, CacheError, CachePlan};
use crate::checkpoint::{CheckpointError, WriteError};
pub use crate::model::OWN_CHOICE;
use crate::model::cuda::{CudaCacheError, CudaModelError};
use crate::model::{ForwardError, Model};
use buffers::Buffers;

/// The largest batch, and what of it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainingPlan {
    /// Tokens.
    pub max_tokens: usize,
    /// Packed sequences.
    pub max_sequences: usize,
    /// What is computed once more.
    pub recompute: Recompute,
    /// Whether the head multiplies rows rounded to bf16, not f32 ones: on a GPU, beside products in bf16. Logits then differ
    /// from those in inference.
    pub rounded_head: bool,
}

impl TrainingPlan {
    /// Batches of so many tokens and sequences, with the default of what is computed once more.
    pub const fn new(max_tokens: usize, max_sequences: usize) -> Self {
        Self { max_tokens, max_sequences, recompute: Recompute::Insides, rounded_head: false }
    }
}

/// What the backward pass computes once more instead of having kept it. The gradients are the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recompute {
    /// As little as the free memory of a GPU allows, with the optimizer's moments yet to come. On the CPU:
    /// [`Recompute::Insides`].
    Auto,
    /// Nothing but norms, on a GPU: all that gradients are made of is kept, some `[tokens, 10 W + 3 k F]` rounded values
    /// for a layer with `k` experts a token of inner width `F`. Spares a fifth of a step's products. On the CPU:
    /// [`Recompute::Insides`].
    Nothing,
    /// Whole layers: of each, only the input is kept, `[tokens, hidden]`.
    Layers,
    /// Attention from its projections on, and experts: the projections, up to `[tokens, 4 W]`, and the residual stream
    /// after attention are kept as well. Spares an eighth to a tenth of a step's products.
    #[default]
    Insides,
}

/// Why a model cannot be trained, or a batch not be run.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// A parameter is missing from the checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A checkpoint cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The plan is empty or too large.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The batch is malformed or does not fit.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// More sequences than planned.
    #[error("a batch of {sequences} sequences is over the planned {planned}")]
    TooManySequences {
        /// Sequences of the batch.
        sequences: usize,
        /// Sequences planned.
        planned: usize,
    },
    /// The lengths do not add up to the tokens, or one is 0.
    #[error("sequences of {lengths} tokens do not make up a batch of {tokens}, or one is empty")]
    Lengths {
        /// Sum of the lengths.
        lengths: usize,
        /// Tokens of the batch.
        tokens: usize,
    },
    /// A target whose row is out of range or not after the one before it, or whose token is no token.
    #[error(
        "target {index} (row {row}, token {token}) is out of order, beyond the batch or not in the vocabulary"
    )]
    Target {
        /// Its place among the targets.
        index: usize,
        /// The row that predicts it.
        row: u32,
        /// The token.
        token: u32,
    },
    /// Experts that the model's tokens cannot go to.
    #[error("experts given for a batch: {reason}")]
    Experts {
        /// What is wrong.
        reason: String,
    },
    /// Only the CPU takes experts as they are given.
    #[error("a GPU's trainer cannot replay choices of experts; train on the CPU, or without replay")]
    ExpertsOnCuda,
    /// A GPU failed, has too little memory, or no kernel for the model's shape.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// A head of rounded rows where there is none.
    #[error("a head that multiplies bf16 rows is computed on a GPU only, where products are in bf16")]
    RoundedHead,
    /// Adapters that the model cannot have.
    #[error("lora: {reason}")]
    Lora {
        /// What is wrong.
        reason: String,
    },
}

impl From<CudaModelError> for TrainingError {
    fn from(error: CudaModelError) -> Self {
        match error {
            CudaModelError::Checkpoint(error) => Self::Checkpoint(error),
            CudaModelError::Cuda(error) => Self::Cuda(error),
        }
    }
}

impl From<CudaCacheError> for TrainingError {
    fn from(error: CudaCacheError) -> Self {
        match error {
            CudaCacheError::Plan(error) => Self::Cache(error),
            CudaCacheError::Cuda(error) => Self::Cuda(error),
        }
    }
}

/// A model that learns: its packed weights, what learns of it, and the memory for one batch at a time.
pub struct Trainer {
    model: Arc<Model>,
    parameters: Parameters,
    cache: Cache,
    buffers: Buffers,
}

/// Derivatives of the loss by the log-probabilities of a batch's targets.
#[derive(Clone, Copy)]
pub enum TargetWeights<'a> {
    /// The same for all: `-1 / n` where the loss is the mean negative log-probability of `n` targets. A GPU need not wait
    /// for log-probabilities then.
    Equal(f32),
    /// Of a target by its number and its log-probability.
    Each(&'a (dyn Fn(usize, f32) -> f32 + Sync)),
}

impl TargetWeights<'_> {
    /// That of one target.
    fn of(&self, index: usize, logprob: f32) -> f32 {
        match self {
            Self::Equal(weight) => *weight,
            Self::Each(weight) => weight(index, logprob),
        }
    }
}

impl From<f32> for TargetWeights<'_> {
    fn from(weight: f32) -> Self {
        Self::Equal(weight)
    }
}

impl<'a, F: Fn(usize, f32) -> f32 + Sync> From<&'a F> for TargetWeights<'a> {
    fn from(weight: &'a F) -> Self {
        Self::Each(weight)
    }
}

/// What a batch gave. Gradients are in [`Parameters::gradients`].
#[derive(Debug, Clone, Copy)]
pub struct StepOutput<'a> {
    /// Log-probability of each target, in nats.
    pub logprobs: &'a [f32],
    /// Entropy of the distribution each target comes from, in nats.
    pub entropies: &'a [f32],
    /// Load-balancing loss with coefficient 1; 0 for a model without router. It is smallest, the number of
    /// experts per token, when every expert is as likely as any other.
    pub balance_loss: f64,
}

impl Trainer {
    /// Packs the parameters into a model that computes in `compute`.
    ///
    /// # Errors
    /// When a parameter is missing, or the plan is empty.
    pub fn new(
        parameters: Parameters,
        compute: Compute,
        cpu: Arc<Cpu>,
        plan: TrainingPlan,
    ) -> Result<Self, TrainingError> {
        let model = Model::from_source(&parameters.source(&cpu), compute, Arc::clone(&cpu), &mut |_| {})?;
        // Every sequence may leave a page unfinished.
        let max_tokens = plan.max_tokens + plan.max_sequences * Cache::page_tokens();
        let cache = Cache::new(&model, CachePlan { max_sequences: plan.max_sequences, max_tokens })?;
        let buffers = Buffers::new(&model, plan);
        Ok(Self { model: Arc::new(model), parameters, cache, buffers })
    }

    /// Adds the gradients of a batch: of a loss whose derivative by the log-probability of `targets[i]` is
    /// `weights`, and of `balance` times the load-balancing loss. The mean negative log-probability
    /// of `n` targets has the weight `-1 / n`.
    ///
    /// # Errors
    /// When the batch is malformed or over the plan; then no gradient has changed.
    pub fn accumulate<'w>(
        &mut self,
        batch: &TrainingBatch,
        weights: impl Into<TargetWeights<'w>>,
        balance: f32,
    ) -> Result<StepOutput<'_>, TrainingError> {
        self.forward(batch)?;
        let weights = weights.into();
        self.backward(batch, &|target, logprob| weights.of(target, logprob), balance);
        Ok(self.buffers.output(batch.targets.len()))
    }

    /// Log-probabilities of a batch, without gradients.
    ///
    /// # Errors
    /// When the batch is malformed or over the plan.
    pub fn evaluate(&mut self, batch: &TrainingBatch) -> Result<StepOutput<'_>, TrainingError> {
        self.forward(batch)?;
        self.score(batch);
        Ok(self.buffers.output(batch.targets.len()))
    }

    /// What learns.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// What learns, to be changed.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// Brings changed values into the model. Where others hold [`Trainer::shared_model`], they keep the model as it
    /// was, and the trainer goes on with a new one.
    ///
    /// # Errors
    /// When a parameter of an adapted checkpoint can no longer be read.
    pub fn publish(&mut self) -> Result<(), TrainingError> {
        let (cpu, compute) = (self.model.shared_cpu(), self.model.compute());
        let source = self.parameters.source(&cpu);
        match Arc::get_mut(&mut self.model) {
            Some(model) => model.fill(&source, &mut |_| {})?,
            None => {
                let model = Model::from_source(&source, compute, Arc::clone(&cpu), &mut |_| {})?;
                self.model = Arc::new(model);
            }
        }
        Ok(())
    }

    /// The model as it computes now, to be shared with an engine: the same bits in the same memory, not a copy.
    pub fn shared_model(&self) -> Arc<Model> {
        Arc::clone(&self.model)
    }

    /// The model as it computes now.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What it runs on.
    pub fn cpu(&self) -> &Cpu {
        self.model.cpu()
    }

    /// What it runs on, to be used while parameters are borrowed.
    pub fn shared_cpu(&self) -> Arc<Cpu> {
        self.model.shared_cpu()
    }

    /// Bytes of the model, the values with their gradients, caches and buffers.
    pub fn bytes(&self) -> usize {
        self.model.weight_bytes()
            + 2 * size_of_val(self.parameters.values())
            + self.cache.bytes()
            + self.buffers.bytes()
    }
}
