//! Grammars that an answer has to keep to, by `llguidance`.
//!
//! [`AnswerGrammar`] says what an answer may be: calls of tools in M1's markup, a document of some format, either, or
//! text with calls in it. [`GrammarCompiler`] makes it a [`Grammar`] for one tokenizer, within bounds on time and
//! memory, and a [`GrammarState`] follows one answer through it and says which tokens may come next.

mod compiler;
mod shape;

pub use compiler::{Grammar, GrammarCompiler, GrammarState};
pub use shape::{AnswerGrammar, CallGrammar, Format, ToolShape};

/// Why a grammar cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It is longer than what is compiled.
    #[error("it has {bytes} bytes; at most {limit} are compiled")]
    TooLarge {
        /// Its length as JSON or text.
        bytes: usize,
        /// The longest there may be.
        limit: usize,
    },
    /// It is malformed, unsatisfiable, uses what is not supported, or takes too much work.
    #[error("{0}")]
    Invalid(String),
    /// While an answer was written it took more work than a token may.
    #[error("the grammar became too complex: {0}")]
    TooComplex(String),
}
