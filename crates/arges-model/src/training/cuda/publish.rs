//! From the flat values on the device to the model's weights there.

use arges_kernels::device::cuda::{Buffer, CudaError};
use arges_kernels::matmul::cuda::{DeviceMatrix, GATE_GROUP, ProductGradients};

use crate::model::cuda::{Attention, CudaModel, Layer};
use crate::params::{LayerParam, Param};
use crate::training::Parameters;

/// Copies all values into a model of the same configuration.
pub(super) fn pack(
    model: &mut CudaModel,
    parameters: &Parameters,
    values: &Buffer<f32>,
    kernels: &ProductGradients,
) -> Result<(), CudaError> {
    let packer = Packer { parameters, values, kernels };
    let CudaModel { config, embedding, layers, final_norm, head, .. } = model;
    let shape = [config.vocab_size, config.hidden_size];
    let from = (values, parameters.place(Param::Embedding), 0);
    kernels.pack(1, shape, from, (embedding, 0, 0), shape[0], 0)?;
    packer.matrix(Param::Head, head)?;
    packer.vector(Param::FinalNorm, final_norm)?;
    layers.iter_mut().enumerate().try_for_each(|(index, layer)| packer.layer(index, layer))
}

struct Packer<'a> {
    parameters: &'a Parameters,
    values: &'a Buffer<f32>,
    kernels: &'a ProductGradients,
}

impl Packer<'_> {
    fn vector(&self, param: Param, to: &mut Buffer<f32>) -> Result<(), CudaError> {
        let len = to.len();
        to.copy_from(0, self.values, self.parameters.place(param), len)
    }

    /// A matrix whose parameters lie one behind the other, from `first` on.
    fn matrix(&self, first: Param, to: &mut DeviceMatrix) -> Result<(), CudaError> {
        let shape = [to.outputs(), to.k()];
        let from = (self.values, self.parameters.place(first), 0);
        self.kernels.pack(1, shape, from, (to.data_mut(), 0, 0), shape[0], 0)
    }

    /// Gates and ups of all of a matrix's experts in turn, and their down projections. `stride` values lie between one
    /// expert and the next.
    fn mlps(
        &self,
        [gate, up, down]: [Param; 3],
        stride: usize,
        gate_up: &mut DeviceMatrix,
        downs: &mut DeviceMatrix,
    ) -> Result<(), CudaError> {
        let (experts, inner, hidden) = (gate_up.experts(), gate_up.outputs() / 2, gate_up.k());
        let matrix = 2 * inner * hidden;
        for (half, param) in [gate, up].into_iter().enumerate() {
            let from = (self.values, self.parameters.place(param), stride);
            let to = (gate_up.data_mut(), half * GATE_GROUP * hidden, matrix);
            self.kernels.pack(experts, [inner, hidden], from, to, GATE_GROUP, GATE_GROUP)?;
        }
        let from = (self.values, self.parameters.place(down), stride);
        let to = (downs.data_mut(), 0, hidden * inner);
        self.kernels.pack(experts, [hidden, inner], from, to, hidden, 0)
    }

    fn layer(&self, index: usize, layer: &mut Layer) -> Result<(), CudaError> {
        use LayerParam as P;
        let param = |param| Param::Layer(index, param);
        self.vector(param(P::InputNorm), &mut layer.input_norm)?;
        match &mut layer.attention {
            Attention::Lightning { qkv_gate, norm, out, .. } => {
                self.matrix(param(P::LightningQkv), qkv_gate)?;
                self.vector(param(P::LightningNorm), norm)?;
                self.matrix(param(P::LightningOut), out)?;
            }
            Attention::Softmax { qkv, out, .. } => {
                self.matrix(param(P::Query), qkv)?;
                self.matrix(param(P::Output), out)?;
            }
        }
        self.vector(param(P::PostAttentionNorm), &mut layer.post_attention_norm)?;
        let config = self.parameters.config();
        let exact = |first: Param, to| {
            let shape = first.shape(config);
            self.kernels.pack(
                1,
                shape,
                (self.values, self.parameters.place(first), 0),
                (to, 0, 0),
                shape[0],
                0,
            )
        };
        if let Some(router) = &mut layer.experts.router {
            exact(param(P::Router), router)?;
        }
        let place = |e| self.parameters.place(param(P::ExpertGate(e)));
        let stride = if config.num_experts > 1 { place(1) - place(0) } else { 0 };
        let params = [P::ExpertGate(0), P::ExpertUp(0), P::ExpertDown(0)].map(param);
        self.mlps(params, stride, &mut layer.experts.gate_up, &mut layer.experts.down)?;
        if let Some(shared) = &mut layer.shared {
            let params = [P::SharedGate, P::SharedUp, P::SharedDown].map(param);
            self.mlps(params, 0, &mut shared.gate_up, &mut shared.down)?;
            exact(param(P::SharedCoefficient), &mut shared.coefficient)?;
        }
        Ok(())
    }
}
