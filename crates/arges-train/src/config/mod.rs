//! The file that describes a run: TOML, every field checked before anything is computed.

mod check;
mod data;
mod model;

use std::path::{Path, PathBuf};

use arges_model::training::{LoraOptions, Recompute};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use data::{DataConfig, DataKind, EvaluationConfig};
pub use model::{ComputeType, ModelConfig, NewModel, SaveType};

/// Why the description of a run cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}: {source}", file.display())]
    Read { file: PathBuf, source: std::io::Error },
    /// The file is not TOML, or a field is unknown, missing or of another type; the reason shows the place.
    #[error("{}: {reason}", file.display())]
    Parse { file: PathBuf, reason: String },
    /// A field's value is out of range or does not go with another field.
    #[error("{}: field `{field}`: {reason}", file.display())]
    Field { file: PathBuf, field: String, reason: String },
}

/// A training run. Relative paths are relative to the working directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Directory of the run: checkpoints, metrics and events.
    pub run: PathBuf,
    /// Optimizer steps in all.
    pub steps: u64,
    /// Seed of new weights, of adapters, and of the order and choice of the data.
    #[serde(default)]
    pub seed: u64,
    /// Coefficient of the load-balancing loss; the model's own `router_aux_loss_coef` when absent.
    #[serde(default)]
    pub balance_loss: Option<f64>,
    /// What is trained.
    pub model: ModelConfig,
    /// Low-rank adapters on a frozen base in place of all weights.
    #[serde(default)]
    pub lora: Option<LoraOptions>,
    /// AdamW.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// The learning rate over time.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// How much goes into a step.
    pub batch: BatchConfig,
    /// When weights and state are saved.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// Loss on data that is not trained on.
    #[serde(default)]
    pub evaluation: Option<EvaluationConfig>,
    /// What is learned from.
    #[serde(default)]
    pub data: Vec<DataConfig>,
}

/// AdamW with decoupled decay; biases and norms do not decay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment. M1's gradients go down to 1e-18: 1e-15 keeps them.
    pub eps: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Longest gradient over all parameters; a longer one is shortened to it. 0 leaves gradients as they are.
    pub clip: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { learning_rate: 3e-4, beta1: 0.9, beta2: 0.95, eps: 1e-15, weight_decay: 0.1, clip: 1.0 }
    }
}

/// The learning rate over time, as a share of the highest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Its form after the warm-up.
    pub kind: ScheduleKind,
    /// Steps over which the rate rises from zero to the highest, linearly.
    pub warmup_steps: u64,
    /// Steps over which it falls: by default all after the warm-up for cosine, the last tenth for wsd.
    pub decay_steps: Option<u64>,
    /// Share of the highest rate that it falls to.
    pub min_lr_ratio: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { kind: ScheduleKind::Cosine, warmup_steps: 0, decay_steps: None, min_lr_ratio: 0.1 }
    }
}

/// Form of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// The highest rate throughout.
    Constant,
    /// Half a wave of cosine down to the lowest rate, which then stays.
    Cosine,
    /// Warm-up, stable, decay (Hu et al., "MiniCPM", 2024): the highest rate, then linearly down over the last steps.
    Wsd,
}

/// How much goes into a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchConfig {
    /// Tokens that go through the model at once. Memory grows with it.
    pub max_tokens: usize,
    /// Longest sequence in tokens; `max_tokens` when absent.
    #[serde(default)]
    pub sequence_length: Option<usize>,
    /// Most sequences in `max_tokens` tokens; one per 32 tokens when absent. Each has a state of its own in memory.
    #[serde(default)]
    pub max_sequences: Option<usize>,
    /// Batches of `max_tokens` whose gradients make up one step.
    #[serde(default = "one")]
    pub accumulation: usize,
    /// What the backward pass computes once more instead of having kept it. The same bits come out.
    #[serde(default)]
    pub recompute: RecomputeType,
}

/// What is computed once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecomputeType {
    /// As little as the free memory of a GPU allows; on the CPU as `insides`.
    #[default]
    Auto,
    /// Nothing, on a GPU: fastest; on the CPU as `insides`.
    Nothing,
    /// Whole layers: least memory.
    Layers,
    /// Attention and experts, but not the projections before attention and the one after it: faster.
    Insides,
}

impl From<RecomputeType> for Recompute {
    fn from(recompute: RecomputeType) -> Self {
        match recompute {
            RecomputeType::Auto => Self::Auto,
            RecomputeType::Nothing => Self::Nothing,
            RecomputeType::Layers => Self::Layers,
            RecomputeType::Insides => Self::Insides,
        }
    }
}

fn one() -> usize {
    1
}

impl BatchConfig {
    /// Longest sequence in tokens.
    pub fn sequence_length(&self) -> usize {
        self.sequence_length.unwrap_or(self.max_tokens)
    }

    /// Most sequences in one batch.
    pub fn max_sequences(&self) -> usize {
        const TOKENS_PER_SEQUENCE: usize = 32;
        self.max_sequences.unwrap_or(self.max_tokens.div_ceil(TOKENS_PER_SEQUENCE))
    }
}

/// When weights and state are saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps from one checkpoint to the next. The last step is always saved.
    pub every: u64,
    /// Newest checkpoints that are kept; older ones are removed. 0 keeps all.
    pub keep: usize,
    /// Most bytes of a file of weights; a larger tensor has one of its own.
    pub shard_bytes: u64,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 500, keep: 3, shard_bytes: arges_model::checkpoint::DEFAULT_SHARD_BYTES }
    }
}

/// The text of a description.
pub(crate) fn read(file: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(file).map_err(|source| ConfigError::Read { file: file.to_owned(), source })
}

/// A description as its text has it, unchecked; `origin` names it in errors.
pub(crate) fn parse<T: DeserializeOwned>(text: &str, origin: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Parse {
        file: origin.to_owned(),
        reason: error.to_string().trim_end().to_owned(),
    })
}

impl TrainConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The first field that is wrong, by name.
    pub fn from_file(file: &Path) -> Result<Self, ConfigError> {
        Self::from_toml(&read(file)?, file)
    }

    /// Reads and checks the text of a file; `origin` names it in errors.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn from_toml(text: &str, origin: &Path) -> Result<Self, ConfigError> {
        let config: Self = parse(text, origin)?;
        config.check(origin)?;
        Ok(config)
    }

    /// What decides the course of a run, as one JSON object: a run can only be resumed with the same. How long it
    /// goes on, what it saves, what it computes once more and what it is evaluated on may change.
    pub fn identity(&self) -> serde_json::Value {
        let mut value =
            serde_json::to_value(self).expect("a configuration has string keys and finite numbers");
        if let Some(fields) = value.as_object_mut() {
            for free in ["run", "steps", "checkpoint", "evaluation"] {
                fields.shift_remove(free);
            }
            if let Some(batch) = fields.get_mut("batch").and_then(serde_json::Value::as_object_mut) {
                batch.shift_remove("recompute");
            }
            self.model.forget_defaults(fields);
        }
        value
    }
}

#[cfg(test)]
mod tests;
