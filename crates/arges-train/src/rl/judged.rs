//! Questions without a verifier: from a file of prompts, their answers compared with a reference by a reward model.
//!
//! A line of the file is `{"prompt": …, "reference": …}`. Without a reference the likeliest answer of the model that
//! learns is one, sampled once for each group under the weights in force. Better than the reference is 1, worse -1, neither
//! 0.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arges_tasks::response::visible;
use serde::Deserialize;
use tokio::sync::OnceCell;

use super::config::{RewardModelSettings, RlConfig};
use crate::reward_model::{RewardModel, RewardModelError};

/// Why questions cannot be asked or judged.
#[derive(Debug, thiserror::Error)]
pub enum JudgedError {
    /// A file that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// A line that is none.
    #[error("{}, line {line}: {reason}", path.display())]
    Line { path: PathBuf, line: usize, reason: String },
    /// A file without a question.
    #[error("{} has no line", path.display())]
    Empty { path: PathBuf },
    /// A key that is not there.
    #[error("reward_model.api_key_env: the environment has no {0}")]
    NoKey(String),
    /// The judge cannot be used.
    #[error(transparent)]
    RewardModel(#[from] RewardModelError),
}

/// A question.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    pub prompt: String,
    /// The answer that others are compared with.
    #[serde(default)]
    pub reference: Option<String>,
}

/// An answer to compare with.
type Reference = Arc<OnceCell<Arc<str>>>;

/// All questions, and their judge.
#[derive(Debug)]
pub struct Judged {
    questions: BTreeMap<String, Vec<Question>>,
    judge: RewardModel,
    /// References that the model gave, by group.
    references: Mutex<BTreeMap<u64, Reference>>,
    /// Groups whose references are kept.
    groups: usize,
}

/// What the judge made of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    pub reward: f64,
    pub reason: &'static str,
}

impl Judgement {
    fn of(score: i8) -> Self {
        let reason = match score {
            1 => "better than the reference",
            0 => "neither better nor worse than the reference",
            _ => "worse than the reference",
        };
        Self { reward: f64::from(score), reason }
    }
}

impl Judged {
    /// The questions of a run; `None` where it has none.
    ///
    /// # Errors
    /// A file, line, key or address that cannot be used.
    pub fn open(config: &RlConfig) -> Result<Option<Self>, JudgedError> {
        let Some(settings) = &config.reward_model else { return Ok(None) };
        let rollout = &config.rollout;
        let groups = rollout.prompts * (rollout.max_staleness as usize + 1) * 2;
        let judge = RewardModel::new(settings.reward_model(key(settings)?))?;
        let files = config.task.iter().filter_map(|task| Some((&task.name, task.prompts.as_ref()?)));
        let read = |(name, path): (&String, &PathBuf)| Ok((name.clone(), read(path)?));
        let questions = files.map(read).collect::<Result<_, JudgedError>>()?;
        Ok(Some(Self { questions, judge, references: Mutex::default(), groups }))
    }

    /// The question of a seed; `None` where a task has a verifier.
    pub fn question(&self, task: &str, seed: u64) -> Option<&Question> {
        let questions = self.questions.get(task)?;
        questions.get((seed % questions.len() as u64) as usize)
    }

    /// The place of the reference that a group's answers are compared with.
    pub(super) fn reference(&self, group: u64) -> Reference {
        let mut references = self.references.lock().unwrap_or_else(PoisonError::into_inner);
        let reference = Arc::clone(references.entry(group).or_default());
        while references.len() > self.groups {
            references.pop_first();
        }
        reference
    }

    /// Compares what was answered with a reference; thinking is no part of either.
    ///
    /// # Errors
    /// Why it is unknown which is better. That is no draw.
    pub async fn judge(
        &self,
        question: &Question,
        response: &str,
        reference: &str,
    ) -> Result<Judgement, String> {
        let (answer, reference) = match (visible(response), visible(reference)) {
            (None, _) => return Ok(Judgement { reason: "its thinking never ends", ..Judgement::of(-1) }),
            (Some(_), None) => return Ok(Judgement::of(1)),
            (Some(answer), Some(reference)) if answer == reference => return Ok(Judgement::of(0)),
            (Some(answer), Some(reference)) => (answer, reference),
        };
        match self.judge.compare(&question.prompt, answer, reference).await {
            Ok(comparison) => comparison.score.map(Judgement::of).ok_or(comparison.reason),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn key(settings: &RewardModelSettings) -> Result<Option<String>, JudgedError> {
    if let Some(path) = &settings.api_key_file {
        let text =
            fs::read_to_string(path).map_err(|source| JudgedError::File { path: path.clone(), source })?;
        return Ok(Some(text.trim().to_owned()));
    }
    let Some(name) = &settings.api_key_env else { return Ok(None) };
    std::env::var(name).map(Some).map_err(|_| JudgedError::NoKey(name.clone()))
}

pub(super) fn read(path: &Path) -> Result<Vec<Question>, JudgedError> {
    let text =
        fs::read_to_string(path).map_err(|source| JudgedError::File { path: path.to_owned(), source })?;
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let question = |(line, text): (usize, &str)| {
        serde_json::from_str(text).map_err(|error| JudgedError::Line {
            path: path.to_owned(),
            line,
            reason: error.to_string(),
        })
    };
    let questions: Vec<Question> = lines.map(question).collect::<Result<_, _>>()?;
    if questions.is_empty() {
        return Err(JudgedError::Empty { path: path.to_owned() });
    }
    Ok(questions)
}
