//! From a checkpoint to packed weights.

use std::sync::Arc;

use arges_kernels::device::cpu::Cpu;
use arges_kernels::embed::Embedding;
use arges_kernels::lightning::Decays;
use arges_kernels::matmul::{Compute, Element, PackedMatrix, RowMajor, Stored};
use arges_kernels::rope::Frequencies;

use super::{Attention, Experts, Layer, Model, SharedMlp};
use crate::checkpoint::{Checkpoint, CheckpointError, WeightView};
use crate::config::AttentionKind;
use crate::dtype::DType;
use crate::params::{LayerParam, Param};

/// How to load a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// In what precision to compute. [`Compute::F32`] keeps weights as they are stored;
    /// [`Compute::Bf16`] rounds those of other formats.
    pub compute: Compute,
}

impl LoadOptions {
    /// Computes as the checkpoint is stored: bf16 for bf16 weights, f32 for others.
    pub fn for_checkpoint(checkpoint: &Checkpoint) -> Self {
        let bf16 = checkpoint.param(Param::Embedding).is_ok_and(|weight| weight.dtype == DType::Bf16);
        Self { compute: if bf16 { Compute::Bf16 } else { Compute::F32 } }
    }
}

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of the checkpoint that are packed.
    pub bytes_done: usize,
    /// Bytes of the checkpoint.
    pub bytes_total: usize,
}

/// A model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The checkpoint lacks something.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl Model {
    /// Reads and packs every weight.
    ///
    /// # Errors
    /// When a parameter is missing.
    pub fn load(
        checkpoint: &Checkpoint,
        options: LoadOptions,
        cpu: Arc<Cpu>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, ModelError> {
        let config = checkpoint.config().clone();
        let mut loader = Loader {
            checkpoint,
            compute: options.compute,
            cpu: &cpu,
            progress,
            done: LoadProgress { bytes_done: 0, bytes_total: checkpoint.weight_bytes() },
        };
        let embedding = loader.embedding()?;
        let mut layers = Vec::with_capacity(config.num_layers);
        for layer in 0..config.num_layers {
            layers.push(loader.layer(layer)?);
        }
        let final_norm = loader.vector(Param::FinalNorm)?;
        let head = loader.matrix(&[Param::Head])?;
        Ok(Self {
            compute: options.compute,
            frequencies: Frequencies::new(config.rope_theta, config.rotary_dim),
            embedding,
            layers,
            final_norm,
            head,
            config,
            cpu,
        })
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    compute: Compute,
    cpu: &'a Cpu,
    progress: &'a mut dyn FnMut(LoadProgress),
    done: LoadProgress,
}

impl Loader<'_> {
    /// bf16 in memory where nothing is lost by it or the products round to it anyway.
    fn element(&self, stored: DType) -> Element {
        match (self.compute, stored) {
            (Compute::Bf16, _) | (Compute::F32, DType::Bf16) => Element::Bf16,
            (Compute::F32, DType::F32 | DType::F16) => Element::F32,
        }
    }

    fn finish(&mut self, param: Param, view_bytes: usize) {
        self.checkpoint.release(param);
        self.done.bytes_done = (self.done.bytes_done + view_bytes).min(self.done.bytes_total);
        (self.progress)(self.done);
    }

    fn embedding(&mut self) -> Result<Embedding, CheckpointError> {
        let view = self.checkpoint.param(Param::Embedding)?;
        let embedding = Embedding::new(self.cpu, row_major(&view), self.element(view.dtype));
        self.finish(Param::Embedding, view.data.len());
        Ok(embedding)
    }

    fn vector(&mut self, param: Param) -> Result<Vec<f32>, CheckpointError> {
        let view = self.checkpoint.param(param)?;
        let vector = view.to_f32();
        self.finish(param, view.data.len());
        Ok(vector)
    }

    /// One matrix of several parameters, their outputs one after the other.
    fn matrix(&mut self, params: &[Param]) -> Result<PackedMatrix, CheckpointError> {
        let views = params.iter().map(|p| self.checkpoint.param(*p)).collect::<Result<Vec<_>, _>>()?;
        let outputs = views.iter().map(|view| view.rows).sum();
        let mut matrix = PackedMatrix::zeroed(outputs, views[0].cols, self.common_element(&views));
        let mut first = 0;
        for (param, view) in params.iter().zip(&views) {
            matrix.fill(self.cpu, row_major(view), |row| first + row);
            first += view.rows;
            self.finish(*param, view.data.len());
        }
        Ok(matrix)
    }

    fn gate_up(&mut self, gate: Param, up: Param) -> Result<PackedMatrix, CheckpointError> {
        let views = [self.checkpoint.param(gate)?, self.checkpoint.param(up)?];
        let element = self.common_element(&views);
        let matrix =
            PackedMatrix::pack_gate_up(self.cpu, row_major(&views[0]), row_major(&views[1]), element);
        self.finish(gate, views[0].data.len());
        self.finish(up, views[1].data.len());
        Ok(matrix)
    }

    /// The format that holds all of them without loss, or bf16 where products are in bf16.
    fn common_element(&self, views: &[WeightView<'_>]) -> Element {
        let all_bf16 = views.iter().all(|view| self.element(view.dtype) == Element::Bf16);
        if all_bf16 { Element::Bf16 } else { Element::F32 }
    }

    fn layer(&mut self, layer: usize) -> Result<Layer, CheckpointError> {
        use LayerParam as P;
        let param = |param| Param::Layer(layer, param);
        let config = self.checkpoint.config();
        let kind = config.attention[layer];
        let index = config.attention[..layer].iter().filter(|other| **other == kind).count();
        let input_norm = self.vector(param(P::InputNorm))?;
        let attention = match kind {
            AttentionKind::Lightning => Attention::Lightning {
                index,
                decays: Decays::new(&config.lightning_slopes(layer)),
                qkv_gate: self.matrix(&[param(P::LightningQkv), param(P::LightningGate)])?,
                norm: self.vector(param(P::LightningNorm))?,
                out: self.matrix(&[param(P::LightningOut)])?,
            },
            AttentionKind::Softmax => Attention::Softmax {
                index,
                qkv: self.matrix(&[param(P::Query), param(P::Key), param(P::Value)])?,
                out: self.matrix(&[param(P::Output)])?,
            },
        };
        let post_attention_norm = self.vector(param(P::PostAttentionNorm))?;
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
        let experts = Experts { router, gate_up, down };
        Ok(Layer { input_norm, attention, post_attention_norm, experts, shared })
    }

    /// A small matrix whose products are f32 whatever the rest computes in: never rounded.
    fn exact_matrix(&mut self, param: Param) -> Result<PackedMatrix, CheckpointError> {
        let view = self.checkpoint.param(param)?;
        let element = if view.dtype == DType::Bf16 { Element::Bf16 } else { Element::F32 };
        let matrix = PackedMatrix::pack(self.cpu, row_major(&view), element);
        self.finish(param, view.data.len());
        Ok(matrix)
    }
}

fn row_major<'a>(view: &WeightView<'a>) -> RowMajor<'a> {
    let stored = match view.dtype {
        DType::F32 => Stored::F32,
        DType::Bf16 => Stored::Bf16,
        DType::F16 => Stored::F16,
    };
    RowMajor { stored, rows: view.rows, cols: view.cols, data: view.data }
}
