//! A trainer on whichever device: what a run drives.

use std::sync::Arc;

use arges_kernels::device::cpu::Cpu;
use arges_kernels::device::cuda::Cuda;
use arges_kernels::matmul::Compute;

use super::cuda::CudaTrainer;
use super::{Parameters, StepOutput, TargetWeights, Trainer, TrainingBatch, TrainingError, TrainingPlan};
use crate::config::Config;
use crate::executor::DeviceModel;

/// What a model is trained on.
#[derive(Clone)]
pub struct TrainingDevice {
    /// For what the host does; and for everything else where there is no GPU.
    pub cpu: Arc<Cpu>,
    /// The GPU, if it is to be one.
    pub cuda: Option<Arc<Cuda>>,
}

impl From<Arc<Cpu>> for TrainingDevice {
    fn from(cpu: Arc<Cpu>) -> Self {
        Self { cpu, cuda: None }
    }
}

/// A trainer on the CPU or on a GPU. What it computes and keeps is the same but for rounding.
pub enum DeviceTrainer {
    /// On the CPU.
    Cpu(Box<Trainer>),
    /// On a GPU; with the CPU for what the host does.
    Cuda(Box<CudaTrainer>, Arc<Cpu>),
}

impl DeviceTrainer {
    /// Brings the parameters into a model that computes in `compute`.
    ///
    /// # Errors
    /// When a parameter is missing, the plan is empty, or a GPU cannot train the model.
    pub fn new(
        parameters: Parameters,
        compute: Compute,
        device: TrainingDevice,
        plan: TrainingPlan,
    ) -> Result<Self, TrainingError> {
        let TrainingDevice { cpu, cuda } = device;
        if plan.rounded_head && (cuda.is_none() || compute != Compute::Bf16) {
            return Err(TrainingError::RoundedHead);
        }
        Ok(match cuda {
            None => Self::Cpu(Box::new(Trainer::new(parameters, compute, cpu, plan)?)),
            Some(cuda) => Self::Cuda(Box::new(CudaTrainer::new(parameters, compute, &cuda, plan)?), cpu),
        })
    }

    /// Adds the gradients of a batch; see [`Trainer::accumulate`].
    ///
    /// # Errors
    /// When the batch is malformed or over the plan, or the device fails.
    pub fn accumulate<'w>(
        &mut self,
        batch: &TrainingBatch,
        weights: impl Into<TargetWeights<'w>>,
        balance: f32,
    ) -> Result<StepOutput<'_>, TrainingError> {
        match self {
            Self::Cpu(trainer) => trainer.accumulate(batch, weights, balance),
            Self::Cuda(..) if !batch.experts.is_empty() => Err(TrainingError::ExpertsOnCuda),
            Self::Cuda(trainer, _) => trainer.accumulate(batch, weights, balance),
        }
    }

    /// Log-probabilities of a batch, without gradients.
    ///
    /// # Errors
    /// When the batch is malformed or over the plan, or the device fails.
    pub fn evaluate(&mut self, batch: &TrainingBatch) -> Result<StepOutput<'_>, TrainingError> {
        match self {
            Self::Cpu(trainer) => trainer.evaluate(batch),
            Self::Cuda(..) if !batch.experts.is_empty() => Err(TrainingError::ExpertsOnCuda),
            Self::Cuda(trainer, _) => trainer.evaluate(batch),
        }
    }

    /// Forgets the gradients.
    pub fn zero_gradients(&mut self) {
        match self {
            Self::Cpu(trainer) => trainer.parameters_mut().zero_gradients(),
            Self::Cuda(trainer, _) => trainer.zero_gradients(),
        }
    }

    /// Brings changed values into the model; those who hold [`Self::shared_model`] keep it as it was.
    ///
    /// # Errors
    /// When a parameter can no longer be read, or the device fails.
    pub fn publish(&mut self) -> Result<(), TrainingError> {
        match self {
            Self::Cpu(trainer) => trainer.publish(),
            Self::Cuda(trainer, _) => trainer.publish(),
        }
    }

    /// The model as it computes now, to be shared with an engine; see [`Trainer::shared_model`].
    pub fn shared_model(&self) -> DeviceModel {
        match self {
            Self::Cpu(trainer) => DeviceModel::Cpu(trainer.shared_model()),
            Self::Cuda(trainer, cpu) => DeviceModel::Cuda(trainer.shared_model(), Arc::clone(cpu)),
        }
    }

    /// What learns. Of a GPU's trainer the values are those last fetched, and gradients are not here.
    pub fn parameters(&self) -> &Parameters {
        match self {
            Self::Cpu(trainer) => trainer.parameters(),
            Self::Cuda(trainer, _) => trainer.parameters(),
        }
    }

    /// What learns, with its values as they are now.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fetch(&mut self) -> Result<&Parameters, TrainingError> {
        match self {
            Self::Cpu(trainer) => Ok(trainer.parameters()),
            Self::Cuda(trainer, _) => trainer.fetch(),
        }
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        self.parameters().config()
    }

    /// The CPU that computes, or that of the host.
    pub fn cpu(&self) -> &Cpu {
        match self {
            Self::Cpu(trainer) => trainer.cpu(),
            Self::Cuda(_, cpu) => cpu,
        }
    }

    /// The same, to be used while parameters are borrowed.
    pub fn shared_cpu(&self) -> Arc<Cpu> {
        match self {
            Self::Cpu(trainer) => trainer.shared_cpu(),
            Self::Cuda(_, cpu) => Arc::clone(cpu),
        }
    }

    /// The GPU that computes, if one does.
    pub fn cuda(&self) -> Option<&Arc<Cuda>> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(trainer, _) => Some(trainer.model().cuda()),
        }
    }

    /// Bytes of the model, the values with their gradients, caches and buffers, on its device.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Cpu(trainer) => trainer.bytes(),
            Self::Cuda(trainer, _) => trainer.bytes(),
        }
    }
}
