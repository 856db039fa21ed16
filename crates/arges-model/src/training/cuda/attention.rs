//! The attention block: its activations once more, and the gradients through it.

use arges_kernels::device::cuda::{Activations, CudaError};
use arges_kernels::lightning;
use arges_kernels::matmul::cuda::{DeviceRows, Output, Rows};
use arges_kernels::norm::cuda::{BranchGradient, Kept, Norm, NormBackward, Weighed};
use arges_kernels::softmax_attention;

use super::CudaTrainer;
use super::backward::{past, residual};
use super::buffers::RouterBuffers;
use super::kept::Insides;
use super::matrix::Matrix;
use super::sums::{Operands, Sums};
use crate::config::LIGHTNING_NORM_EPS;
use crate::model::cuda::Attention;
use crate::model::cuda::forward::{KeptAttention, Shape};
use crate::params::{LayerParam, Param};

impl CudaTrainer {
    /// Computes the block's activations from its input once more. Where its result was not kept, that is in the one
    /// middle and normed for the experts afterwards.
    pub(super) fn recompute_attention(&mut self, index: usize, shape: &Shape) -> Result<(), CudaError> {
        let Self { model, cache, workspace: ws, buffers, .. } = self;
        let (layer, config, rows) = (&model.layers[index], &model.config, shape.rows);
        let norm = Norm { weight: &layer.input_norm, epsilon: config.rms_norm_eps as f32 };
        let input = &buffers.inputs[index];
        let norms = &model.kernels.norms;
        norms.norm_rows(input, rows, norm, None, &mut ws.stream.normed)?;
        let attention = &mut buffers.attention;
        let kept = KeptAttention { raw: &mut attention.raw, lse: &mut attention.lse };
        model.attend(layer, shape, cache, ws, Some(kept))?;
        if buffers.keeps_middles() {
            return Ok(());
        }
        if let Activations::F32(input) = input {
            ws.stream.x.copy_from(0, input, 0, rows * config.hidden_size)?;
        }
        model.join_attention(layer, shape, ws, Kept { stream: buffers.middles.last_mut(), normed: None })
    }

    /// From the gradient by the block's output to that by its input, both in `dx`; and from that by its branch to that by
    /// the branch of the experts before it, both in `dbranch`. With `weighs_ahead` that is weighed for those too, if their
    /// choices were kept.
    pub(super) fn attention(
        &mut self,
        index: usize,
        shape: &Shape,
        weighs_ahead: bool,
    ) -> Result<(), CudaError> {
        let fresh = self.fresh;
        let Self { model, workspace: ws, buffers, parameters, gradients, adapters, cache, .. } = self;
        let mut sums = Sums { parameters, gradients, adapters: adapters.as_mut(), fresh };
        let (layer, config, rows) = (&model.layers[index], &model.config, shape.rows);
        let width = config.query_width();
        let (all, products) = (Rows::All(rows), &model.kernels.products);
        let kernels = &mut buffers.kernels;
        let transposed = &mut buffers.transposed;
        let (Attention::Lightning { out, .. } | Attention::Softmax { out, .. }) = &layer.attention;
        let scale = residual(config, &layer.attention);

        let attention = &mut buffers.attention;
        let dbranch = buffers.dbranch.as_ref().unwrap_or(&buffers.dx);
        let spans = &ws.inputs.spans.device;
        let span_count = shape.prefilling.len();
        let (matrix, dprojected) = match &layer.attention {
            Attention::Lightning { decays, qkv_gate, norm, .. } => {
                let stride = qkv_gate.outputs();
                let dprojected = attention.dprojected[0].as_mut().expect("made for every kind of layer");
                let output = Output::Rounded(&mut attention.dgated);
                kernels.products.inputs(products, out, dbranch, all, output, transposed)?;
                let norm = Norm { weight: norm, epsilon: LIGHTNING_NORM_EPS as f32 };
                kernels.stream.gated_norm_backward(
                    &ws.attended,
                    rows,
                    (&ws.projected, 3 * width, stride),
                    norm,
                    &attention.dgated,
                    &mut attention.dattended,
                    dprojected.data_mut(),
                    sums.norm(Param::Layer(index, LayerParam::LightningNorm)),
                )?;
                let inputs = lightning::cuda::BackwardInputs {
                    decays,
                    projected: &ws.projected,
                    before_silu: Some(&attention.raw),
                    stride,
                    spans,
                    first_span: 0,
                    span_count,
                    dout: &attention.dattended,
                };
                let kernel = kernels.lightning.as_ref().expect("made for every kind of layer");
                kernel.gradients(&inputs, dprojected.data_mut())?;
                (qkv_gate, dprojected)
            }
            Attention::Softmax { index, qkv, .. } => {
                let dprojected = attention.dprojected[1].as_mut().expect("made for every kind of layer");
                let output = Output::Rounded(&mut attention.dattended);
                kernels.products.inputs(products, out, dbranch, all, output, transposed)?;
                let inputs = softmax_attention::cuda::BackwardInputs {
                    projected: &ws.projected,
                    stride: qkv.outputs(),
                    inputs: softmax_attention::cuda::Inputs {
                        rows,
                        spans,
                        first_span: 0,
                        span_count,
                        tables: &cache.tables.device,
                        table_stride: cache.tables.stride,
                    },
                    angles: &ws.angles,
                    pages: &cache.pages[*index % cache.pages.len()],
                    out: ws.mixed.data(),
                    lse: &attention.lse,
                    dout: &attention.dattended,
                };
                let kernel = kernels.softmax.as_mut().expect("made for every kind of layer");
                kernel.gradients(&inputs, dprojected.data_mut())?;
                (qkv, dprojected)
            }
        };
        let input = &buffers.inputs[index];
        let norm = Norm { weight: &layer.input_norm, epsilon: config.rms_norm_eps as f32 };
        let normed = match &buffers.insides {
            Some(insides) => &insides[index].input,
            None => {
                // The experts have normed another stream over it.
                model.kernels.norms.norm_rows(input, rows, norm, None, &mut ws.stream.normed)?;
                &ws.stream.normed
            }
        };
        let of_two = [
            (Matrix::Projections, Operands { dy: dprojected, x: normed }),
            (Matrix::Out, Operands { dy: dbranch, x: &ws.mixed }),
        ];
        sums.add_two(index, of_two, rows, products, &mut kernels.products)?;
        let output = Output::Rounded(&mut buffers.dproduct);
        kernels.products.inputs(products, matrix, dprojected, all, output, transposed)?;
        let scaled = buffers.dbranch.as_mut().filter(|_| index > 0);
        let before = buffers.insides.as_ref().filter(|_| weighs_ahead).map(|insides| &insides[index - 1]);
        let RouterBuffers { dout, shared_dout, .. } = &mut buffers.router;
        let weighed = before.and_then(Insides::choices).map(|(routing, coefficients)| Weighed {
            places: &routing.places,
            weights: &routing.weights,
            out: dout.data_mut(),
            shared: coefficients.zip(shared_dout.as_mut().map(DeviceRows::data_mut)),
        });
        kernels.stream.norm_backward(NormBackward {
            x: input,
            rows,
            norm,
            past: past(config, scale),
            gradient: BranchGradient::Rows(&buffers.dproduct).into(),
            dx: buffers.dx.data_mut(),
            scaled: scaled.map(|dbranch| (config.mlp.beta, dbranch.data_mut())),
            weighed,
            sums: sums.norm(Param::Layer(index, LayerParam::InputNorm)),
        })
    }
}
