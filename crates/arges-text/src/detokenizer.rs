//! Token ids to text, one at a time.

use crate::Tokenizer;

/// Turns a stream of token ids into text that is always whole characters.
///
/// Everything pushed plus [`finish`](Self::finish) equals [`Tokenizer::decode`] of all ids
/// together. Only the bytes of an unfinished character (three at most) are kept between calls, so
/// the work for a token is the length of that token, however long the text is.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    keep_special: bool,
    unfinished: Vec<u8>,
}

impl Detokenizer {
    /// A detokenizer that writes special tokens out as their text.
    pub fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, keep_special: true, unfinished: Vec::new() }
    }

    /// A detokenizer that leaves special tokens out, as [`Tokenizer::decode_skip_special`] does.
    pub fn skipping_special(tokenizer: Tokenizer) -> Self {
        Self { keep_special: false, ..Self::new(tokenizer) }
    }

    /// Takes one token and returns the text that is certain now, which may be empty. Bytes that
    /// can be part of no character become U+FFFD; an id without a token adds nothing.
    pub fn push(&mut self, id: u32) -> String {
        if !self.keep_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        self.unfinished.extend_from_slice(self.tokenizer.bytes_of(id).unwrap_or_default());
        let mut text = String::new();
        let consumed = decode_whole(&self.unfinished, &mut text);
        self.unfinished.drain(..consumed);
        text
    }

    /// Ends the stream: what is left of an unfinished character becomes U+FFFD. The detokenizer
    /// is empty afterwards and can be used again.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.unfinished).into_owned();
        self.unfinished.clear();
        rest
    }
}

/// Appends all of `bytes` but an unfinished character at the end, invalid sequences as U+FFFD, and
/// returns how many bytes that was.
fn decode_whole(bytes: &[u8], text: &mut String) -> usize {
    let mut consumed = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        consumed += chunk.valid().len();
        let invalid = chunk.invalid();
        if invalid.is_empty() {
            continue;
        }
        let at_end = consumed + invalid.len() == bytes.len();
        if at_end && is_unfinished(invalid) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        consumed += invalid.len();
    }
    consumed
}

/// Whether an invalid sequence could become a character if more bytes followed.
fn is_unfinished(invalid: &[u8]) -> bool {
    std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_character_waits_and_an_impossible_one_does_not() {
        let cases: [(&[u8], &str, usize); 5] = [
            (b"ab\xE6\x97", "ab", 2),
            (b"ab\xE6\x97\xA5", "ab日", 5),
            (b"\xFF\xFEa", "\u{FFFD}\u{FFFD}a", 3),
            (b"\xE6\x97a\xF0\x9F\x98", "\u{FFFD}a", 3),
            (b"\xC0", "\u{FFFD}", 1),
        ];
        for (bytes, text, consumed) in cases {
            let mut out = String::new();
            assert_eq!((decode_whole(bytes, &mut out), out.as_str()), (consumed, text), "{bytes:x?}");
        }
    }
}
