//! The tokenizer: text to ids by Hugging Face's `tokenizers`, ids to bytes by a table.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::byte_level::ByteDecoder;
use crate::{TextError, load};

/// A byte-level BPE tokenizer. Cheap to clone: the vocabulary is shared.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    inner: tokenizers::Tokenizer,
    /// The bytes of all tokens, one after the other.
    bytes: Vec<u8>,
    /// Per id: where its bytes lie and what it is; `None` for an id without a token.
    entries: Vec<Option<Entry>>,
    end_token: Option<u32>,
    /// The special tokens as they are written.
    specials: Vec<String>,
}

#[derive(Clone, Copy)]
struct Entry {
    start: usize,
    end: usize,
    special: bool,
}

impl Tokenizer {
    /// Reads the tokenizer of a checkpoint directory: `tokenizer.json` where there is one, else
    /// `vocab.json` and `merges.txt` as transformers reads them for a `GPT2Tokenizer` (GPT-2's
    /// pre-tokenizer; special tokens from `added_tokens.json` and `tokenizer_config.json`).
    ///
    /// # Errors
    /// No tokenizer in the directory, an unreadable or malformed file, a decoder that is not
    /// byte-level, or an added token whose id contradicts the vocabulary.
    pub fn from_dir(dir: &Path) -> Result<Self, TextError> {
        let config = load::read_json(&dir.join("tokenizer_config.json"))?;
        Ok(Self::new(load::from_dir(dir)?, &config.unwrap_or_default()))
    }

    /// A tokenizer from the texts of its `tokenizer.json` and `tokenizer_config.json`, for files that
    /// lie in no directory; `origin` stands for it in errors.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir).
    pub fn from_json(origin: &Path, tokenizer: &str, config: &str) -> Result<Self, TextError> {
        let config = load::parse_json(&origin.join("tokenizer_config.json"), config)?;
        Ok(Self::new(load::from_tokenizer_json(&origin.join("tokenizer.json"), tokenizer)?, &config))
    }

    /// The token that ends an answer: `eos_token` of `tokenizer_config.json`. MiniMax-M1 names it nowhere else.
    pub fn end_token(&self) -> Option<u32> {
        self.shared.end_token
    }

    /// The ids of `text`. Special tokens written out in the text become their ids; nothing is
    /// added at either end.
    ///
    /// # Errors
    /// Where the underlying tokenizer gives up; no text is known that makes a byte-level
    /// vocabulary do so.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::new();
        for piece in matchable_pieces(text) {
            let encoding = self.shared.inner.encode_fast(piece, false);
            let encoding = encoding.map_err(|error| TextError::Encode { reason: error.to_string() })?;
            ids.extend_from_slice(encoding.get_ids());
        }
        Ok(ids)
    }

    /// The text of `ids`, special tokens written out. Bytes that are not UTF-8 become U+FFFD; ids
    /// without a token add nothing.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_where(ids, |_| true)
    }

    /// The text of `ids` without special tokens; otherwise as [`decode`](Self::decode).
    pub fn decode_skip_special(&self, ids: &[u32]) -> String {
        self.decode_where(ids, |entry| !entry.special)
    }

    /// One more than the highest id that has a token. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.shared.entries.len()
    }

    /// The bytes of a token, which need not be whole characters; `None` for an id without one.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.bytes_of(id).map(<[u8]>::to_vec)
    }

    /// The id of a token as the vocabulary spells it: a special token's text, or an entry in the
    /// byte-level alphabet (`Ġthe`).
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.shared.inner.token_to_id(token)
    }

    /// Whether an id is a special token, one that is markup and not text.
    pub fn is_special(&self, id: u32) -> bool {
        self.shared.entry(id).is_some_and(|entry| entry.special)
    }

    /// The special tokens as they are written, by rising id.
    pub fn special_tokens(&self) -> &[String] {
        &self.shared.specials
    }

    pub(crate) fn bytes_of(&self, id: u32) -> Option<&[u8]> {
        self.shared.entry(id).map(|entry| &self.shared.bytes[entry.start..entry.end])
    }

    /// `config`: what `tokenizer_config.json` says.
    fn new(loaded: load::Loaded, config: &Map<String, Value>) -> Self {
        let load::Loaded { tokenizer: inner, tokens } = loaded;
        let end_token = load::end_token(config).and_then(|token| inner.token_to_id(token));
        let added = inner.get_added_tokens_decoder();
        let decoder = ByteDecoder::new();
        let mut bytes = Vec::new();
        let mut entries = vec![None; tokens.last().map_or(0, |(id, _)| *id as usize + 1)];
        for (id, token) in &tokens {
            let start = bytes.len();
            let added = added.get(id);
            match added {
                Some(added) => bytes.extend_from_slice(added.content.as_bytes()),
                None => decoder.decode_into(token, &mut bytes),
            }
            let special = added.is_some_and(|added| added.special);
            entries[*id as usize] = Some(Entry { start, end: bytes.len(), special });
        }
        let specials = tokens.iter().filter(|(id, _)| added.get(id).is_some_and(|added| added.special));
        let specials = specials.map(|(_, token)| token.clone()).filter(|token| !token.is_empty()).collect();
        Self { shared: Arc::new(Shared { inner, bytes, entries, end_token, specials }) }
    }

    fn decode_where(&self, ids: &[u32], keep: impl Fn(&Entry) -> bool) -> String {
        let entries = ids.iter().filter_map(|id| self.shared.entry(*id)).filter(|entry| keep(entry));
        let bytes: Vec<u8> =
            entries.flat_map(|entry| &self.shared.bytes[entry.start..entry.end]).copied().collect();
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }
}

impl Shared {
    fn entry(&self, id: u32) -> Option<Entry> {
        self.entries.get(id as usize).copied().flatten()
    }
}

/// Longest run of white space that reaches the pre-tokenizer's regex in one piece, in characters.
///
/// The usual patterns end in `\s+(?!\S)`, which backtracks over the whole run; beyond a million
/// steps the engine gives up and the rest of the text would become one word. A power of two, as
/// the longest runs of spaces in vocabularies are, so that the ids come out as without the cut.
const MAX_SPACE_RUN: usize = 1 << 18;

/// `text` cut after every [`MAX_SPACE_RUN`] characters of white space in a row.
pub(crate) fn matchable_pieces(text: &str) -> Vec<&str> {
    if text.len() < MAX_SPACE_RUN {
        return vec![text];
    }
    let (mut pieces, mut start, mut run) = (Vec::new(), 0, 0);
    for (at, char) in text.char_indices() {
        if run == MAX_SPACE_RUN {
            pieces.push(&text[start..at]);
            (start, run) = (at, 0);
        }
        run = if char.is_whitespace() { run + 1 } else { 0 };
    }
    pieces.push(&text[start..]);
    pieces
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}
