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

impl Model {
    /// Whether weights of `source`, which has the same configuration, would be kept in the formats of this model.
    ///
    /// # Errors
    /// When a parameter is missing.
    pub(crate) fn keeps_as(&self, source: &dyn WeightSource) -> Result<bool, CheckpointError> {
        let builder = Builder { source, compute: self.compute };
        let mut same = builder.element(&[Param::Embedding])? == self.embedding.element();
        for (layer, ours) in self.layers.iter().enumerate() {
            same &= builder.keeps_layer(layer, ours)?;
        }
        source.dtype(Param::FinalNorm)?;
        Ok(same & (builder.element(&[Param::Head])? == self.head.element()))
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
        let [outputs, k] = param.shape(self.source.config());
        Ok(PackedMatrix::zeroed(outputs, k, self.exact_element(param)?))
    }

    fn exact_element(&self, param: Param) -> Result<Element, CheckpointError> {
        Ok(if self.source.dtype(param)? == DType::Bf16 { Element::Bf16 } else { Element::F32 })
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

    fn keeps_layer(&self, layer: usize, ours: &Layer) -> Result<bool, CheckpointError> {
        use LayerParam as P;
        let param = |param| Param::Layer(layer, param);
        let same = |params: &[Param], matrix: &PackedMatrix| -> Result<bool, CheckpointError> {
            Ok(self.element(params)? == matrix.element())
        };
        self.source.dtype(param(P::InputNorm))?;
        self.source.dtype(param(P::PostAttentionNorm))?;
        let mut all = match &ours.attention {
            Attention::Lightning { qkv_gate, out, .. } => {
                self.source.dtype(param(P::LightningNorm))?;
                same(&[param(P::LightningQkv), param(P::LightningGate)], qkv_gate)?
                    & same(&[param(P::LightningOut)], out)?
            }
            Attention::Softmax { qkv, out, .. } => {
                same(&[param(P::Query), param(P::Key), param(P::Value)], qkv)?
                    & same(&[param(P::Output)], out)?
            }
        };
        let Experts { router, gate_up, down } = &ours.experts;
        if let Some(router) = router {
            all &= self.exact_element(param(P::Router))? == router.element();
        }
        for (expert, (gate_up, down)) in gate_up.iter().zip(down).enumerate() {
            all &= same(&[param(P::ExpertGate(expert)), param(P::ExpertUp(expert))], gate_up)?;
            all &= same(&[param(P::ExpertDown(expert))], down)?;
        }
        if let Some(SharedMlp { gate_up, down, coefficient }) = &ours.shared {
            all &= same(&[param(P::SharedGate), param(P::SharedUp)], gate_up)?;
            all &= same(&[param(P::SharedDown)], down)?;
            all &= self.exact_element(param(P::SharedCoefficient))? == coefficient.element();
        }
        Ok(all)
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
