//! Stop strings in a stream of text.

/// Finds the first of several stop strings in a text that arrives in pieces.
///
/// "First" is the match that ends first; of several that end at one place, the longest; of equal
/// ones, the one named first. What comes out is therefore the same for every split of the stream.
/// Text is held back only while it may still become a stop string: exactly the longest end of the
/// text that begins one. Each string is matched by Knuth, Morris and Pratt's automaton, so a byte
/// costs amortised constant time per stop string.
#[derive(Clone, Debug)]
pub struct StopStrings {
    patterns: Vec<Pattern>,
    held: String,
    stopped: Option<usize>,
}

/// What one piece of text gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that is certainly before any stop string, in order, each byte once.
    pub text: String,
    /// Which stop string was found (its position in the list), once one was.
    pub stopped: Option<usize>,
}

#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// `fallback[n]`: length of the longest proper prefix of `bytes` that ends `bytes[..=n]`.
    fallback: Vec<usize>,
    /// How many bytes of the pattern the text so far ends with.
    matched: usize,
}

impl StopStrings {
    /// A matcher for `strings`. Empty strings are never found, but keep their place in the
    /// numbering.
    pub fn new(strings: Vec<String>) -> Self {
        let patterns = strings.into_iter().map(|string| Pattern::new(string.into_bytes())).collect();
        Self { patterns, held: String::new(), stopped: None }
    }

    /// Takes a piece of text. After a stop string was found nothing more comes out.
    pub fn push(&mut self, piece: &str) -> StopOutput {
        if self.stopped.is_some() {
            return StopOutput { text: String::new(), stopped: self.stopped };
        }
        self.held.push_str(piece);
        let before = self.held.len() - piece.len();
        for (offset, byte) in piece.bytes().enumerate() {
            if let Some(index) = self.step(byte) {
                let start = before + offset + 1 - self.patterns[index].bytes.len();
                self.held.truncate(start);
                self.stopped = Some(index);
                return StopOutput { text: std::mem::take(&mut self.held), stopped: self.stopped };
            }
        }
        let hold = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - hold);
        StopOutput { text: std::mem::replace(&mut self.held, kept), stopped: None }
    }

    /// Ends the stream and returns the text still held back, which is no stop string.
    pub fn finish(&mut self) -> String {
        for pattern in &mut self.patterns {
            pattern.matched = 0;
        }
        std::mem::take(&mut self.held)
    }

    /// Moves every automaton by one byte; the longest pattern complete after it, if any.
    fn step(&mut self, byte: u8) -> Option<usize> {
        let mut found: Option<usize> = None;
        for index in 0..self.patterns.len() {
            let complete = self.patterns[index].step(byte);
            let longer =
                found.is_none_or(|best| self.patterns[index].bytes.len() > self.patterns[best].bytes.len());
            if complete && longer {
                found = Some(index);
            }
        }
        found
    }
}

impl Pattern {
    fn new(bytes: Vec<u8>) -> Self {
        let mut fallback = vec![0; bytes.len()];
        let mut length = 0;
        for end in 1..bytes.len() {
            while length > 0 && bytes[end] != bytes[length] {
                length = fallback[length - 1];
            }
            length += usize::from(bytes[end] == bytes[length]);
            fallback[end] = length;
        }
        Self { bytes, fallback, matched: 0 }
    }

    /// Whether the pattern is complete after `byte`. The matcher stops there, so a complete
    /// pattern is never stepped again.
    fn step(&mut self, byte: u8) -> bool {
        if self.bytes.is_empty() {
            return false;
        }
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        self.matched == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> StopStrings {
        StopStrings::new(list.iter().map(|s| (*s).to_owned()).collect())
    }

    fn emitted(text: &str) -> StopOutput {
        StopOutput { text: text.to_owned(), stopped: None }
    }

    #[test]
    fn only_the_end_that_may_become_a_stop_string_is_held_back() {
        let mut stop = strings(&["</end>", "STOP"]);
        assert_eq!(stop.push("one <"), emitted("one "));
        assert_eq!(stop.push("/en"), emitted(""));
        assert_eq!(stop.push("x ST"), emitted("</enx "));
        assert_eq!(stop.finish(), "ST");
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_cut_off_and_ends_the_stream() {
        let mut stop = strings(&["none", "日本"]);
        assert_eq!(stop.push("a日"), emitted("a"));
        assert_eq!(stop.push("本 after"), StopOutput { text: String::new(), stopped: Some(1) });
        assert_eq!(stop.push("more"), StopOutput { text: String::new(), stopped: Some(1) });
        assert_eq!(stop.finish(), "");
    }

    #[test]
    fn the_match_that_ends_first_wins_and_of_those_the_longest() {
        let mut stop = strings(&["c", "abc", "abcd", "abc"]);
        assert_eq!(stop.push("xabcd"), StopOutput { text: "x".into(), stopped: Some(1) });
    }

    #[test]
    fn an_overlapping_restart_is_found() {
        let mut stop = strings(&["aab"]);
        assert_eq!(stop.push("aaab"), StopOutput { text: "a".into(), stopped: Some(0) });
    }

    #[test]
    fn no_and_empty_stop_strings_let_everything_through() {
        assert_eq!(strings(&[]).push("text"), emitted("text"));
        assert_eq!(strings(&[""]).push("text"), emitted("text"));
    }
}
