//! The attention block: its activations once more, and the gradients through it.

use std::slice::from_ref;

use arges_kernels::lightning::{lightning_attention, lightning_attention_backward};
use arges_kernels::matmul::{Output, Segment, matmul};
use arges_kernels::norm::{gated_rms_norm, gated_rms_norm_backward, rms_norm, rms_norm_backward, scaled};
use arges_kernels::rope::Angles;
use arges_kernels::softmax_attention::{self, softmax_attention, softmax_attention_backward};

use super::{Pass, norm_gradient};
use crate::cache::{Cache, lightning_shape, softmax_shape};
use crate::config::LIGHTNING_NORM_EPS;
use crate::model::Attention;
use crate::params::{LayerParam, Param};
use crate::training::buffers::LayerBuffers;

impl Pass<'_> {
    /// Computes the block's activations from its input, as the forward pass did; where projections and result were
    /// kept, they are in the buffers already.
    pub(super) fn recompute_attention(
        &self,
        index: usize,
        input: &[f32],
        kept: bool,
        cache: &mut Cache,
        angles: &Angles,
        buffers: &mut LayerBuffers,
    ) {
        let (model, cpu, config) = (self.model, self.cpu, self.model.config());
        let (layer, tokens) = (&model.layers[index], self.tokens);
        let (hidden, width) = (config.hidden_size, config.query_width());
        let rows = Segment::all(tokens);
        let normed = &mut buffers.attention_input[..tokens * hidden];
        rms_norm(cpu, input, &layer.input_norm, config.rms_norm_eps as f32, normed);
        if !kept {
            buffers.packed.pack(cpu, normed, hidden, &rows, |row| row);
        }
        let attended = &mut buffers.attended[..tokens * width];
        let (out, gated, scale) = match &layer.attention {
            Attention::Lightning { index, decays, qkv_gate, norm, out } => {
                let stride = qkv_gate.outputs();
                let projected = &mut buffers.projected[..tokens * stride];
                if !kept {
                    matmul(cpu, &buffers.packed, &rows, from_ref(qkv_gate), Output::Rows(projected));
                }
                lightning_attention(
                    cpu,
                    lightning_shape(config),
                    decays,
                    projected,
                    stride,
                    self.spans,
                    &mut cache.states[*index],
                    attended,
                    &mut buffers.scratch,
                );
                let gated = &mut buffers.gated[..tokens * width];
                gated.copy_from_slice(attended);
                let gate = &projected[3 * width..];
                gated_rms_norm(cpu, gated, gate, stride, norm, LIGHTNING_NORM_EPS as f32);
                (out, &*gated, config.lightning)
            }
            Attention::Softmax { index, qkv, out } => {
                let projected = &mut buffers.projected[..tokens * qkv.outputs()];
                if !kept {
                    matmul(cpu, &buffers.packed, &rows, from_ref(qkv), Output::Rows(projected));
                }
                let spans = page_spans(self.spans, self.pages);
                softmax_attention(
                    cpu,
                    softmax_shape(config),
                    projected,
                    angles,
                    spans.iter().copied(),
                    &mut cache.pages[*index],
                    attended,
                    Some(&mut buffers.lse[..tokens * config.num_heads]),
                    &mut buffers.scratch,
                );
                (out, &*attended, config.softmax)
            }
        };
        if kept {
            return;
        }
        buffers.packed.pack(cpu, gated, width, &rows, |row| row);
        let branch = &mut buffers.branch[..tokens * hidden];
        matmul(cpu, &buffers.packed, &rows, from_ref(out), Output::Rows(branch));
        let middle = &mut buffers.middle[..tokens * hidden];
        middle.copy_from_slice(input);
        model.join(middle, normed, branch, scale);
    }

    /// From the gradient by the block's output to that by its input, both in `dx`.
    pub(super) fn attention(
        &mut self,
        index: usize,
        input: &[f32],
        angles: &Angles,
        buffers: &mut LayerBuffers,
        dx: &mut [f32],
    ) {
        let (model, cpu, config) = (self.model, self.cpu, self.model.config());
        let (layer, tokens) = (&model.layers[index], self.tokens);
        let (hidden, width) = (config.hidden_size, config.query_width());
        let param = |param| Param::Layer(index, param);
        let (out, out_param, scale) = match &layer.attention {
            Attention::Lightning { out, .. } => (out, LayerParam::LightningOut, config.lightning),
            Attention::Softmax { out, .. } => (out, LayerParam::Output, config.softmax),
        };
        let LayerBuffers { packed, transposed, product, .. } = buffers;
        let dbranch = &mut buffers.branch[..tokens * hidden];
        scaled(cpu, dx, scale.beta, dbranch);
        let gated = match &layer.attention {
            Attention::Lightning { .. } => &buffers.gated[..tokens * width],
            Attention::Softmax { .. } => &buffers.attended[..tokens * width],
        };
        self.weight_gradients(&[param(out_param)], gated, dbranch, hidden, product);
        let dgated = &mut buffers.dgated[..tokens * width];
        self.input_gradient(dbranch, out, packed, transposed, Output::Rows(dgated));
        let attended = &buffers.attended[..tokens * width];
        let normed = &buffers.attention_input[..tokens * hidden];
        let dnormed = &mut buffers.dnormed[..tokens * hidden];
        if config.postnorm {
            scaled(cpu, dx, scale.alpha, dnormed);
        } else {
            dnormed.fill(0.0);
        }
        match &layer.attention {
            Attention::Lightning { decays, qkv_gate, norm, .. } => {
                let stride = qkv_gate.outputs();
                let projected = &buffers.projected[..tokens * stride];
                let dprojected = &mut buffers.dprojected[..tokens * stride];
                let dattended = &mut buffers.dattended[..tokens * width];
                let (gate, eps) = (&projected[3 * width..], LIGHTNING_NORM_EPS as f32);
                norm_gradient(self.parameters, cpu, param(LayerParam::LightningNorm), width, |dnorm| {
                    let dgate = &mut dprojected[3 * width..];
                    gated_rms_norm_backward(
                        cpu, attended, gate, stride, norm, eps, dgated, dattended, dgate, dnorm,
                    );
                });
                lightning_attention_backward(
                    cpu,
                    lightning_shape(config),
                    decays,
                    projected,
                    stride,
                    self.spans,
                    dattended,
                    dprojected,
                    &mut buffers.scratch,
                );
                let params = [param(LayerParam::LightningQkv), param(LayerParam::LightningGate)];
                self.weight_gradients(&params, normed, dprojected, stride, product);
                self.input_gradient(dprojected, qkv_gate, packed, transposed, Output::Add(dnormed));
            }
            Attention::Softmax { qkv, .. } => {
                let stride = qkv.outputs();
                let dprojected = &mut buffers.dprojected[..tokens * stride];
                let forward = softmax_attention::Forward {
                    qkv: &buffers.projected[..tokens * stride],
                    angles,
                    out: attended,
                    lse: &buffers.lse[..tokens * config.num_heads],
                    element: model.cache_element(),
                };
                softmax_attention_backward(
                    cpu,
                    softmax_shape(config),
                    forward,
                    self.spans.iter().map(|span| span.first..span.first + span.rows),
                    dgated,
                    dprojected,
                    &mut buffers.softmax,
                );
                let params = [LayerParam::Query, LayerParam::Key, LayerParam::Value].map(param);
                self.weight_gradients(&params, normed, dprojected, stride, product);
                self.input_gradient(dprojected, qkv, packed, transposed, Output::Add(dnormed));
            }
        }
        self.norm_block(param(LayerParam::InputNorm), input, dnormed, scale.alpha, dbranch, dx);
    }

    /// The last step back through a block: its norm, and the residual past it where the base is not normed.
    /// `room` is overwritten.
    pub(super) fn norm_block(
        &mut self,
        param: Param,
        x: &[f32],
        dnormed: &[f32],
        alpha: f32,
        room: &mut [f32],
        dx: &mut [f32],
    ) {
        let (model, cpu, config) = (self.model, self.cpu, self.model.config());
        let Param::Layer(index, kind) = param else { unreachable!("norms of blocks are in layers") };
        let weight = match kind {
            LayerParam::InputNorm => &model.layers[index].input_norm,
            _ => &model.layers[index].post_attention_norm,
        };
        let eps = config.rms_norm_eps as f32;
        norm_gradient(self.parameters, cpu, param, weight.len(), |dweight| {
            rms_norm_backward(cpu, x, weight, eps, dnormed, room, dweight);
        });
        if config.postnorm {
            dx.copy_from_slice(room);
        } else {
            arges_kernels::norm::residual(cpu, dx, None, alpha, room, 1.0);
        }
    }
}

/// Spans of softmax attention over pages that lie one after the other.
fn page_spans<'a>(
    spans: &[arges_kernels::lightning::Span],
    pages: &'a [u32],
) -> Vec<softmax_attention::Span<'a>> {
    let mut next = 0;
    let spans = spans.iter().map(|span| {
        let count = span.rows.div_ceil(softmax_attention::PAGE);
        let of_span = &pages[next..next + count];
        next += count;
        softmax_attention::Span { first: span.first, rows: span.rows, position: 0, pages: of_span }
    });
    spans.collect()
}
