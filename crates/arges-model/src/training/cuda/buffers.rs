//! Memory of a GPU for one batch: inputs of all layers, activations and gradients of one; and the compiled kernels.

use std::sync::Arc;

use arges_kernels::device::cuda::{Activations, Buffer, Cuda, CudaError, Pinned};
use arges_kernels::lightning::cuda::LightningBackwardCuda;
use arges_kernels::loss::cuda::{LossCuda, Scores};
use arges_kernels::matmul::Element;
use arges_kernels::matmul::cuda::{DeviceMatrix, DeviceRows, ProductGradients};
use arges_kernels::moe::cuda::{DeviceBalance, MixtureGradients};
use arges_kernels::norm::cuda::{StreamGradients, StreamShape};
use arges_kernels::softmax_attention::cuda::SoftmaxBackwardCuda;

use super::kept::Insides;
use crate::cache::{lightning_shape, softmax_shape};
use crate::config::{AttentionKind, Config};
use crate::model::cuda::CudaModel;
use crate::model::cuda::workspace::Both;
use crate::training::TrainingPlan;

/// Experts whose router is taken back on the way through the norm before it, not in a product of its own.
pub(super) const FEW_EXPERTS: usize = 16;

/// Most bytes of the logits of one block of targets, and the most of a card's memory: one part in so many. The host waits
/// for the scores of every block where weights of targets depend on them.
const LOGIT_BYTES: usize = 2 << 30;
const LOGIT_PART: usize = 32;

/// Targets whose logits are made at a time. Every block adds to all gradients of the head.
pub(super) fn head_rows(vocab: usize, max_tokens: usize, memory: usize) -> usize {
    let bytes = LOGIT_BYTES.min(memory / LOGIT_PART);
    (bytes / (4 * vocab.max(1))).clamp(64, 16384).min(max_tokens.max(1))
}

/// Everything but weights, gradients, caches and what the forward pass works in. What is kept of layers beside their
/// inputs is added by [`CudaTrainer::take_memory_for_layers`](super::CudaTrainer::take_memory_for_layers).
pub(super) struct Buffers {
    pub(super) plan: TrainingPlan,
    /// Input of each layer, and the residual stream between its attention and its experts, `[tokens, hidden]`; of the
    /// latter only one where it is computed once more.
    pub(super) inputs: Vec<Activations>,
    pub(super) middles: Vec<Activations>,
    /// The rest of each layer.
    pub(super) insides: Option<Vec<Insides>>,
    /// Whether the experts' normed input is read by the backward pass even where everything is kept, and room for it in
    /// f32, `[tokens, hidden]`, where a product reads it so.
    pub(super) norms_experts_again: bool,
    pub(super) exact_normed: Option<Buffer<f32>>,
    /// Gradient by the residual stream, `[tokens, hidden]`, and by a block's output: the same where every branch joins
    /// the stream as it is; by a normed stream.
    pub(super) dx: DeviceRows,
    pub(super) dbranch: Option<DeviceRows>,
    pub(super) dproduct: Activations,
    pub(super) balance: DeviceBalance,
    pub(super) embedding: EmbeddingOrder,
    pub(super) attention: AttentionBuffers,
    pub(super) routed: MlpBuffers,
    pub(super) shared: Option<MlpBuffers>,
    pub(super) router: RouterBuffers,
    pub(super) head: HeadBuffers,
    /// Transposed weights of one product at a time.
    pub(super) transposed: DeviceMatrix,
    pub(super) kernels: Kernels,
}

/// Which rows of a batch have the same token: `order` names the rows of token `distinct[i]` from `begins[i]` to
/// `begins[i + 1]`.
pub(super) struct EmbeddingOrder {
    pub(super) distinct: Both<i32>,
    pub(super) begins: Both<i32>,
    pub(super) order: Both<i32>,
    /// Distinct tokens.
    pub(super) count: usize,
}

impl EmbeddingOrder {
    fn new(model: &CudaModel, tokens: usize) -> Result<Self, CudaError> {
        let room = |len| Both::zeroed(model, len);
        Ok(Self { distinct: room(tokens)?, begins: room(tokens + 1)?, order: room(tokens)?, count: 0 })
    }

    /// Finds the order of a batch on the host, and sends it. What was sent before must have arrived.
    pub(super) fn send(&mut self, tokens: &[u32]) -> Result<(), CudaError> {
        let order = &mut self.order.host.as_mut_slice()[..tokens.len()];
        order.iter_mut().zip(0..).for_each(|(place, row)| *place = row);
        order.sort_by_key(|row| tokens[*row as usize]);
        let (distinct, begins) = (self.distinct.host.as_mut_slice(), self.begins.host.as_mut_slice());
        self.count = 0;
        for (place, row) in order.iter().enumerate() {
            let token = tokens[*row as usize] as i32;
            if self.count == 0 || distinct[self.count - 1] != token {
                (distinct[self.count], begins[self.count]) = (token, place as i32);
                self.count += 1;
            }
        }
        begins[self.count] = tokens.len() as i32;
        self.distinct.send(self.count)?;
        self.begins.send(self.count + 1)?;
        self.order.send(tokens.len())
    }

    fn bytes(&self) -> usize {
        [&self.distinct, &self.begins, &self.order].map(|both| both.device.bytes()).iter().sum()
    }
}

/// `W` is the width of all query heads, `P` that of a layer's input projections.
pub(super) struct AttentionBuffers {
    /// Projections before SiLU and sigmoid, `[tokens, P]`.
    pub(super) raw: Activations,
    /// Gradients by the projections, for lightning and softmax attention.
    pub(super) dprojected: [Option<DeviceRows>; 2],
    /// Gradient by what the output projection reads, and by what attention gives, `[tokens, W]`.
    pub(super) dgated: Activations,
    pub(super) dattended: Activations,
    /// `[tokens, heads]`.
    pub(super) lse: Buffer<f32>,
}

/// Of MLPs of inner width `F`, over their rows.
pub(super) struct MlpBuffers {
    /// Gates and ups in turn, and the gradient by them, `[rows, 2 F]`.
    pub(super) pre: Activations,
    pub(super) dpre: DeviceRows,
    /// `[rows, F]`.
    pub(super) dinner: Activations,
    /// Derivatives by the weights of the rows, times those, `[rows]`.
    pub(super) dots: Buffer<f32>,
    /// Gradient by the rows of inputs, `[rows, hidden]`.
    pub(super) dinputs: Activations,
}

pub(super) struct RouterBuffers {
    /// Gradients by the output for each row of the experts, `[rows, hidden]`, and for a shared MLP, `[tokens, hidden]`, times
    /// the row's weight.
    pub(super) dout: DeviceRows,
    pub(super) shared_dout: Option<DeviceRows>,
    /// `[tokens, experts]`.
    pub(super) dlogits: DeviceRows,
    /// With more than [`FEW_EXPERTS`] the router's weights transposed, and the gradient by its input, `[tokens, hidden]`.
    pub(super) dinput: Option<(DeviceMatrix, Buffer<f32>)>,
    /// By the coefficients of a shared MLP, `[tokens]`.
    pub(super) dcoefficients: Buffer<f32>,
}

/// The targets' rows, a block at a time.
pub(super) struct HeadBuffers {
    /// Rows of the stream and their tokens, of all targets and of a block; and the weights of a block's log-probabilities.
    pub(super) all_rows: Both<i32>,
    pub(super) all_tokens: Both<i32>,
    pub(super) rows: Buffer<i32>,
    pub(super) tokens: Buffer<i32>,
    pub(super) weights: Both<f32>,
    pub(super) scores: Scores,
    pub(super) dlogits: DeviceRows,
    /// `[rows, hidden]`: the stream, normed and rounded, and gradients by the normed rows and by the stream's.
    pub(super) x: Activations,
    pub(super) normed: DeviceRows,
    pub(super) dnormed: Activations,
    pub(super) drows: Activations,
    /// Of all targets, on the host.
    pub(super) logprobs: Pinned<f32>,
    pub(super) entropies: Pinned<f32>,
}

pub(super) struct Kernels {
    /// Of the experts, and of everything with one matrix.
    pub(super) experts: ProductGradients,
    pub(super) products: ProductGradients,
    pub(super) stream: StreamGradients,
    pub(super) mixture: MixtureGradients,
    pub(super) loss: LossCuda,
    pub(super) lightning: Option<LightningBackwardCuda>,
    pub(super) softmax: Option<SoftmaxBackwardCuda>,
}

impl MlpBuffers {
    fn new(
        cuda: &Arc<Cuda>,
        element: Element,
        rows: usize,
        inner: usize,
        hidden: usize,
    ) -> Result<Self, CudaError> {
        Ok(Self {
            pre: Activations::zeroed(cuda, element, rows * 2 * inner)?,
            dpre: DeviceRows::zeroed(cuda, rows, 2 * inner, element)?,
            dinner: Activations::zeroed(cuda, element, rows * inner)?,
            dots: Buffer::zeroed(cuda, rows)?,
            dinputs: Activations::zeroed(cuda, element, rows * hidden)?,
        })
    }

    fn bytes(&self) -> usize {
        self.pre.bytes()
            + self.dpre.data().bytes()
            + [&self.dinner, &self.dinputs].map(Activations::bytes).iter().sum::<usize>()
            + self.dots.bytes()
    }
}

impl Buffers {
    pub(super) fn new(model: &CudaModel, plan: TrainingPlan, head_rows: usize) -> Result<Self, CudaError> {
        let (config, cuda, element) = (&model.config, &model.cuda, model.element());
        let (tokens, hidden, width) = (plan.max_tokens.max(1), config.hidden_size, config.query_width());
        let floats = |len: usize| Buffer::<f32>::zeroed(cuda, len);
        let projections = [4 * width, width + 2 * config.kv_width()];
        let present =
            [AttentionKind::Lightning, AttentionKind::Softmax].map(|kind| config.attention.contains(&kind));
        let dprojected = |i: usize| {
            present[i].then(|| DeviceRows::zeroed(cuda, tokens, projections[i], element)).transpose()
        };
        let choices = if config.has_router() { tokens * config.experts_per_token } else { tokens };
        let shared = config.has_shared_mlp().then_some(config.shared_intermediate_size);
        let mlp = |rows, inner| MlpBuffers::new(cuda, element, rows, inner, hidden);
        let scaled = [config.lightning, config.softmax, config.mlp].iter().any(|scale| scale.beta != 1.0);
        let rows = || DeviceRows::zeroed(cuda, tokens, hidden, element);
        let kernels = Kernels::new(model, plan, head_rows)?;
        let summed = kernels.stream.sums_router();
        let by_product = config.has_shared_mlp() || config.has_router() && !summed;
        Ok(Self {
            plan,
            inputs: Vec::new(),
            middles: Vec::new(),
            insides: None,
            norms_experts_again: config.has_shared_mlp() || !summed,
            exact_normed: by_product.then(|| floats(tokens * hidden)).transpose()?,
            dx: rows()?,
            dbranch: scaled.then(rows).transpose()?,
            dproduct: Activations::zeroed(cuda, element, tokens * hidden)?,
            balance: DeviceBalance::new(cuda, config.num_experts, tokens)?,
            embedding: EmbeddingOrder::new(model, tokens)?,
            attention: AttentionBuffers {
                raw: Activations::zeroed(cuda, element, tokens * projections[0].max(projections[1]))?,
                dprojected: [dprojected(0)?, dprojected(1)?],
                dgated: Activations::zeroed(cuda, element, tokens * width)?,
                dattended: Activations::zeroed(cuda, element, tokens * width)?,
                lse: floats(tokens * config.num_heads)?,
            },
            routed: mlp(choices, config.intermediate_size)?,
            shared: shared.map(|inner| mlp(tokens, inner)).transpose()?,
            router: RouterBuffers {
                dout: DeviceRows::zeroed(cuda, choices, hidden, element)?,
                shared_dout: shared.map(|_| DeviceRows::zeroed(cuda, tokens, hidden, element)).transpose()?,
                dlogits: DeviceRows::zeroed(cuda, tokens, config.num_experts, Element::F32)?,
                dinput: (config.num_experts > FEW_EXPERTS)
                    .then(|| {
                        let shape = (hidden, config.num_experts);
                        let transposed = DeviceMatrix::zeroed(cuda, 1, shape.0, shape.1, Element::F32)?;
                        Ok::<_, CudaError>((transposed, floats(tokens * hidden)?))
                    })
                    .transpose()?,
                dcoefficients: floats(tokens)?,
            },
            head: HeadBuffers {
                all_rows: Both::zeroed(model, tokens)?,
                all_tokens: Both::zeroed(model, tokens)?,
                rows: Buffer::zeroed(cuda, head_rows)?,
                tokens: Buffer::zeroed(cuda, head_rows)?,
                weights: Both::zeroed(model, head_rows)?,
                scores: Scores::zeroed(cuda, head_rows)?,
                dlogits: DeviceRows::zeroed(cuda, head_rows, config.vocab_size, element)?,
                x: Activations::zeroed(cuda, Element::F32, head_rows * hidden)?,
                normed: DeviceRows::zeroed(cuda, head_rows, hidden, element)?,
                dnormed: Activations::zeroed(cuda, element, head_rows * hidden)?,
                drows: Activations::zeroed(cuda, element, head_rows * hidden)?,
                logprobs: Pinned::zeroed(cuda, tokens)?,
                entropies: Pinned::zeroed(cuda, tokens)?,
            },
            transposed: DeviceMatrix::zeroed(cuda, 1, 1, largest_matrix(config), element)?,
            kernels,
        })
    }

    pub(super) fn bytes(&self) -> usize {
        let attention = &self.attention;
        let (router, head) = (&self.router, &self.head);
        let rows = [&self.dx, &router.dout, &router.dlogits, &head.dlogits, &head.normed];
        let floats = [&attention.lse, &router.dcoefficients];
        self.kept_bytes()
            + rows
                .into_iter()
                .chain(&self.dbranch)
                .chain(&router.shared_dout)
                .map(|rows| rows.data().bytes())
                .sum::<usize>()
            + attention.dprojected.iter().flatten().map(|rows| rows.data().bytes()).sum::<usize>()
            + floats.map(Buffer::bytes).iter().sum::<usize>()
            + [&attention.raw, &attention.dgated, &attention.dattended]
                .map(Activations::bytes)
                .iter()
                .sum::<usize>()
            + [&self.dproduct, &head.dnormed, &head.x, &head.drows]
                .map(Activations::bytes)
                .iter()
                .sum::<usize>()
            + self.routed.bytes()
            + self.shared.as_ref().map_or(0, MlpBuffers::bytes)
            + self.balance.bytes()
            + self.embedding.bytes()
            + self.transposed.bytes()
            + self.exact_normed.as_ref().map_or(0, Buffer::bytes)
            + router.dinput.as_ref().map_or(0, |(matrix, rows)| matrix.bytes() + rows.bytes())
            + self.kernels.bytes()
    }
}

/// What the gradients of the stream are compiled for.
pub(super) fn stream_shape(config: &Config, tokens: usize) -> StreamShape {
    let (choices, experts) = match config.has_router() {
        true => (config.experts_per_token, config.num_experts),
        false => (0, 0),
    };
    StreamShape { rows: tokens, width: config.hidden_size, gated: config.query_width(), choices, experts }
}

/// Values of the largest matrix, or of all experts' where those are more.
fn largest_matrix(config: &Config) -> usize {
    let width = config.query_width();
    let outputs = [
        4 * width,
        width + 2 * config.kv_width(),
        config.num_experts * 2 * config.intermediate_size,
        2 * config.shared_intermediate_size,
        config.vocab_size,
    ];
    outputs.into_iter().max().unwrap_or(1) * config.hidden_size
}

impl Kernels {
    fn new(model: &CudaModel, plan: TrainingPlan, head_rows: usize) -> Result<Self, CudaError> {
        let (config, cuda, element) = (&model.config, &model.cuda, model.element());
        let (tokens, hidden, width) = (plan.max_tokens.max(1), config.hidden_size, config.query_width());
        let (experts, choices) = match config.has_router() {
            true => (config.num_experts, config.experts_per_token),
            false => (1, 1),
        };
        let kind = |kind| config.attention.contains(&kind);
        let mut of_experts = ProductGradients::new(cuda, experts)?;
        let mut products = ProductGradients::new(cuda, 1)?;
        if element == Element::Bf16 {
            let inner = config.intermediate_size;
            for widths in [[hidden, 2 * inner], [hidden, inner]] {
                of_experts.reserve(widths, tokens * choices, experts)?;
            }
            let shared = config.shared_intermediate_size;
            for other in [4 * width, width + 2 * config.kv_width(), width, 2 * shared, shared] {
                products.reserve([hidden, other], tokens, 1)?;
            }
            products.reserve([hidden, config.vocab_size], head_rows, 1)?;
        }
        Ok(Self {
            experts: of_experts,
            products,
            stream: StreamGradients::new(cuda, element, stream_shape(config, tokens))?,
            mixture: MixtureGradients::new(cuda, element, experts, choices)?,
            loss: LossCuda::new(cuda, element, config.vocab_size)?,
            lightning: kind(AttentionKind::Lightning)
                .then(|| LightningBackwardCuda::new(cuda, lightning_shape(config), element))
                .transpose()?,
            softmax: kind(AttentionKind::Softmax)
                .then(|| SoftmaxBackwardCuda::new(cuda, softmax_shape(config), element, tokens))
                .transpose()?,
        })
    }

    fn bytes(&self) -> usize {
        self.experts.bytes()
            + self.products.bytes()
            + self.stream.bytes()
            + self.lightning.as_ref().map_or(0, LightningBackwardCuda::bytes)
            + self.softmax.as_ref().map_or(0, SoftmaxBackwardCuda::bytes)
    }
}
