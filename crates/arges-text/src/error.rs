//! What can go wrong with tokenizer files, templates and the messages rendered through them.

use std::path::PathBuf;

/// An error of this crate; each names the file, message or tool it is about.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file is not the JSON it should be.
    #[error("{} is not valid: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the JSON reader met, with line and column.
        source: serde_json::Error,
    },
    /// A directory holds no tokenizer.
    #[error("{} holds neither tokenizer.json nor vocab.json with merges.txt", dir.display())]
    NoTokenizer {
        /// The checkpoint directory.
        dir: PathBuf,
    },
    /// A tokenizer file was read but makes no usable tokenizer.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The tokenizer file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A text could not be tokenized.
    #[error("the text cannot be tokenized: {reason}")]
    Encode {
        /// The tokenizer's reason.
        reason: String,
    },
    /// A chat template does not parse.
    #[error("the chat template of {origin} does not parse: {reason}")]
    TemplateSyntax {
        /// The file the template came from, or a name for a built-in one.
        origin: String,
        /// What the template engine says, with the line.
        reason: String,
    },
    /// A chat template failed while rendering.
    #[error("the chat template failed: {reason}")]
    TemplateRender {
        /// What the template engine says, with the line.
        reason: String,
    },
    /// A chat template refused the conversation through `raise_exception`.
    #[error("the chat template refuses the conversation: {message}")]
    TemplateRefused {
        /// The template's own words.
        message: String,
    },
    /// A message cannot be rendered.
    #[error("messages[{index}]: {reason}")]
    Message {
        /// Position of the message in the conversation.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A tool description cannot be rendered.
    #[error("tools[{index}]: {reason}")]
    Tool {
        /// Position of the tool in the list.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Special tokens are spelled in a conversation that also uses every character they could be marked with.
    #[error("the conversation spells special tokens and uses every character of Unicode's private areas")]
    NoMark,
    /// Grammars cannot be compiled for a tokenizer.
    #[error("no grammars can be compiled for this tokenizer: {reason}")]
    Grammar {
        /// The underlying library's reason.
        reason: String,
    },
    /// A tokenizer was asked for with a vocabulary that cannot be.
    #[error("a vocabulary has {minimum} tokens (256 bytes and the turn markers) to {maximum}, not {asked}")]
    VocabularySize {
        /// The size asked for.
        asked: usize,
        /// The smallest size there is.
        minimum: usize,
        /// The largest size there is.
        maximum: usize,
    },
    /// A text to learn from does not give as many tokens as were asked for.
    #[error(
        "the texts give a vocabulary of {found} tokens, not {asked}: nothing more stands in them twice; \
         give more text or ask for fewer tokens"
    )]
    TooFewMerges {
        /// The size asked for.
        asked: usize,
        /// The size there is text for.
        found: usize,
    },
    /// A tokenizer could not be learned.
    #[error("the tokenizer cannot be learned: {reason}")]
    Training {
        /// The underlying library's reason.
        reason: String,
    },
}
