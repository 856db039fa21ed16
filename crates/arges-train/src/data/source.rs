//! One source of data: a walk through its records and their samples.

use std::collections::VecDeque;
use std::thread;

use arges_model::training::TrainingBatch;
use serde::{Deserialize, Serialize};

use super::encode::{Encoder, Sample};
use super::files::FileRecords;
use super::mixture::SourceState;
use super::tasks::TaskRecords;
use super::{DataError, EncodeError, Record, RecordPlace, mix};
use crate::config::{DataConfig, DataKind};

/// What of a conversation is learned. Of a text it is always everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learn {
    /// Every token; what is longer than a sequence is split. This is pre-training.
    Everything,
    /// What the assistant wrote; a conversation longer than a sequence is left out. This is fine-tuning.
    Answers,
}

impl Learn {
    /// The subcommand of `arges train` that learns so.
    pub fn name(self) -> &'static str {
        match self {
            Self::Everything => "pretrain",
            Self::Answers => "sft",
        }
    }
}

/// How records are read.
#[derive(Debug, Clone, Copy)]
pub enum Purpose {
    /// In a random order that belongs to this key, unless the source wants none.
    Training { key: u64 },
    /// In the order of the files; tasks with the seeds of evaluation.
    Evaluation,
}

/// What a source consisted of when a run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Records of an epoch; 0 for tasks, which have no end.
    pub records: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

/// A sample and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub id: DocumentId,
    pub sample: Sample,
}

impl Document {
    /// Adds the document to a batch.
    pub fn push_to(&self, batch: &mut TrainingBatch) {
        batch.push_masked(&self.sample.tokens, |place| self.sample.learn[place]);
    }
}

/// Where a sample comes from: enough to make it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentId {
    /// Index of the source.
    pub source: usize,
    /// Position of the record in the source's endless sequence.
    pub position: u64,
    /// Which of the record's usable samples.
    pub piece: usize,
}

/// A source and how its records become samples.
pub struct Source {
    name: String,
    pub(super) weight: f64,
    records: Records,
    /// Whether only answers are learned, and whole.
    answers_only: bool,
    sequence_length: usize,
    /// The samples of the record read last.
    current: Option<(u64, Usable)>,
    /// Those of records from some position on that were read with it.
    ahead: VecDeque<(u64, Result<Usable, DataError>)>,
}

/// Records that each thread reads ahead.
const AHEAD_PER_THREAD: usize = 8;

enum Records {
    Files(FileRecords),
    Tasks(TaskRecords),
}

/// Samples of a record that can be trained on, and how many were too long for it.
#[derive(Clone, Default)]
struct Usable {
    samples: Vec<Sample>,
    too_long: u64,
}

impl Source {
    /// Opens a source; files are read through once, to find their records.
    pub fn open(
        config: &DataConfig,
        learn: Learn,
        sequence_length: usize,
        purpose: Purpose,
    ) -> Result<Self, DataError> {
        let key = match purpose {
            Purpose::Training { key } => Some(key),
            Purpose::Evaluation => None,
        };
        let shuffle = key.filter(|_| config.shuffle);
        let field = |name: &'static str| config.field.as_deref().unwrap_or(name);
        let records = match config.kind {
            DataKind::Text => {
                Records::Files(FileRecords::open(&config.paths, field("text"), false, shuffle)?)
            }
            DataKind::Messages => {
                Records::Files(FileRecords::open(&config.paths, field("messages"), true, shuffle)?)
            }
            DataKind::Tasks => {
                let thinking = config.thinking.unwrap_or(1.0);
                Records::Tasks(TaskRecords::new(&config.tasks, config.difficulty, thinking, key))
            }
        };
        Ok(Self {
            name: config.display_name(),
            weight: config.weight,
            records,
            answers_only: learn == Learn::Answers && config.kind != DataKind::Text,
            sequence_length,
            current: None,
            ahead: VecDeque::new(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn fingerprint(&self) -> Fingerprint {
        match &self.records {
            Records::Files(files) => Fingerprint { records: files.len(), bytes: files.bytes() },
            Records::Tasks(_) => Fingerprint { records: 0, bytes: 0 },
        }
    }

    /// Records of an epoch; `None` for tasks, which have no end.
    pub fn len(&self) -> Option<u64> {
        match &self.records {
            Records::Files(files) => Some(files.len()),
            Records::Tasks(_) => None,
        }
    }

    /// The next sample of the walk, with its place.
    pub fn next(
        &mut self,
        state: &mut SourceState,
        encoder: &Encoder,
    ) -> Result<(u64, usize, Sample), DataError> {
        const MOST_TASKS_IN_VAIN: u64 = 10_000;
        let most_in_vain = self.len().unwrap_or(MOST_TASKS_IN_VAIN);
        let (mut in_vain, mut too_long) = (0, 0);
        loop {
            let (position, piece) = (state.position, state.piece);
            let usable = self.usable(position, encoder)?;
            if piece == 0 {
                state.too_long += usable.too_long;
                too_long += usable.too_long;
            }
            if let Some(sample) = usable.samples.get(piece).cloned() {
                state.piece += 1;
                state.tokens += sample.tokens.len() as u64;
                return Ok((position, piece, sample));
            }
            in_vain += u64::from(piece == 0);
            if in_vain >= most_in_vain {
                return Err(DataError::Nothing { name: self.name.clone(), records: in_vain, too_long });
            }
            (state.position, state.piece) = (position + 1, 0);
        }
    }

    /// All usable samples of a record, and how many of its conversations were too long.
    pub fn record(&mut self, position: u64, encoder: &Encoder) -> Result<(&[Sample], u64), DataError> {
        let usable = self.usable(position, encoder)?;
        Ok((&usable.samples, usable.too_long))
    }

    /// A sample by its place, if it is there.
    pub fn fetch(
        &mut self,
        position: u64,
        piece: usize,
        encoder: &Encoder,
    ) -> Result<Option<Sample>, DataError> {
        Ok(self.usable(position, encoder)?.samples.get(piece).cloned())
    }

    /// The usable samples of a record.
    fn usable(&mut self, position: u64, encoder: &Encoder) -> Result<&Usable, DataError> {
        let known = self.current.take().filter(|(known, _)| *known == position);
        let usable = match known {
            Some((_, usable)) => usable,
            None => self.read(position, encoder)?,
        };
        Ok(&self.current.insert((position, usable)).1)
    }

    /// Reads a record, and with it, on all cores, those that most probably come next: making and encoding them takes
    /// longer than a step of a small model on a GPU.
    fn read(&mut self, position: u64, encoder: &Encoder) -> Result<Usable, DataError> {
        while self.ahead.front().is_some_and(|(place, _)| *place != position) {
            self.ahead.pop_front();
        }
        if self.ahead.is_empty() {
            self.read_ahead(position, encoder);
        }
        match self.ahead.pop_front() {
            Some((_, usable)) => usable,
            None => Ok(Usable::default()),
        }
    }

    fn read_ahead(&mut self, position: u64, encoder: &Encoder) {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let positions = position..position.saturating_add((threads * AHEAD_PER_THREAD) as u64);
        // Files are read in turn; what is made is made by the threads.
        let records: Vec<_> = positions
            .map(|position| match &mut self.records {
                Records::Files(files) => (position, Some(files.read(position))),
                Records::Tasks(_) => (position, None),
            })
            .collect();
        let this = &*self;
        let each = records.len().div_ceil(threads);
        let mut records = records.into_iter();
        let parts: Vec<Vec<_>> = (0..threads).map(|_| records.by_ref().take(each).collect()).collect();
        let encoded: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = parts
                .into_iter()
                .map(|part| {
                    scope.spawn(move || {
                        let encode = |(position, record): (u64, Option<Result<Record, DataError>>)| {
                            let record = record.unwrap_or_else(|| Ok(this.made(position)));
                            (position, record.map(|record| this.encode(&record, encoder)))
                        };
                        part.into_iter().map(encode).collect::<Vec<_>>()
                    })
                })
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Vec<_>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().flat_map(join).collect()
        });
        let told = |(position, record): (u64, Result<Result<Usable, EncodeError>, DataError>)| {
            let usable = record.and_then(|encoded| {
                encoded.map_err(|source| DataError::Encode { place: self.place(position), source })
            });
            (position, usable)
        };
        self.ahead = encoded.into_iter().map(told).collect();
    }

    /// Where a record stands. That of a file's is looked for in it.
    fn place(&mut self, position: u64) -> RecordPlace {
        match &mut self.records {
            Records::Files(files) => files.place(position),
            Records::Tasks(_) => RecordPlace(format!("{}, made instance {position}", self.name)),
        }
    }

    /// A record of tasks.
    fn made(&self, position: u64) -> Record {
        match &self.records {
            Records::Tasks(tasks) => tasks.read(position),
            Records::Files(_) => unreachable!("files were read before"),
        }
    }

    fn encode(&self, record: &Record, encoder: &Encoder) -> Result<Usable, EncodeError> {
        let samples = encoder.samples(record, self.answers_only)?;
        let mut usable = Usable::default();
        let whole = self.answers_only && matches!(record, Record::Conversation { .. });
        for sample in samples {
            if whole && sample.tokens.len() > self.sequence_length {
                usable.too_long += 1;
            } else {
                let pieces = sample.split(self.sequence_length);
                usable.samples.extend(pieces.into_iter().filter(|piece| piece.targets() > 0));
            }
        }
        Ok(usable)
    }
}

/// The key of a source's order and choices.
pub fn source_key(seed: u64, source: usize) -> u64 {
    mix(&[seed, source as u64])
}
