//! The forward pass on a GPU: the same function of the same batch as on the CPU, operation by operation.

use std::ops::Range;

use arges_kernels::device::cuda::{Activations, Buffer, CudaError};
use arges_kernels::lightning;
use arges_kernels::matmul::cuda::{Output, Rows};
use arges_kernels::norm::cuda::{Branch, Kept, Norm, Scale, Shared};
use arges_kernels::sample::Sampled;
use arges_kernels::sample::cuda::Rule;
use arges_kernels::softmax_attention;

use super::workspace::StepInputs;
use super::{Attention, CudaCache, CudaModel, CudaWorkspace, Layer};
use crate::batch::Batch;
use crate::config::{LIGHTNING_NORM_EPS, ResidualScale};
use crate::model::ForwardError;
use crate::model::step::check;

/// The sizes of a step: all that its launches depend on.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    /// Spans that take the way of decoding, one row each.
    pub(crate) decoding: Range<usize>,
    /// The others.
    pub(crate) prefilling: Range<usize>,
    pub(crate) logit_rows: usize,
}

impl Shape {
    /// The same with every span on the way of prefill.
    pub(crate) fn exact(self) -> Self {
        Self { decoding: 0..0, prefilling: 0..self.prefilling.end, ..self }
    }
}

/// What a backward pass needs of attention beside what the forward pass leaves in the workspace.
pub(crate) struct KeptAttention<'a> {
    /// Projections of lightning attention before SiLU and sigmoid.
    pub(crate) raw: &'a mut Activations,
    /// Log-sum-exp of softmax attention, `[rows, heads]`.
    pub(crate) lse: &'a mut Buffer<f32>,
}

/// The same of experts, as far as it is kept.
#[derive(Default)]
pub(crate) struct KeptExperts<'a> {
    /// Gates and ups in turn, of the experts' rows and of a shared MLP's.
    pub(crate) routed: Option<&'a mut Activations>,
    pub(crate) shared: Option<&'a mut Activations>,
    /// The stream behind them.
    pub(crate) stream: Option<&'a mut Activations>,
}

/// How the token of a row of logits is to be chosen on the device, with the mask of tokens that may be; `None` leaves it
/// to the host.
pub type Choice<'a> = Option<(Rule, Option<&'a [u32]>)>;

/// What came of a step's rows of logits.
pub struct Chosen<'a> {
    /// For every row what was chosen on the device; empty where it chooses nothing.
    pub tokens: &'a [Option<Sampled>],
    /// `[logit rows, vocab_size]`: the rows for which nothing was.
    pub logits: &'a [f32],
}

impl CudaModel {
    /// Runs one step. Afterwards every span's sequence is longer by its tokens. Returns logits
    /// `[logit rows, vocab_size]`, on the host.
    ///
    /// # Errors
    /// When the batch is malformed, does not fit, or a sequence lacks pages; then nothing has changed. When the device
    /// fails.
    pub fn forward<'w>(
        &self,
        batch: &Batch,
        cache: &mut CudaCache,
        workspace: &'w mut CudaWorkspace,
    ) -> Result<&'w mut [f32], ForwardError> {
        check(batch, cache, workspace.plan, self.config.vocab_size)?;
        let count = batch.logit_rows.len() * self.config.vocab_size;
        let run = |workspace: &mut CudaWorkspace, cache: &mut CudaCache| {
            self.step(batch, cache, workspace)?;
            workspace.logits.read_pinned(&mut workspace.host_logits, count)?;
            self.cuda.synchronize()
        };
        run(workspace, cache).map_err(failed)?;
        advance(batch, cache);
        Ok(&mut workspace.host_logits.as_mut_slice()[..count])
    }

    /// As [`CudaModel::forward`], and chooses a token below id `sampleable` on the device from each row of logits that
    /// has a rule. Logits of the other rows, and of those whose choice failed, are on the host; what is there in place
    /// of the rest is of no meaning.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// When there are not as many choices as rows of logits.
    pub fn forward_choosing<'w>(
        &self,
        batch: &Batch,
        sampleable: usize,
        choices: &[Choice<'_>],
        cache: &mut CudaCache,
        workspace: &'w mut CudaWorkspace,
    ) -> Result<Chosen<'w>, ForwardError> {
        check(batch, cache, workspace.plan, self.config.vocab_size)?;
        assert_eq!(choices.len(), batch.logit_rows.len(), "choices and rows of logits");
        let width = self.config.vocab_size;
        let run = |ws: &mut CudaWorkspace, cache: &mut CudaCache| {
            let largest = || (Rule::largest(), None);
            ws.sampler.set_rules(choices.iter().map(|choice| choice.unwrap_or_else(largest)));
            self.step(batch, cache, ws)?;
            ws.sampler.run(&ws.logits, sampleable)?;
            let unruled = |row: &usize| choices[*row].is_none();
            for row in (0..choices.len()).filter(unruled) {
                ws.logits.read_pinned_at(row * width, &mut ws.host_logits, row * width, width)?;
            }
            self.cuda.synchronize()?;
            ws.chosen.clear();
            ws.chosen
                .extend((0..choices.len()).map(|row| choices[row].and_then(|_| ws.sampler.chosen(row).ok())));
            // The host finds out what is wrong with a row.
            let mut fetched = false;
            for row in (0..choices.len()).filter(|row| choices[*row].is_some() && ws.chosen[*row].is_none()) {
                ws.logits.read_pinned_at(row * width, &mut ws.host_logits, row * width, width)?;
                fetched = true;
            }
            if fetched { self.cuda.synchronize() } else { Ok(()) }
        };
        run(workspace, cache).map_err(failed)?;
        advance(batch, cache);
        Ok(Chosen {
            tokens: &workspace.chosen,
            logits: &workspace.host_logits.as_slice()[..choices.len() * width],
        })
    }

    /// Puts a step into the stream. A step in which every row decodes is replayed from a graph for as many rows or
    /// somewhat more, the additional ones being padding.
    fn step(
        &self,
        batch: &Batch,
        cache: &mut CudaCache,
        workspace: &mut CudaWorkspace,
    ) -> Result<(), CudaError> {
        for span in &batch.spans {
            cache.tell_pages(span.sequence)?;
        }
        let rows = batch.len();
        let decodes = batch.spans.len() == rows && batch.logit_rows.len() == rows;
        match bucket(rows, workspace) {
            Some(padded) if decodes && rows > 0 && !workspace.exact && !self.cuda.is_profiling() => {
                self.send(batch, cache, &mut workspace.inputs, padded)?;
                self.replay(padded, cache, workspace)
            }
            _ => {
                let shape = self.send(batch, cache, &mut workspace.inputs, rows)?;
                let shape = if workspace.exact { shape.exact() } else { shape };
                self.run(&shape, cache, workspace)
            }
        }
    }

    /// Tells the device what is to be computed; `padded` rows, of which those beyond the batch's belong to nobody.
    pub(crate) fn send(
        &self,
        batch: &Batch,
        cache: &CudaCache,
        inputs: &mut StepInputs,
        padded: usize,
    ) -> Result<Shape, CudaError> {
        let tokens = &mut inputs.tokens.host.as_mut_slice()[..padded];
        tokens.fill(0);
        for (to, token) in tokens.iter_mut().zip(&batch.tokens) {
            *to = *token as i32;
        }
        let padding = padded - batch.len();
        let single = batch.spans.iter().filter(|span| span.tokens.len() == 1).count();
        let (mut next_single, mut next_long) = (0, single + padding);
        let spans = inputs.spans.host.as_mut_slice();
        for span in &batch.spans {
            let slot = cache.slot_index(span.sequence).expect("checked before");
            let place = if span.tokens.len() == 1 { &mut next_single } else { &mut next_long };
            let (first, position) = (span.tokens.start as i32, cache.length_of(slot) as i32);
            spans[*place] = [first, span.tokens.len() as i32, position, slot as i32];
            *place += 1;
        }
        for (i, span) in spans[single..single + padding].iter_mut().enumerate() {
            *span = [(batch.len() + i) as i32, 1, 0, -1];
        }
        let logit_rows = &mut inputs.logit_rows.host.as_mut_slice()[..batch.logit_rows.len() + padding];
        let padding_rows = batch.len() as u32..padded as u32;
        for (to, row) in logit_rows.iter_mut().zip(batch.logit_rows.iter().copied().chain(padding_rows)) {
            *to = row as i32;
        }
        inputs.active.host.as_mut_slice()[0] = batch.len() as i32;
        let logit_rows = logit_rows.len();
        inputs.tokens.send(padded)?;
        inputs.spans.send(batch.spans.len() + padding)?;
        inputs.logit_rows.send(logit_rows)?;
        inputs.active.send(1)?;
        let all = batch.spans.len() + padding;
        Ok(Shape {
            rows: padded,
            decoding: 0..single + padding,
            prefilling: single + padding..all,
            logit_rows,
        })
    }

    fn replay(
        &self,
        rows: usize,
        cache: &mut CudaCache,
        workspace: &mut CudaWorkspace,
    ) -> Result<(), CudaError> {
        if !workspace.graphs.iter().any(|(size, _)| *size == rows) {
            let shape = Shape { rows, decoding: 0..rows, prefilling: rows..rows, logit_rows: rows };
            let graph = self.cuda.capture(|| self.run(&shape, cache, workspace))?;
            workspace.graphs.push((rows, graph));
        }
        let graph = workspace.graphs.iter_mut().find(|(size, _)| *size == rows);
        graph.expect("it was just made").1.replay()
    }

    /// All kernels of a step, in order.
    fn run(&self, shape: &Shape, cache: &mut CudaCache, ws: &mut CudaWorkspace) -> Result<(), CudaError> {
        let kernels = &self.kernels;
        let norm = |weight| Norm { weight, epsilon: self.config.rms_norm_eps as f32 };
        let spans = &ws.inputs.spans.device;
        if !cache.pages.is_empty() {
            ws.angles.fill(spans, 0, shape.prefilling.end, shape.rows)?;
        }
        let first = norm(&self.layers[0].input_norm);
        let tokens = &ws.inputs.tokens.device;
        kernels.norms.embed(tokens, shape.rows, &self.embedding, first, &mut ws.stream, None)?;
        for (index, layer) in self.layers.iter().enumerate() {
            self.attend(layer, shape, cache, ws, None)?;
            self.join_attention(layer, shape, ws, Kept::default())?;
            let next = self.layers.get(index + 1).map(|next| norm(&next.input_norm));
            self.expert_block(layer, shape, next, ws, KeptExperts::default())?;
        }
        self.head(shape, ws)
    }

    /// The output projection of what attention left in the workspace, which joins the stream and is normed for the
    /// experts.
    pub(crate) fn join_attention(
        &self,
        layer: &Layer,
        shape: &Shape,
        ws: &mut CudaWorkspace,
        kept: Kept<'_>,
    ) -> Result<(), CudaError> {
        let (kernels, config) = (&self.kernels, &self.config);
        let (out, scale) = match &layer.attention {
            Attention::Lightning { out, .. } => (out, config.lightning),
            Attention::Softmax { out, .. } => (out, config.softmax),
        };
        let rows = Rows::All(shape.rows);
        kernels.products.run(out, &ws.mixed, rows, Output::Rounded(&mut ws.branch))?;
        let norm = Norm { weight: &layer.post_attention_norm, epsilon: config.rms_norm_eps as f32 };
        let branch = Branch::Rows(&ws.branch);
        kernels.norms.join(shape.rows, branch, None, self.scale(scale), Some(norm), &mut ws.stream, kept)
    }

    /// The attention of a layer on the normed stream, up to the input of its output projection. With `kept`, its spans
    /// are whole sequences that do not decode.
    pub(crate) fn attend(
        &self,
        layer: &Layer,
        shape: &Shape,
        cache: &mut CudaCache,
        ws: &mut CudaWorkspace,
        kept: Option<KeptAttention<'_>>,
    ) -> Result<(), CudaError> {
        let (kernels, config, rows) = (&self.kernels, &self.config, Rows::All(shape.rows));
        let width = config.query_width();
        let (decoding, prefilling) = (shape.decoding.clone(), shape.prefilling.clone());
        match &layer.attention {
            Attention::Lightning { index, decays, qkv_gate, norm, .. } => {
                let stride = qkv_gate.outputs();
                let before = kept.map(|kept| kept.raw);
                let output = Output::Activated { out: &mut ws.projected, silu: 3 * width, before };
                kernels.products.run(qkv_gate, &ws.stream.normed, rows, output)?;
                let inputs = |spans: Range<usize>| lightning::cuda::Inputs {
                    decays,
                    projected: &ws.projected,
                    stride,
                    spans: &ws.inputs.spans.device,
                    first_span: spans.start,
                    span_count: spans.len(),
                };
                let layers = cache.states.len();
                let state = &mut cache.states[*index % layers];
                if !decoding.is_empty() {
                    kernels.lightning.decode(&inputs(decoding), state, &mut ws.attended)?;
                }
                if !prefilling.is_empty() {
                    kernels.lightning.prefill(&inputs(prefilling), state, &mut ws.attended)?;
                }
                let gate = (&ws.projected, 3 * width, stride);
                let inner = Norm { weight: norm, epsilon: LIGHTNING_NORM_EPS as f32 };
                kernels.norms.gated_norm(shape.rows, &ws.attended, gate, inner, &mut ws.mixed)
            }
            Attention::Softmax { index, qkv, .. } => {
                let stride = qkv.outputs();
                let output = Output::Rounded(&mut ws.projected);
                kernels.products.run(qkv, &ws.stream.normed, rows, output)?;
                let inputs = |spans: Range<usize>| softmax_attention::cuda::Inputs {
                    rows: shape.rows,
                    spans: &ws.inputs.spans.device,
                    first_span: spans.start,
                    span_count: spans.len(),
                    tables: &cache.tables.device,
                    table_stride: cache.tables.stride,
                };
                let layers = cache.pages.len();
                let pages = &mut cache.pages[*index % layers];
                let every = inputs(0..prefilling.end);
                ws.softmax.append(&mut ws.projected, stride, &every, &ws.angles, pages)?;
                let attended = ws.mixed.data_mut();
                if !decoding.is_empty() {
                    let context = cache.tables.stride * crate::cache::PAGE_TOKENS;
                    let inputs = inputs(decoding);
                    ws.softmax.decode(&ws.projected, stride, &inputs, context, pages, attended)?;
                }
                if prefilling.is_empty() {
                    return Ok(());
                }
                let (softmax, inputs) = (&ws.softmax, inputs(prefilling));
                match kept {
                    None => softmax.prefill(&ws.projected, stride, &inputs, pages, attended),
                    Some(KeptAttention { lse, .. }) => {
                        softmax.prefill_for_training(&ws.projected, stride, &inputs, pages, attended, lse)
                    }
                }
            }
        }
    }

    fn scale(&self, scale: ResidualScale) -> Scale {
        Scale { alpha: scale.alpha, beta: scale.beta, postnorm: self.config.postnorm }
    }

    /// The experts of a layer on the normed stream, which they join and norm for the next layer. What is to be kept is
    /// written there too.
    pub(crate) fn expert_block(
        &self,
        layer: &Layer,
        shape: &Shape,
        norm: Option<Norm<'_>>,
        ws: &mut CudaWorkspace,
        kept: KeptExperts<'_>,
    ) -> Result<(), CudaError> {
        let (kernels, config, count) = (&self.kernels, &self.config, shape.rows);
        let KeptExperts { routed: before, shared: before_shared, stream } = kept;
        let kept = Kept { stream, normed: None };
        let experts = &layer.experts;
        let buffers = &mut ws.experts;
        let branch = match (&experts.router, &kernels.router) {
            (Some(weights), Some(router)) => {
                let routing = &mut buffers.routing;
                router.route(&ws.stream.normed, count, &ws.inputs.active.device, weights, routing)?;
                router.gather(&ws.stream.normed, count, routing, &mut buffers.inputs)?;
                let choices = config.experts_per_token;
                let rows = Rows::Grouped { offsets: &routing.offsets, most: count * choices };
                let gated = Output::Gated { out: buffers.inner.data_mut(), before };
                kernels.products.run(&experts.gate_up, &buffers.inputs, rows, gated)?;
                let output = Output::Rounded(&mut buffers.outputs);
                kernels.products.run(&experts.down, &buffers.inner, rows, output)?;
                let (places, weights) = (&buffers.routing.places, &buffers.routing.weights);
                Branch::Choices { rows: &buffers.outputs, places, weights, choices }
            }
            _ => {
                let rows = Rows::All(count);
                let gated = Output::Gated { out: buffers.inner.data_mut(), before };
                kernels.products.run(&experts.gate_up, &ws.stream.normed, rows, gated)?;
                let output = Output::Rounded(&mut buffers.outputs);
                kernels.products.run(&experts.down, &buffers.inner, rows, output)?;
                Branch::Rows(&buffers.outputs)
            }
        };
        let shared = match (&layer.shared, &mut buffers.shared, &kernels.coefficient) {
            (Some(mlp), Some(buffers), Some(coefficient)) => {
                let rows = Rows::All(count);
                let normed = &ws.stream.normed;
                coefficient.logits(normed, count, &mlp.coefficient, &mut buffers.coefficients)?;
                let gated = Output::Gated { out: buffers.inner.data_mut(), before: before_shared };
                kernels.products.run(&mlp.gate_up, &ws.stream.normed, rows, gated)?;
                let output = Output::Rounded(&mut buffers.outputs);
                kernels.products.run(&mlp.down, &buffers.inner, rows, output)?;
                Some(Shared { rows: &buffers.outputs, coefficients: &buffers.coefficients })
            }
            _ => None,
        };
        kernels.norms.join(count, branch, shared, self.scale(config.mlp), norm, &mut ws.stream, kept)
    }

    /// Final norm and logits of the rows that need them, from f32 activations.
    fn head(&self, shape: &Shape, ws: &mut CudaWorkspace) -> Result<(), CudaError> {
        let (kernels, count) = (&self.kernels, shape.logit_rows);
        let norm = Norm { weight: &self.final_norm, epsilon: self.config.rms_norm_eps as f32 };
        let (rows, parts) = (&ws.inputs.logit_rows.device, ws.head_parts.as_mut());
        kernels.norms.head_rows(&ws.stream, rows, count, norm, &mut ws.head_rows, parts)?;
        match &ws.head_parts {
            Some(parts) => kernels.products.run_parts(&self.head, parts, count, &mut ws.logits),
            None => {
                let output = Output::F32(&mut ws.logits);
                kernels.products.run(&self.head, &ws.head_rows, Rows::All(count), output)
            }
        }
    }
}

/// Rows of the graph for a step of `rows` rows: the next power of two, as far as there is room.
fn bucket(rows: usize, workspace: &CudaWorkspace) -> Option<usize> {
    let plan = workspace.plan;
    let padded = rows.next_power_of_two().min(plan.max_tokens).min(plan.max_logit_rows);
    (padded >= rows).then_some(padded)
}

fn advance(batch: &Batch, cache: &mut CudaCache) {
    for span in &batch.spans {
        let slot = cache.slot_index(span.sequence).expect("checked before");
        cache.advance(slot, span.tokens.len());
    }
}

fn failed(error: CudaError) -> ForwardError {
    ForwardError::Device { message: error.to_string() }
}
