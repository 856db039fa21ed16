//! What goes into the engine and what comes out of it: requests, events, options, errors.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use arges_kernels::sample::SamplingParams;
use arges_text::grammar::Grammar;
use tokio::sync::mpsc;

/// Most alternatives a request may ask for beside each token ([`GenerateRequest::logprobs`]).
pub const MAX_TOP_LOGPROBS: usize = 128;

/// Sizes fixed when the engine starts; all memory follows from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Sequences that may run at once (state slots).
    pub max_sequences: usize,
    /// Tokens of all running sequences together (KV pages).
    pub max_tokens: usize,
    /// Tokens of one step: one per decoding sequence, the rest for pieces of prompts. At least
    /// `max_sequences`.
    pub step_tokens: usize,
    /// Requests that may wait; more are refused with [`SubmitError::QueueFull`].
    pub max_queue: usize,
    /// Longest prompt and answer together of one request.
    pub max_context: usize,
    /// Rows of logits of one step; bounds the memory prompt log-probabilities take. At least
    /// `max_sequences`.
    pub max_logit_rows: usize,
    /// What is kept of sequences for others that begin like them; `None` keeps nothing.
    pub prefix_cache: Option<PrefixCacheOptions>,
    /// Guesses of what a sequence says next that a step may try, where they pay; 0 tries none. They change no token.
    pub max_drafts: usize,
    /// Whether a GPU gives a token's log-probability the same bits in any batch, at the cost of speed. The CPU always
    /// does.
    pub exact: bool,
}

/// How much is kept of sequences for others that begin like them. Their keys and values stay in the pages of the caches
/// while nothing else needs these; states are copied to memory of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixCacheOptions {
    /// Bytes for states, in the device's memory.
    pub state_bytes: usize,
    /// Bytes for more of them in the host's memory; for a GPU.
    pub host_bytes: usize,
    /// Tokens after which a state is kept in any case. They are kept at the end of prompts and answers and where prompts
    /// part, too.
    pub interval: usize,
}

impl PrefixCacheOptions {
    /// Tokens between states of a long sequence.
    pub const INTERVAL: usize = 4096;
}

/// When a generation ends, beside its length.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StopConditions {
    /// Ends before the first of these texts; the text itself is not given out. Needs a tokenizer.
    pub strings: Vec<String>,
    /// Ends after one of these tokens; its text is not given out.
    pub tokens: Vec<u32>,
    /// Generate past the model's own end tokens.
    pub ignore_eos: bool,
    /// End and stop tokens cannot be sampled, and stop strings are not looked for, before this many tokens.
    pub min_tokens: usize,
    /// Ends a generation that goes round in circles.
    pub repetition: Option<RepetitionStop>,
}

/// Ends a generation after a run of tokens that were all but certain, as M1's makers did in training: text that repeats
/// itself is what a model is surest of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RepetitionStop {
    /// Length of the run; at least 1.
    pub tokens: usize,
    /// Probability above which a token counts, under the raw distribution; in (0, 1).
    pub probability: f32,
}

impl Default for RepetitionStop {
    /// M1's: 3,000 tokens above 0.99.
    fn default() -> Self {
        Self { tokens: 3000, probability: 0.99 }
    }
}

/// How thinking is told apart from the answer, and how long it may be. Needs a tokenizer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Thinking {
    /// The end of the prompt's text, at least as far back as a tag is long: where it opens a block of thinking, the
    /// generation begins in one.
    pub prompt_end: String,
    /// Tokens after which thinking is closed with a few words; what follows is the answer. It is closed earlier where
    /// less than a quarter of `max_tokens` (1,024 at most) would be left for the answer.
    pub budget: Option<usize>,
}

/// One prompt and how to go on from it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerateRequest {
    /// Token ids; at least one.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; `None` is as many as the context allows. More than the context allows is
    /// cut to that. 0 only computes the prompt (scoring).
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When to end. Stop strings are looked for in the answer alone, not in thinking that is told apart from it.
    pub stop: StopConditions,
    /// Tell thinking apart from the answer; without it, all text is the answer's.
    pub thinking: Option<Thinking>,
    /// What the answer has to keep to, from the end of the thinking on. Needs a tokenizer.
    pub grammar: Option<Grammar>,
    /// Give this many of the most likely tokens beside each generated one.
    pub logprobs: Option<usize>,
    /// Give log-probabilities of the prompt's tokens, with this many alternatives each.
    pub prompt_logprobs: Option<usize>,
    /// Higher goes first; equal ones in order of arrival.
    pub priority: i32,
    /// Give the tokens all at once, in [`Finished::tokens`]. Text is made only if thinking, a grammar or a stop string
    /// needs it. Spares whoever waits for the end anyway an event a token.
    pub tokens_at_end: bool,
    /// Tell with each token which experts served those before it. On the CPU, for models of 256 experts at most; nothing
    /// of the prompt is taken from sequences before.
    pub experts: bool,
}

/// A token of the prompt under the model's raw distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Its natural log-probability given the tokens before it.
    pub logprob: f32,
    /// The most likely tokens at this place and their log-probabilities, descending.
    pub top: Vec<(u32, f32)>,
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEvent {
    /// The token. An end or stop token that ended the generation is given too, with no text.
    pub id: u32,
    /// Text of the answer that is now certain; may be empty (half a character, a possible start of a stop string, or
    /// an engine without a tokenizer).
    pub text: String,
    /// Text of the thinking that is now certain, without tags.
    pub reasoning: String,
    /// Natural log-probability under the model's raw distribution (before temperature, penalties, masks).
    pub logprob: f32,
    /// The most likely tokens at this place in the raw distribution, descending; empty unless
    /// [`GenerateRequest::logprobs`] asked for them.
    pub top: Vec<(u32, f32)>,
    /// Version of the weights it was sampled with.
    pub weight_version: u64,
    /// Experts of the tokens that were computed since the last event of this kind, `[tokens, layers, k]`, best first: with
    /// the first one the prompt's, then the last token's before this one. Empty unless [`GenerateRequest::experts`] asked
    /// for them.
    pub experts: Vec<u8>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token, a stop token or a stop string: see [`StopCause`].
    Stop,
    /// The token limit or the end of the context.
    Length,
    /// A run of all but certain tokens: see [`RepetitionStop`].
    Repetition,
    /// The engine was paused: see [`crate::PauseMode::Abort`].
    Abort,
}

/// What a generation stopped on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    /// The model's own end token.
    EndToken(u32),
    /// One of [`StopConditions::tokens`].
    Token(u32),
    /// [`StopConditions::strings`] at this index.
    Text(usize),
    /// Nothing more is allowed by [`GenerateRequest::grammar`].
    Grammar,
}

/// Tokens a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Length of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, an end token included.
    pub completion_tokens: usize,
    /// Tokens of these that were thinking, its tags included; 0 where it is not told apart.
    pub reasoning_tokens: usize,
    /// Tokens of the prompt that were already in a cache.
    pub cached_tokens: usize,
}

/// The end of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// On what, when the reason is [`FinishReason::Stop`].
    pub stop: Option<StopCause>,
    /// Text held back so far that belongs to the answer after all.
    pub text: String,
    /// Text held back so far that belongs to thinking that did not end.
    pub reasoning: String,
    /// Tokens taken.
    pub usage: Usage,
    /// Version of the weights at the end.
    pub weight_version: u64,
    /// The tokens, if [`GenerateRequest::tokens_at_end`] asked for them.
    pub tokens: Vec<TokenEvent>,
}

/// What a generation gives, in order: at most one `Prompt`, any number of `Token` (none with
/// [`GenerateRequest::tokens_at_end`]), then one `Finished`, `Failed` or `GrammarFailed`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The prompt was computed; sent when [`GenerateRequest::prompt_logprobs`] asked for it.
    Prompt {
        /// One per token of the prompt; the first has none.
        logprobs: Vec<Option<TokenLogprob>>,
        /// Tokens of the prompt that were already in a cache.
        cached_tokens: usize,
    },
    /// A token was generated.
    Token(TokenEvent),
    /// The generation ended.
    Finished(Finished),
    /// The generation failed; the message says why.
    Failed(String),
    /// The request's grammar took more work than a token may; the message says why.
    GrammarFailed(String),
}

/// The events of one request. Dropping it cancels the request within one step and frees its memory.
/// Events that are not read wait here, never the engine; there are no more than the request's tokens and two.
#[derive(Debug)]
pub struct Generation {
    events: mpsc::UnboundedReceiver<Event>,
    queue_time: Arc<OnceLock<Duration>>,
    ended: bool,
}

impl Generation {
    pub(crate) fn new(events: mpsc::UnboundedReceiver<Event>, queue_time: Arc<OnceLock<Duration>>) -> Self {
        Self { events, queue_time, ended: false }
    }

    /// How long the request waited in the queue before it was first taken up; `None` while it waits.
    pub fn queue_time(&self) -> Option<Duration> {
        self.queue_time.get().copied()
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await;
        self.end_once(event)
    }

    /// The next event, waiting on the calling thread; `None` after the last. Not for async contexts, where it
    /// panics.
    pub fn blocking_next(&mut self) -> Option<Event> {
        let event = self.events.blocking_recv();
        self.end_once(event)
    }

    /// Makes sure that there is a last event, even if the engine went away.
    fn end_once(&mut self, event: Option<Event>) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = event.unwrap_or_else(|| Event::Failed("the engine stopped".to_owned()));
        self.ended = matches!(event, Event::Finished(_) | Event::Failed(_) | Event::GrammarFailed(_));
        Some(event)
    }
}

/// Why a request was refused. Nothing was queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// A prompt without tokens.
    #[error("the prompt is empty: at least one token is needed")]
    EmptyPrompt,
    /// The prompt leaves no room.
    #[error("the prompt has {prompt} tokens; at most {max} fit")]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Longest prompt this engine takes for this kind of request.
        max: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab_size}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Ids must be below this.
        vocab_size: usize,
    },
    /// A parameter out of range.
    #[error("{name} {reason}")]
    InvalidParameter {
        /// Field of the request.
        name: &'static str,
        /// What was wrong, as the end of a sentence that starts with the name.
        reason: String,
    },
    /// Too many requests wait.
    #[error("{max} requests are waiting already; try again later")]
    QueueFull {
        /// Longest queue.
        max: usize,
    },
    /// The engine takes no more requests.
    #[error("the engine is shutting down")]
    ShutDown,
}

/// Why an engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// An option out of range.
    #[error("engine option {name} {reason}")]
    InvalidOption {
        /// Field of [`EngineOptions`].
        name: &'static str,
        /// What was wrong, as the end of a sentence that starts with the name.
        reason: String,
    },
    /// The caches could not be made.
    #[error("cannot make the caches: {0}")]
    Cache(String),
    /// The thread could not be started.
    #[error("cannot start the engine's thread: {0}")]
    Thread(#[from] std::io::Error),
}
