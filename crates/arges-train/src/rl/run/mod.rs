//! A run: sample a batch, learn from it in several updates, publish the weights, and so on to its end.

mod collect;
mod evaluate;
mod judgements;
mod learn;
mod start;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arges_engine::{EngineError, EngineStats};
use arges_model::publication::PublicationError;
use arges_model::training::{DeviceTrainer, TrainingDevice, TrainingError};
use arges_text::TextError;
use serde::{Deserialize, Serialize};

use super::config::RlConfig;
use super::curriculum::Curriculum;
use super::groups::Groups;
use super::judged::JudgedError;
use super::metrics::Values;
use super::policy::{LocalPolicy, PolicyError};
use super::remote::{Remote, RemoteError};
use super::rollout::Rollouts;
use super::talk::TalkError;
use super::trajectory;
use super::window::{Window, WindowState};
use crate::checkpoint::{CheckpointError, Checkpoints, Form, State};
use crate::metrics::{Metrics, MetricsError, MetricsWriter};
use crate::optimizer::{NotFinite, Optimizer};
use crate::reward_model::LengthBias;
use crate::run::{TrainError, now};

/// File of the groups that are not learned from yet, beside a checkpoint's state.
const QUEUE_FILE: &str = "rollout-queue.jsonl.zst";
/// What a run of reinforcement learning is called in its state.
const LEARN: &str = "rl";

/// Why a run cannot start or go on. What it has saved stays.
#[derive(Debug, thiserror::Error)]
pub enum RlError {
    /// The run's directory or its earlier state cannot be used.
    #[error("{0}")]
    Train(#[from] TrainError),
    /// The checkpoint to start from cannot be read.
    #[error(transparent)]
    Model(#[from] arges_model::CheckpointError),
    /// The model cannot be trained so.
    #[error(transparent)]
    Training(#[from] TrainingError),
    /// The tokenizer cannot be read.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The model's turns cannot be told apart.
    #[error(transparent)]
    Talk(#[from] TalkError),
    /// The engine does not start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine does not take new weights.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Endpoints cannot be used.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Weights cannot be published for endpoints.
    #[error(transparent)]
    Publication(#[from] PublicationError),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Metrics cannot be written.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// Trajectories cannot be written or read.
    #[error("cannot use {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    /// Training has gone astray.
    #[error("step {step}: {source}; a lower `optimizer.learning_rate` or `objective.is_max` may help")]
    NotFinite { step: u64, source: NotFinite },
    /// Rollouts fail, all of them.
    #[error("{lost} responses of a batch were lost in sampling, the last one: {reason}")]
    Lost { lost: usize, reason: String },
    /// Responses that cannot be judged, and hardly any that can.
    #[error("{unjudged} responses could not be judged while a batch was sampled, the last one: {reason}")]
    Unjudged { unjudged: usize, reason: String },
    /// Questions for the reward model, or the model itself, cannot be used.
    #[error(transparent)]
    Judged(#[from] JudgedError),
    /// The reward model favours long answers.
    #[error(
        "the reward model's rewards follow the lengths of answers: their correlation is {correlation:.2} over the last \
         {window} answers; the state is saved, so that the run can be resumed with another `reward_model`"
    )]
    Biased { correlation: f64, window: usize },
    /// Groups without anything to learn, one after the other.
    #[error(
        "{groups} groups in a row had the same reward for every response: nothing can be learned from these tasks; try \
         other difficulties, more `rollout.responses`, or `advantage.dynamic_sampling = false`"
    )]
    Uniform { groups: usize },
}

/// What happened, told as it does.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Responses that have ended of those that are awaited.
    Sampling { batch: u64, ended: usize, awaited: usize, dropped: usize },
    /// A response gave nothing.
    Lost { reason: String },
    /// A step was taken; these are its metrics.
    Step { batch: u64, step: u64, values: Values },
    /// Problems that are not learned from.
    Evaluated { step: u64, values: Values },
    /// Responses may be longer from now on.
    Widened { window: usize },
    /// The rewards of the reward model follow the lengths of answers.
    Biased { correlation: f64 },
    /// A checkpoint was written.
    Saved { step: u64, path: PathBuf },
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All batches were learned.
    Finished,
    /// It was asked to stop, and its state saved.
    Stopped,
}

/// The place of a run: what a checkpoint holds beside weights, moments and groups. All random choices are functions of
/// the seed and of counters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Place {
    /// Batches learned, which is also the version of the weights.
    batch: u64,
    window: WindowState,
    curriculum: Curriculum,
    /// Whether the reward model favours long answers, where there is one.
    #[serde(default)]
    length_bias: Option<LengthBias>,
}

/// A run that is under way.
pub struct RlRun {
    config: RlConfig,
    trainer: DeviceTrainer,
    optimizer: Optimizer,
    policy: Arc<LocalPolicy>,
    remote: Option<Remote>,
    rollouts: Rollouts,
    place: Place,
    groups: Groups,
    checkpoints: Checkpoints,
    metrics: MetricsWriter,
    /// Where the tokenizer's files are.
    tokenizer: PathBuf,
    tokens: u64,
    targets: u64,
    /// Groups dropped in a row, and since the last batch.
    uniform: usize,
    dropped: usize,
    /// Step of the newest checkpoint.
    saved: Option<u64>,
    /// Whether the start has been evaluated.
    start_evaluated: bool,
    /// Seconds for which the newest batch was waited for.
    waited: f64,
    /// When the newest batch was learned, and what the engine had done then.
    clock: Instant,
    engine_stats: EngineStats,
    /// Held as long as the run is under way.
    _lock: File,
}

impl RlRun {
    /// Opens everything a run needs. Without `resume` its directory must hold no run; with it, the newest checkpoint
    /// there is the start, if there is one.
    ///
    /// # Errors
    /// Whatever cannot be used, by name.
    pub fn open(config: RlConfig, device: impl Into<TrainingDevice>, resume: bool) -> Result<Self, RlError> {
        start::open(config, device.into(), resume)
    }

    /// Its description.
    pub fn config(&self) -> &RlConfig {
        &self.config
    }

    /// Batches learned.
    pub fn batch(&self) -> u64 {
        self.place.batch
    }

    /// Steps taken.
    pub fn step(&self) -> u64 {
        self.optimizer.step()
    }

    /// The model and what learns of it; values on a GPU are as they were at the last checkpoint.
    pub fn trainer(&self) -> &DeviceTrainer {
        &self.trainer
    }

    /// Bytes of weights, activations, gradients, the optimizer's state and the engine's caches. Trainer and engine share
    /// the model but for the time of a batch's updates, when there are two.
    pub fn bytes(&self) -> usize {
        let memory = self.policy.engine().memory();
        self.trainer.bytes() + self.optimizer.bytes() + memory.total()
    }

    /// Learns the batches that are left, telling what happens. After `stop` was set it saves its state and ends.
    ///
    /// # Errors
    /// Rollouts that all fail, a gradient that is not finite, or a disk that cannot be written. The checkpoints
    /// written before are whole.
    pub fn train(&mut self, stop: &AtomicBool, tell: &mut dyn FnMut(Event)) -> Result<Outcome, RlError> {
        if self.step() == 0 && !self.start_evaluated {
            self.evaluate(tell)?;
        }
        for (group, member) in self.groups.unfinished() {
            self.submit(&group, member);
        }
        while self.place.batch < self.config.batches {
            let Some(batch) = self.collect(stop, tell)? else {
                self.save(tell)?;
                return Ok(Outcome::Stopped);
            };
            self.learn(batch, tell)?;
            self.check_bias(tell)?;
            let (done, last) = (self.place.batch, self.place.batch == self.config.batches);
            let every = self.config.evaluation.as_ref().map(|evaluation| evaluation.every);
            if every.is_some_and(|every| last || done.is_multiple_of(every)) {
                self.evaluate(tell)?;
            }
            if last || done.is_multiple_of(self.config.checkpoint.every) {
                self.save(tell)?;
            }
            if stop.load(Ordering::Relaxed) && !last {
                self.save(tell)?;
                return Ok(Outcome::Stopped);
            }
        }
        Ok(Outcome::Finished)
    }

    /// The window that responses have now.
    fn window(&self) -> Window {
        self.config.window[self.place.window.index.min(self.config.window.len() - 1)]
    }

    fn write_metrics(&mut self, values: Values) -> Result<(), RlError> {
        let step = self.step();
        Ok(self.metrics.write(&Metrics { step, time: now(), values })?)
    }

    fn save(&mut self, tell: &mut dyn FnMut(Event)) -> Result<(), RlError> {
        let step = self.step();
        if step == 0 || self.saved == Some(step) {
            return Ok(());
        }
        let queue = trajectory::to_bytes(std::slice::from_ref(&self.groups))
            .map_err(|source| RlError::File { path: QUEUE_FILE.into(), source })?;
        let (place, identity) = (self.place.clone(), self.config.identity());
        let state = State::new(step, self.tokens, self.targets, place, identity, LEARN.to_owned());
        let checkpoint = self.config.checkpoint;
        let dtype = self.config.model.save_dtype.into();
        let form = Form { dtype, shard_bytes: checkpoint.shard_bytes, keep: checkpoint.keep };
        let files: [(&str, &[u8]); 1] = [(QUEUE_FILE, &queue)];
        self.optimizer.fetch()?;
        self.trainer.fetch()?;
        let (parameters, cpu) = (self.trainer.parameters(), self.trainer.cpu());
        let path =
            self.checkpoints.save(&state, parameters, &self.optimizer, &self.tokenizer, form, cpu, &files)?;
        self.saved = Some(step);
        tell(Event::Saved { step, path });
        Ok(())
    }
}

/// How long to wait for a response before looking whether to stop.
const LOOK: Duration = Duration::from_millis(100);
