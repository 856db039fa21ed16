//! How a failure is told: one chain of reasons, what to do about it, and the exit code.

use std::fmt;
use std::io;
use std::process::ExitCode;

use anyhow::Error;
use arges_engine::SubmitError;
use arges_model::checkpoint::WriteError;
use arges_model::{CheckpointError, ConfigError};
use arges_text::TextError;
use arges_train::TrainError;

/// Arguments that cannot be meant: exit code 2, as for those that do not parse.
#[derive(Debug)]
pub struct UsageError(pub String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// An error of exit code 2.
pub fn usage(message: impl Into<String>) -> Error {
    UsageError(message.into()).into()
}

/// Nobody reads the output any more, which ends the program and is no failure.
#[derive(Debug)]
pub struct OutputClosed;

impl fmt::Display for OutputClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the output was closed")
    }
}

impl std::error::Error for OutputClosed {}

/// An error of writing the output, with a closed pipe told apart.
pub fn output_error(error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        OutputClosed.into()
    } else {
        Error::new(error).context("cannot write the output")
    }
}

/// Prints the error and gives the exit code.
pub fn report(error: &Error) -> ExitCode {
    if error.is::<OutputClosed>() {
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {}", chain(error));
    if let Some(hint) = hint(error) {
        eprintln!("  help: {hint}");
    }
    ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
}

/// The reasons, from the outermost in. Some errors already say their cause; it is not said twice.
fn chain(error: &Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// What to do about errors whose own words do not say it.
fn hint(error: &Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<CheckpointError>() {
            return of_checkpoint(error);
        }
        if let Some(WriteError::NotEmpty { .. }) = cause.downcast_ref() {
            return Some("--overwrite replaces the checkpoint that is there");
        }
        if let Some(TextError::NoTokenizer { .. }) = cause.downcast_ref() {
            return Some(
                "give token ids with --ids 1,2,3 or --ids @FILE, or add the model's tokenizer files",
            );
        }
        if let Some(TrainError::Exists { .. }) = cause.downcast_ref() {
            return Some("--resume goes on with it; give a new run another directory in field `run`");
        }
        if let Some(SubmitError::TooLong { .. }) = cause.downcast_ref() {
            return Some("shorten the prompt, or raise --context");
        }
        None
    })
}

fn of_checkpoint(error: &CheckpointError) -> Option<&'static str> {
    use CheckpointError as E;
    match error {
        E::Config(ConfigError::Read { .. }) => {
            Some("a model is a directory with config.json and its weights as safetensors files")
        }
        E::Config(_) => Some("correct that field of config.json, or take the model's original file"),
        E::NoWeights { .. } => {
            Some("put the model's safetensors files there; `arges synth` makes a random model")
        }
        E::Header { .. } | E::NotInShard { .. } => {
            Some("the file is damaged or incomplete: copy or download it again")
        }
        E::Read { .. } => {
            Some("every file that the index names must be there: copy or download what is missing")
        }
        E::Missing { .. } | E::Extra { .. } | E::Misshapen { .. } | E::HeadNotTied { .. } => {
            Some("config.json and the weights do not belong together: take both from the same model")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_cause_that_was_said_is_not_said_again() {
        let file = "x.json".into();
        let source = io::Error::other("disk on fire");
        let error = Err::<(), _>(ConfigError::Read { file, source }).context("cannot load x").unwrap_err();
        assert_eq!(chain(&error), "cannot load x: cannot read x.json: disk on fire");
    }
}
