//! The forward pass: one function for prefill, pieces of it, decode, scoring and mixtures.

use std::slice::from_ref;

use arges_kernels::lightning::{self, lightning_attention};
use arges_kernels::matmul::{Output, PackedRows, Segment, matmul};
use arges_kernels::moe::{combine, mix_shared};
use arges_kernels::norm::{gated_rms_norm, residual, rms_norm};
use arges_kernels::softmax_attention::{self, softmax_attention};

use super::given::{GivenExperts, LayerExperts};
use super::step::{ForwardError, check};
use super::workspace::ExpertBuffers;
use super::{Attention, Layer, Model, SharedMlp, Workspace};
use crate::batch::Batch;
use crate::cache::{Cache, lightning_shape, softmax_shape};
use crate::config::{AttentionKind, LIGHTNING_NORM_EPS, ResidualScale};

/// A point of the forward pass at which values can be observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Input of a layer, `[tokens, hidden]`.
    LayerInput(usize),
    /// Queries, keys, values and gates of a layer before attention uses them, `[tokens, projections]`.
    Projections(usize),
    /// The residual stream between attention and experts of a layer, `[tokens, hidden]`.
    Middle(usize),
    /// What the router of a layer gives, `[tokens, experts]`; not of a plain MLP.
    RouterLogits(usize),
    /// Output of the final norm, `[logit rows, hidden]`.
    FinalNorm,
}

impl Model {
    /// Runs one step. Afterwards every span's sequence is longer by its tokens.
    /// Returns logits `[logit rows, vocab_size]`.
    ///
    /// # Errors
    /// When the batch is malformed, does not fit, or a sequence lacks pages; then nothing has changed.
    pub fn forward<'w>(
        &self,
        batch: &Batch,
        cache: &mut Cache,
        workspace: &'w mut Workspace,
    ) -> Result<&'w mut [f32], ForwardError> {
        self.forward_observed(batch, cache, workspace, &mut |_, _| {})
    }

    /// As [`Model::forward`], and shows `observe` what passes.
    ///
    /// # Errors
    /// As for [`Model::forward`].
    pub fn forward_observed<'w>(
        &self,
        batch: &Batch,
        cache: &mut Cache,
        workspace: &'w mut Workspace,
        observe: &mut dyn FnMut(Stage, &[f32]),
    ) -> Result<&'w mut [f32], ForwardError> {
        self.forward_given(batch, GivenExperts::NONE, cache, workspace, observe)
    }

    /// As [`Model::forward_observed`], with experts that were chosen before.
    pub(crate) fn forward_given<'w>(
        &self,
        batch: &Batch,
        given: GivenExperts<'_>,
        cache: &mut Cache,
        workspace: &'w mut Workspace,
        observe: &mut dyn FnMut(Stage, &[f32]),
    ) -> Result<&'w mut [f32], ForwardError> {
        check(batch, cache, workspace.plan, self.config.vocab_size)?;
        let (tokens, hidden) = (batch.len(), self.config.hidden_size);
        workspace.set_spans(batch, cache);
        self.embedding.lookup(&batch.tokens, &mut workspace.x[..tokens * hidden]);
        if self.config.attention.contains(&AttentionKind::Softmax) {
            let spans = &workspace.spans;
            workspace.angles.fill(&self.cpu, &self.frequencies, tokens, |row| {
                let span = spans.partition_point(|span| span.first <= row) - 1;
                spans[span].position + row - spans[span].first
            });
        }
        for (index, layer) in self.layers.iter().enumerate() {
            observe(Stage::LayerInput(index), &workspace.x[..tokens * hidden]);
            self.attention_block(layer, tokens, cache, workspace);
            observe(
                Stage::Projections(index),
                &workspace.projected[..tokens * layer.attention.projections()],
            );
            observe(Stage::Middle(index), &workspace.x[..tokens * hidden]);
            self.expert_block(layer, tokens, given.of_layer(index, &self.config), workspace);
            workspace.record(index, &self.config);
            if layer.experts.router.is_some() {
                let logits = &workspace.experts.router_logits[..tokens * self.config.num_experts];
                observe(Stage::RouterLogits(index), logits);
            }
        }
        for span in &workspace.spans {
            cache.advance(span.slot, span.rows);
        }
        Ok(self.head(batch, workspace, observe))
    }

    /// `x = alpha * base + beta * attention(norm(x))`; the base is the normed value with `postnorm`.
    fn attention_block(&self, layer: &Layer, tokens: usize, cache: &mut Cache, workspace: &mut Workspace) {
        let (cpu, config) = (&*self.cpu, &self.config);
        let (hidden, width) = (config.hidden_size, config.query_width());
        let ws = workspace;
        let rows = Segment::all(tokens);
        let (x, normed) = (&mut ws.x[..tokens * hidden], &mut ws.normed[..tokens * hidden]);
        let (attended, branch) = (&mut ws.attended[..tokens * width], &mut ws.branch[..tokens * hidden]);
        rms_norm(cpu, x, &layer.input_norm, config.rms_norm_eps as f32, normed);
        ws.packed.pack(cpu, normed, hidden, &rows, |row| row);
        let (out, scale) = match &layer.attention {
            Attention::Lightning { index, decays, qkv_gate, norm, out } => {
                let stride = qkv_gate.outputs();
                let projected = &mut ws.projected[..tokens * stride];
                matmul(cpu, &ws.packed, &rows, from_ref(qkv_gate), Output::Rows(projected));
                lightning_attention(
                    cpu,
                    lightning_shape(config),
                    decays,
                    projected,
                    stride,
                    &ws.spans,
                    &mut cache.states[*index],
                    attended,
                    &mut ws.scratch,
                );
                let gate = &projected[3 * width..];
                gated_rms_norm(cpu, attended, gate, stride, norm, LIGHTNING_NORM_EPS as f32);
                (out, config.lightning)
            }
            Attention::Softmax { index, qkv, out } => {
                let projected = &mut ws.projected[..tokens * qkv.outputs()];
                matmul(cpu, &ws.packed, &rows, from_ref(qkv), Output::Rows(projected));
                let (pages, tables) = cache.pages_and_tables(*index);
                let spans = ws.spans.iter().map(|span| softmax_attention::Span {
                    first: span.first,
                    rows: span.rows,
                    position: span.position,
                    pages: tables.pages_of(span.slot),
                });
                softmax_attention(
                    cpu,
                    softmax_shape(config),
                    projected,
                    &ws.angles,
                    spans,
                    pages,
                    attended,
                    None,
                    &mut ws.scratch,
                );
                (out, config.softmax)
            }
        };
        ws.packed.pack(cpu, attended, width, &rows, |row| row);
        matmul(cpu, &ws.packed, &rows, from_ref(out), Output::Rows(branch));
        self.join(x, normed, branch, scale);
    }

    /// `x = alpha * base + beta * branch`.
    pub(crate) fn join(&self, x: &mut [f32], normed: &[f32], branch: &[f32], scale: ResidualScale) {
        let base = self.config.postnorm.then_some(normed);
        residual(&self.cpu, x, base, scale.alpha, branch, scale.beta);
    }

    /// `x = alpha * base + beta * experts(norm(x))`.
    fn expert_block(&self, layer: &Layer, tokens: usize, given: LayerExperts<'_>, workspace: &mut Workspace) {
        let (cpu, config) = (&*self.cpu, &self.config);
        let hidden = config.hidden_size;
        let ws = workspace;
        let (x, normed) = (&mut ws.x[..tokens * hidden], &mut ws.normed[..tokens * hidden]);
        let branch = &mut ws.branch[..tokens * hidden];
        rms_norm(cpu, x, &layer.post_attention_norm, config.rms_norm_eps as f32, normed);
        self.mixture(layer, given, normed, branch, &mut ws.packed_f32, &mut ws.experts);
        if let Some(shared) = &layer.shared {
            self.shared_mlp(shared, normed, branch, &mut ws.packed_f32, &mut ws.experts);
        }
        self.join(x, normed, branch, config.mlp);
    }

    fn mixture(
        &self,
        layer: &Layer,
        given: LayerExperts<'_>,
        normed: &[f32],
        out: &mut [f32],
        packed_f32: &mut PackedRows,
        buffers: &mut ExpertBuffers,
    ) {
        let (cpu, config) = (&*self.cpu, &self.config);
        let hidden = config.hidden_size;
        let tokens = normed.len() / hidden;
        let logits = &mut buffers.router_logits[..tokens * config.num_experts];
        match &layer.experts.router {
            Some(router) => {
                let rows = Segment::all(tokens);
                packed_f32.pack(cpu, normed, hidden, &rows, |row| row);
                matmul(cpu, packed_f32, &rows, from_ref(router), Output::Rows(logits));
            }
            None => logits.fill(0.0),
        }
        buffers.routing.route_given(logits, |token| given.of_token(token));
        let (routing, segments) = (&buffers.routing, buffers.routing.segments());
        buffers.used += segments.len() as u64;
        buffers.inputs.pack(cpu, normed, hidden, segments, |row| routing.source(row));
        let inner = Output::GateUp(&mut buffers.inner, config.intermediate_size);
        matmul(cpu, &buffers.inputs, segments, &layer.experts.gate_up, inner);
        let outputs = &mut buffers.outputs[..tokens * config.experts_per_token * hidden];
        matmul(cpu, &buffers.inner, segments, &layer.experts.down, Output::Rows(outputs));
        combine(cpu, routing, outputs, out, hidden);
    }

    /// `out = out * (1 - c) + shared(x) * c` with `c = sigmoid(x · coefficient)` in f32.
    fn shared_mlp(
        &self,
        shared: &SharedMlp,
        normed: &[f32],
        out: &mut [f32],
        packed_f32: &mut PackedRows,
        buffers: &mut ExpertBuffers,
    ) {
        let (cpu, hidden) = (&*self.cpu, self.config.hidden_size);
        let tokens = normed.len() / hidden;
        let rows = Segment::all(tokens);
        packed_f32.pack(cpu, normed, hidden, &rows, |row| row);
        let coefficients = &mut buffers.coefficients[..tokens];
        matmul(cpu, packed_f32, &rows, from_ref(&shared.coefficient), Output::Rows(coefficients));
        buffers.inputs.pack(cpu, normed, hidden, &rows, |row| row);
        let inner = Output::GateUp(&mut buffers.inner, self.config.shared_intermediate_size);
        matmul(cpu, &buffers.inputs, &rows, from_ref(&shared.gate_up), inner);
        let outputs = &mut buffers.outputs[..tokens * hidden];
        matmul(cpu, &buffers.inner, &rows, from_ref(&shared.down), Output::Rows(outputs));
        mix_shared(cpu, out, outputs, coefficients);
    }

    /// Final norm and logits of the rows that need them, from f32 activations.
    fn head<'w>(
        &self,
        batch: &Batch,
        workspace: &'w mut Workspace,
        observe: &mut dyn FnMut(Stage, &[f32]),
    ) -> &'w mut [f32] {
        let (cpu, config) = (&*self.cpu, &self.config);
        let (hidden, count) = (config.hidden_size, batch.logit_rows.len());
        let ws = workspace;
        let (gathered, normed) = (&mut ws.head_rows[..count * hidden], &mut ws.branch);
        for (row, target) in batch.logit_rows.iter().zip(gathered.chunks_exact_mut(hidden)) {
            target.copy_from_slice(&ws.x[*row as usize * hidden..][..hidden]);
        }
        let normed = &mut normed[..count * hidden];
        rms_norm(cpu, gathered, &self.final_norm, config.rms_norm_eps as f32, normed);
        observe(Stage::FinalNorm, normed);
        let rows = Segment::all(count);
        ws.packed_f32.pack(cpu, normed, hidden, &rows, |row| row);
        let logits = &mut ws.logits[..count * config.vocab_size];
        matmul(cpu, &ws.packed_f32, &rows, from_ref(&self.head), Output::Rows(logits));
        logits
    }
}

impl Workspace {
    fn set_spans(&mut self, batch: &Batch, cache: &Cache) {
        self.spans.clear();
        self.spans.extend(batch.spans.iter().map(|span| {
            let slot = cache.slot_index(span.sequence).expect("checked before");
            lightning::Span {
                first: span.tokens.start,
                rows: span.tokens.len(),
                position: cache.length_of(slot),
                slot,
            }
        }));
    }
}
