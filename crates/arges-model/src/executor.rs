//! A model with the memory for its steps, on whichever device: what an engine drives.

use std::sync::Arc;

use arges_kernels::device::cpu::Cpu;
use arges_kernels::device::cuda::CudaError;
use arges_kernels::lightning::cuda::DeviceSnapshots;
use arges_kernels::matmul::Compute;

use crate::batch::Batch;
use crate::cache::{
    Cache, CacheError, CachePlan, SequenceId, Slots, SnapshotPlan, Snapshots, lightning_shape,
};
use crate::config::{AttentionKind, Config};
use crate::model::cuda::{
    Choice, Chosen, CudaCache, CudaCacheError, CudaModel, CudaSnapshots, CudaWorkspace,
};
use crate::model::{ForwardError, Model, Workspace, WorkspacePlan};
use crate::update::{NewWeights, UpdateError};

/// A model whose weights are on a device.
#[derive(Clone)]
pub enum DeviceModel {
    /// On the CPU.
    Cpu(Arc<Model>),
    /// On a GPU; with the CPU for what the host does.
    Cuda(Arc<CudaModel>, Arc<Cpu>),
}

impl From<Arc<Model>> for DeviceModel {
    fn from(model: Arc<Model>) -> Self {
        Self::Cpu(model)
    }
}

/// Caches and workspace cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ExecutorError {
    /// The plan is empty or too large.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The GPU failed or has too little memory.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

impl From<CudaCacheError> for ExecutorError {
    fn from(error: CudaCacheError) -> Self {
        match error {
            CudaCacheError::Plan(error) => Self::Cache(error),
            CudaCacheError::Cuda(error) => Self::Cuda(error),
        }
    }
}

/// How large steps and caches get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecutorPlan {
    /// Sequences and their tokens.
    pub cache: CachePlan,
    /// States that outlive their sequences.
    pub snapshots: SnapshotPlan,
    /// A step.
    pub workspace: WorkspacePlan,
    /// Whether a GPU computes a token's log-probability with the same bits in any batch; the CPU always does.
    pub exact: bool,
}

/// A model that runs steps.
pub struct Executor {
    model: DeviceModel,
    memory: Memory,
}

enum Memory {
    Cpu(Box<(Cache, Workspace, Snapshots)>),
    Cuda(Box<(CudaCache, CudaWorkspace, CudaSnapshots)>),
}

impl DeviceModel {
    /// Its configuration.
    pub fn config(&self) -> &Config {
        match self {
            Self::Cpu(model) => model.config(),
            Self::Cuda(model, _) => model.config(),
        }
    }

    /// In what precision it computes.
    pub fn compute(&self) -> Compute {
        match self {
            Self::Cpu(model) => model.compute(),
            Self::Cuda(model, _) => model.compute(),
        }
    }

    /// The host's threads.
    pub fn cpu(&self) -> &Cpu {
        match self {
            Self::Cpu(model) => model.cpu(),
            Self::Cuda(_, cpu) => cpu,
        }
    }

    /// Bytes of a snapshot of a sequence's states.
    pub fn snapshot_bytes(&self) -> usize {
        let (config, shape) = (self.config(), lightning_shape(self.config()));
        let layer = match self {
            Self::Cpu(_) => shape.state_len() * size_of::<f32>(),
            Self::Cuda(..) => DeviceSnapshots::bytes_each(shape),
        };
        config.count(AttentionKind::Lightning) * layer
    }

    /// Bytes of its weights.
    pub fn weight_bytes(&self) -> usize {
        match self {
            Self::Cpu(model) => model.weight_bytes(),
            Self::Cuda(model, _) => model.weight_bytes(),
        }
    }
}

impl Executor {
    /// Takes the memory of a plan.
    ///
    /// # Errors
    /// When the plan is empty, or the device has too little memory.
    pub fn new(model: DeviceModel, plan: ExecutorPlan) -> Result<Self, ExecutorError> {
        let memory = match &model {
            DeviceModel::Cpu(model) => {
                let cache = Cache::new(model, plan.cache)?;
                let snapshots = Snapshots::new(model, plan.snapshots);
                Memory::Cpu(Box::new((cache, Workspace::new(model, plan.workspace), snapshots)))
            }
            DeviceModel::Cuda(model, _) => {
                let cache = CudaCache::new(model, plan.cache)?;
                let workspace = CudaWorkspace::new(model, plan.workspace, plan.exact)?;
                Memory::Cuda(Box::new((cache, workspace, CudaSnapshots::new(model, plan.snapshots)?)))
            }
        };
        Ok(Self { model, memory })
    }

    /// The model.
    pub fn model(&self) -> &DeviceModel {
        &self.model
    }

    /// Slots and pages.
    pub fn slots(&self) -> &Slots {
        match &self.memory {
            Memory::Cpu(memory) => &memory.0,
            Memory::Cuda(memory) => &memory.0,
        }
    }

    /// Slots and pages, to open and close sequences.
    pub fn slots_mut(&mut self) -> &mut Slots {
        match &mut self.memory {
            Memory::Cpu(memory) => &mut memory.0,
            Memory::Cuda(memory) => &mut memory.0,
        }
    }

    /// Bytes of the caches.
    pub fn cache_bytes(&self) -> usize {
        match &self.memory {
            Memory::Cpu(memory) => memory.0.bytes(),
            Memory::Cuda(memory) => memory.0.bytes(),
        }
    }

    /// Bytes of the workspace.
    pub fn workspace_bytes(&self) -> usize {
        match &self.memory {
            Memory::Cpu(memory) => memory.1.bytes(),
            Memory::Cuda(memory) => memory.1.bytes(),
        }
    }

    /// Brings new weights into the model, between two steps. Caches stay as the old ones left them.
    ///
    /// # Errors
    /// When the weights are of another model or device, or cannot be read; then the old ones are in force. Only
    /// [`UpdateError::Torn`] leaves a model that cannot be used before it gets whole weights.
    pub fn update_weights(&mut self, weights: NewWeights) -> Result<(), UpdateError> {
        let replaced = self.model.update(weights)?;
        if let Memory::Cuda(memory) = &mut self.memory
            && replaced
        {
            memory.1.forget_graphs();
        }
        Ok(())
    }

    /// Whether the device can choose tokens itself, see [`Self::forward_choosing`].
    pub fn chooses(&self) -> bool {
        matches!(self.memory, Memory::Cuda(_))
    }

    /// As [`Self::forward`]; a GPU chooses the tokens of the rows of logits for which there is a choice, so that those
    /// need not travel. The CPU chooses none.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// When there are not as many choices as rows of logits.
    pub fn forward_choosing(
        &mut self,
        batch: &Batch,
        sampleable: usize,
        choices: &[Choice<'_>],
    ) -> Result<(&DeviceModel, Chosen<'_>), ForwardError> {
        match (&self.model, &mut self.memory) {
            (DeviceModel::Cuda(model, _), Memory::Cuda(memory)) => {
                let (cache, workspace, _) = &mut **memory;
                let chosen = model.forward_choosing(batch, sampleable, choices, cache, workspace)?;
                Ok((&self.model, chosen))
            }
            (DeviceModel::Cpu(model), Memory::Cpu(memory)) => {
                assert_eq!(choices.len(), batch.logit_rows.len(), "choices and rows of logits");
                let (cache, workspace, _) = &mut **memory;
                let logits = model.forward(batch, cache, workspace)?;
                Ok((&self.model, Chosen { tokens: &[], logits }))
            }
            _ => unreachable!("memory was made for the model"),
        }
    }

    /// Copies the states of a sequence, as of its last grid point, to a place of the snapshots.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the sequence is closed or there is no such place.
    pub fn save_states(&mut self, sequence: SequenceId, place: usize) -> Result<(), CudaError> {
        match &mut self.memory {
            Memory::Cpu(memory) => {
                memory.2.save(&memory.0, sequence, place);
                Ok(())
            }
            Memory::Cuda(memory) => memory.2.save(&memory.0, sequence, place),
        }
    }

    /// Copies the states at a place of the snapshots into a sequence of as many tokens.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the sequence is closed or there is no such place.
    pub fn load_states(&mut self, place: usize, sequence: SequenceId) -> Result<(), CudaError> {
        match &mut self.memory {
            Memory::Cpu(memory) => {
                let (cache, _, snapshots) = &mut **memory;
                snapshots.load(place, cache, sequence);
                Ok(())
            }
            Memory::Cuda(memory) => {
                let (cache, _, snapshots) = &mut **memory;
                snapshots.load(place, cache, sequence)
            }
        }
    }

    /// Copies a snapshot from a place in the device's memory to one in the host's.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When there are no such places.
    pub fn offload_states(&mut self, from: usize, to: usize) -> Result<(), CudaError> {
        match &mut self.memory {
            Memory::Cpu(memory) => {
                memory.2.offload(from, to);
                Ok(())
            }
            Memory::Cuda(memory) => memory.2.offload(from, to),
        }
    }

    /// Runs one step. Afterwards every span's sequence is longer by its tokens, and [`logits`](Self::logits) are its.
    ///
    /// # Errors
    /// When the batch is malformed, does not fit, or a sequence lacks pages; then nothing has changed. When the device
    /// fails.
    pub fn forward(&mut self, batch: &Batch) -> Result<(), ForwardError> {
        match (&self.model, &mut self.memory) {
            (DeviceModel::Cpu(model), Memory::Cpu(memory)) => {
                let (cache, workspace, _) = &mut **memory;
                model.forward(batch, cache, workspace)?;
            }
            (DeviceModel::Cuda(model, _), Memory::Cuda(memory)) => {
                let (cache, workspace, _) = &mut **memory;
                model.forward(batch, cache, workspace)?;
            }
            _ => unreachable!("memory was made for the model"),
        }
        Ok(())
    }

    /// Whether [`Self::note_experts`] has any effect: on the CPU, with 256 experts at most.
    pub fn can_note_experts(&self) -> bool {
        matches!(self.memory, Memory::Cpu(_)) && self.model.config().num_experts <= 256
    }

    /// Whether steps note which experts serve their tokens.
    pub fn note_experts(&mut self, note: bool) {
        if let Memory::Cpu(memory) = &mut self.memory {
            memory.1.note_experts(note);
        }
    }

    /// Experts of the last step's tokens, `[tokens, layers, k]`; empty unless they were to be noted.
    pub fn noted_experts(&self) -> &[u8] {
        match &self.memory {
            Memory::Cpu(memory) => memory.1.noted_experts(),
            Memory::Cuda(_) => &[],
        }
    }

    /// Logits of the last step, `[logit rows, vocab_size]`, with room for more.
    pub fn logits(&self) -> &[f32] {
        match &self.memory {
            Memory::Cpu(memory) => memory.1.logits(),
            Memory::Cuda(memory) => memory.1.logits(),
        }
    }
}
