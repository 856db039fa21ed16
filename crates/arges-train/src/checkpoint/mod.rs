//! Checkpoints of a run: `RUN/checkpoints/step-000500`, each a directory that any program for these models can load,
//! with two files more:
//!
//! ```text
//! config.json, *.safetensors, tokenizer files   the model (adapters merged)
//! training-state.safetensors                    what learns, in f32, and AdamW's moments
//! training-state.json                           steps, tokens, the place in the data, the run's configuration
//! ```
//!
//! One is written under another name, brought to disk and then renamed: whatever is called `step-…` is whole. The
//! names of the state's tensors are `value/NAME`, `m/NAME` and `v/NAME`.

mod tensors;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use arges_kernels::device::cpu::Cpu;
use arges_model::DType;
use arges_model::checkpoint::{WriteError, WriteOptions, copy_tokenizer_files};
use arges_model::training::{Parameters, TrainingError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::StreamState;
use crate::optimizer::Optimizer;
use tensors::{Tensor, TensorMut};

const DIRECTORY: &str = "checkpoints";
const PREFIX: &str = "step-";
/// Of a checkpoint that is being written or removed.
const PARTIAL: &str = ".partial-";
const STATE_FILE: &str = "training-state.json";
const TENSOR_FILE: &str = "training-state.safetensors";
/// Form of the two files of a state.
const VERSION: u32 = 1;

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or directory of it cannot be written. The checkpoints before it are whole.
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// The model's weights cannot be written. The checkpoints before it are whole.
    #[error(transparent)]
    Weights(#[from] TrainingError),
    /// The tokenizer's files cannot be copied.
    #[error(transparent)]
    Tokenizer(#[from] WriteError),
    /// A file of it cannot be read, or does not hold what it should.
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// All counters of a run; `P` is its place in what it learns from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State<P = StreamState> {
    version: u32,
    /// Optimizer steps taken.
    pub step: u64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Tokens that were predicted.
    pub targets: u64,
    /// The place in the data.
    pub stream: P,
    /// What decides the course of the run; see [`crate::TrainConfig::identity`].
    pub identity: Value,
    /// Pre-training, fine-tuning or reinforcement learning.
    pub learn: String,
}

impl<P> State<P> {
    /// The state of a run in this form.
    pub fn new(step: u64, tokens: u64, targets: u64, stream: P, identity: Value, learn: String) -> Self {
        Self { version: VERSION, step, tokens, targets, stream, identity, learn }
    }
}

/// What the weights of a checkpoint look like.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// How matrices are stored.
    pub dtype: DType,
    /// Most bytes of a shard.
    pub shard_bytes: u64,
    /// Newest checkpoints that are kept; 0 keeps all.
    pub keep: usize,
}

/// The checkpoints of a run.
pub struct Checkpoints {
    directory: PathBuf,
}

impl Checkpoints {
    /// Those of the run in a directory, which need not be there yet.
    pub fn of(run: &Path) -> Self {
        Self { directory: run.join(DIRECTORY) }
    }

    /// Where the checkpoint of a step is or will be.
    pub fn path(&self, step: u64) -> PathBuf {
        self.directory.join(format!("{PREFIX}{step:06}"))
    }

    /// Steps of which there is a checkpoint, rising.
    ///
    /// # Errors
    /// A directory that cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let step = |name: &str| name.strip_prefix(PREFIX)?.parse().ok();
        let mut steps: Vec<u64> = self.entries()?.iter().filter_map(|name| step(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    fn entries(&self) -> Result<Vec<String>, CheckpointError> {
        let list = || -> io::Result<Vec<String>> {
            fs::read_dir(&self.directory)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        match list() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other.map_err(|source| CheckpointError::Read { path: self.directory.clone(), source }),
        }
    }

    /// Writes the checkpoint of a state and removes those that are too many. The tokenizer's files come from
    /// `tokenizer`; `files` are more of the run's own, by name.
    ///
    /// # Errors
    /// When something cannot be written: then all is as before.
    #[allow(clippy::too_many_arguments)]
    pub fn save<P: Serialize>(
        &self,
        state: &State<P>,
        parameters: &Parameters,
        optimizer: &Optimizer,
        tokenizer: &Path,
        form: Form,
        cpu: &Cpu,
        files: &[(&str, &[u8])],
    ) -> Result<PathBuf, CheckpointError> {
        fs::create_dir_all(&self.directory).map_err(write_error(&self.directory))?;
        self.remove_partial()?;
        let partial = self.directory.join(format!("{PARTIAL}{PREFIX}{:06}", state.step));
        let path = self.path(state.step);
        let write = || -> Result<(), CheckpointError> {
            let options = WriteOptions { shard_bytes: form.shard_bytes, overwrite: false };
            parameters.save(cpu, &partial, options, form.dtype)?;
            copy_tokenizer_files(tokenizer, &partial)?;
            let tensors = partial.join(TENSOR_FILE);
            tensors::write(&tensors, &state_tensors(parameters, optimizer)).map_err(write_error(&tensors))?;
            let file = partial.join(STATE_FILE);
            let text = serde_json::to_vec_pretty(state).expect("a state has string keys");
            fs::write(&file, text).map_err(write_error(&file))?;
            for (name, bytes) in files {
                let file = partial.join(name);
                fs::write(&file, bytes).map_err(write_error(&file))?;
            }
            sync_all(&partial).map_err(write_error(&partial))?;
            fs::rename(&partial, &path).map_err(write_error(&path))?;
            sync_directory(&self.directory).map_err(write_error(&self.directory))
        };
        if let Err(error) = write() {
            // The disk may be full: what was written of it is in the way of everything else.
            let _ = fs::remove_dir_all(&partial);
            return Err(error);
        }
        self.prune(form.keep)?;
        Ok(path)
    }

    /// Removes what a run that was killed left half-written.
    fn remove_partial(&self) -> Result<(), CheckpointError> {
        for name in self.entries()?.iter().filter(|name| name.starts_with(PARTIAL)) {
            let path = self.directory.join(name);
            fs::remove_dir_all(&path).map_err(write_error(&path))?;
        }
        Ok(())
    }

    fn prune(&self, keep: usize) -> Result<(), CheckpointError> {
        let steps = self.steps()?;
        let old = if keep == 0 { 0 } else { steps.len().saturating_sub(keep) };
        for &step in &steps[..old] {
            // A checkpoint loses its name first, so that none is ever found in part.
            let (path, partial) = (self.path(step), self.directory.join(format!("{PARTIAL}old-{step:06}")));
            fs::rename(&path, &partial).map_err(write_error(&path))?;
            fs::remove_dir_all(&partial).map_err(write_error(&partial))?;
        }
        Ok(())
    }

    /// The counters of a checkpoint.
    ///
    /// # Errors
    /// A file that is missing or of another form.
    pub fn state<P: DeserializeOwned>(&self, step: u64) -> Result<State<P>, CheckpointError> {
        let path = self.path(step).join(STATE_FILE);
        let read = || -> io::Result<State<P>> {
            let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
            let value: Value = serde_json::from_slice(&fs::read(&path)?)?;
            match value["version"].as_u64() {
                Some(version) if version == u64::from(VERSION) => Ok(serde_json::from_value(value)?),
                _ => Err(invalid(format!("its version is {} and not {VERSION}", value["version"]))),
            }
        };
        read().map_err(|source| CheckpointError::Read { path: path.clone(), source })
    }

    /// Brings what learns and the optimizer to where they were at a checkpoint.
    ///
    /// # Errors
    /// A file that is missing or holds other tensors.
    pub fn restore(
        &self,
        step: u64,
        parameters: &mut Parameters,
        optimizer: &mut Optimizer,
    ) -> Result<(), CheckpointError> {
        let path = self.path(step).join(TENSOR_FILE);
        let tensors = parameters.tensors().to_vec();
        let [m, v] = optimizer.restore(step);
        let parts = [("value", parameters.values_mut()), ("m", m), ("v", v)];
        let mut places = Vec::with_capacity(parts.len() * tensors.len());
        for (part, mut rest) in parts {
            for tensor in &tensors {
                let (values, after) = rest.split_at_mut(tensor.range.len());
                rest = after;
                places.push(TensorMut {
                    name: format!("{part}/{}", tensor.name),
                    shape: &tensor.shape,
                    values,
                });
            }
        }
        tensors::read(&path, &mut places).map_err(|source| CheckpointError::Read { path, source })
    }
}

fn state_tensors<'a>(parameters: &'a Parameters, optimizer: &'a Optimizer) -> Vec<Tensor<'a>> {
    let [m, v] = optimizer.moments();
    let parts = [("value", parameters.values()), ("m", m), ("v", v)];
    let of = |(part, values): (&str, &'a [f32])| {
        let part = part.to_owned();
        parameters.tensors().iter().map(move |tensor| Tensor {
            name: format!("{part}/{}", tensor.name),
            shape: &tensor.shape,
            values: &values[tensor.range.clone()],
        })
    };
    parts.into_iter().flat_map(of).collect()
}

fn write_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    move |source| CheckpointError::Write { path: path.to_owned(), source }
}

/// Brings every file of a directory to disk, and their names.
fn sync_all(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        File::open(entry?.path())?.sync_all()?;
    }
    sync_directory(directory)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}
