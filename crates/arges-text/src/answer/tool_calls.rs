//! Content and calls of tools.

use super::call::{CallReader, Step};
use super::json::is_space;
use super::tag::begun;
use super::{CALLS_CLOSE, CALLS_OPEN};

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerPart {
    /// Text for the reader.
    Content(String),
    /// A call begins.
    CallStart {
        /// Its place among the calls of the answer, from 0.
        index: usize,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments: all pieces together are a JSON object, unless the answer ended or went astray
    /// within it.
    CallArguments {
        /// As in [`AnswerPart::CallStart`].
        index: usize,
        /// As the model wrote it.
        text: String,
    },
}

/// Finds blocks of calls in an answer.
///
/// In a block stand JSON objects with a `name` and, in most, `arguments`, however they are spaced and broken into
/// lines. A call is given out once it is certain to be one, and its arguments as they come. White space and markup
/// around calls are dropped. Everything else is content: text beside blocks, a block without a call with its tags,
/// what is not JSON or no call up to the next line that begins with `{`. Arguments that cease to be JSON end there,
/// and content goes on with the character at fault.
#[derive(Debug, Clone, Default)]
pub struct ToolCallParser {
    state: State,
    /// Text that was not looked at yet, because it may be the beginning of a tag.
    unread: String,
    /// Text that was, but may yet turn out as either markup or content.
    pending: String,
    /// Whether there was content, white space alone not counted, since the beginning or the last call.
    has_content: bool,
    /// Whether the tag that opened the block came out as content.
    tag_shown: bool,
    calls: usize,
}

#[derive(Debug, Clone, Default)]
enum State {
    #[default]
    Outside,
    /// In a block, between its objects.
    Between,
    /// In an object.
    Call(CallReader),
    /// In a block, in text that is no object; whether only white space stands before in its line.
    Astray { line_start: bool },
}

impl ToolCallParser {
    /// A parser at the beginning of an answer.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many calls there are so far.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Takes more text and returns what became certain.
    pub fn push(&mut self, text: &str) -> Vec<AnswerPart> {
        let mut parts = Vec::new();
        self.unread.push_str(text);
        while !self.unread.is_empty() && self.step(&mut parts) {}
        parts
    }

    /// The rest, once no more text comes. A call that was begun stays unfinished.
    pub fn finish(&mut self) -> Vec<AnswerPart> {
        let mut parts = Vec::new();
        let rest = std::mem::take(&mut self.pending) + &std::mem::take(&mut self.unread);
        // After calls, white space alone is none of the answer's.
        if self.calls == 0 || self.has_content || !rest.trim().is_empty() {
            add_content(&mut parts, rest);
        }
        parts
    }

    /// Takes something from the unread text; whether there may be more to take.
    fn step(&mut self, parts: &mut Vec<AnswerPart>) -> bool {
        match self.state {
            State::Outside => self.outside(parts),
            State::Between => self.between(parts),
            State::Call(_) => self.call(parts),
            State::Astray { .. } => self.astray(parts),
        }
    }

    fn outside(&mut self, parts: &mut Vec<AnswerPart>) -> bool {
        let found = self.unread.find(CALLS_OPEN);
        let end = found.unwrap_or(self.unread.len() - begun(&self.unread, CALLS_OPEN));
        self.has_content |= !self.unread[..end].trim().is_empty();
        self.pending.extend(self.unread.drain(..end));
        if self.has_content {
            add_content(parts, std::mem::take(&mut self.pending));
        }
        if found.is_some() {
            self.pending.extend(self.unread.drain(..CALLS_OPEN.len()));
            self.tag_shown = false;
            self.state = State::Between;
        }
        found.is_some()
    }

    fn between(&mut self, parts: &mut Vec<AnswerPart>) -> bool {
        let objects = self.unread.trim_start_matches(is_space);
        let space = self.unread.len() - objects.len();
        self.pending.extend(self.unread.drain(..space));
        if self.unread.starts_with(CALLS_CLOSE) {
            self.unread.drain(..CALLS_CLOSE.len());
            self.leave_block(parts);
        } else if self.unread.starts_with('{') {
            self.state = State::Call(CallReader::new());
        } else if CALLS_CLOSE.starts_with(self.unread.as_str()) {
            return false;
        } else {
            self.go_astray(parts);
        }
        true
    }

    fn leave_block(&mut self, parts: &mut Vec<AnswerPart>) {
        let pending = std::mem::take(&mut self.pending);
        // A block without a call is no markup.
        if self.tag_shown || begins_with_open_tag(&pending) {
            add_content(parts, pending + CALLS_CLOSE);
            self.has_content = true;
        }
        self.state = State::Outside;
    }

    fn go_astray(&mut self, parts: &mut Vec<AnswerPart>) {
        self.tag_shown |= begins_with_open_tag(&self.pending);
        self.has_content = true;
        add_content(parts, std::mem::take(&mut self.pending));
        self.state = State::Astray { line_start: false };
    }

    fn call(&mut self, parts: &mut Vec<AnswerPart>) -> bool {
        let unread = std::mem::take(&mut self.unread);
        let State::Call(reader) = &mut self.state else { return true };
        for (at, c) in unread.char_indices() {
            let after = at + c.len_utf8();
            match reader.push(c) {
                Ok(Step::More) => self.pending.push(c),
                Ok(Step::Argument) => add_arguments(parts, self.calls - 1, c.encode_utf8(&mut [0; 4])),
                Ok(Step::Start { name, arguments }) => {
                    self.pending.clear();
                    self.has_content = false;
                    start_call(parts, &mut self.calls, name, &arguments);
                }
                Ok(Step::End(name)) => {
                    self.pending.clear();
                    self.has_content = false;
                    if let Some(name) = name {
                        start_call(parts, &mut self.calls, name, "{}");
                    }
                    self.state = State::Between;
                    self.unread.push_str(&unread[after..]);
                    return true;
                }
                Err(_) => {
                    self.unread.push_str(&unread[at..]);
                    self.go_astray(parts);
                    return true;
                }
            }
        }
        false
    }

    fn astray(&mut self, parts: &mut Vec<AnswerPart>) -> bool {
        let State::Astray { mut line_start } = self.state else { return true };
        let close = self.unread.find(CALLS_CLOSE);
        let end = close.unwrap_or(self.unread.len() - begun(&self.unread, CALLS_CLOSE));
        for (at, c) in self.unread[..end].char_indices() {
            if line_start && c == '{' {
                add_content(parts, self.unread.drain(..at).collect());
                self.state = State::Call(CallReader::new());
                return true;
            }
            line_start = c == '\n' || (line_start && is_space(c));
        }
        add_content(parts, self.unread.drain(..end).collect());
        self.state = State::Astray { line_start };
        if close.is_some() {
            self.unread.drain(..CALLS_CLOSE.len());
            self.leave_block(parts);
        }
        close.is_some()
    }
}

/// Whether no call has yet made markup of the block's opening tag.
fn begins_with_open_tag(pending: &str) -> bool {
    pending.trim_start().starts_with(CALLS_OPEN)
}

fn start_call(parts: &mut Vec<AnswerPart>, calls: &mut usize, name: String, arguments: &str) {
    parts.push(AnswerPart::CallStart { index: *calls, name });
    add_arguments(parts, *calls, arguments);
    *calls += 1;
}

/// Adds to the arguments that came last, or begins a piece.
fn add_arguments(parts: &mut Vec<AnswerPart>, index: usize, more: &str) {
    match parts.last_mut() {
        Some(AnswerPart::CallArguments { text, .. }) => text.push_str(more),
        _ => parts.push(AnswerPart::CallArguments { index, text: more.to_owned() }),
    }
}

/// Adds to the content that came last, or begins a piece.
fn add_content(parts: &mut Vec<AnswerPart>, more: String) {
    match parts.last_mut() {
        _ if more.is_empty() => {}
        Some(AnswerPart::Content(text)) => text.push_str(&more),
        _ => parts.push(AnswerPart::Content(more)),
    }
}
