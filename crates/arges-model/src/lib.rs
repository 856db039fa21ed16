//! Models of the MiniMax-M1 family: configuration, checkpoints, caches and the forward pass.
//!
//! A [`Checkpoint`] is a directory in Hugging Face layout; a [`Model`] is its weights packed for the device. A
//! [`Batch`] of flat tokens, with a span per sequence, goes through [`Model::forward`] together with the
//! sequences' [`Cache`]; prefill, pieces of it, decode and scoring are all that one function.
//!
//! This crate knows files and tensors, and nothing of text, requests or sampling. It may touch
//! `arges-kernels` only. Its one `unsafe` place is the mapping of checkpoint files into memory.
#![deny(unsafe_code)]

pub mod accounting;
pub mod batch;
pub mod cache;
pub mod checkpoint;
pub mod config;
pub mod dtype;
pub mod executor;
pub mod model;
pub mod params;
pub mod publication;
pub mod synth;
pub mod training;
mod update;

pub use accounting::Accounting;
pub use batch::{Batch, LogitRows, Span};
pub use cache::{Cache, CacheError, CachePlan, OutOfPages, SequenceId, Slots, SnapshotPlan, Snapshots};
pub use checkpoint::{Checkpoint, CheckpointError};
pub use config::{AttentionKind, Config, ConfigError, Dialect};
pub use dtype::DType;
pub use executor::{DeviceModel, Executor, ExecutorError, ExecutorPlan};
pub use model::source::WeightSource;
pub use model::{ForwardError, LoadOptions, LoadProgress, Model, ModelError, Workspace, WorkspacePlan};
pub use params::{LayerParam, Param};
pub use update::{NewWeights, UpdateError};
