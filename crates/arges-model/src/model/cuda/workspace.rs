//! Memory of a GPU that a step works in, taken once.

use arges_kernels::device::cuda::{Activations, Buffer, CudaError, Graph, Pinned};
use arges_kernels::matmul::cuda::{DeviceRows, PARTS};
use arges_kernels::matmul::{Compute, Element};
use arges_kernels::moe::cuda::DeviceRouting;
use arges_kernels::norm::cuda::Stream;
use arges_kernels::rope::cuda::DeviceAngles;
use arges_kernels::sample::Sampled;
use arges_kernels::sample::cuda::DeviceSampler;
use arges_kernels::softmax_attention::cuda::SoftmaxCuda;

use super::CudaModel;
use crate::cache::softmax_shape;
use crate::model::WorkspacePlan;

/// Buffers for one step at a time.
pub struct CudaWorkspace {
    pub(crate) plan: WorkspacePlan,
    /// Whether every row takes the way of prefill, whose bits do not depend on the batch.
    pub(crate) exact: bool,
    pub(crate) softmax: SoftmaxCuda,
    pub(crate) sampler: DeviceSampler,
    pub(crate) chosen: Vec<Option<Sampled>>,
    pub(crate) angles: DeviceAngles,
    pub(crate) stream: Stream,
    /// Queries, keys, values and gates.
    pub(crate) projected: Activations,
    /// What lightning attention gives, `[tokens, heads * head_dim]`.
    pub(crate) attended: Activations,
    /// Input of the output projection.
    pub(crate) mixed: DeviceRows,
    /// Output of a block before it joins the stream, `[tokens, hidden]`.
    pub(crate) branch: Activations,
    pub(crate) experts: ExpertBuffers,
    /// Final norm of the rows that get logits, `[logit rows, hidden]`, and split into parts.
    pub(crate) head_rows: DeviceRows,
    pub(crate) head_parts: Option<DeviceRows>,
    /// `[logit rows, vocab]`.
    pub(crate) logits: Buffer<f32>,
    pub(crate) host_logits: Pinned<f32>,
    pub(crate) inputs: StepInputs,
    /// For each number of rows, a decoding step as one graph.
    pub(crate) graphs: Vec<(usize, Graph)>,
}

/// What the experts of one layer work in.
pub(crate) struct ExpertBuffers {
    pub(crate) routing: DeviceRouting,
    /// Inputs of the experts, one row a choice.
    pub(crate) inputs: DeviceRows,
    /// Their inner activations.
    pub(crate) inner: DeviceRows,
    /// Their outputs, `[tokens * k, hidden]`.
    pub(crate) outputs: Activations,
    pub(crate) shared: Option<SharedBuffers>,
}

/// The same of the shared MLP.
pub(crate) struct SharedBuffers {
    pub(crate) inner: DeviceRows,
    pub(crate) outputs: Activations,
    pub(crate) coefficients: Buffer<f32>,
}

/// What the host tells the device of a step.
pub(crate) struct StepInputs {
    pub(crate) tokens: Both<i32>,
    /// Spans of one row first.
    pub(crate) spans: Both<[i32; 4]>,
    pub(crate) logit_rows: Both<i32>,
    /// The number of rows that are no padding.
    pub(crate) active: Both<i32>,
}

/// Values on the host and their copy on the device.
pub(crate) struct Both<T> {
    pub(crate) host: Pinned<T>,
    pub(crate) device: Buffer<T>,
}

impl<T: bytemuck::Pod> Both<T> {
    pub(crate) fn zeroed(model: &CudaModel, len: usize) -> Result<Self, CudaError> {
        Ok(Self { host: Pinned::zeroed(model.cuda(), len)?, device: Buffer::zeroed(model.cuda(), len)? })
    }

    /// Copies the first values to the device.
    pub(crate) fn send(&mut self, count: usize) -> Result<(), CudaError> {
        self.device.copy_from_pinned(0, &self.host, count)
    }
}

impl CudaWorkspace {
    /// Forgets decoding steps of a model that is used no longer: they read its weights where it has them.
    pub(crate) fn forget_graphs(&mut self) {
        self.graphs.clear();
    }

    /// Buffers for steps of `model` up to `plan`. With `exact`, a token's log-probability has the same bits alone or in
    /// any batch, in prefill or in decode; decoding is slower then. Waits until all kernels are compiled.
    ///
    /// # Errors
    /// When the memory of the device is too small, or a kernel does not compile.
    pub fn new(model: &CudaModel, plan: WorkspacePlan, exact: bool) -> Result<Self, CudaError> {
        let workspace = Self::with_host_rows(model, plan, exact, plan.max_logit_rows.max(1))?;
        model.cuda().ready()?;
        Ok(workspace)
    }

    /// The same for a trainer: exact, and no logits go to the host.
    pub(crate) fn for_training(model: &CudaModel, plan: WorkspacePlan) -> Result<Self, CudaError> {
        Self::with_host_rows(model, plan, true, 0)
    }

    fn with_host_rows(
        model: &CudaModel,
        plan: WorkspacePlan,
        exact: bool,
        host_rows: usize,
    ) -> Result<Self, CudaError> {
        let (config, cuda, element) = (model.config(), model.cuda(), model.element());
        let (tokens, rows) = (plan.max_tokens.max(1), plan.max_logit_rows.max(1));
        let plan = WorkspacePlan { max_tokens: tokens, max_logit_rows: rows };
        let (hidden, width) = (config.hidden_size, config.query_width());
        let projected = (4 * width).max(width + 2 * config.kv_width());
        let (experts, choices) = match config.has_router() {
            true => (config.num_experts, config.experts_per_token),
            false => (1, 1),
        };
        let parts = match model.compute() {
            Compute::Bf16 if cuda.facts().architecture.has_wgmma() && hidden.is_multiple_of(8) => {
                let rows = rows.next_multiple_of(8) * PARTS;
                Some(DeviceRows::zeroed(cuda, rows, hidden, Element::Bf16)?)
            }
            _ => None,
        };
        let shared = match config.has_shared_mlp() {
            true => Some(SharedBuffers {
                inner: DeviceRows::zeroed(cuda, tokens, config.shared_intermediate_size, element)?,
                outputs: Activations::zeroed(cuda, element, tokens * hidden)?,
                coefficients: Buffer::zeroed(cuda, tokens)?,
            }),
            false => None,
        };
        Ok(Self {
            plan,
            exact,
            softmax: SoftmaxCuda::new(cuda, softmax_shape(config), element)?,
            sampler: DeviceSampler::new(cuda, config.vocab_size, rows)?,
            chosen: Vec::with_capacity(rows),
            angles: DeviceAngles::new(cuda, &model.frequencies, tokens)?,
            stream: Stream::zeroed(cuda, tokens, hidden, element)?,
            projected: Activations::zeroed(cuda, element, tokens * projected)?,
            attended: Activations::zeroed(cuda, element, tokens * width)?,
            mixed: DeviceRows::zeroed(cuda, tokens, width, element)?,
            branch: Activations::zeroed(cuda, element, tokens * hidden)?,
            experts: ExpertBuffers {
                routing: DeviceRouting::zeroed(cuda, tokens, experts, choices)?,
                inputs: DeviceRows::zeroed(cuda, tokens * choices, hidden, element)?,
                inner: DeviceRows::zeroed(cuda, tokens * choices, config.intermediate_size, element)?,
                outputs: Activations::zeroed(cuda, element, tokens * choices * hidden)?,
                shared,
            },
            head_rows: DeviceRows::zeroed(cuda, rows, hidden, Element::F32)?,
            head_parts: parts,
            logits: Buffer::zeroed(cuda, rows * config.vocab_size)?,
            host_logits: Pinned::zeroed(cuda, host_rows * config.vocab_size)?,
            inputs: StepInputs {
                tokens: Both::zeroed(model, tokens)?,
                spans: Both::zeroed(model, tokens)?,
                logit_rows: Both::zeroed(model, rows)?,
                active: Both::zeroed(model, 1)?,
            },
            graphs: Vec::new(),
        })
    }

    /// The largest step it has room for.
    pub fn plan(&self) -> WorkspacePlan {
        self.plan
    }

    /// Experts whose weights were read since the start: the sum over layers and steps of the distinct experts that
    /// served a token. Waits for the device.
    ///
    /// # Errors
    /// When the device failed.
    pub fn experts_used(&self) -> Result<u32, CudaError> {
        let mut used = [0];
        self.experts.routing.used.read(0, &mut used)?;
        Ok(used[0].cast_unsigned())
    }

    /// Logits of the last step, `[logit rows, vocab_size]`, and room for more.
    pub(crate) fn logits(&self) -> &[f32] {
        self.host_logits.as_slice()
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        let experts = &self.experts;
        let shared = experts.shared.as_ref().map_or(0, |shared| {
            shared.inner.data().bytes() + shared.outputs.bytes() + shared.coefficients.bytes()
        });
        let inputs = &self.inputs;
        let parts = self.head_parts.as_ref().map_or(0, |parts| parts.data().bytes());
        self.softmax.bytes()
            + self.sampler.bytes()
            + self.angles.bytes()
            + self.stream.bytes()
            + [&self.projected, &self.attended, &self.branch, &experts.outputs]
                .map(Activations::bytes)
                .iter()
                .sum::<usize>()
            + [&self.mixed, &experts.inputs, &experts.inner, &self.head_rows]
                .map(|rows| rows.data().bytes())
                .iter()
                .sum::<usize>()
            + self.logits.bytes()
            + [&inputs.tokens.device, &inputs.logit_rows.device, &inputs.active.device]
                .map(Buffer::bytes)
                .iter()
                .sum::<usize>()
            + inputs.spans.device.bytes()
            + experts.routing.bytes()
            + shared
            + parts
    }
}
