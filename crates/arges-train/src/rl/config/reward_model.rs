//! The judge of answers to questions without a verifier.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::reward_model::{RUBRIC, RewardModelConfig};

/// Where the judge is, what it goes by, and what is done where it favours long answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardModelSettings {
    /// The base of the addresses of any API like OpenAI's, such as `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// Its name there.
    pub model: String,
    /// File with the key, where it wants one.
    #[serde(default)]
    pub api_key_file: Option<PathBuf>,
    /// Variable of the environment with the key.
    #[serde(default)]
    pub api_key_env: Option<String>,
    /// What it goes by, a clause after "Judge which is better: ".
    #[serde(default = "rubric")]
    pub rubric: String,
    /// Requests at once; each answer takes two, one for each order.
    #[serde(default = "concurrency")]
    pub concurrency: usize,
    /// Tokens that it may write, its thinking included.
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
    /// Seconds for one request.
    #[serde(default = "timeout")]
    pub timeout: f64,
    /// Requests after the first that fails.
    #[serde(default = "retries")]
    pub retries: u32,
    /// Seconds before the first of them; each later one waits twice as long.
    #[serde(default = "pause")]
    pub pause: f64,
    /// Whether rewards follow lengths.
    #[serde(default)]
    pub length_bias: LengthBiasSettings,
}

/// When rewards count as following lengths, and what is done then.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LengthBiasSettings {
    /// Answers that are looked at, the last so many.
    pub window: usize,
    /// Correlation above which they do.
    pub threshold: f64,
    pub action: BiasAction,
}

impl Default for LengthBiasSettings {
    fn default() -> Self {
        Self { window: 512, threshold: 0.5, action: BiasAction::Warn }
    }
}

/// What is done where rewards follow lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BiasAction {
    /// It is told, and the watch begins anew.
    Warn,
    /// The run saves its state and ends, so that it can be resumed with a better judge.
    Stop,
}

fn rubric() -> String {
    RUBRIC.to_owned()
}

fn concurrency() -> usize {
    RewardModelConfig::default().concurrency
}

fn max_tokens() -> usize {
    RewardModelConfig::default().max_tokens
}

fn timeout() -> f64 {
    RewardModelConfig::default().timeout.as_secs_f64()
}

fn retries() -> u32 {
    RewardModelConfig::default().retries
}

fn pause() -> f64 {
    RewardModelConfig::default().pause.as_secs_f64()
}

impl RewardModelSettings {
    /// The judge, with that key.
    pub fn reward_model(&self, api_key: Option<String>) -> RewardModelConfig {
        RewardModelConfig {
            url: self.url.clone(),
            model: self.model.clone(),
            api_key,
            timeout: Duration::from_secs_f64(self.timeout),
            retries: self.retries,
            pause: Duration::from_secs_f64(self.pause),
            max_tokens: self.max_tokens,
            concurrency: self.concurrency,
            rubric: self.rubric.clone(),
        }
    }
}
