//! The block of experts: its activations once more, and the gradients through it.
//!
//! With `g = dout · Wdown` for the inputs of an expert's down projection, the derivative by the weight of a
//! choice is `inner · g`: neither the outputs of the experts nor their sum is computed again. A shared MLP is
//! an expert of every token, with its own weight.

use std::slice::from_ref;

use arges_kernels::matmul::{Columns, Output, PackedMatrix, Segment, input_gradient, matmul};
use arges_kernels::moe::{
    BalanceLoss, router_backward, scatter_add, shared_weights, shared_weights_backward, swiglu,
    swiglu_backward, weigh_backward,
};
use arges_kernels::norm::{rms_norm, scaled};

use super::Pass;
use crate::model::Layer;
use crate::params::{LayerParam, Param};
use crate::training::buffers::{LayerBuffers, panel_width};

/// Matrices that rows of tokens go through, and the parameters in them.
struct Mlps<'a> {
    layer: usize,
    inner: usize,
    gate_up: &'a [PackedMatrix],
    down: &'a [PackedMatrix],
    /// Gate, up and down of matrix `i`.
    params: &'a dyn Fn(usize) -> [LayerParam; 3],
}

impl Pass<'_> {
    /// From the gradient by the block's output to that by its input, both in `dx`.
    pub(super) fn experts(
        &mut self,
        index: usize,
        balance: f32,
        loss: &BalanceLoss,
        buffers: &mut LayerBuffers,
        dx: &mut [f32],
    ) {
        let (model, cpu, config) = (self.model, self.cpu, self.model.config());
        let (layer, hidden, tokens) = (&model.layers[index], config.hidden_size, self.tokens);
        let scale = config.mlp;
        let normed = &mut buffers.expert_input[..tokens * hidden];
        rms_norm(
            cpu,
            &buffers.middle[..tokens * hidden],
            &layer.post_attention_norm,
            config.rms_norm_eps as f32,
            normed,
        );
        scaled(cpu, dx, scale.beta, &mut buffers.branch[..tokens * hidden]);
        let dnormed = &mut buffers.dnormed[..tokens * hidden];
        if config.postnorm {
            scaled(cpu, dx, scale.alpha, dnormed);
        } else {
            dnormed.fill(0.0);
        }
        self.route(index, layer, buffers);
        self.routed(index, layer, buffers);
        if layer.shared.is_some() {
            self.shared(index, layer, buffers);
        }
        self.router(index, layer, balance, loss, buffers);
        let LayerBuffers { middle, dnormed, branch, .. } = buffers;
        let len = tokens * hidden;
        let param = Param::Layer(index, LayerParam::PostAttentionNorm);
        self.norm_block(param, &middle[..len], &dnormed[..len], scale.alpha, &mut branch[..len], dx);
    }

    /// The tokens' experts, and the shared MLP's weight.
    fn route(&self, index: usize, layer: &Layer, buffers: &mut LayerBuffers) {
        let (cpu, config, tokens) = (self.cpu, self.model.config(), self.tokens);
        let rows = Segment::all(tokens);
        let normed = &buffers.expert_input[..tokens * config.hidden_size];
        buffers.packed_f32.pack(cpu, normed, config.hidden_size, &rows, |row| row);
        let experts = &mut buffers.experts;
        let logits = &mut experts.logits[..tokens * config.num_experts];
        match &layer.experts.router {
            Some(router) => {
                matmul(cpu, &buffers.packed_f32, &rows, from_ref(router), Output::Rows(logits));
            }
            None => logits.fill(0.0),
        }
        let given = self.given.of_layer(index, config);
        experts.routing.route_given(logits, |token| given.of_token(token));
        if let Some(shared) = &layer.shared {
            let coefficients = &mut experts.coefficients[..tokens];
            let matrix = from_ref(&shared.coefficient);
            matmul(cpu, &buffers.packed_f32, &rows, matrix, Output::Rows(coefficients));
            shared_weights(coefficients);
        }
    }

    /// The experts of a mixture. Leaves the derivatives by the weights of the choices in `dweights`.
    fn routed(&mut self, index: usize, layer: &Layer, buffers: &mut LayerBuffers) {
        let config = self.model.config();
        let choices = self.tokens * config.experts_per_token;
        let experts = &mut buffers.experts;
        let (routing, weights) = (&experts.routing, &mut experts.weights[..choices]);
        // What a choice contributes: its weight, and what the shared MLP leaves.
        let shares = layer.shared.as_ref().map(|_| &experts.coefficients[..self.tokens]);
        routing.row_weights(shares, weights);
        let segments = routing.segments().to_vec();
        let sources: Vec<u32> = (0..choices).map(|row| routing.source(row) as u32).collect();
        let params = |e| [LayerParam::ExpertGate(e), LayerParam::ExpertUp(e), LayerParam::ExpertDown(e)];
        let mlps = Mlps {
            layer: index,
            inner: config.intermediate_size,
            gate_up: &layer.experts.gate_up,
            down: &layer.experts.down,
            params: &params,
        };
        self.mlps(&mlps, &segments, &sources, buffers);
        let experts = &mut buffers.experts;
        experts.routing.choice_order(&experts.dots[..choices], &mut experts.dweights[..choices]);
        let dnormed = &mut buffers.dnormed[..self.tokens * config.hidden_size];
        scatter_add(self.cpu, &experts.routing, &experts.dinputs, dnormed, config.hidden_size);
    }

    /// The shared MLP, after the experts: `out = moe * (1 - c) + shared * c`.
    fn shared(&mut self, index: usize, layer: &Layer, buffers: &mut LayerBuffers) {
        let Some(shared) = &layer.shared else { return };
        let (config, tokens) = (self.model.config(), self.tokens);
        let hidden = config.hidden_size;
        let experts = &mut buffers.experts;
        experts.weights[..tokens].copy_from_slice(&experts.coefficients[..tokens]);
        let sources: Vec<u32> = (0..tokens as u32).collect();
        let params = |_| [LayerParam::SharedGate, LayerParam::SharedUp, LayerParam::SharedDown];
        let mlps = Mlps {
            layer: index,
            inner: config.shared_intermediate_size,
            gate_up: from_ref(&shared.gate_up),
            down: from_ref(&shared.down),
            params: &params,
        };
        self.mlps(&mlps, &Segment::all(tokens), &sources, buffers);
        let LayerBuffers { experts, dnormed, expert_input, packed_f32, product_f32, .. } = buffers;
        let dnormed = &mut dnormed[..tokens * hidden];
        for (sum, value) in dnormed.iter_mut().zip(&experts.dinputs[..tokens * hidden]) {
            *sum += value;
        }
        let dcoefficients = &mut experts.dcoefficients[..tokens];
        let coefficients = &experts.coefficients[..tokens];
        let choices = tokens * config.experts_per_token;
        let dweights = &mut experts.dweights[..choices];
        shared_weights_backward(
            &experts.routing,
            coefficients,
            &experts.dots[..tokens],
            dweights,
            dcoefficients,
        );
        let param = Param::Layer(index, LayerParam::SharedCoefficient);
        self.weight_gradients(&[param], &expert_input[..tokens * hidden], dcoefficients, 1, product_f32);
        let mut transposed = PackedMatrix::zeroed(1, 1, shared.coefficient.element());
        self.input_gradient(
            dcoefficients,
            &shared.coefficient,
            packed_f32,
            &mut transposed,
            Output::Add(dnormed),
        );
    }

    /// Rows of tokens `sources` through an MLP for each segment, and back. Puts the derivative by each row's
    /// weight into `dots` and the gradient by each row's input into `dinputs`.
    fn mlps(&mut self, mlps: &Mlps<'_>, segments: &[Segment], sources: &[u32], buffers: &mut LayerBuffers) {
        let (cpu, hidden) = (self.cpu, self.model.config().hidden_size);
        let (rows, inner_width) = (sources.len(), mlps.inner);
        let wide = panel_width(inner_width);
        let normed = &buffers.expert_input[..self.tokens * hidden];
        let dout = &buffers.branch[..self.tokens * hidden];
        let source = |row: usize| sources[row] as usize;
        let experts = &mut buffers.experts;
        let packed = &mut experts.packed;
        let (pre, dpre) = (&mut experts.pre[..rows * wide], &mut experts.dpre[..rows * wide]);
        let (inner, dinner) =
            (&mut experts.inner[..rows * inner_width], &mut experts.dinner[..rows * inner_width]);
        packed.pack(cpu, normed, hidden, segments, source);
        matmul(cpu, packed, segments, mlps.gate_up, Output::Rows(pre));
        packed.pack(cpu, dout, hidden, segments, source);
        input_gradient(cpu, packed, segments, mlps.down, &mut buffers.transposed, Output::Rows(dinner));
        swiglu(cpu, pre, inner, inner_width);
        weigh_backward(cpu, &experts.weights[..rows], inner, dinner, &mut experts.dots[..rows]);
        swiglu_backward(cpu, pre, dinner, dpre, inner_width);
        packed.pack(cpu, dpre, wide, segments, |row| row);
        let dinputs = Output::Rows(&mut experts.dinputs[..rows * hidden]);
        input_gradient(cpu, packed, segments, mlps.gate_up, &mut buffers.transposed, dinputs);
        let product = &mut buffers.product;
        for segment in segments {
            let of_segment = segment.first..segment.first + segment.rows;
            let [gate, up, down] = (mlps.params)(segment.matrix).map(|param| Param::Layer(mlps.layer, param));
            let tokens = &sources[of_segment.clone()];
            if self.parameters.learns(down) {
                let of_rows = of_segment.start * inner_width..of_segment.end * inner_width;
                product.set_inputs(cpu, Columns::all(&inner[of_rows], inner_width, segment.rows));
                self.parameters.accumulate(cpu, down, |gradient| {
                    product.add(cpu, Columns::gathered(dout, hidden, tokens), gradient);
                });
            }
            if self.parameters.learns(gate) || self.parameters.learns(up) {
                let dpre = &dpre[of_segment.start * wide..of_segment.end * wide];
                product.set_inputs(cpu, Columns::gathered(normed, hidden, tokens));
                self.parameters.accumulate(cpu, gate, |gradient| {
                    product.add(cpu, Columns::gate(dpre, inner_width, segment.rows), gradient);
                });
                self.parameters.accumulate(cpu, up, |gradient| {
                    product.add(cpu, Columns::up(dpre, inner_width, segment.rows), gradient);
                });
            }
        }
    }

    /// Through the router, with the load-balancing loss.
    fn router(
        &mut self,
        index: usize,
        layer: &Layer,
        balance: f32,
        loss: &BalanceLoss,
        buffers: &mut LayerBuffers,
    ) {
        let Some(router) = &layer.experts.router else { return };
        let (config, tokens) = (self.model.config(), self.tokens);
        let LayerBuffers { experts, dnormed, expert_input, packed_f32, product_f32, .. } = buffers;
        let choices = tokens * config.experts_per_token;
        let dlogits = &mut experts.dlogits[..tokens * config.num_experts];
        router_backward(&experts.routing, &experts.dweights[..choices], dlogits);
        if balance != 0.0 {
            loss.add_gradient(self.cpu, &experts.logits[..dlogits.len()], balance, dlogits);
        }
        let normed = &expert_input[..tokens * config.hidden_size];
        let param = Param::Layer(index, LayerParam::Router);
        self.weight_gradients(&[param], normed, dlogits, config.num_experts, product_f32);
        let dnormed = &mut dnormed[..tokens * config.hidden_size];
        let mut transposed = PackedMatrix::zeroed(1, 1, router.element());
        self.input_gradient(dlogits, router, packed_f32, &mut transposed, Output::Add(dnormed));
    }
}
