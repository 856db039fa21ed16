//! Learning from a batch: several updates, each on its share, then new weights for the engine.

use std::time::Instant;

use arges_model::accounting::Accounting;
use arges_model::{DType, NewWeights};

use super::{Event, RlError, RlRun};
use crate::data::mix;
use crate::optimizer::UpdateError;
use crate::rl::batch::{Batch, Piece};
use crate::rl::config::Agreement;
use crate::rl::groups::Group;
use crate::rl::metrics::{self, AgreementStats, TokenStats, Values};
use crate::rl::objective::{Anchor, Objective, TokenLogprobs};
use crate::rl::trajectory::{self, Trained};
use crate::schedule;

/// Sets the order of a batch's updates apart from other choices.
const ORDER: u64 = 0x006f_7264_6572;

/// A batch while it is learned.
struct Learning {
    batch: Batch,
    objective: Objective,
    /// Log-probabilities of each trajectory's sampled tokens when the batch began, where they were computed.
    old: Option<Vec<Vec<f32>>>,
    agreement: AgreementStats,
}

impl Learning {
    /// The log-probabilities of a sampled token, but for that under the weights that learn.
    fn logprobs(&self, trajectory: usize, token: usize, now: f32) -> TokenLogprobs {
        let rollout = self.batch.trajectories[trajectory].logprobs[token];
        let old = self.old.as_ref().map_or(rollout, |old| old[trajectory][token]);
        TokenLogprobs { now, old, rollout }
    }
}

impl RlRun {
    pub(super) fn learn(&mut self, groups: Vec<Group>, tell: &mut dyn FnMut(Event)) -> Result<(), RlError> {
        let (start, version) = (Instant::now(), self.place.batch);
        let (outcomes, lost) = self.groups.outcomes();
        for outcome in &outcomes {
            self.place.curriculum.observe(outcome.cell, &outcome.rewards, &self.config.curriculum);
        }
        let batch = Batch::new(groups, &self.config.advantage, self.window().tokens);
        let mut summary = metrics::of_batch(&batch, &outcomes, lost, version);
        summary.extend(self.pass_rates());
        summary.extend(self.judgements(&outcomes));
        let mut learning = self.begin(batch)?;
        let (updates, key) = (self.config.update.updates, mix(&[self.config.seed, version, ORDER]));
        for (number, of) in learning.batch.updates(updates, key).iter().enumerate() {
            let mut values = self.update(&mut learning, of, number == 0)?;
            if number + 1 == updates {
                let (learned, publishing) = (start.elapsed().as_secs_f64(), Instant::now());
                self.publish()?;
                let published = publishing.elapsed().as_secs_f64();
                values.append(&mut summary);
                values.extend(self.speeds(&learning, learned, published));
                metrics::write_prometheus(&self.config.run, self.step(), &values)
                    .map_err(|source| RlError::File { path: self.config.run.clone(), source })?;
            }
            self.write_metrics(values.clone())?;
            tell(Event::Step { batch: version + 1, step: self.step(), values });
            self.pump(tell)?;
        }
        let batch = &learning.batch;
        trajectory::write(&self.config.run, self.place.batch, &batch.trajectories).map_err(|source| {
            RlError::File { path: trajectory::file_of(&self.config.run, version + 1), source }
        })?;
        let (perplexity, p99) = (metrics::perplexity(batch), metrics::p99_length(batch));
        let (windows, rule) = (&self.config.window, &self.config.window_rule);
        if self.place.window.observe(windows, rule, perplexity, p99) {
            tell(Event::Widened { window: self.window().tokens });
        }
        Ok(())
    }

    /// What a batch needs before its first update.
    fn begin(&mut self, batch: Batch) -> Result<Learning, RlError> {
        let window = self.window();
        let mut objective = self.config.objective.objective();
        objective.is_max = window.is_max.unwrap_or(objective.is_max);
        self.optimizer.set_clip(window.clip.unwrap_or(self.config.optimizer.clip));
        let mut learning = Learning { batch, objective, old: None, agreement: AgreementStats::default() };
        if objective.anchor == Anchor::Old || self.config.rollout.agreement == Agreement::All {
            let old = self.logprobs(&learning.batch)?;
            for (trajectory, old) in learning.batch.trajectories.iter().zip(&old) {
                learning.agreement.add(trajectory, self.place.batch, old);
            }
            learning.old = Some(old);
        }
        Ok(learning)
    }

    /// Log-probabilities of all sampled tokens under the weights as they are.
    fn logprobs(&mut self, batch: &Batch) -> Result<Vec<Vec<f32>>, RlError> {
        let all: Vec<usize> = (0..batch.trajectories.len()).collect();
        let mut logprobs = vec![Vec::new(); all.len()];
        for piece in batch.pieces(&all, self.config.update.plan()) {
            let output = self.trainer.evaluate(&piece.batch)?;
            for part in &piece.parts {
                logprobs[part.index] = output.logprobs[part.targets.clone()].to_vec();
            }
        }
        Ok(logprobs)
    }

    /// A step of the optimizer on some of the trajectories.
    fn update(&mut self, learning: &mut Learning, of: &[usize], is_first: bool) -> Result<Values, RlError> {
        let pieces = learning.batch.pieces(of, self.config.update.plan());
        let shares = learning.batch.shares(of, learning.objective.aggregation);
        let balance = self.config.balance_loss as f32 / pieces.len().max(1) as f32;
        let (mut stats, mut balance_loss) = (TokenStats::default(), 0.0);
        let step = self.step() + 1;
        self.trainer.zero_gradients();
        for piece in &pieces {
            let owners = piece.owners();
            let weight = |target: usize, now: f32| {
                let (part, token) = owners[target];
                let part = &piece.parts[part];
                let (advantage, share) = (learning.batch.advantages[part.index], shares[part.place]);
                // The trainer takes derivatives of a loss, which is -J.
                -learning.objective.gradient(learning.logprobs(part.index, token, now), advantage, share)
                    as f32
            };
            let output = self.trainer.accumulate(&piece.batch, &weight, balance)?;
            balance_loss += output.balance_loss / pieces.len() as f64;
            self.tokens += piece.batch.tokens.len() as u64;
            self.targets += piece.batch.targets.len() as u64;
            add_stats(&mut stats, learning, piece, &shares, output.logprobs, output.entropies);
            for part in &piece.parts {
                let logprobs = output.logprobs[part.targets.clone()].to_vec();
                if is_first && learning.old.is_none() {
                    let trajectory = &learning.batch.trajectories[part.index];
                    learning.agreement.add(trajectory, self.place.batch, &logprobs);
                }
                let (shaped_reward, advantage) =
                    (learning.batch.shaped[part.index], learning.batch.advantages[part.index]);
                learning.batch.trajectories[part.index].trained =
                    Some(Trained { shaped_reward, advantage, step, logprobs });
            }
        }
        let share = schedule::share(&self.config.optimizer.schedule(), self.config.steps(), step);
        let learning_rate = self.config.optimizer.learning_rate * share;
        let norm = self.optimizer.update_trainer(learning_rate, &mut self.trainer);
        let norm = norm.map_err(|error| match error {
            UpdateError::NotFinite(source) => RlError::NotFinite { step, source },
            UpdateError::Training(error) => error.into(),
        })?;
        self.trainer.publish()?;
        let mut values = stats.values();
        values.extend([
            ("train/gradient_norm".to_owned(), norm),
            ("train/lr".to_owned(), learning_rate),
            ("train/tokens".to_owned(), self.tokens as f64),
            ("train/targets".to_owned(), self.targets as f64),
        ]);
        if self.trainer.config().is_moe() {
            values.push(("train/balance_loss".to_owned(), balance_loss));
        }
        Ok(values)
    }

    /// Brings the weights in force, as the next version.
    fn publish(&mut self) -> Result<(), RlError> {
        self.place.batch += 1;
        let weights = NewWeights::Model(self.trainer.shared_model());
        self.policy.publish(weights, self.place.batch)?;
        if let Some(remote) = &mut self.remote {
            let cpu = self.trainer.shared_cpu();
            remote.publish(self.place.batch, self.trainer.fetch()?, &cpu)?;
        }
        Ok(())
    }

    fn pass_rates(&self) -> Values {
        let cells = self.place.curriculum.cells().iter();
        let rate = |cell: &crate::rl::curriculum::Cell| {
            let rate = cell.pass_rate()?;
            Some((format!("pass_rate/{}/{}", cell.task, cell.difficulty), rate))
        };
        cells.filter_map(rate).collect()
    }

    /// What a batch took, its sampling included. Operations are counted as 2 a weight and token that was sampled or read,
    /// 6 for one that was learned, attention left out.
    fn speeds(&mut self, learning: &Learning, learned: f64, published: f64) -> Values {
        let cycle = self.clock.elapsed().as_secs_f64();
        self.clock = Instant::now();
        let stats = self.policy.engine().stats();
        let before = std::mem::replace(&mut self.engine_stats, stats);
        let generated = (stats.generated_tokens - before.generated_tokens) as f64;
        let computed = (stats.computed_tokens - before.computed_tokens) as f64;
        let trained: usize =
            learning.batch.trajectories.iter().map(|trajectory| trajectory.tokens.len()).sum();
        let passes = if learning.old.is_some() { 8.0 } else { 6.0 };
        let config = self.trainer.config();
        let weights = Accounting::of(config, 1, 1, DType::F32, DType::F32).parameters.active_with_head as f64;
        let tflops = weights * (2.0 * computed + passes * trained as f64) / cycle / 1e12;
        let mut values = vec![
            ("train_infer_logprob_maxdiff", learning.agreement.max),
            ("train_infer_tokens", learning.agreement.tokens as f64),
            ("window/tokens", self.window().tokens as f64),
            ("time/rollout_wait", self.waited),
            ("time/learn", learned),
            ("time/publish", published),
            ("perf/generated_tokens_per_second", generated / cycle),
            ("perf/trained_tokens_per_second", trained as f64 / learned),
            ("perf/tflops", tflops),
        ];
        if let Some(peak) = self.config.peak_tflops {
            values.push(("perf/mfu", tflops / peak));
        }
        values.into_iter().map(|(tag, value)| (tag.to_owned(), value)).collect()
    }
}

fn add_stats(
    stats: &mut TokenStats,
    learning: &Learning,
    piece: &Piece,
    shares: &[f64],
    logprobs: &[f32],
    entropies: &[f32],
) {
    for (target, (part, token)) in piece.owners().into_iter().enumerate() {
        let part = &piece.parts[part];
        let (advantage, share) = (learning.batch.advantages[part.index], shares[part.place]);
        let now = logprobs[target];
        let term = learning.objective.token(learning.logprobs(part.index, token, now), advantage);
        stats.add(&term, advantage, share, now, entropies[target]);
    }
}
