//! What a step and a batch tell.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use super::batch::Batch;
use super::groups::Outcome;
use super::objective::TokenTerm;
use super::trajectory::{End, Trajectory};

/// Scalars by tag.
pub type Values = Vec<(String, f64)>;

/// File of the newest values in Prometheus' text format, for the textfile collector of its node exporter.
const PROMETHEUS_FILE: &str = "metrics.prom";

/// Sums over the tokens of an update.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenStats {
    tokens: usize,
    entropy: f64,
    objective: f64,
    log_ratio: f64,
    log_ratio_max: f64,
    ratio: f64,
    ratio_square: f64,
    /// Tokens, and those of them whose weight was clipped or which were masked, by the sign of the advantage.
    positive: [usize; 2],
    negative: [usize; 2],
}

impl TokenStats {
    /// Adds a token.
    pub fn add(&mut self, term: &TokenTerm, advantage: f64, share: f64, logprob: f32, entropy: f32) {
        self.tokens += 1;
        self.entropy += f64::from(entropy);
        self.objective += share * term.weight * advantage * f64::from(logprob);
        self.log_ratio += term.log_ratio;
        self.log_ratio_max = self.log_ratio_max.max(term.log_ratio.abs());
        self.ratio += term.ratio;
        self.ratio_square += term.ratio * term.ratio;
        let by_sign = if advantage > 0.0 { &mut self.positive } else { &mut self.negative };
        if advantage != 0.0 {
            by_sign[0] += 1;
            by_sign[1] += usize::from(term.clipped || term.masked);
        }
    }

    /// Mean entropy, in nats.
    pub fn entropy(&self) -> f64 {
        share(self.entropy, self.tokens)
    }

    /// Its scalars. The effective sample size is that of the ratios, `(sum r)² / (n sum r²)`.
    pub fn values(&self) -> Values {
        let fraction = |[all, clipped]: [usize; 2]| share(clipped as f64, all);
        let ess =
            self.ratio * self.ratio / (self.tokens.max(1) as f64 * self.ratio_square.max(f64::MIN_POSITIVE));
        named(&[
            ("train/objective", self.objective),
            ("train/entropy", self.entropy()),
            ("train/clipped_positive", fraction(self.positive)),
            ("train/clipped_negative", fraction(self.negative)),
            ("train/log_ratio_mean", share(self.log_ratio, self.tokens)),
            ("train/log_ratio_max", self.log_ratio_max),
            ("train/ess", ess),
        ])
    }
}

/// How far the trainer's log-probabilities are from the sampler's, for tokens sampled with the weights in force.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct AgreementStats {
    /// Tokens compared.
    pub tokens: usize,
    /// Largest difference; 0 where every token has the same bits.
    pub max: f64,
}

impl AgreementStats {
    /// Compares the sampled tokens of a trajectory that are of that version.
    pub fn add(&mut self, trajectory: &Trajectory, version: u64, trainer: &[f32]) {
        let sampled = trajectory.logprobs.iter().zip(trajectory.token_versions());
        for ((sampler, of), trainer) in sampled.zip(trainer) {
            if of == version {
                self.tokens += 1;
                let difference = (f64::from(*sampler) - f64::from(*trainer)).abs();
                // Equal bits but for the sign of zero; a NaN on either side is no agreement.
                self.max = if difference.is_nan() { f64::INFINITY } else { self.max.max(difference) };
            }
        }
    }
}

/// Scalars of a batch's rewards, lengths and ages. `version` is that of the weights the batch begins with.
pub fn of_batch(batch: &Batch, outcomes: &[Outcome], lost: usize, version: u64) -> Values {
    let mut values = Values::new();
    let all: Vec<f64> = batch.trajectories.iter().map(|trajectory| trajectory.reward).collect();
    let mut by_task: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for trajectory in &batch.trajectories {
        by_task.entry(&trajectory.task).or_default().push(trajectory.reward);
    }
    push_moments(&mut values, "reward", &all);
    for (task, rewards) in by_task {
        push_moments(&mut values, &format!("reward/{task}"), &rewards);
    }
    // Over all groups that ended, so that what was dropped counts too.
    let sampled: Vec<f64> = outcomes.iter().flat_map(|outcome| outcome.rewards.iter().copied()).collect();
    let uniform = outcomes.iter().filter(|outcome| !outcome.kept).count();
    let lengths = sorted(batch.trajectories.iter().map(|trajectory| trajectory.sampled() as f64));
    let ended =
        |end: End| batch.trajectories.iter().filter(|trajectory| trajectory.end == end).count() as f64;
    let turns: usize = batch.trajectories.iter().map(|trajectory| trajectory.turns.len()).sum();
    let count = batch.trajectories.len();
    values.extend(named(&[
        ("rollout/reward_mean", share(sampled.iter().sum(), sampled.len())),
        ("rollout/uniform_groups", share(uniform as f64, outcomes.len())),
        ("rollout/lost", lost as f64),
        ("length/mean", share(lengths.iter().sum(), count)),
        ("length/p99", quantile(&lengths, 0.99)),
        ("length/truncated", share(ended(End::Length), count)),
        ("length/repetition", share(ended(End::Repetition), count)),
        ("length/turns", share(turns as f64, count)),
    ]));
    let mut ages: BTreeMap<u64, usize> = BTreeMap::new();
    for token in batch.trajectories.iter().flat_map(Trajectory::token_versions) {
        *ages.entry(version.saturating_sub(token)).or_default() += 1;
    }
    let tokens: usize = ages.values().sum();
    let age: f64 = ages.iter().map(|(age, count)| *age as f64 * *count as f64).sum();
    values.push(("staleness/mean".to_owned(), share(age, tokens)));
    values.push(("staleness/max".to_owned(), ages.keys().last().map_or(0.0, |age| *age as f64)));
    values.extend(ages.iter().map(|(age, count)| (format!("staleness/{age}"), share(*count as f64, tokens))));
    values
}

/// Perplexity of what was sampled: `exp` of the mean negative log-probability.
pub fn perplexity(batch: &Batch) -> f64 {
    let logprobs = batch.trajectories.iter().flat_map(|trajectory| &trajectory.logprobs);
    let (sum, count) = logprobs.fold((0.0, 0usize), |(sum, count), p| (sum - f64::from(*p), count + 1));
    share(sum, count).exp()
}

/// The 99th percentile of lengths.
pub fn p99_length(batch: &Batch) -> f64 {
    quantile(&sorted(batch.trajectories.iter().map(|trajectory| trajectory.sampled() as f64)), 0.99)
}

/// Pass rates of one problem's `samples` responses of which `right` are right: pass@k is the chance that one of k drawn
/// without replacement is right, `1 - C(n - c, k) / C(n, k)` (Chen et al., "Evaluating large language models trained on
/// code", 2021).
pub fn pass_at(samples: usize, right: usize, k: usize) -> f64 {
    if samples - right < k {
        return 1.0;
    }
    let missed = (samples - right + 1..=samples).map(|n| 1.0 - k as f64 / n as f64).product::<f64>();
    1.0 - missed
}

fn push_moments(values: &mut Values, name: &str, rewards: &[f64]) {
    let mean = share(rewards.iter().sum(), rewards.len());
    let variance = share(rewards.iter().map(|reward| (reward - mean).powi(2)).sum(), rewards.len());
    values.push((format!("{name}/mean"), mean));
    values.push((format!("{name}/std"), variance.sqrt()));
}

fn named(values: &[(&str, f64)]) -> Values {
    values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
}

fn share(sum: f64, count: usize) -> f64 {
    if count == 0 { 0.0 } else { sum / count as f64 }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The smallest value that is at least as large as that share of all, which are sorted.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Writes the newest values for Prometheus, whole or not at all.
pub fn write_prometheus(run: &Path, step: u64, values: &Values) -> io::Result<()> {
    let mut text = format!("arges_rl_step {step}\n");
    for (tag, value) in values {
        let name: String = tag.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "arges_rl_{name} {value}");
    }
    let path = run.join(PROMETHEUS_FILE);
    let partial = path.with_extension("prom.partial");
    fs::write(&partial, text)?;
    fs::rename(&partial, &path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::objective::{Algorithm, TokenLogprobs};
    use crate::rl::trajectory::tests::example;

    fn value(values: &Values, tag: &str) -> f64 {
        values.iter().find(|(name, _)| name == tag).unwrap_or_else(|| panic!("{tag}")).1
    }

    #[test]
    fn a_weight_that_no_ratio_moves_is_not_clipped() {
        let term =
            Algorithm::Reinforce.objective().token(TokenLogprobs { now: 0.5, old: 0.0, rollout: 0.0 }, 1.0);
        assert!(term.weight == 1.0 && !term.clipped, "{term:?}");
    }

    #[test]
    fn clipped_tokens_are_counted_by_the_sign_of_their_advantage() {
        let objective = Algorithm::Grpo.objective();
        let mut stats = TokenStats::default();
        for (ratio, advantage) in
            [(2.0f32, 1.0), (1.1, 1.0), (0.5, 1.0), (0.5, -1.0), (2.0, -1.0), (9.0, 0.0)]
        {
            let term = objective.token(TokenLogprobs { now: ratio.ln(), old: 0.0, rollout: 0.0 }, advantage);
            stats.add(&term, advantage, 0.1, ratio.ln(), 0.5);
        }
        let values = stats.values();
        assert!((value(&values, "train/clipped_positive") - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(value(&values, "train/clipped_negative"), 0.5);
        assert!((value(&values, "train/log_ratio_max") - 9f64.ln()).abs() < 1e-6);
        let (sum, square): (f64, f64) =
            (2.0 + 1.1 + 0.5 + 0.5 + 2.0 + 9.0, 4.0 + 1.21 + 0.25 + 0.25 + 4.0 + 81.0);
        assert!((value(&values, "train/ess") - sum * sum / (6.0 * square)).abs() < 1e-6);
        assert_eq!(value(&values, "train/entropy"), 0.5);
    }

    #[test]
    fn agreement_is_of_tokens_of_the_current_version_and_bits_count() {
        let trajectory = example();
        let mut trainer = trajectory.logprobs.clone();
        let measured = |trainer: &[f32], version| {
            let mut stats = AgreementStats::default();
            stats.add(&trajectory, version, trainer);
            (stats.tokens, stats.max)
        };
        assert_eq!(measured(&trainer, 4), (3, 0.0));
        assert_eq!(measured(&trainer, 5), (1, 0.0));
        trainer[3] = f32::from_bits(trainer[3].to_bits() + 1);
        assert_eq!(measured(&trainer, 4), (3, 0.0));
        assert!(measured(&trainer, 5).1 > 0.0);
        trainer[0] = f32::NAN;
        assert_eq!(measured(&trainer, 4).1, f64::INFINITY);
    }

    #[test]
    fn pass_at_k_is_the_chance_of_one_right_among_k() {
        assert_eq!(pass_at(4, 0, 2), 0.0);
        assert_eq!(pass_at(4, 3, 2), 1.0);
        assert!((pass_at(4, 1, 1) - 0.25).abs() < 1e-12);
        // Of 6 pairs, 3 miss the one that is right.
        assert!((pass_at(4, 1, 2) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn percentiles_are_values_that_occur() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(
            (quantile(&values, 0.99), quantile(&values, 1.0), quantile(&[], 0.5)),
            (198.0, 200.0, 0.0)
        );
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
    }

    #[test]
    fn prometheus_reads_the_newest_values() {
        let run = tempfile::tempdir().unwrap();
        write_prometheus(run.path(), 3, &named(&[("reward/mean", 0.5)])).unwrap();
        let text = fs::read_to_string(run.path().join(PROMETHEUS_FILE)).unwrap();
        assert_eq!(text, "arges_rl_step 3\narges_rl_reward_mean 0.5\n");
    }
}
