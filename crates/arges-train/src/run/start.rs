//! Opening a run: its directory, what is trained, and the data.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arges_model::training::{DeviceTrainer, Parameters, TrainingDevice, TrainingPlan};
use arges_model::{Checkpoint, Config};
use arges_text::{ChatTemplate, Tokenizer};
use serde_json::Value;

use super::evaluation::Evaluation;
use super::{Run, TrainError, lock_file};
use crate::checkpoint::{Checkpoints, State};
use crate::config::{ComputeType, NewModel, TrainConfig};
use crate::data::{BatchesAhead, Encoder, Learn, Mixture, Stream};
use crate::metrics::MetricsWriter;
use crate::optimizer::Optimizer;

pub fn open(
    config: TrainConfig,
    learn: Learn,
    device: TrainingDevice,
    resume: bool,
) -> Result<Run, TrainError> {
    let checkpoints = Checkpoints::of(&config.run);
    let taken = config.run.exists().then(|| lock(&config.run)).transpose()?;
    let left = left_state(&config, learn, &checkpoints, resume)?;
    let start = left.as_ref().map(|state| checkpoints.path(state.step));
    let (mut parameters, tokenizer_files) = parameters(&config, start.as_deref())?;
    let encoder = encoder(parameters.config(), &tokenizer_files)?;
    let sequence_length = config.batch.sequence_length();
    check_context(parameters.config(), sequence_length)?;
    let plan = TrainingPlan {
        max_tokens: config.batch.max_tokens,
        max_sequences: config.batch.max_sequences(),
        recompute: config.batch.recompute.into(),
        rounded_head: config.model.head == ComputeType::Bf16,
    };
    let open = |evaluation| Evaluation::open(evaluation, &encoder, learn, sequence_length, plan);
    let evaluation = config.evaluation.as_ref().map(open).transpose()?;
    let mixture = Mixture::open(&config.data, encoder, learn, sequence_length, config.seed)?;
    let mut stream = Stream::new(mixture, plan);
    let mut optimizer = Optimizer::new(config.optimizer, parameters.tensors());
    let (mut tokens, mut targets) = (0, 0);
    if let Some(state) = left {
        checkpoints.restore(state.step, &mut parameters, &mut optimizer)?;
        (tokens, targets) = (state.tokens, state.targets);
        stream.restore(state.stream)?;
    }
    stream.look_ahead()?;
    let balance = config.balance_loss.unwrap_or(parameters.config().router_aux_loss_coef) as f32;
    let trainer = DeviceTrainer::new(parameters, config.model.compute.into(), device, plan)?;
    // The directory is made only when all else is known to be right.
    let lock = taken.map_or_else(|| lock(&config.run), Ok)?;
    let metrics = MetricsWriter::open(&config.run, optimizer.step())?;
    let batches = BatchesAhead::new(stream)?;
    let saved = (optimizer.step() > 0).then_some(optimizer.step());
    Ok(Run {
        config,
        learn,
        trainer,
        optimizer,
        batches,
        evaluation,
        checkpoints,
        metrics,
        tokenizer: tokenizer_files,
        balance,
        tokens,
        targets,
        saved,
        _lock: lock,
    })
}

/// The newest state in the run's directory, if it is to be gone on from.
fn left_state(
    config: &TrainConfig,
    learn: Learn,
    checkpoints: &Checkpoints,
    resume: bool,
) -> Result<Option<State>, TrainError> {
    let Some(&step) = checkpoints.steps()?.last() else { return Ok(None) };
    if !resume {
        return Err(TrainError::Exists { run: config.run.clone(), step });
    }
    let state: State = checkpoints.state(step)?;
    let differs = |reason: String| TrainError::Differs { run: config.run.clone(), reason };
    if state.learn != learn.name() {
        return Err(differs(format!("it is a run of `arges train {}`", state.learn)));
    }
    match difference("", &state.identity, &config.identity()) {
        Some(reason) => Err(differs(reason)),
        None => Ok(Some(state)),
    }
}

/// The first field in which two descriptions differ.
pub(crate) fn difference(path: &str, then: &Value, now: &Value) -> Option<String> {
    if then == now {
        return None;
    }
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    if let (Value::Object(then), Value::Object(now)) = (then, now) {
        let names = then.keys().chain(now.keys());
        let of = |fields: &serde_json::Map<String, Value>, name: &str| {
            fields.get(name).cloned().unwrap_or_default()
        };
        return names
            .map(|name| difference(&below(name), &of(then, name), &of(now, name)))
            .find_map(|found| found);
    }
    if let (Value::Array(then), Value::Array(now)) = (then, now)
        && then.len() == now.len()
    {
        let pairs = then.iter().zip(now).enumerate();
        return pairs
            .map(|(i, (then, now))| difference(&format!("{path}[{i}]"), then, now))
            .find_map(|found| found);
    }
    Some(format!("`{path}` is {now} now and was {then}"))
}

/// What learns, and where the tokenizer's files are. A run that is resumed needs only its own directory, and the base
/// of its adapters.
fn parameters(config: &TrainConfig, left: Option<&Path>) -> Result<(Parameters, PathBuf), TrainError> {
    if let Some(options) = &config.lora {
        let base = config.model.from.as_deref().unwrap_or(Path::new(""));
        let checkpoint = Arc::new(Checkpoint::open(base)?);
        let parameters = Parameters::lora(checkpoint, options, config.seed)?;
        return Ok((parameters, left.unwrap_or(base).to_owned()));
    }
    if let Some(directory) = left.or(config.model.from.as_deref()) {
        return Ok((Parameters::full(&Checkpoint::open(directory)?)?, directory.to_owned()));
    }
    let new = config.model.new.as_ref().expect("one of the two starts was checked to be there");
    let model = new_config(new)?;
    Ok((Parameters::initialized(&model, config.seed), new.tokenizer.clone()))
}

fn new_config(new: &NewModel) -> Result<Config, TrainError> {
    let tokenizer = Tokenizer::from_dir(&new.tokenizer)?;
    let tokens = tokenizer.vocab_size();
    if let Some(rows) = new.vocab_size.filter(|rows| *rows < tokens) {
        let reason = format!("is {rows}, but the tokenizer has {tokens} tokens");
        return Err(TrainError::Unfit { field: "model.new.vocab_size", reason });
    }
    new.config(&tokenizer, Path::new("the sizes given")).map_err(TrainError::Shape)
}

fn encoder(config: &Config, tokenizer_files: &Path) -> Result<Encoder, TrainError> {
    let tokenizer = Tokenizer::from_dir(tokenizer_files)?;
    let template = ChatTemplate::from_dir(tokenizer_files)?.unwrap_or_else(ChatTemplate::default_m1);
    Ok(Encoder::new(tokenizer, template, config.vocab_size))
}

pub(crate) fn check_context(config: &Config, sequence_length: usize) -> Result<(), TrainError> {
    let longest = config.max_position_embeddings;
    if sequence_length <= longest {
        return Ok(());
    }
    let reason = format!("is {sequence_length}, but the model's context is {longest} tokens");
    Err(TrainError::Unfit { field: "batch.sequence_length", reason })
}

/// Makes the run's directory and takes hold of it.
pub(crate) fn lock(run: &Path) -> Result<File, TrainError> {
    let path = lock_file(run);
    let open = || {
        fs::create_dir_all(run)?;
        File::create(&path)
    };
    let file = open().map_err(|source| TrainError::Directory { path: run.to_owned(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(TrainError::InUse { run: run.to_owned() }),
        Err(TryLockError::Error(source)) => Err(TrainError::Directory { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_field_that_differs_is_named_with_both_values() {
        let then = json!({ "a": 1, "b": { "c": [1, { "d": 2.5 }] }, "e": null });
        let mut now = then.clone();
        assert_eq!(difference("", &then, &now), None);
        now["b"]["c"][1]["d"] = json!(3.5);
        assert_eq!(difference("", &then, &now).unwrap(), "`b.c[1].d` is 3.5 now and was 2.5");
        now["b"]["c"] = json!([1]);
        assert_eq!(difference("", &then, &now).unwrap(), "`b.c` is [1] now and was [1,{\"d\":2.5}]");
        let now = json!({ "a": 1, "b": { "c": [1, { "d": 2.5 }] }, "e": 7 });
        assert_eq!(difference("", &then, &now).unwrap(), "`e` is 7 now and was null");
    }
}
