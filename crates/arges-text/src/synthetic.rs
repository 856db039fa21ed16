//! Tokenizers for random checkpoints: byte-level BPE of any size, made by rule.
//!
//! The layout is M1's in small: ids 0 to 255 are the bytes, then merges, and the last ids are the
//! turn markers. Merges spell out words breadth first: every token so far and one more letter,
//! starting from a space and the 26 letters (` a` … ` z`, `aa` … `zz`, ` aa`, …), so that the
//! supply has no end and no two ids have the same text.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::TextError;
use crate::byte_level::byte_chars;
use crate::chat::M1_TEMPLATE;
use crate::load::{ListedToken, MAX_TOKENS, gpt2_tokenizer_json};

const BYTES: usize = 256;

/// The special tokens, in the order of their ids.
const MARKERS: [&str; 4] =
    ["<beginning_of_sentence>", "<end_of_sentence>", "<end_of_document>", "<begin_of_document>"];

/// The smallest vocabulary [`write_tokenizer`] can make: the bytes and the turn markers.
pub const MIN_VOCAB_SIZE: usize = BYTES + MARKERS.len();

/// The ids of the turn markers of a synthetic tokenizer, for the model's configuration.
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

/// Writes `tokenizer.json` and `tokenizer_config.json` (with the built-in chat template) for a
/// vocabulary of exactly `vocab_size` ids into `dir`. The same size gives the same bytes.
///
/// # Errors
/// [`TextError::VocabularySize`] below [`MIN_VOCAB_SIZE`] or above what a tokenizer may have (2^24),
/// or a file that cannot be written.
pub fn write_tokenizer(dir: &Path, vocab_size: usize) -> Result<SpecialIds, TextError> {
    let (minimum, maximum) = (MIN_VOCAB_SIZE, MAX_TOKENS as usize);
    let size = u32::try_from(vocab_size).ok().filter(|_| (minimum..=maximum).contains(&vocab_size));
    let size = size.ok_or(TextError::VocabularySize { asked: vocab_size, minimum, maximum })?;
    let merges = merges(vocab_size - MIN_VOCAB_SIZE);
    let ids = size - MARKERS.len() as u32..size;
    let markers: Vec<ListedToken> =
        ids.zip(MARKERS).map(|(id, marker)| ListedToken::special(id, marker.to_owned())).collect();
    write(&dir.join("tokenizer.json"), &gpt2_tokenizer_json(vocab(&merges), &merges, &markers, false))?;
    write(&dir.join("tokenizer_config.json"), &tokenizer_config())?;
    Ok(SpecialIds {
        beginning_of_sentence: markers[0].id,
        end_of_sentence: markers[1].id,
        end_of_document: markers[2].id,
        begin_of_document: markers[3].id,
    })
}

/// The first `count` merges, as pairs in the byte-level alphabet.
fn merges(count: usize) -> Vec<(String, String)> {
    let space = byte_chars()[usize::from(b' ')];
    let mut tokens: Vec<String> = std::iter::once(space).chain('a'..='z').map(String::from).collect();
    let mut merges = Vec::with_capacity(count);
    let mut longer = 0;
    while merges.len() < count {
        let prefix = tokens[longer].clone();
        longer += 1;
        for letter in ('a'..='z').take(count - merges.len()) {
            tokens.push(format!("{prefix}{letter}"));
            merges.push((prefix.clone(), letter.to_string()));
        }
    }
    merges
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

fn write(path: &Path, value: &Value) -> Result<(), TextError> {
    std::fs::write(path, value.to_string())
        .map_err(|source| TextError::Write { path: path.to_owned(), source })
}
