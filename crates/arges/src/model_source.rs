//! From what `--model` says to a model's files.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use arges_model::{Checkpoint, CheckpointError};
use arges_text::{ChatTemplate, TextError, Tokenizer};

use crate::nano;

/// Where a model's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    Directory {
        /// The directory with `config.json`.
        path: PathBuf,
        /// The Hugging Face id, or the directory's own name.
        name: String,
    },
    /// The model that is part of the program.
    Embedded,
}

impl ModelSource {
    /// What the model is called.
    pub fn name(&self) -> &str {
        match self {
            Self::Directory { name, .. } => name,
            Self::Embedded => nano::NAME,
        }
    }

    /// Opens and checks the checkpoint.
    pub fn checkpoint(&self) -> Result<Checkpoint, CheckpointError> {
        match self {
            Self::Directory { path, .. } => Checkpoint::open(path),
            Self::Embedded => nano::checkpoint(),
        }
    }

    /// The tokenizer; `None` where the model has none.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        match self {
            Self::Directory { path, .. } => match Tokenizer::from_dir(path) {
                Ok(tokenizer) => Ok(Some(tokenizer)),
                Err(TextError::NoTokenizer { .. }) => Ok(None),
                Err(error) => Err(error.into()),
            },
            Self::Embedded => nano::tokenizer().map(Some),
        }
    }

    /// The chat template; `None` where the model has none.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        match self {
            Self::Directory { path, .. } => Ok(ChatTemplate::from_dir(path)?),
            Self::Embedded => nano::chat_template(),
        }
    }
}

/// Whether the model that is part of the program is meant: without a name, and by its own.
pub fn is_embedded(model: Option<&str>) -> bool {
    model.is_none_or(|model| model == nano::NAME && !Path::new(model).exists())
}

/// Finds the model: a path that exists, else a Hugging Face id, which is downloaded unless it is in the cache.
/// Without a name it is the one that is part of the program.
///
/// # Errors
/// What is neither, and a download that fails.
pub fn find(model: Option<&str>) -> Result<ModelSource> {
    let Some(model) = model.filter(|_| !is_embedded(model)) else { return Ok(ModelSource::Embedded) };
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(ModelSource::Directory { path: path.to_owned(), name: name_of(path) });
    }
    if path.exists() {
        bail!("{model} is a file: give the directory it lies in");
    }
    match HubId::parse(model) {
        Some(id) => download(&id),
        None => Err(no_such(model)),
    }
}

/// The directory of a model of which only `config.json` is needed.
///
/// # Errors
/// As [`find`].
#[cfg(feature = "hub")]
pub fn find_config(model: &str) -> Result<PathBuf> {
    let id = HubId::parse(model).ok_or_else(|| no_such(model))?;
    crate::hub::config_file(&id)
}

/// The file of a model of which only `config.json` is needed, where nothing can be downloaded.
#[cfg(not(feature = "hub"))]
pub fn find_config(model: &str) -> Result<PathBuf> {
    Err(no_such(model))
}

fn no_such(model: &str) -> anyhow::Error {
    anyhow!(
        "there is no {model}: give a directory with config.json and weights, or a Hugging Face id such as \
         MiniMaxAI/MiniMax-M1-40k"
    )
}

/// The last part of a path, links and dots resolved.
fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    whole.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

#[cfg(feature = "hub")]
fn download(id: &HubId) -> Result<ModelSource> {
    Ok(ModelSource::Directory { path: crate::hub::checkpoint(id)?, name: id.name() })
}

#[cfg(not(feature = "hub"))]
fn download(id: &HubId) -> Result<ModelSource> {
    bail!(
        "there is no directory {}, and this build has no support for Hugging Face ids: download the model and \
         give its directory, or build with the feature `hub`",
        id.name()
    );
}

/// A model on Hugging Face: `owner/name`, perhaps `@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    pub owner: String,
    pub repository: String,
    pub revision: String,
}

impl HubId {
    /// Reads an id; `None` for what cannot be one.
    pub fn parse(text: &str) -> Option<HubId> {
        let (path, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, repository) = path.split_once('/')?;
        let is_name = |name: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            (1..=96).contains(&name.len()) && name.chars().all(plain) && !name.starts_with(['-', '.'])
        };
        let parts = [owner, repository, revision];
        let to_id = || HubId {
            owner: owner.to_owned(),
            repository: repository.to_owned(),
            revision: revision.to_owned(),
        };
        parts.into_iter().all(is_name).then(to_id)
    }

    /// `owner/name`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.owner, self.repository)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_an_owner_and_a_name_and_nothing_of_a_path() {
        let id = |owner: &str, repository: &str, revision: &str| {
            let [owner, repository, revision] = [owner, repository, revision].map(str::to_owned);
            Some(HubId { owner, repository, revision })
        };
        assert_eq!(HubId::parse("MiniMaxAI/MiniMax-M1-40k"), id("MiniMaxAI", "MiniMax-M1-40k", "main"));
        assert_eq!(HubId::parse("a/b@v1.0"), id("a", "b", "v1.0"));
        for path in ["model", "/a/b", "./b", "../b", "a/b/c", "a/", "/", "a/..", "a/b@", "a b/c", "a/b@../c"]
        {
            assert_eq!(HubId::parse(path), None, "{path}");
        }
    }
}
