//! Thinking and answer.

use super::tag::begun;
use super::{THINK_CLOSE, THINK_OPEN};

/// White space before `<think>`, in bytes, with which a text still begins with thinking.
const MAX_LEADING_SPACE: usize = 64;

/// The end of a block with the line break before it.
const CLOSE_ON_NEW_LINE: &str = "\n</think>";

/// Divides a text that may begin with `<think>\n…\n</think>\n` into thinking and answer.
///
/// The tags, one line break beside each on the inside and one after the block belong to neither, so that a template
/// that writes the block again writes it as it was. A block that stands later is part of the answer. Thinking that
/// does not end is all there is.
#[derive(Debug, Clone)]
pub struct ThinkingParser {
    state: State,
    /// Text that may be the beginning of a tag.
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space and perhaps a part of the opening tag came so far.
    Beginning,
    /// The opening tag came; its line break may follow.
    Opened,
    Thinking,
    /// The closing tag came; its line break may follow.
    Closed,
    Answering,
}

/// What a piece of text makes certain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Divided {
    /// Thinking, without tags.
    pub reasoning: String,
    /// Text of the answer.
    pub answer: String,
}

impl Default for ThinkingParser {
    fn default() -> Self {
        Self::new()
    }
}

impl ThinkingParser {
    /// A parser for a text that may begin with thinking.
    pub fn new() -> Self {
        Self { state: State::Beginning, held: String::new() }
    }

    /// A parser for a text that goes on from a prompt. Where that ends within a block of thinking, so does the text
    /// begin.
    pub fn after(prompt: &str) -> Self {
        let ends_inside = prompt.trim_end().ends_with(THINK_OPEN);
        let state = match ends_inside {
            true if prompt.ends_with(THINK_OPEN) => State::Opened,
            true => State::Thinking,
            false => State::Beginning,
        };
        Self { state, held: String::new() }
    }

    /// Whether the text so far ends within thinking.
    pub fn is_thinking(&self) -> bool {
        matches!(self.state, State::Opened | State::Thinking)
    }

    /// Whether what follows is certain to be of the answer.
    pub fn is_answering(&self) -> bool {
        matches!(self.state, State::Closed | State::Answering)
    }

    /// Whether the text so far ends with the closing tag, and a line break after it is no part of the answer.
    pub fn just_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str) -> Divided {
        self.held.push_str(text);
        let mut out = Divided::default();
        while self.step(&mut out) {}
        out
    }

    /// The rest, once no more text comes.
    pub fn finish(&mut self) -> Divided {
        let rest = std::mem::take(&mut self.held);
        match self.is_thinking() {
            true => Divided { reasoning: rest, answer: String::new() },
            false => Divided { reasoning: String::new(), answer: rest },
        }
    }

    /// Takes what is certain from the held text; whether the state changed, so that there may be more.
    fn step(&mut self, out: &mut Divided) -> bool {
        let next = match self.state {
            State::Beginning => self.begin(),
            State::Opened => self.skip_line_break().then_some(State::Thinking),
            State::Thinking => self.think(out),
            State::Closed => self.skip_line_break().then_some(State::Answering),
            State::Answering => {
                out.answer.push_str(&self.held);
                self.held.clear();
                None
            }
        };
        self.state = next.unwrap_or(self.state);
        next.is_some()
    }

    fn begin(&mut self) -> Option<State> {
        let begun = self.held.trim_start();
        let space = self.held.len() - begun.len();
        if space > MAX_LEADING_SPACE {
            return Some(State::Answering);
        }
        if begun.starts_with(THINK_OPEN) {
            self.held.drain(..space + THINK_OPEN.len());
            return Some(State::Opened);
        }
        (!THINK_OPEN.starts_with(begun)).then_some(State::Answering)
    }

    /// Whether there is text to tell whether it begins with a line break, which is dropped.
    fn skip_line_break(&mut self) -> bool {
        if self.held.starts_with('\n') {
            self.held.remove(0);
            return true;
        }
        !self.held.is_empty()
    }

    fn think(&mut self, out: &mut Divided) -> Option<State> {
        if let Some(at) = self.held.find(THINK_CLOSE) {
            let thought = &self.held[..at];
            out.reasoning.push_str(thought.strip_suffix('\n').unwrap_or(thought));
            self.held.drain(..at + THINK_CLOSE.len());
            return Some(State::Closed);
        }
        let kept = begun(&self.held, CLOSE_ON_NEW_LINE).max(begun(&self.held, THINK_CLOSE));
        out.reasoning.extend(self.held.drain(..self.held.len() - kept));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divided(reasoning: &str, answer: &str) -> Divided {
        Divided { reasoning: reasoning.to_owned(), answer: answer.to_owned() }
    }

    /// The division of a text that comes in one piece.
    fn whole(mut parser: ThinkingParser, text: &str) -> Divided {
        let Divided { mut reasoning, mut answer } = parser.push(text);
        let rest = parser.finish();
        reasoning += &rest.reasoning;
        answer += &rest.answer;
        Divided { reasoning, answer }
    }

    #[test]
    fn thinking_loses_its_tags_and_one_line_break_beside_each() {
        for (text, reasoning, answer) in [
            ("<think>\na\nb\n</think>\nc", "a\nb", "c"),
            ("<think>a</think>c", "a", "c"),
            ("\n <think>\n\na\n\n</think>\n\nc\n", "\na\n", "\nc\n"),
            ("<think></think>", "", ""),
            ("<think>\n</think>\n", "", ""),
            ("<think>\n\n</think>\n", "", ""),
            ("<think>a < b </thin k></think> <think>d</think>", "a < b </thin k>", " <think>d</think>"),
            ("<think>é</think>日本", "é", "日本"),
        ] {
            assert_eq!(whole(ThinkingParser::new(), text), divided(reasoning, answer), "{text:?}");
        }
    }

    #[test]
    fn text_that_does_not_begin_with_thinking_is_all_answer() {
        let spaces = " ".repeat(MAX_LEADING_SPACE + 1) + "<think>a</think>";
        for text in ["", " ", "<thi", "<thinker>", "x <think>late</think>", "</think>", "\u{85}<", &spaces] {
            assert_eq!(whole(ThinkingParser::new(), text), divided("", text), "{text:?}");
        }
    }

    #[test]
    fn thinking_that_does_not_end_is_all_there_is() {
        for (text, reasoning) in [("<think>\na\n</thin", "a\n</thin"), ("<think>", ""), ("<think>\n\n", "\n")]
        {
            assert_eq!(whole(ThinkingParser::new(), text), divided(reasoning, ""), "{text:?}");
        }
    }

    #[test]
    fn a_prompt_that_opens_the_block_has_the_text_begin_in_it() {
        for (prompt, expected) in [
            ("ai\n<think>", divided("a", "b")),
            ("ai\n<think>\n", divided("\na", "b")),
            ("ai\n<think>\n\n</think>\n", divided("", "\na</think>b")),
            ("ai\n", divided("", "\na</think>b")),
        ] {
            assert_eq!(whole(ThinkingParser::after(prompt), "\na</think>b"), expected, "{prompt:?}");
        }
    }

    #[test]
    fn text_is_held_back_only_while_it_may_be_a_tag() {
        let mut parser = ThinkingParser::new();
        assert_eq!(parser.push(" <thi"), divided("", ""));
        assert!(!parser.is_thinking() && !parser.is_answering());
        assert_eq!(parser.push("nk>a\n<"), divided("a", ""));
        assert!(parser.is_thinking());
        assert_eq!(parser.push("b"), divided("\n<b", ""));
        assert_eq!(parser.push("</think>"), divided("", ""));
        assert!(parser.is_answering() && parser.just_closed());
        assert_eq!(parser.push("\nc<"), divided("", "c<"));
        assert!(parser.is_answering() && !parser.just_closed());
    }
}
