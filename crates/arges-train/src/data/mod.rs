//! From files and tasks to batches, in an order that depends on the seed alone and can be taken up anywhere.
//!
//! `files` and `tasks` give records by position; `order` shuffles the positions of an epoch; `encode` makes samples,
//! tokens with a mask of what is learned, of a record; a `source` walks through its positions; the `mixture` takes
//! from each source its share; `packing` puts samples together into batches, and `ahead` has that done while others are
//! trained on. None of them holds random state: a [`StreamState`] is a few counters.

mod ahead;
mod encode;
mod files;
mod jsonl;
mod mixture;
mod order;
mod packing;
mod parquet;
mod source;
mod tasks;

use std::fmt;
use std::path::PathBuf;

use arges_text::TextError;
use serde_json::Value;

pub use ahead::BatchesAhead;
pub use encode::{Encoder, Sample};
pub use mixture::{Mixture, MixtureState, SourceState, first_documents};
pub use packing::{PackedBatch, Stream, StreamState, pack_all};
pub use source::{Document, DocumentId, Fingerprint, Learn};
pub use tasks::FIRST_TRAINING_SEED;

/// Why data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file or directory could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// A path is of a kind that is not read, or a directory holds none that is.
    #[error("{}: {reason}", path.display())]
    Path { path: PathBuf, reason: String },
    /// A line or row does not hold what it should.
    #[error("{place}: {reason}")]
    Record { place: RecordPlace, reason: String },
    /// A Parquet file is broken or uses what is not supported.
    #[error("{}: {source}", path.display())]
    Parquet { path: PathBuf, source: ::parquet::errors::ParquetError },
    /// A record cannot become tokens.
    #[error("{place}: {source}")]
    Encode { place: RecordPlace, source: EncodeError },
    /// Nothing of a source can be trained on.
    #[error(
        "data source {name:?}: none of {records} records in a row could be used; {too_long} conversations in them are \
         longer than `batch.sequence_length`, and the others hold nothing to learn"
    )]
    Nothing { name: String, records: u64, too_long: u64 },
    /// The thread that makes batches cannot be started.
    #[error("cannot start the thread that makes batches: {0}")]
    Thread(std::io::Error),
    /// Batches were asked for after an error.
    #[error("there is no more data: it ended with an error before")]
    Ended,
    /// The state of a run does not belong to this data.
    #[error("the data is not that of the run: {reason}")]
    Changed { reason: String },
}

/// Where a record stands: its file with line or row, or its place among made ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordPlace(String);

impl fmt::Display for RecordPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a record cannot become tokens.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The tokenizer or the chat template refuses it.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The text of an answer cannot be told apart from the rest.
    #[error(
        "messages[{message}]: the chat template writes the conversation up to this answer in another way than the \
         beginning of the whole one, so that the answer cannot be found in it"
    )]
    NotAPrefix { message: usize },
    /// A token is beyond the model's vocabulary.
    #[error("token {token} is beyond the model's vocabulary of {vocab_size}")]
    Vocabulary { token: u32, vocab_size: usize },
}

/// What is to be learned, as it stands in a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A document.
    Text(String),
    /// Messages as the chat template takes them, and tools, often none.
    Conversation { messages: Vec<Value>, tools: Vec<Value> },
}

impl Record {
    /// The conversation in an object with `messages`, under that name, and perhaps `tools`. Either may be JSON in a
    /// string, as tables hold them.
    fn conversation(mut object: Value, field: &str) -> Result<Self, String> {
        let mut list = |name: &str| -> Result<Option<Vec<Value>>, String> {
            let value = match object.get_mut(name).map(Value::take) {
                Some(Value::String(text)) => serde_json::from_str(&text)
                    .map_err(|error| format!("`{name}` is a string that is not JSON: {error}"))?,
                other => other.unwrap_or_default(),
            };
            match value {
                Value::Null => Ok(None),
                Value::Array(items) => Ok(Some(items)),
                _ => Err(format!("`{name}` is not a list")),
            }
        };
        let messages = list(field)?.ok_or_else(|| format!("has no `{field}`, a list of messages"))?;
        Ok(Self::Conversation { messages, tools: list("tools")?.unwrap_or_default() })
    }

    /// The record in one object of a file of that kind.
    fn from_object(object: Value, field: &str, conversations: bool) -> Result<Self, String> {
        if !object.is_object() {
            return Err("is not an object".to_owned());
        }
        if conversations {
            return Self::conversation(object, field);
        }
        match object.get(field) {
            Some(Value::String(text)) => Ok(Self::Text(text.clone())),
            _ => Err(format!("has no `{field}` that is a string")),
        }
    }
}

/// A well-mixed 64-bit number of some others: the finalizer of SplitMix64 (Steele, Lea, Flood, "Fast splittable
/// pseudorandom number generators", 2014) over each in turn.
pub(crate) fn mix(parts: &[u64]) -> u64 {
    parts.iter().fold(0x9e37_79b9_7f4a_7c15, |state, part| {
        let mut x = (state ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    })
}
