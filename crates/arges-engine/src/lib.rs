//! Continuous batching over one model.
//!
//! A request becomes a sequence; a scheduler forms each step's batch from the sequences that decode and
//! pieces of the prompts that wait; the model runs it; a sampler chooses a token per row; events go back to
//! whoever asked. One thread owns the model, its caches and the queue, and everything else talks to it by
//! messages: [`Engine`] is a handle to that thread.
//!
//! This crate may use `arges-model`, `arges-kernels` (sampling) and `arges-text` (detokenizer, thinking, stop
//! strings, grammars). It knows nothing of HTTP, prompts as text, or files.
#![forbid(unsafe_code)]

mod constraint;
mod control;
mod engine;
mod handle;
mod memory;
mod prefix;
mod request;
mod runner;
mod scheduler;
mod sequence;
mod speculation;
mod stats;
mod text;
mod timing;

pub use arges_model::{NewWeights, UpdateError};
pub use control::{ControlError, PauseMode, RunningCaches};
pub use handle::Engine;
pub use request::*;
pub use stats::*;
