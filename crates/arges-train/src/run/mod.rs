//! A training run: step after step until its end, from a new model, a checkpoint, or where it was left.

mod evaluation;
pub(crate) mod start;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arges_model::training::{DeviceTrainer, TrainingDevice, TrainingError};
use arges_text::TextError;

use crate::checkpoint::{CheckpointError, Checkpoints, Form, State};
use crate::config::{ConfigError, TrainConfig};
use crate::data::{BatchesAhead, DataError, Learn, PackedBatch};
use crate::metrics::{Metrics, MetricsError, MetricsWriter};
use crate::optimizer::{NotFinite, Optimizer, UpdateError};
use crate::schedule;
use evaluation::Evaluation;

/// Why a run cannot start or go on. What it has saved stays.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The description is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The shape of the new model is wrong.
    #[error("`model.new`: {0}")]
    Shape(arges_model::ConfigError),
    /// The checkpoint to start from cannot be read.
    #[error(transparent)]
    Model(#[from] arges_model::CheckpointError),
    /// The model cannot be trained so.
    #[error(transparent)]
    Training(#[from] TrainingError),
    /// The tokenizer cannot be read.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Metrics cannot be written.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// Training has gone astray.
    #[error(
        "step {step}: {source}; a lower `optimizer.learning_rate` or more `schedule.warmup_steps` may help"
    )]
    NotFinite { step: u64, source: NotFinite },
    /// The directory cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    /// Another process is at it.
    #[error("{} is in use by another process", run.display())]
    InUse { run: PathBuf },
    /// There is a run already.
    #[error("{} holds a run of {step} steps already", run.display())]
    Exists { run: PathBuf, step: u64 },
    /// The run that is there is another one.
    #[error("{} cannot be resumed: {reason}", run.display())]
    Differs { run: PathBuf, reason: String },
    /// The model's tokens and the tokenizer's, or its context and the sequences, do not go together.
    #[error("field `{field}`: {reason}")]
    Unfit { field: &'static str, reason: String },
}

/// What happened, told as it does.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A step was taken.
    Step(StepReport),
    /// The loss on data that is not trained on.
    Evaluated { step: u64, loss: f64, sources: Vec<(String, f64)> },
    /// A checkpoint was written.
    Saved { step: u64, path: PathBuf },
}

/// What a step gave.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Steps taken, this one included.
    pub step: u64,
    /// Mean negative log-probability of the targets, in nats, before the step.
    pub loss: f64,
    /// Mean entropy of the distributions the targets come from, in nats.
    pub entropy: f64,
    /// Load-balancing loss with coefficient 1; 0 for a model without router.
    pub balance_loss: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Tokens that went through the model in this step.
    pub tokens: u64,
    /// Tokens that were predicted in this step.
    pub targets: u64,
    /// Seconds it took, with its data.
    pub seconds: f64,
    /// Mean loss of each source that had targets in it.
    pub sources: Vec<(String, f64)>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All steps were taken.
    Finished,
    /// It was asked to stop, and its state saved.
    Stopped,
}

/// A run that is under way.
pub struct Run {
    config: TrainConfig,
    learn: Learn,
    trainer: DeviceTrainer,
    optimizer: Optimizer,
    batches: BatchesAhead,
    evaluation: Option<Evaluation>,
    checkpoints: Checkpoints,
    metrics: MetricsWriter,
    /// Where the tokenizer's files are.
    tokenizer: PathBuf,
    balance: f32,
    tokens: u64,
    targets: u64,
    /// The newest checkpoint.
    saved: Option<u64>,
    /// Held as long as the run is under way.
    _lock: File,
}

impl Run {
    /// Opens everything a run needs. Without `resume` its directory must hold no run; with it, the newest checkpoint
    /// there is the start, if there is one.
    ///
    /// # Errors
    /// Whatever cannot be used, by name.
    pub fn open(
        config: TrainConfig,
        learn: Learn,
        device: impl Into<TrainingDevice>,
        resume: bool,
    ) -> Result<Self, TrainError> {
        start::open(config, learn, device.into(), resume)
    }

    /// Steps taken.
    pub fn step(&self) -> u64 {
        self.optimizer.step()
    }

    /// Its description.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The model and what learns of it; values on a GPU are as they were at the last checkpoint.
    pub fn trainer(&self) -> &DeviceTrainer {
        &self.trainer
    }

    /// Ends the run and gives its model.
    pub fn into_trainer(self) -> DeviceTrainer {
        self.trainer
    }

    /// Bytes of weights, activations, gradients and the optimizer's state.
    pub fn bytes(&self) -> usize {
        self.trainer.bytes() + self.optimizer.bytes()
    }

    /// Takes the steps that are left, telling what happens. After `stop` was set it saves its state and ends.
    ///
    /// # Errors
    /// Data that cannot be read, a gradient that is not finite, or a disk that cannot be written. The checkpoints
    /// written before are whole.
    pub fn train(&mut self, stop: &AtomicBool, tell: &mut dyn FnMut(Event)) -> Result<Outcome, TrainError> {
        while self.step() < self.config.steps {
            if stop.load(Ordering::Relaxed) {
                self.save(tell)?;
                return Ok(Outcome::Stopped);
            }
            let report = self.take_step()?;
            self.metrics.write(&self.step_metrics(&report))?;
            tell(Event::Step(report));
            self.evaluate(tell)?;
            if self.step().is_multiple_of(self.config.checkpoint.every) || self.step() == self.config.steps {
                self.save(tell)?;
            }
        }
        Ok(Outcome::Finished)
    }

    fn take_step(&mut self) -> Result<StepReport, TrainError> {
        let start = Instant::now();
        let batches = (0..self.config.batch.accumulation).map(|_| self.batches.next_batch());
        let batches = batches.collect::<Result<Vec<PackedBatch>, _>>()?;
        let targets: usize = batches.iter().map(|packed| packed.batch.targets.len()).sum();
        let tokens: usize = batches.iter().map(|packed| packed.batch.tokens.len()).sum();
        let weight = -1.0 / targets as f32;
        let balance = self.balance / batches.len() as f32;
        let (mut sums, mut entropy, mut balance_loss) = (SourceSums::new(&self.config), 0.0, 0.0);
        self.trainer.zero_gradients();
        for packed in &batches {
            let output = self.trainer.accumulate(&packed.batch, weight, balance)?;
            sums.add(&packed.parts, output.logprobs);
            entropy += output.entropies.iter().map(|entropy| f64::from(*entropy)).sum::<f64>();
            balance_loss += output.balance_loss / batches.len() as f64;
        }
        let step = self.step() + 1;
        let share = schedule::share(&self.config.schedule, self.config.steps, step);
        let learning_rate = self.config.optimizer.learning_rate * share;
        let norm = self.optimizer.update_trainer(learning_rate, &mut self.trainer);
        let gradient_norm = norm.map_err(|error| match error {
            UpdateError::NotFinite(source) => TrainError::NotFinite { step, source },
            UpdateError::Training(error) => error.into(),
        })?;
        self.trainer.publish()?;
        self.tokens += tokens as u64;
        self.targets += targets as u64;
        Ok(StepReport {
            step,
            loss: sums.mean(),
            entropy: entropy / targets as f64,
            balance_loss,
            gradient_norm,
            learning_rate,
            tokens: tokens as u64,
            targets: targets as u64,
            seconds: start.elapsed().as_secs_f64(),
            sources: sums.means(),
        })
    }

    fn step_metrics(&self, report: &StepReport) -> Metrics {
        let mut values = vec![
            ("train/loss".to_owned(), report.loss),
            ("train/entropy".to_owned(), report.entropy),
            ("train/gradient_norm".to_owned(), report.gradient_norm),
            ("train/lr".to_owned(), report.learning_rate),
            ("train/tokens".to_owned(), self.tokens as f64),
            ("train/targets".to_owned(), self.targets as f64),
            ("train/tokens_per_second".to_owned(), report.tokens as f64 / report.seconds),
        ];
        if self.trainer.config().is_moe() {
            values.push(("train/balance_loss".to_owned(), report.balance_loss));
        }
        if self.config.data.len() > 1 {
            values.extend(report.sources.iter().map(|(name, loss)| (format!("train/{name}/loss"), *loss)));
        }
        Metrics { step: report.step, time: now(), values }
    }

    fn evaluate(&mut self, tell: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let (step, steps) = (self.step(), self.config.steps);
        let Some(evaluation) = &self.evaluation else { return Ok(()) };
        if !step.is_multiple_of(evaluation.every()) && step != steps {
            return Ok(());
        }
        let sums = evaluation.run(&mut self.trainer)?;
        let (loss, sources) = (sums.mean(), sums.means());
        let mut values =
            vec![("eval/loss".to_owned(), loss), ("train/tokens".to_owned(), self.tokens as f64)];
        if sources.len() > 1 {
            values.extend(sources.iter().map(|(name, loss)| (format!("eval/{name}/loss"), *loss)));
        }
        self.metrics.write(&Metrics { step, time: now(), values })?;
        tell(Event::Evaluated { step, loss, sources });
        Ok(())
    }

    fn save(&mut self, tell: &mut dyn FnMut(Event)) -> Result<(), TrainError> {
        let step = self.step();
        if step == 0 || self.saved == Some(step) {
            return Ok(());
        }
        let (identity, learn) = (self.config.identity(), self.learn.name().to_owned());
        let state = State::new(step, self.tokens, self.targets, self.batches.state(), identity, learn);
        let checkpoint = self.config.checkpoint;
        let dtype = self.config.model.save_dtype.into();
        let form = Form { dtype, shard_bytes: checkpoint.shard_bytes, keep: checkpoint.keep };
        self.optimizer.fetch()?;
        self.trainer.fetch()?;
        let (parameters, cpu) = (self.trainer.parameters(), self.trainer.cpu());
        let path =
            self.checkpoints.save(&state, parameters, &self.optimizer, &self.tokenizer, form, cpu, &[])?;
        // A tokenizer that came from an older checkpoint of this run may have gone with it.
        if !self.tokenizer.exists() {
            self.tokenizer.clone_from(&path);
        }
        self.saved = Some(step);
        tell(Event::Saved { step, path });
        Ok(())
    }
}

/// Sums of negative log-probabilities, by source.
struct SourceSums {
    names: Vec<String>,
    sums: Vec<(f64, usize)>,
}

impl SourceSums {
    fn new(config: &TrainConfig) -> Self {
        Self::of(config.data.iter().map(|source| source.display_name()).collect())
    }

    fn of(names: Vec<String>) -> Self {
        let sums = vec![(0.0, 0); names.len()];
        Self { names, sums }
    }

    /// Adds the log-probabilities of a batch's targets: of each sequence its source and number of targets.
    fn add(&mut self, parts: &[(usize, usize)], mut logprobs: &[f32]) {
        for &(source, targets) in parts {
            let (of_part, rest) = logprobs.split_at(targets);
            logprobs = rest;
            let (sum, count) = &mut self.sums[source];
            *sum -= of_part.iter().map(|logprob| f64::from(*logprob)).sum::<f64>();
            *count += targets;
        }
    }

    fn mean(&self) -> f64 {
        let (sum, count) =
            self.sums.iter().fold((0.0, 0), |all, source| (all.0 + source.0, all.1 + source.1));
        sum / count as f64
    }

    /// The mean of each source that has targets.
    fn means(&self) -> Vec<(String, f64)> {
        let named = self.names.iter().zip(&self.sums).filter(|(_, (_, count))| *count > 0);
        named.map(|(name, (sum, count))| (name.clone(), sum / *count as f64)).collect()
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Where the run's lock is.
pub(crate) fn lock_file(run: &Path) -> PathBuf {
    run.join(".lock")
}
