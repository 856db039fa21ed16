//! Reinforcement learning with verifiable rewards, as MiniMax-M1 was made with.
//!
//! A [`config`] describes a [`run`]. Problems are drawn by the [`curriculum`] and played in turns by the
//! [`rollout`]s, which sample from a [`policy`]: the engine of this process, with the trainer's own model, and [`remote`]
//! ones; answers without a verifier are [`judged`] by a reward model. An episode
//! leaves a [`trajectory`] of token ids, log-probabilities and weight versions. [`groups`] hold responses to one prompt
//! until they are a [`batch`], in the order and within the staleness that a run allows. Their [`advantage`]s go into the
//! one [`objective`], whose gradient by every token's log-probability is what the trainer of `arges-model` needs. The
//! [`window`] of lengths widens by rule; [`metrics`] and [`inspect`] show what happens. docs/rl.md derives and measures.
pub mod advantage;
pub mod batch;
pub mod config;
pub mod curriculum;
pub mod groups;
pub mod inspect;
pub mod judged;
pub mod metrics;
pub mod objective;
pub mod policy;
pub mod remote;
pub mod rollout;
pub mod run;
pub mod talk;
pub mod trajectory;
pub mod window;

pub use config::RlConfig;
pub use run::{RlError, RlRun};
