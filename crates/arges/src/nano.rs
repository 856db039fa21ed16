//! The model that is part of the program: `models/nano` of the repository, as it was when the program was built.

use std::path::Path;

use anyhow::{Context as _, Result};
use arges_model::checkpoint::StaticFile;
use arges_model::{Checkpoint, CheckpointError};
use arges_text::{ChatTemplate, Tokenizer};

/// What it is called, on the command line and in the API.
pub const NAME: &str = "arges-nano";

/// Its files, by name.
static FILES: &[StaticFile] = include!(concat!(env!("OUT_DIR"), "/nano_files.rs"));

pub fn checkpoint() -> Result<Checkpoint, CheckpointError> {
    Checkpoint::from_static(Path::new(NAME), FILES)
}

pub fn tokenizer() -> Result<Tokenizer> {
    Ok(Tokenizer::from_json(Path::new(NAME), text("tokenizer.json")?, text("tokenizer_config.json")?)?)
}

/// Its chat template; `None` where it has none of its own.
pub fn chat_template() -> Result<Option<ChatTemplate>> {
    Ok(ChatTemplate::from_config_json(Path::new(NAME), text("tokenizer_config.json")?)?)
}

fn text(name: &str) -> Result<&'static str> {
    let file = FILES.iter().find(|(file, _)| *file == name);
    let (_, bytes) = file.with_context(|| format!("{NAME} has no {name}"))?;
    std::str::from_utf8(bytes).with_context(|| format!("{name} of {NAME} is no text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn the_files_are_small_enough_for_a_program_and_a_repository() {
        assert!(FILES.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() <= 32 * MIB);
        for (name, bytes) in FILES {
            assert!(bytes.len() <= 8 * MIB, "{name} has {} bytes", bytes.len());
        }
    }

    #[test]
    fn the_model_and_its_tokenizer_belong_together() {
        let checkpoint = checkpoint().unwrap();
        let tokenizer = tokenizer().unwrap();
        assert_eq!(tokenizer.vocab_size(), checkpoint.config().vocab_size);
        assert_eq!(checkpoint.config().eos_token_ids, [tokenizer.end_token().unwrap()]);
        assert!(chat_template().unwrap().is_some());
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        assert_eq!(text("vocab.json").unwrap_err().to_string(), "arges-nano has no vocab.json");
    }
}
