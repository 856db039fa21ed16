//! Pre-training, fine-tuning and reinforcement learning of models of the MiniMax-M1 family.
//!
//! A [`config`] describes a run; [`data`] gives its batches in a fixed order; [`run`] puts them through the model
//! of `arges-model`, whose gradients the [`optimizer`] turns into new weights at the rate of the [`schedule`]; a
//! [`checkpoint`] holds all that a run needs to go on bit for bit; [`metrics`] tell how it goes, and [`plot`] draws
//! them. All of a run's choices are functions of its seed and of counters, so that no random state is kept.
//!
//! [`rl`] learns from what the engine of `arges-engine` samples with the trainer's model.
//!
//! It stands on the kernels, the model, the engine, the text and the tasks, and knows no server or command line.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod config;
pub mod data;
mod http;
pub mod metrics;
pub mod optimizer;
pub mod plot;
pub mod reward_model;
pub mod rl;
pub mod run;
pub mod schedule;

pub use config::TrainConfig;
pub use data::Learn;
pub use run::{Run, TrainError};
