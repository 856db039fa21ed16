//! Text on its way into and out of a model: tokenizer, chat template, incremental handling.
//!
//! - [`Tokenizer`]: byte-level BPE, from `tokenizer.json` or from `vocab.json` + `merges.txt`.
//! - [`Detokenizer`]: token ids to text one at a time; never half a UTF-8 character.
//! - [`StopStrings`]: finds stop strings in a stream, whatever pieces it arrives in.
//! - [`ThinkingParser`], [`ToolCallParser`]: thinking, content and calls of tools in what a model writes.
//! - [`GuardedChat`]: keeps special tokens that someone spelled in a message from becoming such.
//! - [`grammar`]: JSON schemas, regular expressions and the like that an answer has to keep to.
//! - [`ChatTemplate`]: messages and tools to prompt text by a checkpoint's own Jinja template.
//! - [`train`]: tokenizers for new models, learned from text; [`synthetic`]: such for random
//!   checkpoints, of any size and made by rule.
//!
//! The crate knows nothing of models, requests or HTTP. It depends on none of the workspace's
//! other crates, and it reads and writes only the tokenizer files of a checkpoint directory.
#![forbid(unsafe_code)]

mod answer;
mod byte_level;
mod chat;
mod detokenizer;
mod error;
pub mod grammar;
mod guard;
mod layout;
mod load;
mod python_json;
mod stop;
pub mod synthetic;
mod tokenizer;
pub mod train;

pub use answer::{
    AnswerPart, CALLS_CLOSE, CALLS_OPEN, Divided, END_OF_THINKING, THINK_CLOSE, THINK_OPEN, ThinkingParser,
    ToolCallParser, without_thinking,
};
pub use chat::ChatTemplate;
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use guard::GuardedChat;
pub use layout::{MIN_VOCAB_SIZE, SpecialIds};
pub use stop::{StopOutput, StopStrings};
pub use tokenizer::Tokenizer;
