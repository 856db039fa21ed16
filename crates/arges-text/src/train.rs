//! Tokenizers for new models: byte-level BPE learned from text.
//!
//! Merges are learned by the `tokenizers` crate; the layout is that of M1 in small, as for the
//! [`synthetic`](crate::synthetic) ones. The turn markers are no part of what is learned from: text
//! is cut at them. `<think>`, `<tool_calls>` and their ends are ordinary text, as in M1, and get
//! merges where they are frequent.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper, Trainer,
};

use crate::byte_level::byte_chars;
use crate::layout::{MARKERS, MIN_VOCAB_SIZE};
use crate::tokenizer::matchable_pieces;
use crate::{SpecialIds, TextError, layout};

/// A pair of tokens must be seen this often to be merged: what stands there once says nothing of
/// other text.
const MIN_COUNT: u64 = 2;

/// What a tokenizer is to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenizerTraining {
    /// Tokens in all: the bytes, the merges and the turn markers.
    pub vocab_size: usize,
    /// Makes every digit a token of its own, so that a number is spelled the same way wherever it
    /// stands: small models need that to calculate.
    pub single_digits: bool,
}

impl TokenizerTraining {
    /// A vocabulary of that size, with single digits.
    pub fn new(vocab_size: usize) -> Self {
        Self { vocab_size, single_digits: true }
    }
}

/// A tokenizer that was learned and is not yet written.
#[derive(Clone, Debug)]
pub struct TrainedTokenizer {
    /// Pairs in the byte-level alphabet, in order of rank.
    merges: Vec<(String, String)>,
    pre_tokenizer: Value,
}

/// Learns a tokenizer from `texts`. The same texts, in any order, give the same tokenizer. Counts are
/// 32-bit: no pair of tokens may stand in the texts more than 2^31 times.
///
/// # Errors
/// [`TextError::VocabularySize`] for a size that no tokenizer has, [`TextError::TooFewMerges`] where
/// the texts do not give as many tokens.
pub fn train_tokenizer(
    texts: impl Iterator<Item = String> + Send,
    training: &TokenizerTraining,
) -> Result<TrainedTokenizer, TextError> {
    let wanted = layout::merge_count(training.vocab_size)?;
    let pre_tokenizer = layout::pre_tokenizer(training.single_digits);
    let words: PreTokenizerWrapper = serde_json::from_value(pre_tokenizer.clone()).map_err(failed)?;
    let alphabet: HashSet<char> = byte_chars().into();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(alphabet.len() + wanted)
        .initial_alphabet(alphabet)
        .min_frequency(MIN_COUNT)
        .show_progress(false)
        .build();
    trainer.feed(texts, |text| split_words(&words, text)).map_err(failed)?;
    let merges = learned_merges(&trainer)?;
    if merges.len() < wanted {
        let found = MIN_VOCAB_SIZE + merges.len();
        return Err(TextError::TooFewMerges { asked: training.vocab_size, found });
    }
    Ok(TrainedTokenizer { merges, pre_tokenizer })
}

impl TrainedTokenizer {
    /// Writes `tokenizer.json` and `tokenizer_config.json`, with the built-in chat template, into
    /// `dir`. The same tokenizer gives the same bytes.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, dir: &Path) -> Result<SpecialIds, TextError> {
        layout::write(dir, &self.merges, &self.pre_tokenizer)
    }
}

/// The words of a text in the byte-level alphabet, without turn markers.
fn split_words(words: &PreTokenizerWrapper, text: &str) -> tokenizers::Result<Vec<String>> {
    let mut found = Vec::new();
    for piece in between_markers(text).into_iter().flat_map(matchable_pieces) {
        let mut piece = PreTokenizedString::from(piece);
        words.pre_tokenize(&mut piece)?;
        let splits = piece.get_splits(OffsetReferential::Original, OffsetType::None);
        found.extend(splits.into_iter().map(|(word, ..)| word.to_owned()));
    }
    Ok(found)
}

fn between_markers(text: &str) -> Vec<&str> {
    MARKERS.iter().fold(vec![text], |pieces, marker| {
        pieces.into_iter().flat_map(|piece| piece.split(marker)).filter(|piece| !piece.is_empty()).collect()
    })
}

/// Learns from the counted words: pairs in the byte-level alphabet, in order of rank.
fn learned_merges(trainer: &BpeTrainer) -> Result<Vec<(String, String)>, TextError> {
    let mut model = BPE::default();
    trainer.train(&mut model).map_err(failed)?;
    let mut model = serde_json::to_value(&model).map_err(failed)?;
    serde_json::from_value(model["merges"].take()).map_err(failed)
}

fn failed(error: impl ToString) -> TextError {
    TextError::Training { reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_at_turn_markers_and_nothing_of_it_is_lost() {
        let text = "<begin_of_document><beginning_of_sentence>user\na<b<end_of_sentence>\n<end_of_";
        assert_eq!(between_markers(text), ["user\na<b", "\n<end_of_"]);
    }
}
