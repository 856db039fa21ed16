//! The HTTP server: OpenAI's API over the engine.
//!
//! A request's body is read under limits, parsed, checked and tokenised on a blocking thread, and submitted to
//! the [`Engine`](arges_engine::Engine); the engine's events become a JSON answer or server-sent events. Wrong
//! input is a 4xx in OpenAI's error shape; a client that goes away cancels its request.
//!
//! Thinking and tool calls are not yet told apart from the answer: whatever the model writes is `content`.
//! `tools` of a chat request are shown to the model by the chat template.
//!
//! The crate may use `arges-engine` and `arges-text`. It loads nothing from disk and knows nothing of the
//! command line: the command hands it an engine, a tokenizer, a template and [`ServerOptions`].
#![forbid(unsafe_code)]

mod auth;
mod error;
mod extract;
mod frontend;
mod health;
mod openai;
mod options;
mod router;
mod serve;
mod state;

pub use options::{GenerationDefaults, ServerOptions};
pub use router::router;
pub use serve::serve;
pub use state::AppState;
