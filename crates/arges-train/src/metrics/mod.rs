//! The scalars of a run: a JSON object a line for programs, event files for TensorBoard.
//!
//! `metrics.jsonl` holds what counts, once a step, and is what [`plot`](crate::plot) draws. A run that goes on from
//! an earlier checkpoint cuts off what came after it, so that no step is told twice.

mod jsonl;
mod tensorboard;

use std::path::{Path, PathBuf};

use jsonl::Log;
use tensorboard::EventFile;

/// Name of the file of metrics in a run's directory.
pub const FILE_NAME: &str = "metrics.jsonl";

/// Scalars of one step.
///
/// As a line: `{"step": 12, "time": 1732.5, "train/loss": 2.31}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    pub step: u64,
    /// Seconds since 1970.
    pub time: f64,
    /// TensorBoard tags (`train/loss`, `eval/loss`, `eval/<source>/loss`) and their values. What is not finite is
    /// `null` in a line, and NaN once read.
    pub values: Vec<(String, f64)>,
}

/// What can go wrong with the files of metrics.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    /// A line is none of metrics.
    #[error("{}:{line}: {reason}", path.display())]
    Line { path: PathBuf, line: usize, reason: String },
}

impl MetricsError {
    fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// Writes metrics as they come.
#[derive(Debug)]
pub struct MetricsWriter {
    log: Log,
    events: EventFile,
}

impl MetricsWriter {
    /// Opens `metrics.jsonl` in the directory `run` for appending and starts a new TensorBoard event file there.
    ///
    /// Lines of steps after `last_step`, from which the run goes on, and a torn last line are cut off by way of a
    /// new file that takes the old one's place; TensorBoard is told to forget those steps.
    ///
    /// # Errors
    /// A file that cannot be read or written, and a line before the last that holds no metrics.
    pub fn open(run: &Path, last_step: u64) -> Result<Self, MetricsError> {
        Ok(Self {
            log: Log::open(&run.join(FILE_NAME), last_step)?,
            events: EventFile::create(run, last_step.saturating_add(1))?,
        })
    }

    /// Appends a line and an event, both with the system before this returns.
    ///
    /// # Errors
    /// A write that fails; the files then end where they did.
    pub fn write(&mut self, metrics: &Metrics) -> Result<(), MetricsError> {
        self.log.write(metrics)?;
        self.events.write(metrics)
    }
}

/// Reads a run's metrics, in the order in which they were written. A torn last line is passed over.
///
/// # Errors
/// No file, and a line before the last that holds no metrics.
pub fn read(run: &Path) -> Result<Vec<Metrics>, MetricsError> {
    jsonl::read(&run.join(FILE_NAME))
}
