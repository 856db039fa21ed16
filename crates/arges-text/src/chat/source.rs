//! Where a checkpoint directory keeps its chat template.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{DEFAULT, TOOL_USE};
use crate::TextError;
use crate::load::{named_tokens, read, read_json};

/// The templates of a checkpoint, not yet parsed.
pub(super) struct Sources {
    /// The file they came from, for errors.
    pub(super) origin: String,
    pub(super) default: String,
    pub(super) tool_use: Option<String>,
    /// `bos_token`, `eos_token` and the like, by name.
    pub(super) special_tokens: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

/// Reads the template sources; `None` where there are none.
pub(super) fn from_dir(dir: &Path) -> Result<Option<Sources>, TextError> {
    let config_path = dir.join("tokenizer_config.json");
    let config: Map<String, Value> = read_json(&config_path)?.unwrap_or_default();
    let file = dir.join("chat_template.jinja");
    if file.is_file() {
        let (origin, default) = (file.display().to_string(), read(&file)?);
        let special_tokens = special_tokens(&config);
        return Ok(Some(Sources { origin, default, tool_use: None, special_tokens }));
    }
    from_config(&config_path, config)
}

/// The template sources in a `tokenizer_config.json`; `path` names it in errors.
pub(super) fn from_config(path: &Path, mut config: Map<String, Value>) -> Result<Option<Sources>, TextError> {
    let special_tokens = special_tokens(&config);
    let stored = config.shift_remove("chat_template").filter(|stored| !stored.is_null());
    let Some(stored) = stored else {
        return Ok(None);
    };
    let origin = path.display().to_string();
    let unusable =
        |reason: &str| TextError::TemplateSyntax { origin: origin.clone(), reason: reason.to_owned() };
    let stored = serde_json::from_value(stored)
        .map_err(|_| unusable("chat_template is neither a string nor a list of named templates"))?;
    let (default, tool_use) = match stored {
        Stored::One(default) => (Some(default), None),
        Stored::Named(list) => {
            let mut by_name: BTreeMap<String, String> =
                list.into_iter().map(|named| (named.name, named.template)).collect();
            (by_name.remove(DEFAULT), by_name.remove(TOOL_USE))
        }
    };
    let default = default.ok_or_else(|| unusable("none of the named chat templates is called `default`"))?;
    Ok(Some(Sources { origin, default, tool_use, special_tokens }))
}

fn special_tokens(config: &Map<String, Value>) -> BTreeMap<String, String> {
    named_tokens(config).map(|(name, token)| (name.to_owned(), token.to_owned())).collect()
}
