//! The model: weights packed for the device, and the forward pass over a batch.

mod build;
pub mod cuda;
mod forward;
mod given;
mod load;
pub(crate) mod source;
pub(crate) mod step;
mod workspace;

use std::sync::Arc;

use arges_kernels::device::cpu::Cpu;
use arges_kernels::embed::Embedding;
use arges_kernels::lightning::Decays;
use arges_kernels::matmul::{Compute, Element, PackedMatrix};
use arges_kernels::rope::Frequencies;

use crate::config::Config;

pub use forward::Stage;
pub(crate) use given::GivenExperts;
pub use given::OWN_CHOICE;
pub use load::{LoadOptions, LoadProgress, ModelError};
pub use step::ForwardError;
pub use workspace::{Workspace, WorkspacePlan};

/// A model whose weights are in memory, packed for the CPU.
pub struct Model {
    config: Config,
    cpu: Arc<Cpu>,
    compute: Compute,
    embedding: Embedding,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: Vec<f32>,
    pub(crate) head: PackedMatrix,
    frequencies: Frequencies,
}

/// Weights of one layer.
pub(crate) struct Layer {
    pub(crate) input_norm: Vec<f32>,
    pub(crate) attention: Attention,
    pub(crate) post_attention_norm: Vec<f32>,
    pub(crate) experts: Experts,
    pub(crate) shared: Option<SharedMlp>,
}

pub(crate) enum Attention {
    Lightning {
        /// Place among the lightning layers.
        index: usize,
        decays: Decays,
        /// `[3 W + W, hidden]`: query, key and value of each head, then the gate.
        qkv_gate: PackedMatrix,
        norm: Vec<f32>,
        out: PackedMatrix,
    },
    Softmax {
        /// Place among the softmax layers.
        index: usize,
        /// `[W + 2 K, hidden]`.
        qkv: PackedMatrix,
        out: PackedMatrix,
    },
}

pub(crate) struct Experts {
    /// `None` for a plain MLP, which is expert 0 for every token.
    pub(crate) router: Option<PackedMatrix>,
    pub(crate) gate_up: Vec<PackedMatrix>,
    pub(crate) down: Vec<PackedMatrix>,
}

pub(crate) struct SharedMlp {
    pub(crate) gate_up: PackedMatrix,
    pub(crate) down: PackedMatrix,
    /// Weight of the shared MLP against the experts, before the sigmoid, `[hidden]`.
    pub(crate) coefficient: PackedMatrix,
}

impl Model {
    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// In what precision it computes.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// What it runs on.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// How keys and values are kept in caches.
    pub(crate) fn cache_element(&self) -> Element {
        match self.compute {
            Compute::F32 => Element::F32,
            Compute::Bf16 => Element::Bf16,
        }
    }

    pub(crate) fn shared_cpu(&self) -> Arc<Cpu> {
        Arc::clone(&self.cpu)
    }

    /// Bytes of its weights in memory.
    pub fn weight_bytes(&self) -> usize {
        let layers: usize = self.layers.iter().map(Layer::bytes).sum();
        self.embedding.bytes() + self.head.bytes() + size_of_val(&*self.final_norm) + layers
    }

    /// Bytes of one expert's weights in memory.
    pub fn expert_bytes(&self) -> usize {
        self.layers.first().map_or(0, |layer| {
            let experts = &layer.experts;
            experts.gate_up.iter().chain(&experts.down).map(PackedMatrix::bytes).sum::<usize>()
                / experts.gate_up.len()
        })
    }

    /// Bytes of the weights that every step reads, whatever its tokens: all but the embedding and the experts.
    pub fn dense_bytes(&self) -> usize {
        let experts = self.layers.len() * self.config.num_experts * self.expert_bytes();
        self.weight_bytes() - self.embedding.bytes() - experts
    }

    /// Decays of lightning layer `index`, counted among its kind.
    pub(crate) fn decays(&self, index: usize) -> &Decays {
        self.layers
            .iter()
            .filter_map(|layer| match &layer.attention {
                Attention::Lightning { decays, .. } => Some(decays),
                Attention::Softmax { .. } => None,
            })
            .nth(index)
            .expect("the model has that lightning layer")
    }
}

impl Attention {
    /// Width of what the input is projected to.
    pub(crate) fn projections(&self) -> usize {
        match self {
            Self::Lightning { qkv_gate, .. } => qkv_gate.outputs(),
            Self::Softmax { qkv, .. } => qkv.outputs(),
        }
    }
}

impl Layer {
    fn bytes(&self) -> usize {
        let attention = match &self.attention {
            Attention::Lightning { qkv_gate, norm, out, .. } => {
                qkv_gate.bytes() + size_of_val(&**norm) + out.bytes()
            }
            Attention::Softmax { qkv, out, .. } => qkv.bytes() + out.bytes(),
        };
        let experts = &self.experts;
        let matrices = experts.router.iter().chain(&experts.gate_up).chain(&experts.down);
        let shared = self.shared.iter().flat_map(|s| [&s.gate_up, &s.down, &s.coefficient]);
        attention
            + matrices.chain(shared).map(PackedMatrix::bytes).sum::<usize>()
            + size_of_val(&*self.input_norm)
            + size_of_val(&*self.post_attention_norm)
    }
}
