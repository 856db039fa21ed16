//! Tells what a model thinks from what it answers, as the text comes.

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// What a piece of text belongs to. The tags belong to the thinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Thinking,
    Answer,
}

/// Divides an answer that may begin with `<think>…</think>`. The pieces together are the text, unchanged.
#[derive(Debug, Default)]
pub struct ThinkingSplitter {
    state: State,
    /// Text that may be the beginning of a tag.
    held: String,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    /// Nothing but white space and perhaps a part of the opening tag came so far.
    #[default]
    Beginning,
    Thinking,
    Answering,
}

impl ThinkingSplitter {
    /// Takes more text and returns the pieces that became certain.
    pub fn push(&mut self, text: &str) -> Vec<(Part, String)> {
        self.held.push_str(text);
        if let State::Beginning = self.state {
            let begun = self.held.trim_start();
            if begun.len() < OPEN.len() && OPEN.starts_with(begun) {
                return Vec::new();
            }
            self.state = if begun.starts_with(OPEN) { State::Thinking } else { State::Answering };
        }
        match self.state {
            State::Thinking => self.push_thinking(),
            _ => piece(Part::Answer, std::mem::take(&mut self.held)).into_iter().collect(),
        }
    }

    /// The rest, once no more text comes.
    pub fn finish(&mut self) -> Option<(Part, String)> {
        let part = if let State::Thinking = self.state { Part::Thinking } else { Part::Answer };
        piece(part, std::mem::take(&mut self.held))
    }

    fn push_thinking(&mut self) -> Vec<(Part, String)> {
        if let Some(at) = self.held.find(CLOSE) {
            self.state = State::Answering;
            let answer = self.held.split_off(at + CLOSE.len());
            let thinking = std::mem::take(&mut self.held);
            return [piece(Part::Thinking, thinking), piece(Part::Answer, answer)]
                .into_iter()
                .flatten()
                .collect();
        }
        let begun = (1..CLOSE.len()).rev().find(|length| self.held.ends_with(&CLOSE[..*length])).unwrap_or(0);
        let held = self.held.split_off(self.held.len() - begun);
        piece(Part::Thinking, std::mem::replace(&mut self.held, held)).into_iter().collect()
    }
}

fn piece(part: Part, text: String) -> Option<(Part, String)> {
    (!text.is_empty()).then_some((part, text))
}

/// The thinking of a whole text, without tags, and its answer. Thinking that does not end is all there is.
pub fn split(text: &str) -> (Option<&str>, &str) {
    let Some(rest) = text.trim_start().strip_prefix(OPEN) else { return (None, text) };
    let (thinking, answer) = rest.split_once(CLOSE).unwrap_or((rest, ""));
    (Some(thinking.trim()), answer.trim_start_matches('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is thought and what is answered, of a text that comes in these pieces.
    fn divided<'a>(pieces: impl Iterator<Item = &'a str>) -> (String, String) {
        let mut splitter = ThinkingSplitter::default();
        let mut parts: Vec<(Part, String)> = pieces.flat_map(|piece| splitter.push(piece)).collect();
        parts.extend(splitter.finish());
        let of =
            |part| parts.iter().filter(|(found, _)| *found == part).map(|(_, text)| text.as_str()).collect();
        (of(Part::Thinking), of(Part::Answer))
    }

    #[test]
    fn thinking_is_divided_from_the_answer_however_the_text_is_cut() {
        for (thinking, answer) in [
            ("<think>\na < b </thin k>\n</think>", "\nc</think> <think>d"),
            ("\n <think>unended </think", ""),
            ("", "<thinker> is no tag"),
            ("", "x <think>late</think>"),
            ("", "<thi"),
            ("", ""),
            ("<think>é</think>", "日本"),
        ] {
            let text = format!("{thinking}{answer}");
            let expected = (thinking.to_owned(), answer.to_owned());
            let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
            for &first in &ends {
                for &second in ends.iter().filter(|second| **second >= first) {
                    let pieces = [&text[..first], &text[first..second], &text[second..]];
                    assert_eq!(divided(pieces.into_iter()), expected, "{pieces:?}");
                }
            }
            assert_eq!(divided(text.split_inclusive(|_| true)), expected, "{text:?}");
        }
    }

    #[test]
    fn text_is_held_back_only_while_it_may_be_a_tag() {
        let mut splitter = ThinkingSplitter::default();
        assert_eq!(splitter.push("<think>a<"), [(Part::Thinking, "<think>a".to_owned())]);
        assert_eq!(splitter.push("b"), [(Part::Thinking, "<b".to_owned())]);
        assert_eq!(
            splitter.push("</think>c"),
            [(Part::Thinking, "</think>".to_owned()), (Part::Answer, "c".to_owned())]
        );
        assert_eq!(splitter.push("<"), [(Part::Answer, "<".to_owned())]);
    }

    #[test]
    fn a_whole_text_has_its_thinking_without_tags() {
        assert_eq!(split("<think>\na\nb\n</think>\n c\n"), (Some("a\nb"), " c\n"));
        assert_eq!(split("<think>\na"), (Some("a"), ""));
        assert_eq!(split(" a <think>"), (None, " a <think>"));
    }
}
