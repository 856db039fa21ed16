//! From a checkpoint, or parameters in training, to packed weights.

use std::sync::Arc;

use arges_kernels::device::cpu::Cpu;
use arges_kernels::matmul::{Compute, PackedMatrix, RowMajor};

use super::source::WeightSource;
use super::{Attention, Layer, Model};
use crate::checkpoint::{Checkpoint, CheckpointError};
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
        Ok(Self::from_source(checkpoint, options.compute, cpu, progress)?)
    }

    pub(crate) fn from_source(
        source: &dyn WeightSource,
        compute: Compute,
        cpu: Arc<Cpu>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, CheckpointError> {
        let mut model = Self::zeroed(source, compute, cpu)?;
        model.pack(source, &|_| true, progress)?;
        Ok(model)
    }

    /// Packs every weight of `source` that differs over those of the model, which was made for the same parameters in
    /// the same formats.
    pub(crate) fn fill(
        &mut self,
        source: &dyn WeightSource,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), CheckpointError> {
        self.pack(source, &|param| source.differs(param), progress)
    }

    fn pack(
        &mut self,
        source: &dyn WeightSource,
        wanted: &dyn Fn(Param) -> bool,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), CheckpointError> {
        let cpu = Arc::clone(&self.cpu);
        let done = LoadProgress { bytes_done: 0, bytes_total: source.bytes() };
        let mut loader = Loader { source, wanted, cpu: &cpu, progress, done };
        let embedding = &mut self.embedding;
        loader.take(Param::Embedding, |table| embedding.fill(&cpu, table))?;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            loader.layer(index, layer)?;
        }
        loader.vector(Param::FinalNorm, &mut self.final_norm)?;
        loader.matrix(&[Param::Head], &mut self.head)
    }
}

struct Loader<'a> {
    source: &'a dyn WeightSource,
    wanted: &'a dyn Fn(Param) -> bool,
    cpu: &'a Cpu,
    progress: &'a mut dyn FnMut(LoadProgress),
    done: LoadProgress,
}

impl Loader<'_> {
    fn take(&mut self, param: Param, mut take: impl FnMut(RowMajor<'_>)) -> Result<(), CheckpointError> {
        if !(self.wanted)(param) {
            return Ok(());
        }
        let mut bytes = 0;
        self.source.show(param, &mut |weights| {
            bytes = weights.data.len();
            take(weights);
        })?;
        self.done.bytes_done = (self.done.bytes_done + bytes).min(self.done.bytes_total);
        (self.progress)(self.done);
        Ok(())
    }

    fn vector(&mut self, param: Param, vector: &mut [f32]) -> Result<(), CheckpointError> {
        self.take(param, |weights| {
            for (i, value) in vector.iter_mut().enumerate() {
                *value = weights.stored.read(weights.data, i);
            }
        })
    }

    /// One matrix of several parameters, their outputs one after the other.
    fn matrix(&mut self, params: &[Param], matrix: &mut PackedMatrix) -> Result<(), CheckpointError> {
        let cpu = self.cpu;
        let mut first = 0;
        for param in params {
            self.take(*param, |weights| matrix.fill(cpu, weights, |row| first + row))?;
            first += param.shape(self.source.config())[0];
        }
        Ok(())
    }

    fn gate_up(&mut self, gate: Param, up: Param, matrix: &mut PackedMatrix) -> Result<(), CheckpointError> {
        let cpu = self.cpu;
        self.take(gate, |weights| matrix.fill_gate(cpu, weights))?;
        self.take(up, |weights| matrix.fill_up(cpu, weights))
    }

    fn layer(&mut self, index: usize, layer: &mut Layer) -> Result<(), CheckpointError> {
        use LayerParam as P;
        let param = |param| Param::Layer(index, param);
        self.vector(param(P::InputNorm), &mut layer.input_norm)?;
        match &mut layer.attention {
            Attention::Lightning { qkv_gate, norm, out, .. } => {
                self.matrix(&[param(P::LightningQkv), param(P::LightningGate)], qkv_gate)?;
                self.vector(param(P::LightningNorm), norm)?;
                self.matrix(&[param(P::LightningOut)], out)?;
            }
            Attention::Softmax { qkv, out, .. } => {
                self.matrix(&[param(P::Query), param(P::Key), param(P::Value)], qkv)?;
                self.matrix(&[param(P::Output)], out)?;
            }
        }
        self.vector(param(P::PostAttentionNorm), &mut layer.post_attention_norm)?;
        if let Some(router) = &mut layer.experts.router {
            self.matrix(&[param(P::Router)], router)?;
        }
        let experts = layer.experts.gate_up.iter_mut().zip(&mut layer.experts.down);
        for (expert, (gate_up, down)) in experts.enumerate() {
            self.gate_up(param(P::ExpertGate(expert)), param(P::ExpertUp(expert)), gate_up)?;
            self.matrix(&[param(P::ExpertDown(expert))], down)?;
        }
        if let Some(shared) = &mut layer.shared {
            self.gate_up(param(P::SharedGate), param(P::SharedUp), &mut shared.gate_up)?;
            self.matrix(&[param(P::SharedDown)], &mut shared.down)?;
            self.matrix(&[param(P::SharedCoefficient)], &mut shared.coefficient)?;
        }
        Ok(())
    }
}
