//! Models by their Hugging Face id, in the cache that other tools share (`HF_HOME`, else
//! `~/.cache/huggingface`).
//!
//! A model whose weights are all in the cache is used without the network. Otherwise its files are downloaded
//! at one commit, weights last, and the revision's name is set to that commit when all are there: an
//! interrupted download goes on where it was, and a half-done one is never taken for a model.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use indicatif::ProgressBar;
use serde::Deserialize;

use crate::model_source::HubId;
use crate::progress::bytes_bar;

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// Files besides configuration and weights that are used where a model has them.
const EXTRAS: [&str; 7] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
];
/// Attempts after the first, each of which goes on where the last one broke off.
const RETRIES: usize = 5;

/// The directory of a model's checkpoint, downloaded if it is not in the cache.
///
/// # Errors
/// No such model, no network, or an index that names files outside the model's directory.
pub fn checkpoint(id: &HubId) -> Result<PathBuf> {
    let cached = cache()?.repo(repo(id));
    if let Some(directory) = cached_checkpoint(&cached)? {
        return Ok(directory);
    }
    let download = Download::start(id)?;
    let config = download.file(CONFIG)?;
    for name in EXTRAS.into_iter().filter(|name| download.has(name)) {
        download.file(name)?;
    }
    if download.has(INDEX) {
        for shard in shards(&download.file(INDEX)?)? {
            download.file(&shard)?;
        }
    } else {
        download.file(SINGLE)?;
    }
    cached.create_ref(&download.commit).context("cannot write to the Hugging Face cache")?;
    directory_of(&config)
}

/// A model's `config.json` alone.
///
/// # Errors
/// As [`checkpoint`].
pub fn config_file(id: &HubId) -> Result<PathBuf> {
    match cache()?.repo(repo(id)).get(CONFIG) {
        Some(file) => Ok(file),
        None => Download::start(id)?.file(CONFIG),
    }
}

fn cache() -> Result<Cache> {
    if env::var_os("HF_HOME").is_none() && env::home_dir().is_none() {
        bail!("there is no home directory for the Hugging Face cache: set HF_HOME to a directory");
    }
    Ok(Cache::from_env())
}

fn repo(id: &HubId) -> Repo {
    Repo::with_revision(id.name(), RepoType::Model, id.revision.clone())
}

fn directory_of(config: &Path) -> Result<PathBuf> {
    config.parent().map(Path::to_owned).context("the cached config.json lies in no directory")
}

/// The directory of a checkpoint all of whose weights are in the cache.
fn cached_checkpoint(cached: &CacheRepo) -> Result<Option<PathBuf>> {
    let Some(config) = cached.get(CONFIG) else { return Ok(None) };
    let complete = match cached.get(INDEX) {
        Some(index) => shards(&index)?.iter().all(|shard| cached.get(shard).is_some()),
        None => cached.get(SINGLE).is_some(),
    };
    if complete { directory_of(&config).map(Some) } else { Ok(None) }
}

/// The weight files that an index names.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::HashMap<String, String>,
    }
    let text = std::fs::read(index).with_context(|| format!("cannot read {}", index.display()))?;
    let index: Index =
        serde_json::from_slice(&text).with_context(|| format!("{} is not an index", index.display()))?;
    let files: BTreeSet<String> = index.weight_map.into_values().collect();
    match files.iter().find(|name| name.contains(['/', '\\']) || name.starts_with('.')) {
        Some(name) => Err(anyhow!("the index names the file {name:?}, which is not beside it")),
        None => Ok(files),
    }
}

/// Files of a model at one commit.
struct Download {
    name: String,
    commit: String,
    files: BTreeSet<String>,
    repo: ApiRepo,
}

impl Download {
    fn start(id: &HubId) -> Result<Download> {
        let name = id.name();
        if env::var("HF_HUB_OFFLINE").is_ok_and(|value| !matches!(value.as_str(), "" | "0")) {
            bail!(
                "there is no directory {name}, and HF_HUB_OFFLINE forbids downloading the model of that id, \
                 which is not wholly in the cache"
            );
        }
        let api = api()?;
        let info = api.repo(repo(id)).info().with_context(|| {
            format!(
                "there is no directory {name}, and the model of that id cannot be had from Hugging Face (is it \
                 spelled right? for a private one set HF_TOKEN; without a network give a directory)"
            )
        })?;
        let files = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let repo = api.repo(Repo::with_revision(name.clone(), RepoType::Model, info.sha.clone()));
        Ok(Download { name, commit: info.sha, files, repo })
    }

    fn has(&self, file: &str) -> bool {
        self.files.contains(file)
    }

    /// A file's place in the cache, downloaded if it is not there.
    fn file(&self, file: &str) -> Result<PathBuf> {
        if !self.has(file) {
            bail!("{} on Hugging Face has no {file}: it is not a model that Arges can load", self.name);
        }
        let cached = cache()?
            .repo(Repo::with_revision(self.name.clone(), RepoType::Model, self.commit.clone()))
            .get(file);
        if let Some(path) = cached {
            return Ok(path);
        }
        let bar = Bar(bytes_bar(file, 0));
        let place =
            || format!("cannot download {file} of {} (try again: it goes on where it was)", self.name);
        self.repo.download_with_progress(file, bar).with_context(place)
    }
}

fn api() -> Result<Api> {
    let mut builder = ApiBuilder::from_env().with_retries(RETRIES);
    if let Ok(token) = env::var("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    builder
        .with_user_agent("arges", env!("CARGO_PKG_VERSION"))
        .build()
        .context("cannot set up downloads from Hugging Face")
}

struct Bar(ProgressBar);

impl Progress for Bar {
    fn init(&mut self, size: usize, _: &str) {
        self.0.set_length(size as u64);
        self.0.set_position(0);
    }

    fn update(&mut self, size: usize) {
        self.0.inc(size as u64);
    }

    fn finish(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_may_only_name_files_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join(INDEX);
        std::fs::write(&index, r#"{"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}"#).unwrap();
        assert_eq!(shards(&index).unwrap(), BTreeSet::from(["x.safetensors".to_owned()]));
        for name in ["../x.safetensors", "/etc/passwd", "..", ".hidden"] {
            std::fs::write(&index, format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#)).unwrap();
            assert!(shards(&index).unwrap_err().to_string().contains(name), "{name}");
        }
    }
}
