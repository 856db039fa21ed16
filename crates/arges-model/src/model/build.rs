//! A model of zeros, in the formats that its weights will take.

use std::sync::Arc;

use arges_kernels::device::cpu::Cpu;
use arges_kernels::embed::Embedding;
use arges_kernels::lightning::Decays;
use arges_kernels::matmul::{Compute, Element, PackedMatrix};
use arges_kernels::rope::Frequencies;

use super::source::WeightSource;
use super::{Attention, Experts, Layer, Model, SharedMlp};
use crate::checkpoint::CheckpointError;
use crate::config::AttentionKind;
use crate::dtype::DType;
use crate::params::{LayerParam, Param};

impl Model {
    /// Takes the memory for the weights of `source`.
    pub(super) fn zeroed(
        source: &dyn WeightSource,
        compute: Compute,
        cpu: Arc<Cpu>,
    ) -> Result<Self, CheckpointError> {
        let config = source.config().clone();
        let builder = Builder { source, compute };
        let embedding = builder.element(&[Param::Embedding])?;
        let layers = (0..config.num_layers).map(|layer| builder.layer(layer)).collect::<Result<_, _>>()?;
        Ok(Self {
            compute,
            frequencies: Frequencies::new(config.rope_theta, config.rotary_dim),
            embedding: Embedding::zeroed(config.vocab_size, config.hidden_size, embedding),
            layers,
            final_norm: vec![0.0; config.hidden_size],
            head: builder.matrix(&[Param::Head])?,
            config,
            cpu,
        })
    }
}

struct Builder<'a> {
    source: &'a dyn WeightSource,
    compute: Compute,
}

impl Builder<'_> {
    /// bf16 in memory where nothing is lost by it or the products round to it anyway.
    fn element(&self, params: &[Param]) -> Result<Element, CheckpointError> {
        let mut element = Element::Bf16;
        for param in params {
            match (self.compute, self.source.dtype(*param)?) {
                (Compute::Bf16, _) | (Compute::F32, DType::Bf16) => {}
                (Compute::F32, DType::F32 | DType::F16) => element = Element::F32,
            }
        }
        Ok(element)
    }

    /// One matrix of several parameters, their outputs one after the other.
    fn matrix(&self, params: &[Param]) -> Result<PackedMatrix, CheckpointError> {
        let config = self.source.config();
        let outputs = params.iter().map(|param| param.shape(config)[0]).sum();
        Ok(PackedMatrix::zeroed(outputs, params[0].shape(config)[1], self.element(params)?))
    }

    fn gate_up(&self, gate: Param, up: Param) -> Result<PackedMatrix, CheckpointError> {
        let [width, k] = gate.shape(self.source.config());
        Ok(PackedMatrix::zeroed_gate_up(width, k, self.element(&[gate, up])?))
    }

    /// A small matrix whose products are f32 whatever the rest computes in: never rounded.
    fn exact_matrix(&self, param: Param) -> Result<PackedMatrix, CheckpointError> {
        let element = if self.source.dtype(param)? == DType::Bf16 { Element::Bf16 } else { Element::F32 };
        let [outputs, k] = param.shape(self.source.config());
        Ok(PackedMatrix::zeroed(outputs, k, element))
    }

    fn layer(&self, layer: usize) -> Result<Layer, CheckpointError> {
        use LayerParam as P;
        let param = |param| Param::Layer(layer, param);
        let config = self.source.config();
        let router = match config.has_router() {
            true => Some(self.exact_matrix(param(P::Router))?),
            false => None,
        };
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for expert in 0..config.num_experts {
            gate_up.push(self.gate_up(param(P::ExpertGate(expert)), param(P::ExpertUp(expert)))?);
            down.push(self.matrix(&[param(P::ExpertDown(expert))])?);
        }
        let shared = match config.has_shared_mlp() {
            true => Some(SharedMlp {
                gate_up: self.gate_up(param(P::SharedGate), param(P::SharedUp))?,
                down: self.matrix(&[param(P::SharedDown)])?,
                coefficient: self.exact_matrix(param(P::SharedCoefficient))?,
            }),
            false => None,
        };
        Ok(Layer {
            input_norm: vec![0.0; config.hidden_size],
            attention: self.attention(layer)?,
            post_attention_norm: vec![0.0; config.hidden_size],
            experts: Experts { router, gate_up, down },
            shared,
        })
    }

    fn attention(&self, layer: usize) -> Result<Attention, CheckpointError> {
        use LayerParam as P;
        let param = |param| Param::Layer(layer, param);
        let config = self.source.config();
        let kind = config.attention[layer];
        let index = config.attention[..layer].iter().filter(|other| **other == kind).count();
        Ok(match kind {
            AttentionKind::Lightning => Attention::Lightning {
                index,
                decays: Decays::new(&config.lightning_slopes(layer)),
                qkv_gate: self.matrix(&[param(P::LightningQkv), param(P::LightningGate)])?,
                norm: vec![0.0; config.query_width()],
                out: self.matrix(&[param(P::LightningOut)])?,
            },
            AttentionKind::Softmax => Attention::Softmax {
                index,
                qkv: self.matrix(&[param(P::Query), param(P::Key), param(P::Value)])?,
                out: self.matrix(&[param(P::Output)])?,
            },
        })
    }
}
