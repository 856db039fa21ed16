//! Training on a GPU: the forward pass is [`CudaModel`]'s in exact mode, gradients and masters stay in the memory of the
//! device.
//!
//! Of each layer its input is kept, and as much of the rest as [`Recompute`](super::Recompute) says; the backward pass
//! computes the others once more. A batch gives the same bits every time, whatever is kept.

mod attention;
mod backward;
mod buffers;
mod experts;
mod head;
mod kept;
mod publish;

use std::ops::Range;
use std::sync::Arc;

use arges_kernels::adamw::AdamW;
use arges_kernels::adamw::cuda::{AdamWCuda, Learned};
use arges_kernels::device::cuda::{Buffer, Cuda, CudaError, Fill};
use arges_kernels::matmul::Compute;

use super::{Parameters, Recompute, StepOutput, TrainingBatch, TrainingError, TrainingPlan};
use crate::batch::{Batch, LogitRows};
use crate::cache::{CachePlan, PAGE_TOKENS};
use crate::config::Config;
use crate::dtype::DType;
use crate::model::WorkspacePlan;
use crate::model::cuda::forward::{KeptAttention, KeptExperts, Shape};
use crate::model::cuda::{CudaCache, CudaModel, CudaWorkspace};
use crate::model::step::check;
use buffers::Buffers;

/// A model that learns on a GPU: its weights, what learns of it, and the memory for one batch at a time.
pub struct CudaTrainer {
    model: Arc<CudaModel>,
    /// The model before it, which others may still hold. Once they hold it no more, it is written anew.
    before: Option<Arc<CudaModel>>,
    parameters: Parameters,
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

/// AdamW's moments on a device, of every value that learns.
pub struct CudaMoments {
    m: Buffer<f32>,
    v: Buffer<f32>,
}

impl CudaTrainer {
    /// Copies the parameters to a model that computes in `compute`.
    ///
    /// # Errors
    /// When the plan is empty, the parameters are adapters, the memory of the device is too small, or it has no kernel
    /// for the model's shape.
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
        if parameters.is_lora() {
            return Err(TrainingError::Lora { reason: "adapters are trained on the CPU only".to_owned() });
        }
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
        publish::pack(&mut model, &parameters, &values, &mut adamw)?;
        let mut trainer = Self {
            published: true,
            gradients: Buffer::zeroed(cuda, values.len())?,
            fresh: true,
            adamw,
            model: Arc::new(model),
            before: None,
            parameters,
            values,
            cache,
            workspace,
            buffers,
        };
        trainer.take_memory_for_layers()?;
        Ok(trainer)
    }

    /// Adds the gradients of a batch, as [`Trainer::accumulate`](super::Trainer::accumulate) does.
    ///
    /// # Errors
    /// When the batch is malformed or over the plan; then no gradient has changed. When the device fails.
    pub fn accumulate(
        &mut self,
        batch: &TrainingBatch,
        weight: &(dyn Fn(usize, f32) -> f32 + Sync),
        balance: f32,
    ) -> Result<StepOutput<'_>, TrainingError> {
        let shape = self.forward(batch, true)?;
        self.backward(batch, &shape, weight, balance)?;
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

    fn output(&self, targets: usize) -> Result<StepOutput<'_>, TrainingError> {
        let balance_loss = match self.model.config.has_router() {
            true => self.buffers.balance.loss()?,
            false => 0.0,
        };
        let head = &self.buffers.head;
        Ok(StepOutput {
            logprobs: &head.logprobs[..targets],
            entropies: &head.entropies[..targets],
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
        use arges_kernels::norm::cuda::Norm;
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
            if let Some(insides) = insides.as_mut().filter(|_| keep) {
                // The experts norm another stream.
                std::mem::swap(&mut insides[index].input, &mut ws.stream.rounded);
            }
            let kept = keep.then(|| middles.get_mut(index)).flatten();
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

    /// Forgets the gradients. Those of the next batch overwrite them.
    pub fn zero_gradients(&mut self) {
        self.fresh = true;
    }

    /// The gradients accumulated so far, on the host, in the order of [`Parameters::tensors`].
    ///
    /// # Errors
    /// When the device fails.
    pub fn gradients(&self) -> Result<Vec<f32>, TrainingError> {
        match self.fresh {
            true => Ok(vec![0.0; self.gradients.len()]),
            false => Ok(self.gradients.to_vec()?),
        }
    }

    /// The Euclidean norm of all gradients. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn gradient_norm(&mut self) -> Result<f64, TrainingError> {
        let kernels = &self.buffers.kernels;
        let written = [kernels.products.squares(), kernels.experts.squares()];
        match self.fresh {
            true => Ok(0.0),
            false => Ok(self.adamw.sum_of_squares(&self.gradients, &written)?.sqrt()),
        }
    }

    /// Moments as they are on the host, on the device.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn moments(&self, m: &[f32], v: &[f32]) -> Result<CudaMoments, TrainingError> {
        let cuda = &self.model.cuda;
        Ok(CudaMoments { m: Buffer::from_slice(cuda, m)?, v: Buffer::from_slice(cuda, v)? })
    }

    /// One step of AdamW for ranges of values, each with its settings; gradients are multiplied by `gradient_scale`
    /// first. Brings all values into the model, as [`CudaTrainer::publish`] does: while a new value is at hand, its
    /// weight is written too.
    ///
    /// # Errors
    /// When the device fails, or has no room for a new model.
    ///
    /// # Panics
    /// When the moments are of another number of values, or a step is 0.
    pub fn adamw(
        &mut self,
        gradient_scale: f32,
        groups: &[(Range<usize>, AdamW)],
        moments: &mut CudaMoments,
    ) -> Result<(), TrainingError> {
        if self.fresh {
            self.gradients.clear()?;
        }
        self.own_model()?;
        let model = Arc::get_mut(&mut self.model).expect("nobody else holds it");
        let mut learned = Learned {
            values: &mut self.values,
            gradients: &self.gradients,
            m: &mut moments.m,
            v: &mut moments.v,
        };
        let (weights, tied) = publish::weights(model, &self.parameters);
        self.adamw.step(gradient_scale, groups, &mut learned, &weights)?;
        if groups.iter().map(|(range, _)| range.len()).sum::<usize>() < self.values.len() {
            // Another model than before lacks those outside of the ranges.
            self.adamw.pack(&self.values, &weights)?;
        }
        self.adamw.pack(&self.values, &tied)?;
        self.published = true;
        Ok(())
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

    /// Brings changed values into the model. Where others hold [`CudaTrainer::shared_model`], they keep the model as it
    /// was, and the trainer goes on with another one: that which was in use before, if they hold it no more. Two take
    /// turns so, however often weights change. After [`CudaTrainer::adamw`] there is nothing left to do.
    ///
    /// # Errors
    /// When the device fails, or has no room for a new model.
    pub fn publish(&mut self) -> Result<(), TrainingError> {
        if self.published {
            return Ok(());
        }
        self.own_model()?;
        let model = Arc::get_mut(&mut self.model).expect("nobody else holds it");
        publish::pack(model, &self.parameters, &self.values, &mut self.adamw)?;
        self.published = true;
        Ok(())
    }

    /// Makes the model one that nobody else holds, whatever its weights are.
    fn own_model(&mut self) -> Result<(), TrainingError> {
        if Arc::get_mut(&mut self.model).is_some() {
            return Ok(());
        }
        let free = self.before.take().filter(|model| Arc::strong_count(model) == 1);
        let other = match free {
            Some(model) => model,
            None => {
                let CudaModel { config, compute, cuda, .. } = &*self.model;
                Arc::new(CudaModel::zeroed(config, *compute, &|_| Ok(DType::F32), cuda)?)
            }
        };
        self.before = Some(std::mem::replace(&mut self.model, other));
        Ok(())
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

    /// Bytes on the device: the model, the values with their gradients, caches and buffers.
    pub fn bytes(&self) -> usize {
        self.model.weight_bytes()
            + self.before.as_ref().map_or(0, |model| model.weight_bytes())
            + self.values.bytes()
            + self.gradients.bytes()
            + self.cache.bytes()
            + self.workspace.bytes()
            + self.buffers.bytes()
    }
}

impl CudaMoments {
    /// Brings the moments to the host. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn fetch(&self, m: &mut [f32], v: &mut [f32]) -> Result<(), TrainingError> {
        self.m.read(0, m)?;
        Ok(self.v.read(0, v)?)
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.m.bytes() + self.v.bytes()
    }
}
