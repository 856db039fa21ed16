//! The model on a GPU: the same parameters, steps and caches as on the CPU, with a file for each of the same parts.

mod cache;
pub(crate) mod forward;
mod load;
mod snapshots;
pub(crate) mod workspace;

use std::sync::Arc;

use arges_kernels::device::cuda::{Activations, Buffer, Cuda, CudaError};
use arges_kernels::lightning::cuda::{DeviceDecays, LightningCuda};
use arges_kernels::matmul::cuda::{DeviceMatrix, Products};
use arges_kernels::matmul::{Compute, Element};
use arges_kernels::moe::cuda::Router;
use arges_kernels::norm::cuda::Norms;
use arges_kernels::rope::Frequencies;

use crate::checkpoint::CheckpointError;
use crate::config::Config;

pub use cache::{CudaCache, CudaCacheError};
pub use forward::{Choice, Chosen};
pub use snapshots::CudaSnapshots;
pub use workspace::CudaWorkspace;

/// A model cannot be put on a GPU.
#[derive(Debug, thiserror::Error)]
pub enum CudaModelError {
    /// The checkpoint lacks something.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device failed, has too little memory, or no kernel for the model's shape.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// A model whose weights are in the memory of a GPU.
pub struct CudaModel {
    pub(crate) config: Config,
    pub(crate) cuda: Arc<Cuda>,
    pub(crate) compute: Compute,
    pub(crate) embedding: Activations,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Buffer<f32>,
    pub(crate) head: DeviceMatrix,
    pub(crate) frequencies: Frequencies,
    pub(crate) kernels: Kernels,
}

/// Weights of one layer.
pub(crate) struct Layer {
    pub(crate) input_norm: Buffer<f32>,
    pub(crate) attention: Attention,
    pub(crate) post_attention_norm: Buffer<f32>,
    pub(crate) experts: Experts,
    pub(crate) shared: Option<SharedMlp>,
}

pub(crate) enum Attention {
    Lightning {
        /// Place among the lightning layers.
        index: usize,
        decays: DeviceDecays,
        /// `[3 W + W, hidden]`: query, key and value of each head, then the gate.
        qkv_gate: DeviceMatrix,
        norm: Buffer<f32>,
        out: DeviceMatrix,
    },
    Softmax {
        /// Place among the softmax layers.
        index: usize,
        /// `[W + 2 K, hidden]`.
        qkv: DeviceMatrix,
        out: DeviceMatrix,
    },
}

pub(crate) struct Experts {
    /// `[experts, hidden]`; `None` for a plain MLP, which is the only expert.
    pub(crate) router: Option<Activations>,
    /// Gates and ups of each expert in turn, in groups.
    pub(crate) gate_up: DeviceMatrix,
    pub(crate) down: DeviceMatrix,
}

pub(crate) struct SharedMlp {
    pub(crate) gate_up: DeviceMatrix,
    pub(crate) down: DeviceMatrix,
    /// Weight of the shared MLP against the experts, before the sigmoid, `[1, hidden]`.
    pub(crate) coefficient: Activations,
}

/// The compiled operations, for this model's shapes. Those with scratch of their own are the workspace's.
pub(crate) struct Kernels {
    pub(crate) products: Products,
    pub(crate) norms: Norms,
    pub(crate) lightning: LightningCuda,
    pub(crate) router: Option<Router>,
    /// The product with the shared MLP's coefficient is that of a router with one expert.
    pub(crate) coefficient: Option<Router>,
}

impl CudaModel {
    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// In what precision it computes.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// The device that it is on.
    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.cuda
    }

    /// Number format of activations, keys and values.
    pub(crate) fn element(&self) -> Element {
        match self.compute {
            Compute::F32 => Element::F32,
            Compute::Bf16 => Element::Bf16,
        }
    }

    /// Bytes of its weights on the device.
    pub fn weight_bytes(&self) -> usize {
        let layers: usize = self.layers.iter().map(Layer::bytes).sum();
        self.embedding.bytes() + self.head.bytes() + self.final_norm.bytes() + layers
    }

    /// Copies all weights of another model of the same configuration and formats, on the device.
    pub(crate) fn copy_weights(&mut self, from: &Self) -> Result<(), CudaError> {
        self.embedding.copy_from(&from.embedding)?;
        self.final_norm.copy_from(0, &from.final_norm, 0, from.final_norm.len())?;
        self.head.data_mut().copy_from(from.head.data())?;
        self.layers.iter_mut().zip(&from.layers).try_for_each(|(layer, from)| layer.copy_from(from))
    }

    /// Bytes of one expert's weights.
    pub fn expert_bytes(&self) -> usize {
        self.layers.first().map_or(0, |layer| {
            let Experts { gate_up, down, .. } = &layer.experts;
            (gate_up.bytes() + down.bytes()) / gate_up.experts()
        })
    }

    /// Bytes of the weights that every step reads, whatever its tokens: all but the embedding and the experts.
    pub fn dense_bytes(&self) -> usize {
        let experts = self.layers.len() * self.config.num_experts * self.expert_bytes();
        self.weight_bytes() - self.embedding.bytes() - experts
    }
}

impl Layer {
    fn copy_from(&mut self, from: &Self) -> Result<(), CudaError> {
        let vector = |to: &mut Buffer<f32>, from: &Buffer<f32>| to.copy_from(0, from, 0, from.len());
        let matrix = |to: &mut DeviceMatrix, from: &DeviceMatrix| to.data_mut().copy_from(from.data());
        vector(&mut self.input_norm, &from.input_norm)?;
        vector(&mut self.post_attention_norm, &from.post_attention_norm)?;
        match (&mut self.attention, &from.attention) {
            (
                Attention::Lightning { qkv_gate, norm, out, .. },
                Attention::Lightning { qkv_gate: from_qkv_gate, norm: from_norm, out: from_out, .. },
            ) => {
                matrix(qkv_gate, from_qkv_gate)?;
                vector(norm, from_norm)?;
                matrix(out, from_out)?;
            }
            (
                Attention::Softmax { qkv, out, .. },
                Attention::Softmax { qkv: from_qkv, out: from_out, .. },
            ) => {
                matrix(qkv, from_qkv)?;
                matrix(out, from_out)?;
            }
            _ => unreachable!("models of one configuration have the same kinds of layers"),
        }
        let (experts, from_experts) = (&mut self.experts, &from.experts);
        if let (Some(router), Some(from)) = (&mut experts.router, &from_experts.router) {
            router.copy_from(from)?;
        }
        matrix(&mut experts.gate_up, &from_experts.gate_up)?;
        matrix(&mut experts.down, &from_experts.down)?;
        if let (Some(shared), Some(from)) = (&mut self.shared, &from.shared) {
            matrix(&mut shared.gate_up, &from.gate_up)?;
            matrix(&mut shared.down, &from.down)?;
            shared.coefficient.copy_from(&from.coefficient)?;
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let attention = match &self.attention {
            Attention::Lightning { qkv_gate, norm, out, .. } => qkv_gate.bytes() + norm.bytes() + out.bytes(),
            Attention::Softmax { qkv, out, .. } => qkv.bytes() + out.bytes(),
        };
        let Experts { router, gate_up, down } = &self.experts;
        let shared = self
            .shared
            .as_ref()
            .map_or(0, |shared| shared.gate_up.bytes() + shared.down.bytes() + shared.coefficient.bytes());
        attention
            + router.as_ref().map_or(0, Activations::bytes)
            + gate_up.bytes()
            + down.bytes()
            + shared
            + self.input_norm.bytes()
            + self.post_attention_norm.bytes()
    }
}
