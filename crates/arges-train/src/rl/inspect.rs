//! A run's trajectories, token by token.

use std::io;
use std::path::Path;

use arges_text::{TextError, Tokenizer};
use serde::Serialize;

use super::objective::TokenLogprobs;
use super::trajectory::{self, Trajectory};

/// Directory of a run's tokenizer.
pub const TOKENIZER: &str = "tokenizer";

/// Why a run cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// No trajectories.
    #[error("cannot read the trajectories of {run}: {source}")]
    Trajectories { run: String, source: io::Error },
    /// A batch that is not there.
    #[error("{run} has no trajectories of batch {batch}; it has {there}")]
    NoBatch { run: String, batch: u64, there: String },
    /// No tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TextError),
}

/// A token of a trajectory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenRow {
    pub place: usize,
    pub id: u32,
    pub text: String,
    /// What only tokens have that the model sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampled: Option<SampledRow>,
}

/// A sampled token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SampledRow {
    /// Probability when it was sampled.
    pub probability: f64,
    pub logprob: f32,
    /// Version of the weights that sampled it.
    pub version: u64,
    /// Probability now over that when it was sampled, as the step that learned from it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advantage: Option<f64>,
}

/// The trajectories of a batch, by default the newest, and its number.
///
/// # Errors
/// A run or batch that is not there.
pub fn batch(run: &Path, batch: Option<u64>) -> Result<(u64, Vec<Trajectory>), InspectError> {
    let name = run.display().to_string();
    let error = |source| InspectError::Trajectories { run: name.clone(), source };
    let there = trajectory::batches(run).map_err(error)?;
    let wanted = batch.or(there.last().copied()).unwrap_or(0);
    if !there.contains(&wanted) {
        let there = match (there.first(), there.last()) {
            (Some(first), Some(last)) => format!("those from {first} to {last}"),
            _ => "none".to_owned(),
        };
        return Err(InspectError::NoBatch { run: name, batch: wanted, there });
    }
    Ok((wanted, trajectory::read(run, wanted).map_err(error)?))
}

/// The run's tokenizer.
///
/// # Errors
/// A directory without one.
pub fn tokenizer(run: &Path) -> Result<Tokenizer, InspectError> {
    Ok(Tokenizer::from_dir(&run.join(TOKENIZER))?)
}

/// Every token of a trajectory.
pub fn tokens(trajectory: &Trajectory, tokenizer: &Tokenizer) -> Vec<TokenRow> {
    let trained = trajectory.trained.as_ref();
    let mut sampled = trajectory.logprobs.iter().zip(trajectory.token_versions()).enumerate();
    let row = |(place, &id): (usize, &u32)| {
        let is_sampled = trajectory.turns.iter().any(|turn| turn.contains(&place));
        let sampled = if is_sampled { sampled.next() } else { None };
        let sampled = sampled.map(|(number, (&logprob, version))| {
            let now = trained.and_then(|trained| trained.logprobs.get(number));
            let ratio = |now: &f32| {
                let logprobs = TokenLogprobs { now: *now, old: logprob, rollout: logprob };
                super::objective::Algorithm::Cispo.objective().token(logprobs, 0.0).ratio
            };
            SampledRow {
                probability: f64::from(logprob).exp(),
                logprob,
                version,
                ratio: now.map(ratio),
                advantage: trained.map(|trained| trained.advantage),
            }
        });
        TokenRow { place, id, text: tokenizer.decode(&[id]), sampled }
    };
    trajectory.tokens.iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::trajectory::Trained;
    use crate::rl::trajectory::tests::example;

    #[test]
    fn each_sampled_token_has_its_probability_ratio_and_advantage_and_no_other_has() {
        let dir = tempfile::tempdir().unwrap();
        arges_text::synthetic::write_tokenizer(dir.path(), 512).unwrap();
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let mut trajectory = example();
        let now = trajectory.logprobs.iter().map(|p| p - 0.5).collect();
        trajectory.trained = Some(Trained { shaped_reward: 1.0, advantage: -1.5, step: 9, logprobs: now });
        let rows = tokens(&trajectory, &tokenizer);
        let sampled: Vec<usize> =
            rows.iter().filter(|row| row.sampled.is_some()).map(|row| row.place).collect();
        assert_eq!(sampled, [2, 3, 5, 6]);
        let last = rows[6].sampled.as_ref().unwrap();
        assert_eq!((last.version, last.logprob, last.advantage), (5, trajectory.logprobs[3], Some(-1.5)));
        assert!((last.ratio.unwrap() - (-0.5f64).exp()).abs() < 1e-6);
        assert!((last.probability - f64::from(trajectory.logprobs[3]).exp()).abs() < 1e-12);
    }

    #[test]
    fn a_batch_that_is_not_there_is_named_with_those_that_are() {
        let run = tempfile::tempdir().unwrap();
        assert!(matches!(batch(run.path(), None), Err(InspectError::Trajectories { .. })));
        trajectory::write(run.path(), 3, &[example()]).unwrap();
        trajectory::write(run.path(), 5, &[]).unwrap();
        assert_eq!(batch(run.path(), None).unwrap(), (5, Vec::new()));
        assert_eq!(batch(run.path(), Some(3)).unwrap().1, [example()]);
        let message = batch(run.path(), Some(4)).unwrap_err().to_string();
        assert!(message.ends_with("has no trajectories of batch 4; it has those from 3 to 5"), "{message}");
    }
}
