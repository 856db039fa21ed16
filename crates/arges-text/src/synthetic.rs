//! Tokenizers for random checkpoints: byte-level BPE of any size, made by rule.
//!
//! Merges spell out words breadth first: every token so far and one more letter, starting from a
//! space and the 26 letters (` a` … ` z`, `aa` … `zz`, ` aa`, …), so that the supply has no end and
//! no two ids have the same text.

use std::path::Path;

use crate::byte_level::byte_chars;
use crate::{SpecialIds, TextError, layout};

/// Writes `tokenizer.json` and `tokenizer_config.json` (with the built-in chat template) for a
/// vocabulary of exactly `vocab_size` ids into `dir`. The same size gives the same bytes.
///
/// # Errors
/// [`TextError::VocabularySize`] below [`MIN_VOCAB_SIZE`](crate::MIN_VOCAB_SIZE) or above what a
/// tokenizer may have (2^24), or a file that cannot be written.
pub fn write_tokenizer(dir: &Path, vocab_size: usize) -> Result<SpecialIds, TextError> {
    let merges = merges(layout::merge_count(vocab_size)?);
    layout::write(dir, &merges, &layout::pre_tokenizer(false))
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
