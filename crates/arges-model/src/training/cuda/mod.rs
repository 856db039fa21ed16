//! Training on a GPU: the forward pass is [`CudaModel`]'s in exact mode, gradients and masters stay in the memory of the
//! device.
//!
//! Of each layer its input is kept, and as much of the rest as [`Recompute`](super::Recompute) says; the backward pass
//! computes the others once more. A batch gives the same bits every time, whatever is kept.

mod adapters;
mod attention;
mod backward;
mod buffers;
mod experts;
mod head;
mod kept;
mod matrix;
mod publish;
mod sums;
mod update;

use std::sync::Arc;

use arges_kernels::adamw::cuda::AdamWCuda;
use arges_kernels::device::cuda::{Buffer, Cuda, CudaError, Fill};
use arges_kernels::matmul::Compute;
use arges_kernels::norm::cuda::{Kept, Norm};

use super::{Parameters, Recompute, StepOutput, TargetWeights, TrainingBatch, TrainingError, TrainingPlan};
use crate::batch::{Batch, LogitRows};
use crate::cache::{CachePlan, PAGE_TOKENS};
use crate::config::Config;
use crate::dtype::DType;
use crate::model::WorkspacePlan;
use crate::model::cuda::forward::{KeptAttention, KeptExperts, Shape};
use crate::model::cuda::{CudaCache, CudaModel, CudaWorkspace};
use crate::model::step::check;
use adapters::Adapters;
use buffers::Buffers;
pub use update::CudaMoments;

/// A model that learns on a GPU: its weights, what learns of it, and the memory for one batch at a time.
pub struct CudaTrainer {
    model: Arc<CudaModel>,
    /// The model before it, which others may still hold. Once they hold it no more, it is written anew.
    before: Option<Arc<CudaModel>>,
    parameters: Parameters,
    /// Where those are all that learns.
    adapters: Option<Adapters>,
    values: Buffer<f32>,
    /// Whether the model computes with the values as they are.
    published: bool,
    gradients: Buffer<f32>,
    /// Whether all gradients are zeros, whatever the memory holds: the next ones overwrite it.
    fresh: bool,
    adamw: AdamWCuda,
    cache: CudaCache,
    workspace: CudaWorkspace,
    buffers: Buffers,
}

impl CudaTrainer {
    /// Copies the parameters to a model that computes in `compute`.
    ///
    /// # Errors
    /// When the plan is empty, the base of adapters cannot be read, the memory of the device is too small, or it has no
    /// kernel for the model's shape.
    pub fn new(
        parameters: Parameters,
        compute: Compute,
        cuda: &Arc<Cuda>,
        plan: TrainingPlan,
    ) -> Result<Self, TrainingError> {
        Self::with_values(parameters, compute, cuda, plan, |parameters| {
            Buffer::from_slice(cuda, parameters.values())
        })
    }

    /// Random parameters, made on the device: for measurements.
    ///
    /// # Errors
    /// As for [`CudaTrainer::new`].
    pub fn random(
        config: &Config,
        compute: Compute,
        cuda: &Arc<Cuda>,
        plan: TrainingPlan,
        seed: u64,
    ) -> Result<Self, TrainingError> {
        Self::with_values(Parameters::zeroed(config.clone()), compute, cuda, plan, |parameters| {
            let len = parameters.values().len();
            let mut values = Buffer::zeroed(cuda, len)?;
            Fill::new(cuda)?.normal_f32(&mut values, seed, config.initializer_range as f32)?;
            for norm in parameters.tensors().iter().filter(|tensor| !tensor.decay) {
                values.write(norm.range.start, &vec![1.0; norm.range.len()])?;
            }
            Ok(values)
        })
    }

    fn with_values(
        parameters: Parameters,
        compute: Compute,
        cuda: &Arc<Cuda>,
        plan: TrainingPlan,
        values: impl FnOnce(&Parameters) -> Result<Buffer<f32>, CudaError>,
    ) -> Result<Self, TrainingError> {
        let config = parameters.config();
        if config.has_shared_mlp() && !config.has_router() {
            let reason = "a shared MLP beside a single expert is trained on the CPU only".to_owned();
            return Err(CudaError::Unsupported(reason).into());
        }
        let mut model = CudaModel::zeroed(config, compute, &|_| Ok(DType::F32), cuda)?;
        let values = values(&parameters)?;
        let max_tokens = plan.max_tokens + plan.max_sequences * PAGE_TOKENS;
        let cache = CachePlan { max_sequences: plan.max_sequences, max_tokens };
        let cache = CudaCache::for_whole_sequences(&model, cache)?;
        let max_logit_rows = buffers::head_rows(config.vocab_size, plan.max_tokens, cuda.facts().memory);
        let workspace = WorkspacePlan { max_tokens: plan.max_tokens, max_logit_rows };
        let workspace = CudaWorkspace::for_training(&model, workspace)?;
        let buffers = Buffers::new(&model, plan, max_logit_rows)?;
        let mut adamw = AdamWCuda::new(cuda)?;
        let with_adapters = |lora| Adapters::new(lora, &mut model, plan, values.len());
        let mut adapters = parameters.adapters().map(with_adapters).transpose()?;
        match &mut adapters {
            None => publish::pack(&mut model, &parameters, &values, &mut adamw)?,
            Some(adapters) => adapters.publish(&mut model, &values, &mut adamw)?,
        }
        let mut trainer = Self {
            published: true,
            gradients: Buffer::zeroed(cuda, values.len())?,
            fresh: true,
            adamw,
            model: Arc::new(model),
            before: None,
            parameters,
            adapters,
            values,
            cache,
            workspace,
            buffers,
        };
        trainer.take_memory_for_layers()?;
        cuda.ready()?;
        Ok(trainer)
    }

    /// Adds the gradients of a batch, as [`Trainer::accumulate`](super::Trainer::accumulate) does.
    ///
    /// # Errors
    /// When the batch is malformed or over the plan; then no gradient has changed. When the device fails.
    pub fn accumulate<'w>(
        &mut self,
        batch: &TrainingBatch,
        weights: impl Into<TargetWeights<'w>>,
        balance: f32,
    ) -> Result<StepOutput<'_>, TrainingError> {
        let shape = self.forward(batch, true)?;
        // While the device is at that.
        self.buffers.embedding.send(&batch.tokens)?;
        self.backward(batch, &shape, weights.into(), balance)?;
        self.output(batch.targets.len())
    }

    /// Log-probabilities of a batch, without gradients.
    ///
    /// # Errors
    /// When the batch is malformed or over the plan, or the device fails.
    pub fn evaluate(&mut self, batch: &TrainingBatch) -> Result<StepOutput<'_>, TrainingError> {
        self.forward(batch, false)?;
        self.head(&batch.targets, None)?;
        self.output(batch.targets.len())
    }

    /// What the batch gave. Waits for the device.
    fn output(&self, targets: usize) -> Result<StepOutput<'_>, TrainingError> {
        self.model.cuda.synchronize()?;
        let balance_loss = match self.model.config.has_router() {
            true => self.buffers.balance.loss()?,
            false => 0.0,
        };
        let head = &self.buffers.head;
        Ok(StepOutput {
            logprobs: &head.logprobs.as_slice()[..targets],
            entropies: &head.entropies.as_slice()[..targets],
            balance_loss,
        })
    }

    /// Runs the batch; with `keep`, what the backward pass begins with is kept. Leaves the residual stream after the last
    /// layer in the workspace.
    fn forward(&mut self, batch: &TrainingBatch, keep: bool) -> Result<Shape, TrainingError> {
        let config = &self.model.config;
        batch.check(self.buffers.plan, config)?;
        let mut step = Batch::new();
        let mut first = 0;
        for &length in &batch.lengths {
            let sequence = self.cache.open().expect("the cache has a slot for each sequence of the plan");
            self.cache.reserve(sequence, length).expect("the cache has pages for every batch of the plan");
            step.push(sequence, &batch.tokens[first..first + length], LogitRows::None);
            first += length;
        }
        let checked = check(&step, &self.cache, self.workspace.plan, config.vocab_size);
        let result = match checked {
            Ok(()) => self.layers(&step, keep).map_err(TrainingError::from),
            Err(error) => Err(error.into()),
        };
        for span in &step.spans {
            self.cache.close(span.sequence);
        }
        result
    }

    fn layers(&mut self, step: &Batch, keep: bool) -> Result<Shape, CudaError> {
        let Self { model, cache, workspace: ws, buffers, .. } = self;
        for span in &step.spans {
            cache.tell_pages(span.sequence)?;
        }
        let rows = step.len();
        let shape = model.send(step, cache, &mut ws.inputs, rows)?.exact();
        let kernels = &model.kernels;
        buffers.balance.clear()?;
        if rows == 0 {
            return Ok(shape);
        }
        if !cache.pages.is_empty() {
            ws.angles.fill(&ws.inputs.spans.device, 0, shape.prefilling.end, rows)?;
        }
        let norm = |weight| Norm { weight, epsilon: model.config.rms_norm_eps as f32 };
        let first = norm(&model.layers[0].input_norm);
        let tokens = &ws.inputs.tokens.device;
        let kept = keep.then_some(&mut buffers.inputs[0]);
        kernels.norms.embed(tokens, rows, &model.embedding, first, &mut ws.stream, kept)?;
        for (index, layer) in model.layers.iter().enumerate() {
            let keep_insides = keep && buffers.insides.is_some();
            if keep_insides {
                buffers.exchange(index, cache, ws);
            }
            let Buffers { attention, routed, shared, inputs, middles, insides, .. } = &mut *buffers;
            let kept = KeptAttention { raw: &mut attention.raw, lse: &mut attention.lse };
            model.attend(layer, &shape, cache, ws, keep_insides.then_some(kept))?;
            let mut kept = Kept { stream: keep.then(|| middles.get_mut(index)).flatten(), normed: None };
            if let Some(insides) = insides.as_mut().filter(|_| keep) {
                // The experts norm another stream.
                std::mem::swap(&mut insides[index].input, &mut ws.stream.normed);
                kept.normed = Some(&insides[index].input);
            }
            model.join_attention(layer, &shape, ws, kept)?;
            let next = model.layers.get(index + 1).map(|next| norm(&next.input_norm));
            let kept = KeptExperts {
                routed: keep_insides.then_some(&mut routed.pre),
                shared: shared.as_mut().map(|shared| &mut shared.pre).filter(|_| keep_insides),
                stream: keep.then(|| inputs.get_mut(index + 1)).flatten(),
            };
            model.expert_block(layer, &shape, next, ws, kept)?;
            if layer.experts.router.is_some() {
                buffers.kernels.mixture.balance_add(&ws.experts.routing, rows, &mut buffers.balance)?;
            }
            if keep_insides {
                buffers.exchange(index, cache, ws);
            }
        }
        Ok(shape)
    }

    /// What learns, with values as they were when last fetched.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Brings the values to the host and gives them. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fetch(&mut self) -> Result<&Parameters, TrainingError> {
        self.values.read(0, self.parameters.values_mut())?;
        Ok(&self.parameters)
    }

    /// Brings values from the host to the device. [`CudaTrainer::publish`] brings them into the model.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When there are not as many as learn.
    pub fn set_values(&mut self, values: &[f32]) -> Result<(), TrainingError> {
        assert_eq!(values.len(), self.values.len(), "values");
        self.published = false;
        Ok(self.values.write(0, values)?)
    }

    /// The model as it computes now, to be shared with an engine: the same bits in the same memory, not a copy.
    pub fn shared_model(&self) -> Arc<CudaModel> {
        Arc::clone(&self.model)
    }

    /// The model as it computes now.
    pub fn model(&self) -> &CudaModel {
        &self.model
    }

    /// What the backward pass computes once more: as was planned, or, where that was left open, as memory allows.
    pub fn recompute(&self) -> Recompute {
        self.buffers.plan.recompute
    }

    /// Bytes on the device: the model, the values with their gradients and the base of adapters, caches and buffers.
    pub fn bytes(&self) -> usize {
        self.model.weight_bytes()
            + self.adapters.as_ref().map_or(0, Adapters::bytes)
            + self.before.as_ref().map_or(0, |model| model.weight_bytes())
            + self.values.bytes()
            + self.gradients.bytes()
            + self.cache.bytes()
            + self.workspace.bytes()
            + self.buffers.bytes()
    }
}
