//! Memory that a step works in, taken once.

use arges_kernels::device::cpu::{AlignedBuffer, Scratch};
use arges_kernels::matmul::{Compute, PackedRows};
use arges_kernels::moe::Routing;
use arges_kernels::rope::Angles;
use arges_kernels::{lightning, softmax_attention};

use super::Model;
use crate::cache::{lightning_shape, softmax_shape};
use crate::config::Config;

/// The largest step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkspacePlan {
    /// Tokens of a batch.
    pub max_tokens: usize,
    /// Rows of a batch that get logits.
    pub max_logit_rows: usize,
}

/// Buffers for one step at a time.
pub struct Workspace {
    pub(super) plan: WorkspacePlan,
    /// Residual stream, `[tokens, hidden]`.
    pub(super) x: AlignedBuffer<f32>,
    /// Normed residual stream, `[tokens, hidden]`.
    pub(super) normed: AlignedBuffer<f32>,
    /// Queries, keys, values and gates.
    pub(super) projected: AlignedBuffer<f32>,
    /// What attention gives, `[tokens, heads * head_dim]`.
    pub(super) attended: AlignedBuffer<f32>,
    /// Output of a block before it joins the residual stream, `[tokens, hidden]`.
    pub(super) branch: AlignedBuffer<f32>,
    /// Input of the projections.
    pub(super) packed: PackedRows,
    /// Input of products that are always f32: router and head.
    pub(super) packed_f32: PackedRows,
    pub(super) angles: Angles,
    pub(super) scratch: Scratch,
    pub(super) experts: ExpertBuffers,
    /// Rows that get logits, `[logit rows, hidden]`.
    pub(super) head_rows: AlignedBuffer<f32>,
    /// `[logit rows, vocab]`.
    pub(super) logits: AlignedBuffer<f32>,
    pub(super) spans: Vec<lightning::Span>,
    /// Experts of the last step's tokens, `[tokens, layers, k]`, where they are asked for.
    pub(super) chosen: Option<Vec<u8>>,
}

/// What the experts of one layer work in.
pub(super) struct ExpertBuffers {
    pub(super) routing: Routing,
    /// Router logits, `[tokens, experts]`.
    pub(super) router_logits: AlignedBuffer<f32>,
    /// Experts whose weights were read, over all layers and steps.
    pub(super) used: u64,
    /// Inputs of the experts, one row a choice.
    pub(super) inputs: PackedRows,
    /// Their inner activations.
    pub(super) inner: PackedRows,
    /// Their outputs, `[tokens * k, hidden]`.
    pub(super) outputs: AlignedBuffer<f32>,
    /// The shared MLP's weight before the sigmoid, `[tokens]`.
    pub(super) coefficients: AlignedBuffer<f32>,
}

impl Workspace {
    /// Buffers for steps of `model` up to `plan`.
    pub fn new(model: &Model, plan: WorkspacePlan) -> Self {
        let (cpu, config, compute) = (model.cpu(), model.config(), model.compute());
        let tokens = plan.max_tokens.max(1);
        let rows = plan.max_logit_rows.max(1);
        let plan = WorkspacePlan { max_tokens: tokens, max_logit_rows: rows };
        let (hidden, width) = (config.hidden_size, config.query_width());
        let projected = (4 * width).max(width + 2 * config.kv_width());
        let scratch = lightning::scratch_len(lightning_shape(config))
            .max(softmax_attention::scratch_len(softmax_shape(config)));
        let choices = tokens * config.experts_per_token;
        let inner = config.intermediate_size;
        let inner_rows = (choices * inner).max(tokens * config.shared_intermediate_size).div_ceil(inner);
        Self {
            plan,
            x: AlignedBuffer::zeroed(tokens * hidden),
            normed: AlignedBuffer::zeroed(tokens * hidden),
            projected: AlignedBuffer::zeroed(tokens * projected),
            attended: AlignedBuffer::zeroed(tokens * width),
            branch: AlignedBuffer::zeroed(tokens * hidden),
            packed: PackedRows::new(cpu, compute, tokens, hidden.max(width)),
            packed_f32: PackedRows::new(cpu, Compute::F32, tokens.max(rows), hidden),
            angles: Angles::new(tokens, config.rotary_dim),
            scratch: Scratch::new(cpu, scratch),
            experts: ExpertBuffers {
                routing: Routing::new(tokens, config.num_experts, config.experts_per_token),
                router_logits: AlignedBuffer::zeroed(tokens * config.num_experts),
                used: 0,
                inputs: PackedRows::new(cpu, compute, choices, hidden),
                // 32 more columns: each width is padded, the shared one's perhaps more.
                inner: PackedRows::new(cpu, compute, inner_rows, inner + 32),
                outputs: AlignedBuffer::zeroed(choices * hidden),
                coefficients: AlignedBuffer::zeroed(tokens),
            },
            head_rows: AlignedBuffer::zeroed(rows * hidden),
            logits: AlignedBuffer::zeroed(rows * config.vocab_size),
            spans: Vec::new(),
            chosen: None,
        }
    }

    /// The largest step it has room for.
    pub fn plan(&self) -> WorkspacePlan {
        self.plan
    }

    /// Experts whose weights were read since the start: the sum over layers and steps of the distinct experts
    /// that served a token.
    pub fn experts_used(&self) -> u64 {
        self.experts.used
    }

    /// Whether steps note which experts serve their tokens; for models of 256 experts at most.
    pub fn note_experts(&mut self, note: bool) {
        self.chosen = note.then(|| self.chosen.take().unwrap_or_default());
    }

    /// Experts of the last step's tokens, `[tokens, layers, k]`, best first; empty unless they were to be noted.
    pub fn noted_experts(&self) -> &[u8] {
        self.chosen.as_deref().unwrap_or_default()
    }

    /// Notes which experts a layer went to.
    pub(super) fn record(&mut self, layer: usize, config: &Config) {
        let Some(noted) = &mut self.chosen else { return };
        let (layers, k) = (config.attention.len(), config.experts_per_token);
        let chosen = self.experts.routing.experts();
        noted.resize(chosen.len() * layers, 0);
        for (token, experts) in chosen.chunks_exact(k).enumerate() {
            let place = &mut noted[(token * layers + layer) * k..][..k];
            for (place, expert) in place.iter_mut().zip(experts) {
                *place = *expert as u8;
            }
        }
    }

    /// The residual stream after the last step, `[tokens, hidden]` and room for more.
    pub(crate) fn residual_stream(&self) -> &[f32] {
        &self.x
    }

    /// Logits of the last step, `[logit rows, vocab_size]`, and room for more.
    pub(crate) fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Rotations for the rows of the last step.
    pub(crate) fn angles(&self) -> &Angles {
        &self.angles
    }

    /// Bytes planned.
    pub fn bytes(&self) -> usize {
        let experts = &self.experts;
        let floats = [
            &self.x,
            &self.normed,
            &self.projected,
            &self.attended,
            &self.branch,
            &self.head_rows,
            &self.logits,
            &experts.router_logits,
            &experts.outputs,
            &experts.coefficients,
        ];
        let packed = [&self.packed, &self.packed_f32, &experts.inputs, &experts.inner];
        floats.into_iter().map(AlignedBuffer::bytes).sum::<usize>()
            + packed.into_iter().map(PackedRows::bytes).sum::<usize>()
            + self.angles.bytes()
            + self.scratch.bytes()
            + experts.routing.bytes()
    }
}
