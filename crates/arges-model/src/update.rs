//! New weights for a model that is in use: a trainer's, or published ones.

use std::sync::Arc;

use crate::checkpoint::CheckpointError;
use crate::config::Config;
use crate::executor::DeviceModel;
use crate::model::Model;
use crate::model::cuda::{CudaModel, CudaModelError};
use crate::model::source::WeightSource;

/// Where new weights come from.
#[derive(Clone)]
pub enum NewWeights {
    /// A model that takes the place of the one in use. Nothing is copied or packed: a trainer and an engine on the
    /// same device can share one.
    Model(DeviceModel),
    /// Weights that are packed over those in use. Where others hold the model in use too, or it keeps its weights in
    /// other formats than these would be kept in, a new one is made and takes its place.
    Source(Arc<dyn WeightSource + Send + Sync>),
}

/// New weights were not taken.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// They are of a model of another shape.
    #[error("the new weights are of another model: {0}")]
    OtherModel(String),
    /// They are on another device, or computed with in another way.
    #[error("the new model {0}")]
    OtherDevice(&'static str),
    /// They cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The GPU has no room for them, or failed before any was replaced.
    #[error(transparent)]
    Cuda(CudaModelError),
    /// Some were replaced before the rest could not be: the model cannot be used until whole weights arrive.
    #[error("the weights were replaced in part only: {0}")]
    Torn(String),
}

impl From<CudaModelError> for UpdateError {
    fn from(error: CudaModelError) -> Self {
        match error {
            CudaModelError::Checkpoint(error) => Self::Checkpoint(error),
            error @ CudaModelError::Cuda(_) => Self::Cuda(error),
        }
    }
}

impl DeviceModel {
    /// Takes new weights; true where the model is another object afterwards.
    pub(crate) fn update(&mut self, weights: NewWeights) -> Result<bool, UpdateError> {
        match weights {
            NewWeights::Model(model) => {
                self.check_substitute(&model)?;
                *self = model;
                Ok(true)
            }
            NewWeights::Source(source) => {
                same_shape(self.config(), source.config())?;
                match self {
                    Self::Cpu(model) => update_cpu(model, &*source),
                    Self::Cuda(model, _) => update_cuda(model, &*source),
                }
            }
        }
    }

    fn check_substitute(&self, other: &DeviceModel) -> Result<(), UpdateError> {
        same_shape(self.config(), other.config())?;
        if self.compute() != other.compute() {
            return Err(UpdateError::OtherDevice("computes in another precision"));
        }
        let on_same_device = match (self, other) {
            (Self::Cpu(_), Self::Cpu(_)) => {
                let (one, two) = (self.cpu(), other.cpu());
                one.isa() == two.isa() && one.pool().threads() == two.pool().threads()
            }
            (Self::Cuda(one, _), Self::Cuda(two, _)) => Arc::ptr_eq(one.cuda(), two.cuda()),
            _ => false,
        };
        if on_same_device { Ok(()) } else { Err(UpdateError::OtherDevice("is on another device")) }
    }
}

fn update_cpu(model: &mut Arc<Model>, source: &dyn WeightSource) -> Result<bool, UpdateError> {
    let same_formats = model.keeps_as(source)?;
    if let Some(model) = Arc::get_mut(model).filter(|_| same_formats) {
        model.fill(source, &mut |_| {}).map_err(|error| UpdateError::Torn(error.to_string()))?;
        return Ok(false);
    }
    *model = Arc::new(Model::from_source(source, model.compute(), model.shared_cpu(), &mut |_| {})?);
    Ok(true)
}

fn update_cuda(model: &mut Arc<CudaModel>, source: &dyn WeightSource) -> Result<bool, UpdateError> {
    let same_formats = model.keeps_as(source)?;
    if let Some(model) = Arc::get_mut(model).filter(|_| same_formats) {
        model.fill(source, &mut |_| {}).map_err(|error| UpdateError::Torn(error.to_string()))?;
        return Ok(false);
    }
    *model = Arc::new(CudaModel::from_source(source, model.compute(), model.cuda(), &mut |_| {})?);
    Ok(true)
}

/// Whether weights of one configuration can stand in for those of another: all that a step computes with is the same.
fn same_shape(ours: &Config, theirs: &Config) -> Result<(), UpdateError> {
    // What the tensors are called and what only training or a tokenizer needs makes no difference.
    let essence = |config: &Config| Config {
        dialect: ours.dialect,
        max_position_embeddings: 0,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        stored_dtype: None,
        initializer_range: 0.0,
        router_aux_loss_coef: 0.0,
        ..config.clone()
    };
    let (one, two) = (essence(ours), essence(theirs));
    if one == two {
        return Ok(());
    }
    let sizes = |c: &Config| {
        [
            ("vocab_size", c.vocab_size),
            ("hidden_size", c.hidden_size),
            ("num_layers", c.num_layers),
            ("num_heads", c.num_heads),
            ("num_kv_heads", c.num_kv_heads),
            ("head_dim", c.head_dim),
            ("num_experts", c.num_experts),
            ("experts_per_token", c.experts_per_token),
            ("intermediate_size", c.intermediate_size),
            ("shared_intermediate_size", c.shared_intermediate_size),
        ]
    };
    let differs = sizes(&one).into_iter().zip(sizes(&two)).find(|(one, two)| one != two);
    Err(UpdateError::OtherModel(match differs {
        Some(((name, ours), (_, theirs))) => format!("{name} is {theirs}, not {ours}"),
        None => "its config.json describes other computations".to_owned(),
    }))
}
