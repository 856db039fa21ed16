//! What an episode leaves behind: its tokens as they were sampled, never tokenised again.
//!
//! A batch's trajectories are a file, `RUN/trajectories/batch-000012.jsonl.zst`: a JSON object a line, compressed.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use arges_model::training::{OWN_CHOICE, TrainingBatch};
use serde::{Deserialize, Serialize};

const DIRECTORY: &str = "trajectories";
const COMPRESSION: i32 = 3;

/// How the last turn of an episode ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// With the model's end token.
    Stop,
    /// At the window's end, or the sequence's.
    Length,
    /// In a run of all but certain tokens.
    Repetition,
}

/// One response to one problem, over one turn or several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trajectory {
    /// Number of the group: the prompt.
    pub group: u64,
    /// Place in the group.
    pub member: u32,
    /// What was asked.
    pub task: String,
    pub difficulty: u32,
    /// Seed of the instance.
    pub seed: u64,
    /// All tokens: prompt, what the model sampled, what tools answered.
    pub tokens: Vec<u32>,
    /// Places in `tokens` of what the model sampled, a range a turn.
    pub turns: Vec<Range<usize>>,
    /// Log-probability of each sampled token, when it was sampled.
    pub logprobs: Vec<f32>,
    /// Version of the weights that sampled them, as runs: version, tokens.
    pub versions: Vec<(u64, usize)>,
    /// Experts that served its tokens but the last, `[tokens, layers, k]`; empty where they are not replayed.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "hexadecimal")]
    pub experts: Vec<u8>,
    pub end: End,
    /// What the verifier gave, and why.
    pub reward: f64,
    pub reason: String,
    /// What training made of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained: Option<Trained>,
}

/// What training made of a trajectory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// The reward with what its length takes off.
    pub shaped_reward: f64,
    pub advantage: f64,
    /// Step that learned from it.
    pub step: u64,
    /// Log-probability of each sampled token under the weights that this step began with.
    pub logprobs: Vec<f32>,
}

impl Trajectory {
    /// Tokens that the model sampled.
    pub fn sampled(&self) -> usize {
        self.turns.iter().map(Range::len).sum()
    }

    /// Whether it holds together: turns in order and within the tokens, none at the very first, and a finite
    /// log-probability and a version for every sampled token.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self) -> Result<(), String> {
        let mut next = 1;
        for turn in &self.turns {
            if turn.start < next || turn.end < turn.start || turn.end > self.tokens.len() {
                return Err(format!("turn {turn:?} is out of place in {} tokens", self.tokens.len()));
            }
            next = turn.end;
        }
        let sampled = self.sampled();
        let versions: usize = self.versions.iter().map(|(_, tokens)| tokens).sum();
        if self.logprobs.len() != sampled || versions != sampled {
            let logprobs = self.logprobs.len();
            return Err(format!(
                "{sampled} sampled tokens, {logprobs} log-probabilities, {versions} versions"
            ));
        }
        let experts = self.experts.len();
        if experts > 0 && !experts.is_multiple_of(self.tokens.len().saturating_sub(1).max(1)) {
            return Err(format!("{experts} choices of experts, which is not as many for each of its tokens"));
        }
        match self.logprobs.iter().find(|logprob| !logprob.is_finite() || **logprob > 0.0) {
            Some(logprob) => Err(format!("{logprob} is no log-probability")),
            None => Ok(()),
        }
    }

    /// The oldest version that sampled a token of it.
    pub fn oldest_version(&self) -> Option<u64> {
        self.versions.iter().map(|(version, _)| *version).min()
    }

    /// The version of each sampled token.
    pub fn token_versions(&self) -> impl Iterator<Item = u64> {
        self.versions.iter().flat_map(|&(version, tokens)| std::iter::repeat_n(version, tokens))
    }

    /// Notes the version of the next tokens.
    pub fn push_versions(&mut self, versions: impl IntoIterator<Item = u64>) {
        for version in versions {
            match self.versions.last_mut() {
                Some((last, tokens)) if *last == version => *tokens += 1,
                _ => self.versions.push((version, 1)),
            }
        }
    }

    /// Adds it to a batch; what the model sampled is to be predicted. Experts that are noted are given.
    pub fn push_to(&self, batch: &mut TrainingBatch) {
        batch.push_masked(&self.tokens, |place| self.turns.iter().any(|turn| turn.contains(&place)));
        if let Some(each) =
            self.experts.len().checked_div(self.tokens.len().saturating_sub(1)).filter(|each| *each > 0)
        {
            batch.experts.extend(self.experts.iter().map(|expert| u16::from(*expert)));
            // The last token was never read when it was sampled, and nothing comes after it.
            batch.experts.extend(std::iter::repeat_n(OWN_CHOICE, each));
        }
    }
}

/// Bytes as text: two digits each, which compression makes short again.
mod hexadecimal {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or_default();
        let text: String = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
        serializer.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::from_hexadecimal(&text)
            .ok_or_else(|| D::Error::custom("bytes are two hexadecimal digits each"))
    }
}

/// Bytes from two digits each.
pub(crate) fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = |pair: &[u8]| Some((digit(pair[0])? * 16 + digit(*pair.get(1)?)?) as u8);
    text.as_bytes().chunks(2).map(byte).collect()
}

/// The file of a batch.
pub fn file_of(run: &Path, batch: u64) -> PathBuf {
    run.join(DIRECTORY).join(format!("batch-{batch:06}.jsonl.zst"))
}

/// Batches of which there is a file, rising.
pub fn batches(run: &Path) -> io::Result<Vec<u64>> {
    let mut batches = Vec::new();
    for entry in fs::read_dir(run.join(DIRECTORY))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix("batch-").and_then(|name| name.strip_suffix(".jsonl.zst"));
        batches.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    batches.sort_unstable();
    Ok(batches)
}

/// Writes a batch's file, whole or not at all.
pub fn write(run: &Path, batch: u64, trajectories: &[Trajectory]) -> io::Result<()> {
    let path = file_of(run, batch);
    fs::create_dir_all(run.join(DIRECTORY))?;
    let partial = path.with_extension("partial");
    fs::write(&partial, to_bytes(trajectories)?)?;
    fs::rename(&partial, &path)
}

/// Reads a batch's file.
pub fn read(run: &Path, batch: u64) -> io::Result<Vec<Trajectory>> {
    from_reader(File::open(file_of(run, batch))?)
}

/// Removes the files of batches after `batch`, which are to be made again.
pub fn remove_after(run: &Path, batch: u64) -> io::Result<()> {
    if !run.join(DIRECTORY).exists() {
        return Ok(());
    }
    batches(run)?
        .into_iter()
        .filter(|later| *later > batch)
        .try_for_each(|later| fs::remove_file(file_of(run, later)))
}

/// Any list of records as compressed lines.
pub fn to_bytes<T: Serialize>(records: &[T]) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), COMPRESSION)?;
    for record in records {
        serde_json::to_writer(&mut encoder, record)?;
        encoder.write_all(b"\n")?;
    }
    encoder.finish()
}

/// The records in compressed lines.
pub fn from_reader<T: serde::de::DeserializeOwned>(reader: impl io::Read) -> io::Result<Vec<T>> {
    let lines = BufReader::new(zstd::Decoder::new(reader)?).lines();
    lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A trajectory of two turns with a tool's answer between them.
    pub fn example() -> Trajectory {
        Trajectory {
            group: 3,
            member: 1,
            task: "addition".to_owned(),
            difficulty: 2,
            seed: u64::MAX,
            tokens: vec![5, 6, 7, 8, 9, 10, 11],
            turns: vec![2..4, 5..7],
            logprobs: vec![-0.1, -1.0e-9, -3.402_823_5, -0.333_333_34],
            versions: vec![(4, 3), (5, 1)],
            experts: Vec::new(),
            end: End::Stop,
            reward: 1.0,
            reason: "right".to_owned(),
            trained: None,
        }
    }

    #[test]
    fn trajectories_come_back_bit_for_bit() {
        let run = tempfile::tempdir().unwrap();
        let mut one = example();
        // Every kind of f32, as decimal text.
        one.logprobs = (0..4000u32).map(|i| -f32::from_bits(0x3000_0000 + i * 12_345)).collect();
        one.experts = (0..=255).collect();
        write(run.path(), 7, &[one.clone(), example()]).unwrap();
        write(run.path(), 9, &[]).unwrap();
        let back = read(run.path(), 7).unwrap();
        assert_eq!(back, [one.clone(), example()]);
        let bits = |t: &Trajectory| t.logprobs.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back[0]), bits(&one));
        assert_eq!(batches(run.path()).unwrap(), [7, 9]);
        remove_after(run.path(), 7).unwrap();
        assert_eq!(batches(run.path()).unwrap(), [7]);
    }

    #[test]
    fn only_what_the_model_sampled_is_learned() {
        let mut batch = TrainingBatch::default();
        batch.push(&[1, 2]);
        example().push_to(&mut batch);
        let targets: Vec<(u32, u32)> = batch.targets.iter().skip(1).map(|t| (t.row, t.token)).collect();
        assert_eq!(targets, [(3, 7), (4, 8), (6, 10), (7, 11)]);
        assert_eq!(example().sampled(), 4);
        assert!(batch.experts.is_empty());
    }

    #[test]
    fn experts_are_given_for_all_tokens_but_the_last() {
        // Two layers with one expert each.
        let trajectory = Trajectory { experts: (0..12).collect(), ..example() };
        assert_eq!(trajectory.check(), Ok(()));
        let mut batch = TrainingBatch::default();
        trajectory.push_to(&mut batch);
        trajectory.push_to(&mut batch);
        assert_eq!(batch.experts.len(), 2 * 2 * trajectory.tokens.len());
        assert_eq!(batch.experts[10..16], [10, 11, OWN_CHOICE, OWN_CHOICE, 0, 1]);
        let short = Trajectory { experts: (0..11).collect(), ..example() };
        assert!(short.check().unwrap_err().contains("11 choices of experts"));
    }

    #[test]
    fn a_token_without_log_probability_or_version_is_refused() {
        assert_eq!(example().check(), Ok(()));
        let with = |change: fn(&mut Trajectory)| {
            let mut trajectory = example();
            change(&mut trajectory);
            trajectory.check().unwrap_err()
        };
        assert_eq!(with(|t| t.logprobs.truncate(3)), "4 sampled tokens, 3 log-probabilities, 4 versions");
        assert!(with(|t| t.versions[0].1 = 2).contains("3 versions"));
        assert!(with(|t| t.logprobs[1] = f32::NAN).contains("no log-probability"));
        assert!(with(|t| t.logprobs[1] = 0.5).contains("no log-probability"));
        assert!(with(|t| t.turns[1] = 3..7).contains("out of place"));
        assert!(with(|t| t.turns[1] = 5..8).contains("out of place"));
        assert!(with(|t| t.turns[0] = 0..2).contains("out of place"));
    }

    #[test]
    fn versions_are_kept_as_runs() {
        let mut trajectory = Trajectory { versions: Vec::new(), ..example() };
        trajectory.push_versions([4, 4]);
        trajectory.push_versions([4, 5]);
        assert_eq!(trajectory.versions, example().versions);
        assert_eq!(trajectory.token_versions().collect::<Vec<_>>(), [4, 4, 4, 5]);
        assert_eq!(trajectory.oldest_version(), Some(4));
    }
}
