//! The HTTP server: OpenAI's and Anthropic's APIs over the engine.
//!
//! A request's body is read under limits, parsed, checked and tokenised on a blocking thread, and submitted to the
//! [`Engine`](arges_engine::Engine). Every API's request becomes one typed request (`request`) and then a `job`; every
//! answer is one stream of events (`answer`): thinking, content, calls of tools, the end. `openai` and `anthropic` are
//! thin translations at both ends. `page` is a chat in the browser over the same routes. Wrong input is a 4xx in the API's own shape; a client that goes away cancels its
//! request.
//!
//! The crate may use `arges-engine` and `arges-text`. It loads nothing from disk and knows nothing of the
//! command line: the command hands it an engine, a tokenizer, a template and [`ServerOptions`].
#![forbid(unsafe_code)]

mod admin;
mod answer;
mod anthropic;
mod auth;
mod error;
mod extract;
mod frontend;
mod health;
mod job;
mod metrics;
mod openai;
mod openapi;
mod options;
mod page;
mod request;
mod router;
mod serve;
mod state;
mod tokens;
mod trace;

pub use options::{GenerationDefaults, ServerOptions};
pub use router::router;
pub use serve::{serve, serve_with};
pub use state::AppState;
