//! The block of experts: its activations once more where they were not kept, and the gradients through it. A shared MLP
//! is an expert of every token, with its own weight.

use arges_kernels::device::cuda::{Activations, Buffer, CudaError};
use arges_kernels::matmul::cuda::{
    Columns, DeviceMatrix, DeviceRows, Output, ProductGradients, Products, Rows,
};
use arges_kernels::moe::cuda::{MixtureGradients, SharedRows, Swiglu};
use arges_kernels::norm::cuda::{BranchGradient, Norm, NormBackward, NormSums, NormedGradient};

use super::CudaTrainer;
use super::backward::{past, residual};
use super::buffers::{MlpBuffers, RouterBuffers};
use super::matrix::Matrix;
use super::sums::{Operands, Sums};
use crate::model::cuda::workspace::SharedBuffers;
use crate::params::{LayerParam, Param};

/// Matrices of a layer that rows go through.
struct Mlps<'a> {
    products: &'a Products,
    gate_up: &'a DeviceMatrix,
    down: &'a DeviceMatrix,
    /// Inner width.
    inner: usize,
    layer: usize,
    /// Which these two are.
    which: [Matrix; 2],
    inputs: &'a DeviceRows,
    /// Gradient by the outputs, a row for each of the inputs, times what the row is weighed with.
    dout: &'a DeviceRows,
    rows: Rows<'a>,
    /// Whether gates and ups and inner activations were kept.
    kept: bool,
}

impl Mlps<'_> {
    /// Puts the derivative by each row's weight, times that, into `dots` and the gradient by each row's input into
    /// `dinputs`.
    fn backward(
        &self,
        mixture: &MixtureGradients,
        gradient_products: &mut ProductGradients,
        transposed: &mut DeviceMatrix,
        sums: &mut Sums<'_>,
        inner: &mut DeviceRows,
        buffers: &mut MlpBuffers,
    ) -> Result<(), CudaError> {
        let (end, most) = match self.rows {
            Rows::All(rows) => (None, rows),
            Rows::Grouped { offsets, most } => (Some((offsets, offsets.len() - 1)), most),
        };
        if !self.kept {
            let gated = Output::Gated { out: inner.data_mut(), before: Some(&mut buffers.pre) };
            self.products.run(self.gate_up, self.inputs, self.rows, gated)?;
        }
        let output = Output::Rounded(&mut buffers.dinner);
        gradient_products.inputs(self.products, self.down, self.dout, self.rows, output, transposed)?;
        mixture.swiglu_backward(Swiglu {
            pre: &buffers.pre,
            dinner: &buffers.dinner,
            end,
            rows: most,
            width: self.inner,
            dpre: buffers.dpre.data_mut(),
            dots: &mut buffers.dots,
        })?;
        let output = Output::Rounded(&mut buffers.dinputs);
        gradient_products.inputs(
            self.products,
            self.gate_up,
            &buffers.dpre,
            self.rows,
            output,
            transposed,
        )?;
        let [gate_up, down] = self.which;
        let of_down = Operands { dy: self.dout, x: inner };
        sums.add(self.layer, down, of_down, self.rows, self.products, gradient_products)?;
        let of_gate_up = Operands { dy: &buffers.dpre, x: self.inputs };
        sums.add(self.layer, gate_up, of_gate_up, self.rows, self.products, gradient_products)
    }
}

impl CudaTrainer {
    /// From the gradient by the block's output to that by its input, both in `dx`; and from that by its branch to that by
    /// the attention's, both in `dbranch`. With `weighed` the former has been weighed for the choices.
    pub(super) fn experts(
        &mut self,
        index: usize,
        rows: usize,
        balanced: bool,
        weighed: bool,
    ) -> Result<(), CudaError> {
        let fresh = self.fresh;
        let Self { model, workspace: ws, buffers, parameters, gradients, adapters, .. } = self;
        let mut sums = Sums { parameters, gradients, adapters: adapters.as_mut(), fresh };
        let (layer, config) = (&model.layers[index], &model.config);
        let (hidden, scale, all) = (config.hidden_size, config.mlp, Rows::All(rows));
        let kept = buffers.insides.is_some();
        let param = |param| Param::Layer(index, param);
        let norm = Norm { weight: &layer.post_attention_norm, epsilon: config.rms_norm_eps as f32 };
        let middle = &buffers.middles[index % buffers.middles.len()];
        if buffers.norms_experts_again || buffers.keeps_middles() && !kept {
            let exact = buffers.exact_normed.as_mut();
            model.kernels.norms.norm_rows(middle, rows, norm, exact, &mut ws.stream.normed)?;
        }
        let exact_normed = buffers.exact_normed.as_ref().map(|normed| Columns::all(normed, hidden));
        let (kernels, products) = (&mut buffers.kernels, &model.kernels.products);
        let dbranch = buffers.dbranch.as_ref().unwrap_or(&buffers.dx);

        // The shared MLP's coefficients are needed for the experts' weights.
        let shared = match (&layer.shared, &mut ws.experts.shared, &model.kernels.coefficient) {
            (Some(mlp), Some(shared), Some(kernel)) => {
                let SharedBuffers { inner, coefficients, .. } = shared;
                if !kept {
                    kernel.logits(&ws.stream.normed, rows, &mlp.coefficient, coefficients)?;
                }
                Some((mlp, &*coefficients, inner))
            }
            _ => None,
        };
        let coefficients = shared.as_ref().map(|(_, coefficients, _)| *coefficients);
        let routing = match (&layer.experts.router, &model.kernels.router) {
            (Some(weights), Some(router)) => {
                let (routing, active) = (&mut ws.experts.routing, &ws.inputs.active.device);
                if !kept {
                    router.route(&ws.stream.normed, rows, active, weights, routing)?;
                    router.gather(&ws.stream.normed, rows, routing, &mut ws.experts.inputs)?;
                }
                let RouterBuffers { dout, shared_dout, .. } = &mut buffers.router;
                let shared = coefficients
                    .zip(shared_dout.as_mut())
                    .map(|(coefficients, dout)| SharedRows { coefficients, dout });
                if !weighed {
                    kernels.mixture.weigh(dbranch, routing, rows, shared, dout)?;
                }
                Some((weights, &ws.experts.routing))
            }
            _ => None,
        };
        let mut mlps = Mlps {
            products,
            gate_up: &layer.experts.gate_up,
            down: &layer.experts.down,
            inner: config.intermediate_size,
            layer: index,
            which: [Matrix::GateUp, Matrix::Down],
            inputs: &ws.stream.normed,
            dout: dbranch,
            rows: all,
            kept,
        };
        if let Some((_, routing)) = routing {
            mlps.inputs = &ws.experts.inputs;
            mlps.dout = &buffers.router.dout;
            mlps.rows = Rows::Grouped { offsets: &routing.offsets, most: rows * config.experts_per_token };
        }
        let transposed = &mut buffers.transposed;
        let of_experts = if routing.is_some() { &mut kernels.experts } else { &mut kernels.products };
        let (inner, memory) = (&mut ws.experts.inner, &mut buffers.routed);
        mlps.backward(&kernels.mixture, of_experts, transposed, &mut sums, inner, memory)?;

        let coefficient_weight = shared.as_ref().map(|(mlp, ..)| &mlp.coefficient);
        if let (Some((mlp, coefficients, inner)), Some(shared)) = (shared, &mut buffers.shared) {
            let mlps = Mlps {
                products,
                gate_up: &mlp.gate_up,
                down: &mlp.down,
                inner: config.shared_intermediate_size,
                layer: index,
                which: [Matrix::SharedGateUp, Matrix::SharedDown],
                inputs: &ws.stream.normed,
                dout: buffers.router.shared_dout.as_ref().expect("made for models with a shared MLP"),
                rows: all,
                kept,
            };
            let of_products = &mut kernels.products;
            mlps.backward(&kernels.mixture, of_products, transposed, &mut sums, inner, shared)?;
            if let Some((_, routing)) = routing {
                let (dots, shared_dots) = (&buffers.routed.dots, &shared.dots);
                let out = &mut buffers.router.dcoefficients;
                kernels.mixture.shared_backward(routing, rows, dots, shared_dots, coefficients, out)?;
            }
            let dcoefficients = &buffers.router.dcoefficients;
            if let Some(at) = sums.place(param(LayerParam::SharedCoefficient)) {
                let x = exact_normed.expect("made for models with a shared MLP");
                kernels.products.weights(Columns::all(dcoefficients, 1), x, all, false, at)?;
            }
        }
        let mut choices = None;
        if let Some((weights, routing)) = routing {
            let RouterBuffers { dlogits, dinput, .. } = &mut buffers.router;
            let (dots, balance) = (&buffers.routed.dots, balanced.then_some(&buffers.balance));
            let out = dlogits.data_mut();
            kernels.mixture.router_backward(routing, rows, dots, balance, out)?;
            if let Some(at) = sums.place(param(LayerParam::Router)).filter(|_| !kernels.stream.sums_router())
            {
                let dy = Columns::all(dlogits.data(), config.num_experts);
                let x = exact_normed.expect("made for routers whose gradient is a product");
                kernels.products.weights(dy, x, all, false, at)?;
            }
            if let Some((transposed, dinput)) = dinput {
                kernels.products.transpose_small(weights, config.num_experts, hidden, transposed)?;
                products.run(transposed, dlogits, all, Output::F32(dinput))?;
            }
            choices = Some(&routing.places);
        }
        let router = match (routing, buffers.router.dlogits.data()) {
            (Some((weights, _)), Activations::F32(dlogits)) if buffers.router.dinput.is_none() => {
                Some((dlogits, exact(weights)))
            }
            _ => None,
        };
        let coefficient = coefficient_weight.map(|weight| (&buffers.router.dcoefficients, exact(weight)));
        let dinputs = &buffers.routed.dinputs;
        let gradient = NormedGradient {
            branch: choices.map_or(BranchGradient::Rows(dinputs), |at| BranchGradient::Choices(dinputs, at)),
            more: buffers.shared.as_ref().map(|shared| &shared.dinputs),
            exact: choices.and(buffers.router.dinput.as_ref()).map(|(_, dinput)| dinput),
            outer: [router, coefficient],
        };
        let beta = residual(config, &layer.attention).beta;
        let summed = kernels.stream.sums_router() && routing.is_some();
        let outer_at = if summed { sums.at(param(LayerParam::Router)) } else { None };
        kernels.stream.norm_backward(NormBackward {
            x: middle,
            rows,
            norm,
            past: past(config, scale),
            gradient,
            dx: buffers.dx.data_mut(),
            scaled: buffers.dbranch.as_mut().map(|dbranch| (beta, dbranch.data_mut())),
            weighed: None,
            sums: NormSums { outer_at, ..sums.norm(param(LayerParam::PostAttentionNorm)) },
        })
    }
}

/// Weights that the model may not round.
fn exact(weights: &Activations) -> &Buffer<f32> {
    match weights {
        Activations::F32(weights) => weights,
        Activations::Bf16(_) => unreachable!("a weight that learns is f32 where the model may not round it"),
    }
}
