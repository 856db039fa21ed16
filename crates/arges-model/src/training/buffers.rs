//! Memory for one batch: inputs of all layers, activations and gradients of one.

use arges_kernels::device::cpu::{AlignedBuffer, Scratch};
use arges_kernels::loss::HeadLoss;
use arges_kernels::matmul::{Compute, Element, PANEL, PackedMatrix, PackedRows, WeightGradient};
use arges_kernels::moe::{BalanceLoss, Routing};
use arges_kernels::{lightning, softmax_attention};

use super::{Recompute, StepOutput, TrainingPlan};
use crate::cache::{lightning_shape, softmax_shape};
use crate::config::{AttentionKind, Config};
use crate::model::{Model, Workspace, WorkspacePlan};

type Floats = AlignedBuffer<f32>;

/// Everything but weights, gradients and caches.
pub(super) struct Buffers {
    pub(super) plan: TrainingPlan,
    /// For the forward pass.
    pub(super) workspace: Workspace,
    /// Input of each layer, `[tokens, hidden]`.
    pub(super) inputs: Vec<Floats>,
    /// Of each layer, what else is kept.
    pub(super) kept: Option<Vec<Kept>>,
    /// Gradient by the residual stream, `[tokens, hidden]`.
    pub(super) dx: Floats,
    pub(super) balance: BalanceLoss,
    pub(super) layer: LayerBuffers,
    pub(super) head: HeadBuffers,
}

/// What [`Recompute::Insides`] keeps of a layer.
pub(super) struct Kept {
    /// `[tokens, P]`.
    pub(super) projected: Floats,
    /// The residual stream between attention and experts, `[tokens, hidden]`.
    pub(super) middle: Floats,
}

/// Activations of one layer and the gradients by them. `W` is the width of all query heads, `P` that of a
/// layer's input projections, `C` tokens times experts per token, `F` an expert's inner width.
pub(super) struct LayerBuffers {
    /// `[tokens, hidden]`: the residual stream between attention and experts, the two normed streams, and the
    /// gradient by a normed stream.
    pub(super) middle: Floats,
    pub(super) attention_input: Floats,
    pub(super) expert_input: Floats,
    pub(super) dnormed: Floats,
    /// Output of a block, and the gradient by it, `[tokens, hidden]`.
    pub(super) branch: Floats,
    /// `[tokens, P]`.
    pub(super) projected: Floats,
    pub(super) dprojected: Floats,
    /// What attention gives, and that after norm and gate, `[tokens, W]`.
    pub(super) attended: Floats,
    pub(super) gated: Floats,
    pub(super) dgated: Floats,
    pub(super) dattended: Floats,
    /// Log-sum-exp of softmax attention, `[tokens, heads]`.
    pub(super) lse: Floats,
    pub(super) scratch: Scratch,
    pub(super) softmax: softmax_attention::BackwardScratch,
    pub(super) experts: ExpertBuffers,
    /// Rows of the activations and their gradients, as products take them.
    pub(super) packed: PackedRows,
    pub(super) packed_f32: PackedRows,
    pub(super) transposed: PackedMatrix,
    pub(super) product: WeightGradient,
    pub(super) product_f32: WeightGradient,
}

pub(super) struct ExpertBuffers {
    pub(super) routing: Routing,
    /// `[tokens, experts]`.
    pub(super) logits: Floats,
    pub(super) dlogits: Floats,
    /// Derivative by the weight of each choice, in the order of the packed rows and of the choices, `[C]`.
    pub(super) dots: Floats,
    pub(super) dweights: Floats,
    /// Weight of each packed row, `[C]`.
    pub(super) weights: Floats,
    /// Weight of the shared MLP, and the derivative by it before the sigmoid, `[tokens]`.
    pub(super) coefficients: Floats,
    pub(super) dcoefficients: Floats,
    /// Gate and up projections in the order of their panels, `[C, 2 F]`, padded.
    pub(super) pre: Floats,
    pub(super) dpre: Floats,
    /// Inner activations, `[C, F]`.
    pub(super) inner: Floats,
    pub(super) dinner: Floats,
    /// Gradient by the inputs of the experts, `[C, hidden]`.
    pub(super) dinputs: Floats,
    /// Rows of the experts' inputs or gradients.
    pub(super) packed: PackedRows,
}

/// The targets' rows.
pub(super) struct HeadBuffers {
    pub(super) loss: HeadLoss,
    /// `[targets, hidden]`: rows before and after the final norm, and the gradients by them.
    pub(super) rows: Floats,
    pub(super) normed: Floats,
    pub(super) dnormed: Floats,
    pub(super) drows: Floats,
    /// Target tokens, and what the head gives for them, `[targets]`.
    pub(super) tokens: Vec<u32>,
    pub(super) logprobs: Floats,
    pub(super) entropies: Floats,
}

impl Buffers {
    pub(super) fn new(model: &Model, plan: TrainingPlan) -> Self {
        let (config, tokens) = (model.config(), plan.max_tokens);
        let hidden = tokens * config.hidden_size;
        let forward = WorkspacePlan { max_tokens: tokens, max_logit_rows: 1 };
        Self {
            plan,
            workspace: Workspace::new(model, forward),
            inputs: (0..config.num_layers).map(|_| Floats::zeroed(hidden)).collect(),
            kept: match plan.recompute {
                Recompute::Layers => None,
                Recompute::Auto | Recompute::Nothing | Recompute::Insides => Some(
                    (0..config.num_layers)
                        .map(|_| Kept {
                            projected: Floats::zeroed(tokens * widest_projections(config)),
                            middle: Floats::zeroed(hidden),
                        })
                        .collect(),
                ),
            },
            dx: Floats::zeroed(hidden),
            balance: BalanceLoss::new(config.num_experts, config.experts_per_token),
            layer: LayerBuffers::new(model, plan),
            head: HeadBuffers {
                loss: HeadLoss::new(model.cpu(), config.hidden_size, config.vocab_size, tokens),
                rows: Floats::zeroed(hidden),
                normed: Floats::zeroed(hidden),
                dnormed: Floats::zeroed(hidden),
                drows: Floats::zeroed(hidden),
                tokens: Vec::with_capacity(tokens),
                logprobs: Floats::zeroed(tokens),
                entropies: Floats::zeroed(tokens),
            },
        }
    }

    pub(super) fn output(&self, targets: usize) -> StepOutput<'_> {
        StepOutput {
            logprobs: &self.head.logprobs[..targets],
            entropies: &self.head.entropies[..targets],
            balance_loss: self.balance.loss(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let (layer, experts, head) = (&self.layer, &self.layer.experts, &self.head);
        let floats = [
            &self.dx,
            &layer.middle,
            &layer.attention_input,
            &layer.expert_input,
            &layer.dnormed,
            &layer.branch,
            &layer.projected,
            &layer.dprojected,
            &layer.attended,
            &layer.gated,
            &layer.dgated,
            &layer.dattended,
            &layer.lse,
            &experts.logits,
            &experts.dlogits,
            &experts.dots,
            &experts.dweights,
            &experts.weights,
            &experts.coefficients,
            &experts.dcoefficients,
            &experts.pre,
            &experts.dpre,
            &experts.inner,
            &experts.dinner,
            &experts.dinputs,
            &head.rows,
            &head.normed,
            &head.dnormed,
            &head.drows,
            &head.logprobs,
            &head.entropies,
        ];
        let packed = [&layer.packed, &layer.packed_f32, &experts.packed];
        let kept = self.kept.iter().flatten().map(|kept| kept.projected.bytes() + kept.middle.bytes());
        let inputs = self.inputs.iter().map(Floats::bytes).sum::<usize>() + kept.sum::<usize>();
        self.workspace.bytes()
            + inputs
            + floats.into_iter().map(Floats::bytes).sum::<usize>()
            + packed.into_iter().map(PackedRows::bytes).sum::<usize>()
            + layer.scratch.bytes()
            + layer.softmax.bytes()
            + layer.transposed.bytes()
            + layer.product.bytes()
            + layer.product_f32.bytes()
            + head.loss.bytes()
    }
}

/// Width of gate and up projections in the order of their panels.
pub(super) fn panel_width(inner: usize) -> usize {
    2 * inner.next_multiple_of(PANEL)
}

impl LayerBuffers {
    fn new(model: &Model, plan: TrainingPlan) -> Self {
        let (cpu, config, compute) = (model.cpu(), model.config(), model.compute());
        let tokens = plan.max_tokens;
        let hidden = || Floats::zeroed(tokens * config.hidden_size);
        let width = config.query_width();
        let projected = widest_projections(config);
        let wide = |width: usize| Floats::zeroed(tokens * width);
        let (lightning, softmax) = (lightning_shape(config), softmax_shape(config));
        let scratch = lightning::scratch_len(lightning)
            .max(lightning::backward_scratch_len(lightning, plan.max_tokens))
            .max(softmax_attention::scratch_len(softmax));
        // Nothing is needed where no layer has softmax attention.
        let softmax_rows = if config.attention.contains(&AttentionKind::Softmax) { tokens } else { 0 };
        let element = match compute {
            Compute::F32 => Element::F32,
            Compute::Bf16 => Element::Bf16,
        };
        Self {
            middle: hidden(),
            attention_input: hidden(),
            expert_input: hidden(),
            dnormed: hidden(),
            branch: hidden(),
            projected: wide(projected),
            dprojected: wide(projected),
            attended: wide(width),
            gated: wide(width),
            dgated: wide(width),
            dattended: wide(width),
            lse: wide(config.num_heads),
            scratch: Scratch::new(cpu, scratch),
            softmax: softmax_attention::BackwardScratch::new(cpu, softmax, softmax_rows, plan.max_sequences),
            experts: ExpertBuffers::new(model, tokens),
            packed: PackedRows::new(cpu, compute, tokens, projected.max(config.hidden_size)),
            packed_f32: PackedRows::new(
                cpu,
                Compute::F32,
                tokens,
                config.hidden_size.max(config.num_experts),
            ),
            transposed: PackedMatrix::zeroed(1, 1, element),
            product: WeightGradient::new(cpu, compute),
            product_f32: WeightGradient::new(cpu, Compute::F32),
        }
    }
}

/// Width of the projections of the layer that has most.
fn widest_projections(config: &Config) -> usize {
    let width = config.query_width();
    (4 * width).max(width + 2 * config.kv_width())
}

impl ExpertBuffers {
    fn new(model: &Model, tokens: usize) -> Self {
        let (cpu, config) = (model.cpu(), model.config());
        let choices = tokens * config.experts_per_token;
        let values = |config: &Config, of: fn(usize) -> usize| {
            let routed = choices * of(config.intermediate_size);
            routed.max(tokens * of(config.shared_intermediate_size))
        };
        let (pre, inner) = (values(config, panel_width), values(config, |inner| inner));
        let widest = panel_width(config.intermediate_size.max(config.shared_intermediate_size));
        let widest = widest.max(config.hidden_size);
        Self {
            routing: Routing::new(tokens, config.num_experts, config.experts_per_token),
            logits: Floats::zeroed(tokens * config.num_experts),
            dlogits: Floats::zeroed(tokens * config.num_experts),
            dots: Floats::zeroed(choices),
            dweights: Floats::zeroed(choices),
            weights: Floats::zeroed(choices),
            coefficients: Floats::zeroed(tokens),
            dcoefficients: Floats::zeroed(tokens),
            pre: Floats::zeroed(pre),
            dpre: Floats::zeroed(pre),
            inner: Floats::zeroed(inner),
            dinner: Floats::zeroed(inner),
            dinputs: Floats::zeroed(choices * config.hidden_size),
            packed: PackedRows::new(cpu, model.compute(), choices, widest),
        }
    }
}
