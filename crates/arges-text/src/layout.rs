//! The layout of the tokenizers made here: M1's in small. Ids 0 to 255 are the bytes, then come the
//! merges in order of rank, and the last ids are the turn markers.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::TextError;
use crate::byte_level::byte_chars;
use crate::chat::M1_TEMPLATE;
use crate::load::{ListedToken, MAX_TOKENS, byte_level, byte_level_tokenizer_json};

const BYTES: usize = 256;

/// The special tokens, in the order of their ids.
pub(crate) const MARKERS: [&str; 4] =
    ["<beginning_of_sentence>", "<end_of_sentence>", "<end_of_document>", "<begin_of_document>"];

/// The smallest vocabulary that can be made: the bytes and the turn markers.
pub const MIN_VOCAB_SIZE: usize = BYTES + MARKERS.len();

/// The ids of the turn markers, for the model's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialIds {
    /// `<beginning_of_sentence>` opens a turn: the `bos_token_id`.
    pub beginning_of_sentence: u32,
    /// `<end_of_sentence>` ends a turn and with it generation: the `eos_token_id`.
    pub end_of_sentence: u32,
    /// `<end_of_document>` ends a document.
    pub end_of_document: u32,
    /// `<begin_of_document>` starts a prompt.
    pub begin_of_document: u32,
}

/// How many merges a vocabulary of `vocab_size` tokens has room for.
pub(crate) fn merge_count(vocab_size: usize) -> Result<usize, TextError> {
    let (minimum, maximum) = (MIN_VOCAB_SIZE, MAX_TOKENS as usize);
    if (minimum..=maximum).contains(&vocab_size) {
        Ok(vocab_size - minimum)
    } else {
        Err(TextError::VocabularySize { asked: vocab_size, minimum, maximum })
    }
}

/// How text is cut into the words that merges stay within: as GPT-2 does, with every digit a word
/// of its own if asked for.
pub(crate) fn pre_tokenizer(single_digits: bool) -> Value {
    let words = byte_level(false);
    if !single_digits {
        return words;
    }
    let digits = json!({ "type": "Digits", "individual_digits": true });
    json!({ "type": "Sequence", "pretokenizers": [digits, words] })
}

/// Writes `tokenizer.json` and `tokenizer_config.json`, with the built-in chat template, into `dir`.
/// The merges are pairs in the byte-level alphabet; they number what [`merge_count`] gave.
pub(crate) fn write(
    dir: &Path,
    merges: &[(String, String)],
    pre_tokenizer: &Value,
) -> Result<SpecialIds, TextError> {
    let first = (BYTES + merges.len()) as u32;
    let markers: Vec<ListedToken> =
        (first..).zip(MARKERS).map(|(id, marker)| ListedToken::special(id, marker.to_owned())).collect();
    let tokenizer = byte_level_tokenizer_json(vocab(merges), merges, &markers, pre_tokenizer);
    write_json(&dir.join("tokenizer.json"), &tokenizer)?;
    write_json(&dir.join("tokenizer_config.json"), &tokenizer_config())?;
    Ok(SpecialIds {
        beginning_of_sentence: markers[0].id,
        end_of_sentence: markers[1].id,
        end_of_document: markers[2].id,
        begin_of_document: markers[3].id,
    })
}

/// Bytes in order of value, then the merged tokens in order of rank.
fn vocab(merges: &[(String, String)]) -> Map<String, Value> {
    let bytes = byte_chars().into_iter().map(String::from);
    let merged = merges.iter().map(|(left, right)| format!("{left}{right}"));
    bytes.chain(merged).enumerate().map(|(id, token)| (token, Value::from(id))).collect()
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": false,
        "bos_token": "<beginning_of_sentence>",
        "eos_token": "<end_of_sentence>",
        "unk_token": "<end_of_document>",
        "clean_up_tokenization_spaces": false,
        "chat_template": M1_TEMPLATE,
    })
}

fn write_json(path: &Path, value: &Value) -> Result<(), TextError> {
    std::fs::write(path, value.to_string())
        .map_err(|source| TextError::Write { path: path.to_owned(), source })
}
