//! arges-model

pub mod accounting;
pub mod batch;
pub mod cache;
pub mod checkpoint;
pub mod config;
pub mod dtype;
pub mod model;
pub mod params;
pub mod synth;

pub use accounting::Accounting;
pub use batch::{Batch, LogitRows, Span};
pub use cache::{Cache, CacheError, CachePlan, OutOfPages, SequenceId};
pub use checkpoint::{Checkpoint, CheckpointError};
pub use config::{AttentionKind, Config, ConfigError, Dialect};
pub use dtype::DType;
pub use model::{ForwardError, LoadOptions, LoadProgress, Model, ModelError, Workspace, WorkspacePlan};
pub use params::{LayerParam, Param};
