//! Tokenizer files to a `tokenizers::Tokenizer`, checked so far that the table of token bytes and
//! the ids in the files can be relied on.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokenizers::{DecoderWrapper, Tokenizer};

use crate::TextError;
use crate::byte_level::byte_chars;

/// Ids must be below this: many times any vocabulary there is, and still a table that fits.
pub(crate) const MAX_TOKENS: u32 = 1 << 24;

/// A tokenizer whose files agree with each other.
pub(crate) struct Loaded {
    pub(crate) tokenizer: Tokenizer,
    /// Every token as the vocabulary spells it, by rising id.
    pub(crate) tokens: Vec<(u32, String)>,
}

/// Reads `tokenizer.json`, else `vocab.json` and `merges.txt`.
pub(crate) fn from_dir(dir: &Path) -> Result<Loaded, TextError> {
    let path = dir.join("tokenizer.json");
    if path.is_file() {
        return from_tokenizer_json(&path, &read(&path)?);
    }
    let (vocab, merges) = (dir.join("vocab.json"), dir.join("merges.txt"));
    if vocab.is_file() && merges.is_file() {
        return from_vocab_and_merges(dir, &vocab, &merges);
    }
    Err(TextError::NoTokenizer { dir: dir.to_owned() })
}

/// Reads the text of a `tokenizer.json`; `path` names it in errors.
pub(crate) fn from_tokenizer_json(path: &Path, text: &str) -> Result<Loaded, TextError> {
    #[derive(Deserialize)]
    struct Listed {
        #[serde(default)]
        added_tokens: Vec<ListedToken>,
    }
    let listed: Listed = parse_json(path, text)?;
    checked(path, parse_json(path, text)?, &listed.added_tokens)
}

/// The `eos_token` that a `tokenizer_config.json` names, where there is one.
pub(crate) fn end_token(config: &Map<String, Value>) -> Option<&str> {
    named_tokens(config).find(|(name, _)| *name == "eos_token").map(|(_, token)| token)
}

/// Reads a file as text.
pub(crate) fn read(path: &Path) -> Result<String, TextError> {
    std::fs::read_to_string(path).map_err(|source| TextError::Read { path: path.to_owned(), source })
}

/// Reads a JSON file; `None` where there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, TextError> {
    if !path.is_file() {
        return Ok(None);
    }
    parse_json(path, &read(path)?).map(Some)
}

/// Parses the text of a JSON file.
pub(crate) fn parse_json<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, TextError> {
    serde_json::from_str(text).map_err(|source| TextError::Json { path: path.to_owned(), source })
}

/// A token outside the merges, as `tokenizer.json` lists it.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default)]
pub(crate) struct ListedToken {
    pub(crate) id: u32,
    pub(crate) content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

impl Default for ListedToken {
    fn default() -> Self {
        Self::special(0, String::new())
    }
}

impl ListedToken {
    /// A special token that is recognised exactly as it is written.
    pub(crate) fn special(id: u32, content: String) -> Self {
        let (single_word, lstrip, rstrip, normalized) = (false, false, false, false);
        Self { id, content, single_word, lstrip, rstrip, normalized, special: true }
    }
}

/// GPT-2's pre-tokenizer: text to words in the byte-level alphabet. Its decoder is written the same.
pub(crate) fn byte_level(add_prefix_space: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": true,
    })
}

/// The `tokenizer.json` of a byte-level BPE. `vocab` maps entries to ids, `merges` holds pairs of
/// entries.
pub(crate) fn byte_level_tokenizer_json(
    vocab: impl Serialize,
    merges: impl Serialize,
    added_tokens: &[ListedToken],
    pre_tokenizer: &Value,
) -> Value {
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": byte_level(false),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merges,
        },
    })
}

fn from_vocab_and_merges(dir: &Path, vocab: &Path, merges: &Path) -> Result<Loaded, TextError> {
    let vocabulary: Map<String, Value> = parse_json(vocab, &read(vocab)?)?;
    let pairs = parse_merges(merges, &read(merges)?)?;
    let config_path = dir.join("tokenizer_config.json");
    let config: Map<String, Value> = read_json(&config_path)?.unwrap_or_default();
    let added = added_tokens(dir, &config_path, &config, &vocabulary)?;
    let add_prefix_space = config.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(false);
    let pre_tokenizer = byte_level(add_prefix_space);
    let tokenizer_json = byte_level_tokenizer_json(vocabulary, pairs, &added, &pre_tokenizer);
    let tokenizer = serde_json::from_value(tokenizer_json);
    let tokenizer = tokenizer.map_err(|error| unusable(vocab, format!("with merges.txt: {error}")))?;
    checked(vocab, tokenizer, &added)
}

/// The tokenizer without settings meant for training batches, if its ids are the listed ones and
/// its tokens stand for bytes, every byte among them.
fn checked(path: &Path, mut tokenizer: Tokenizer, listed: &[ListedToken]) -> Result<Loaded, TextError> {
    if !tokenizer.get_decoder().is_some_and(is_byte_level) {
        let reason = "its decoder is not ByteLevel; only byte-level vocabularies are supported";
        return Err(unusable(path, reason.to_owned()));
    }
    for ListedToken { id, content, .. } in listed {
        if tokenizer.token_to_id(content) != Some(*id) {
            let given = tokenizer.token_to_id(content);
            let reason = format!("added token {content:?} is listed with id {id} but gets {given:?}");
            return Err(unusable(path, reason));
        }
    }
    let missing = byte_chars()
        .into_iter()
        .position(|char| tokenizer.token_to_id(char.encode_utf8(&mut [0; 4])).is_none());
    if let Some(byte) = missing {
        return Err(unusable(path, format!("no token stands for the byte {byte:#04x}")));
    }
    let mut tokens: Vec<(u32, String)> =
        tokenizer.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
    tokens.sort_unstable();
    if let Some((id, token)) = tokens.last().filter(|(id, _)| *id >= MAX_TOKENS) {
        return Err(unusable(path, format!("token {token:?} has id {id}, not below {MAX_TOKENS}")));
    }
    tokenizer.with_padding(None);
    let untruncated = tokenizer.with_truncation(None).map(|_| ());
    untruncated.map_err(|error| unusable(path, error.to_string()))?;
    Ok(Loaded { tokenizer, tokens })
}

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(sequence) => {
            let decoders = sequence.get_decoders();
            decoders.len() == 1 && decoders.iter().all(is_byte_level)
        }
        _ => false,
    }
}

fn unusable(path: &Path, reason: String) -> TextError {
    TextError::Tokenizer { path: path.to_owned(), reason }
}

/// The pairs of a `merges.txt`: two tokens a line, after an optional `#version` line.
fn parse_merges(path: &Path, text: &str) -> Result<Vec<(String, String)>, TextError> {
    let lines = text.lines().enumerate();
    let pairs = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with("#version"));
    pairs
        .map(|(number, line)| match line.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
                Ok((left.to_owned(), right.to_owned()))
            }
            _ => Err(unusable(path, format!("line {} is not two tokens: {line:?}", number + 1))),
        })
        .collect()
}

/// The tokens beside the merges, by id: `added_tokens_decoder` of `tokenizer_config.json`, then
/// `added_tokens.json`, then the tokens the configuration names (`eos_token` and the like), whose
/// ids come from the former two or from the vocabulary.
fn added_tokens(
    dir: &Path,
    config_path: &Path,
    config: &Map<String, Value>,
    vocabulary: &Map<String, Value>,
) -> Result<Vec<ListedToken>, TextError> {
    let mut by_id: BTreeMap<u32, ListedToken> = BTreeMap::new();
    if let Some(listed) = config.get("added_tokens_decoder") {
        let listed = BTreeMap::<u32, ListedToken>::deserialize(listed);
        let listed = listed.map_err(|source| TextError::Json { path: config_path.to_owned(), source })?;
        by_id.extend(listed.into_iter().map(|(id, token)| (id, ListedToken { id, ..token })));
    }
    let separate: Option<BTreeMap<String, u32>> = read_json(&dir.join("added_tokens.json"))?;
    for (content, id) in separate.into_iter().flatten() {
        by_id.entry(id).or_insert_with(|| ListedToken::special(id, content));
    }
    for (name, content) in named_tokens(config) {
        if by_id.values().any(|token| token.content == content) {
            continue;
        }
        let id = vocabulary.get(content).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| {
            unusable(config_path, format!("{name} is {content:?}, but no file gives that token an id"))
        })?;
        by_id.insert(id, ListedToken::special(id, content.to_owned()));
    }
    Ok(by_id.into_values().collect())
}

/// The special tokens a `tokenizer_config.json` names (`bos_token`, `eos_token` and the like),
/// each as text or as an object holding it.
pub(crate) fn named_tokens(config: &Map<String, Value>) -> impl Iterator<Item = (&str, &str)> {
    config.iter().filter(|(name, _)| name.ends_with("_token")).filter_map(|(name, value)| {
        let content = value.as_str().or_else(|| value.get("content").and_then(Value::as_str));
        content.map(|content| (name.as_str(), content))
    })
}
