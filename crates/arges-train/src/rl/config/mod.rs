//! The file that describes a run of reinforcement learning.

mod check;
mod reward_model;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use arges_engine::RunningCaches;
use arges_model::training::{LoraOptions, TrainingPlan};
use serde::{Deserialize, Serialize};

pub use reward_model::{BiasAction, LengthBiasSettings, RewardModelSettings};

use super::advantage::OverlongPenalty;
use super::curriculum::{CurriculumConfig, TaskConfig};
use super::objective::{Aggregation, Algorithm, Anchor, Objective, TokenMask};
use super::remote::RemoteConfig;
use super::window::{Window, WindowRule};
use crate::config::{
    self, ConfigError, ModelConfig, OptimizerConfig, RecomputeType, ScheduleConfig, ScheduleKind,
};

/// A run of reinforcement learning. Relative paths are relative to the working directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RlConfig {
    /// Directory of the run: checkpoints, metrics, trajectories.
    pub run: PathBuf,
    /// Generation batches in all; each gives `update.updates` steps of the optimizer.
    pub batches: u64,
    /// Seed of the problems, of the samples and of the order in which they are learned.
    #[serde(default)]
    pub seed: u64,
    /// Coefficient of the load-balancing loss; 0, which leaves routing to the rewards, when absent.
    #[serde(default)]
    pub balance_loss: f64,
    /// What the machine can do, in 1e12 floating-point operations a second; with it MFU is told.
    #[serde(default)]
    pub peak_tflops: Option<f64>,
    /// What is trained; a checkpoint with tokenizer.
    pub model: ModelConfig,
    /// Low-rank adapters on a frozen base in place of all weights.
    #[serde(default)]
    pub lora: Option<LoraOptions>,
    /// The algorithm.
    #[serde(default)]
    pub objective: ObjectiveConfig,
    /// From rewards to advantages.
    #[serde(default)]
    pub advantage: AdvantageConfig,
    /// How responses are sampled.
    pub rollout: RolloutConfig,
    /// Endpoints that sample too.
    #[serde(default)]
    pub remote: Option<RemoteConfig>,
    /// What judges answers to questions without a verifier.
    #[serde(default)]
    pub reward_model: Option<RewardModelSettings>,
    /// How they are learned from.
    pub update: UpdateConfig,
    /// AdamW and its rate.
    #[serde(default)]
    pub optimizer: RlOptimizerConfig,
    /// How long responses may get.
    pub window: Vec<Window>,
    /// When the next window begins.
    #[serde(default)]
    pub window_rule: WindowRule,
    /// What is asked.
    pub task: Vec<TaskConfig>,
    /// How pass rates move what is asked.
    #[serde(default)]
    pub curriculum: CurriculumConfig,
    /// When weights and state are saved.
    #[serde(default)]
    pub checkpoint: RlCheckpointConfig,
    /// Problems that are not learned from.
    #[serde(default)]
    pub evaluation: Option<RlEvaluationConfig>,
}

/// The algorithm, and what differs from it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectiveConfig {
    /// `cispo`, `grpo`, `dapo` or `reinforce`, which give the values of all that is absent.
    #[serde(default = "cispo")]
    pub algorithm: Algorithm,
    /// What ratios are taken to: `rollout`, the log-probabilities when tokens were sampled, or `old`, computed anew when
    /// the batch begins.
    #[serde(default)]
    pub anchor: Option<Anchor>,
    /// Least weight of a ratio, absolute.
    #[serde(default)]
    pub is_min: Option<f64>,
    /// Largest weight of a ratio, absolute.
    #[serde(default)]
    pub is_max: Option<f64>,
    /// Tokens of negative advantage below a ratio of `1 - mask_low` are left out. Goes with `mask_high`.
    #[serde(default)]
    pub mask_low: Option<f64>,
    /// Tokens of positive advantage above a ratio of `1 + mask_high` are left out. Goes with `mask_low`.
    #[serde(default)]
    pub mask_high: Option<f64>,
    /// Shares of the tokens: `token`, `sample`, `prompt` or `combined`.
    #[serde(default)]
    pub aggregation: Option<Aggregation>,
    /// With anchor `old`, the largest weight that corrects for other log-probabilities at sampling; none when absent.
    #[serde(default)]
    pub rollout_correction: Option<f64>,
}

fn cispo() -> Algorithm {
    Algorithm::Cispo
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::Cispo,
            anchor: None,
            is_min: None,
            is_max: None,
            mask_low: None,
            mask_high: None,
            aggregation: None,
            rollout_correction: None,
        }
    }
}

impl ObjectiveConfig {
    /// The algorithm's settings with what was given in their place.
    pub fn objective(&self) -> Objective {
        let preset = self.algorithm.objective();
        let mask = self.mask_low.zip(self.mask_high).map(|(low, high)| TokenMask { low, high });
        Objective {
            anchor: self.anchor.unwrap_or(preset.anchor),
            is_min: self.is_min.unwrap_or(preset.is_min),
            is_max: self.is_max.unwrap_or(preset.is_max),
            mask: mask.or(preset.mask),
            aggregation: self.aggregation.unwrap_or(preset.aggregation),
            rollout_correction: self.rollout_correction.or(preset.rollout_correction),
        }
    }
}

/// From rewards to advantages.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdvantageConfig {
    /// Whether advantages are divided by the deviation of their group.
    pub by_deviation: bool,
    /// Whether groups whose rewards are all alike are dropped and others sampled in their place.
    pub dynamic_sampling: bool,
    /// Tokens before the window's end from which on length is taken off the reward; none when absent.
    pub overlong: Option<OverlongPenalty>,
    /// Whether responses that the window cut off are left out of the loss.
    pub mask_truncated: bool,
}

impl Default for AdvantageConfig {
    fn default() -> Self {
        Self { by_deviation: true, dynamic_sampling: true, overlong: None, mask_truncated: false }
    }
}

/// How responses are sampled. Always at temperature 1, from the model's whole distribution: what is learned is then the
/// distribution that was sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutConfig {
    /// Groups of a batch: prompts, of which each has several responses.
    pub prompts: usize,
    /// Responses to each prompt.
    pub responses: usize,
    /// Batches that rollouts may run ahead. 0 is on-policy: sampling and learning take turns, and a run is
    /// reproducible bit for bit. From 1 on, sampling goes on while the model learns.
    #[serde(default)]
    pub max_staleness: u64,
    /// What becomes of the caches of responses that are under way when the weights change: `recompute` or `keep`.
    #[serde(default)]
    pub caches: CachesType,
    /// Responses that are sampled at once.
    #[serde(default = "concurrency")]
    pub concurrency: usize,
    /// Tokens of one step of the engine; at least `concurrency`.
    #[serde(default = "step_tokens")]
    pub step_tokens: usize,
    /// Turns of an episode at most, in tasks of several.
    #[serde(default = "turns")]
    pub max_turns: usize,
    /// Ends a response that goes round in circles; never when absent.
    #[serde(default)]
    pub repetition: Option<RepetitionConfig>,
    /// Which tokens' log-probabilities are computed anew before a batch is learned: `first`, those of its first
    /// update, which costs nothing, or `all`.
    #[serde(default)]
    pub agreement: Agreement,
    /// Whether tokens go to the experts that served them when they were sampled, whatever the router says by now; their
    /// weights are the router's in any case. On the CPU.
    #[serde(default)]
    pub replay_experts: bool,
}

fn concurrency() -> usize {
    64
}

fn step_tokens() -> usize {
    512
}

fn turns() -> usize {
    8
}

/// What becomes of caches of responses under way when the weights change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CachesType {
    /// They are computed again: later tokens have the log-probabilities of the new weights.
    #[default]
    Recompute,
    /// They stay: no work, and later tokens come from a mixture of both.
    Keep,
}

impl From<CachesType> for RunningCaches {
    fn from(caches: CachesType) -> Self {
        match caches {
            CachesType::Recompute => Self::Recompute,
            CachesType::Keep => Self::Keep,
        }
    }
}

/// Which tokens show whether training and sampling agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Agreement {
    /// Those of the first update of a batch.
    #[default]
    First,
    /// All, by one more forward pass.
    All,
}

/// A run of tokens that were all but certain.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepetitionConfig {
    /// Length of the run; M1's was 3,000.
    pub tokens: usize,
    /// Probability above which a token counts; M1's was 0.99.
    pub probability: f32,
}

/// How a batch is learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateConfig {
    /// Steps of the optimizer a batch, each on its share of the responses; all but the first are off-policy. M1's
    /// comparison had 16.
    #[serde(default = "updates")]
    pub updates: usize,
    /// Tokens that go through the model at once; at least those of the longest prompt with its window.
    pub max_tokens: usize,
    /// Most sequences in `max_tokens` tokens; one per 32 tokens when absent.
    #[serde(default)]
    pub max_sequences: Option<usize>,
    /// What the backward pass computes once more instead of having kept it. The same bits come out. By default
    /// `insides`: the memory of a GPU is also wanted for sampling.
    #[serde(default = "insides")]
    pub recompute: RecomputeType,
}

fn insides() -> RecomputeType {
    RecomputeType::Insides
}

fn updates() -> usize {
    16
}

impl UpdateConfig {
    /// The largest piece of a step.
    pub fn plan(&self) -> TrainingPlan {
        const TOKENS_PER_SEQUENCE: usize = 32;
        TrainingPlan {
            max_tokens: self.max_tokens,
            max_sequences: self.max_sequences.unwrap_or(self.max_tokens.div_ceil(TOKENS_PER_SEQUENCE)),
            recompute: self.recompute.into(),
            // Log-probabilities are those of the sampler.
            rounded_head: false,
        }
    }
}

/// AdamW with decoupled decay, and a rate that is constant after its warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RlOptimizerConfig {
    /// The rate.
    pub learning_rate: f64,
    /// Steps over which it rises from zero, linearly.
    pub warmup_steps: u64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment. M1's gradients go down to 1e-18: 1e-15 keeps them, the usual 1e-8 not.
    pub eps: f64,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f64,
    /// Longest gradient over all parameters; a longer one is shortened to it. 0 leaves gradients as they are.
    pub clip: f64,
}

impl Default for RlOptimizerConfig {
    fn default() -> Self {
        Self {
            learning_rate: 1e-6,
            warmup_steps: 20,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-15,
            weight_decay: 0.0,
            clip: 1.0,
        }
    }
}

impl RlOptimizerConfig {
    /// The optimizer's part.
    pub fn optimizer(&self) -> OptimizerConfig {
        let Self { learning_rate, beta1, beta2, eps, weight_decay, clip, .. } = *self;
        OptimizerConfig { learning_rate, beta1, beta2, eps, weight_decay, clip }
    }

    /// The rate's part.
    pub fn schedule(&self) -> ScheduleConfig {
        let kind = ScheduleKind::Constant;
        ScheduleConfig { kind, warmup_steps: self.warmup_steps, decay_steps: None, min_lr_ratio: 1.0 }
    }
}

/// When weights and state are saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RlCheckpointConfig {
    /// Batches from one checkpoint to the next. The last batch is always saved.
    pub every: u64,
    /// Newest checkpoints that are kept; older ones are removed. 0 keeps all.
    pub keep: usize,
    /// Most bytes of a file of weights; a larger tensor has one of its own.
    pub shard_bytes: u64,
}

impl Default for RlCheckpointConfig {
    fn default() -> Self {
        Self { every: 10, keep: 3, shard_bytes: arges_model::checkpoint::DEFAULT_SHARD_BYTES }
    }
}

/// Problems that are not learned from: every task and difficulty of `[[task]]`, from seeds that training never takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RlEvaluationConfig {
    /// Batches from one evaluation to the next. The start and the last batch are always evaluated.
    pub every: u64,
    /// Problems of each task and difficulty.
    #[serde(default = "problems")]
    pub problems: u64,
    /// Responses to each: 1 takes the likeliest tokens (greedy), more are sampled and give pass@1 and pass@k.
    #[serde(default = "samples")]
    pub samples: usize,
}

fn problems() -> u64 {
    50
}

fn samples() -> usize {
    1
}

impl RlConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The first field that is wrong, by name.
    pub fn from_file(file: &Path) -> Result<Self, ConfigError> {
        Self::from_toml(&config::read(file)?, file)
    }

    /// Reads and checks the text of a file; `origin` names it in errors.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn from_toml(text: &str, origin: &Path) -> Result<Self, ConfigError> {
        let config: Self = config::parse(text, origin)?;
        config.check().map_err(|(field, reason)| ConfigError::Field {
            file: origin.to_owned(),
            field,
            reason,
        })?;
        Ok(config)
    }

    /// What decides the course of a run, as one JSON object: a run can only be resumed with the same. How long it goes
    /// on, what it saves and what it is evaluated on may change.
    pub fn identity(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).expect("a configuration has string keys");
        if let Some(fields) = value.as_object_mut() {
            for free in
                ["run", "batches", "checkpoint", "evaluation", "remote", "reward_model", "peak_tflops"]
            {
                fields.shift_remove(free);
            }
            self.model.forget_defaults(fields);
        }
        value
    }

    /// Steps of the optimizer in all.
    pub fn steps(&self) -> u64 {
        self.batches * self.update.updates as u64
    }
}
