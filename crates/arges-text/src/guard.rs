//! Special tokens that someone spelled in a text.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::{TextError, Tokenizer};

/// A conversation in which special tokens that someone spelled are kept apart from those that the chat template writes,
/// so that no text can begin or end a turn.
///
/// A character that stands nowhere else is put into every special token spelled in the messages and tools. The template
/// renders them; [`encode`](Self::encode) cuts the rendered text at that character, and what is left of such a token
/// is tokenised as the ordinary text it is.
#[derive(Debug)]
pub struct GuardedChat {
    /// The messages to render.
    pub messages: Vec<Value>,
    /// The tools to render.
    pub tools: Vec<Value>,
    tokenizer: Tokenizer,
    /// `None` where nothing is hidden.
    mark: Option<char>,
}

impl GuardedChat {
    /// Guards a conversation. Arguments of calls that are JSON in a string become the object they spell.
    ///
    /// # Errors
    /// [`TextError::NoMark`] where special tokens are spelled and no character is left to mark them with.
    pub fn new(tokenizer: &Tokenizer, messages: &[Value], tools: &[Value]) -> Result<Self, TextError> {
        let messages = messages.iter().cloned().map(with_read_arguments).collect();
        let mut guarded = Self { messages, tools: tools.to_vec(), tokenizer: tokenizer.clone(), mark: None };
        if guarded.needs_mark() {
            guarded.mark(guarded.unused_character()?);
        }
        Ok(guarded)
    }

    /// The ids of a rendered text, or of a piece of one.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let Some(mark) = self.mark else { return self.tokenizer.encode(text) };
        let mut ids = Vec::new();
        for piece in text.split(mark) {
            ids.append(&mut self.tokenizer.encode(piece)?);
        }
        Ok(ids)
    }

    fn specials(&self) -> &[String] {
        self.tokenizer.special_tokens()
    }

    /// Whether a special token is spelled somewhere, or may be by two texts that a template joins.
    fn needs_mark(&mut self) -> bool {
        let tokenizer = self.tokenizer.clone();
        let specials = tokenizer.special_tokens();
        let mut spelled = false;
        let mut look = |text: &str| spelled |= specials.iter().any(|token| text.contains(token.as_str()));
        self.messages.iter().chain(&self.tools).for_each(|value| each_string(value, &mut look));
        each_joined_text(&mut self.messages, &mut |text| spelled |= begins_special(text, specials));
        spelled
    }

    fn unused_character(&self) -> Result<char, TextError> {
        let mut used = BTreeSet::new();
        let mut look = |text: &str| used.extend(text.chars().filter(|c| is_private(*c)));
        self.messages.iter().chain(&self.tools).for_each(|value| each_string(value, &mut look));
        private_use().find(|c| !used.contains(c)).ok_or(TextError::NoMark)
    }

    fn mark(&mut self, mark: char) {
        let hide = |values: &[Value]| -> Vec<Value> {
            values.iter().map(|value| hide(value, self.specials(), mark)).collect()
        };
        let (mut messages, tools) = (hide(&self.messages), hide(&self.tools));
        each_joined_text(&mut messages, &mut |text| {
            if begins_special(text, self.specials()) {
                text.push(mark);
            }
        });
        (self.messages, self.tools, self.mark) = (messages, tools, Some(mark));
    }
}

/// The value with the mark put into every special token of its strings.
fn hide(value: &Value, specials: &[String], mark: char) -> Value {
    match value {
        Value::String(text) => Value::String(hide_in(text, specials, mark)),
        Value::Array(items) => items.iter().map(|item| hide(item, specials, mark)).collect(),
        Value::Object(fields) => {
            let hidden = |(name, value): (&String, &Value)| {
                (hide_in(name, specials, mark), hide(value, specials, mark))
            };
            Value::Object(fields.iter().map(hidden).collect())
        }
        other => other.clone(),
    }
}

fn hide_in(text: &str, specials: &[String], mark: char) -> String {
    let mut text = text.to_owned();
    for token in specials {
        let first = token.chars().next().map_or(0, char::len_utf8);
        let marked = format!("{}{mark}{}", &token[..first], &token[first..]);
        // Of occurrences that overlap, one pass finds every second.
        while token.len() > first && text.contains(token.as_str()) {
            text = text.replace(token.as_str(), &marked);
        }
    }
    text
}

/// Whether a special token may begin at the end of `text`.
fn begins_special(text: &str, specials: &[String]) -> bool {
    specials.iter().any(|token| {
        let starts = token.char_indices().map(|(at, _)| at).skip(1);
        starts.into_iter().any(|end| text.ends_with(&token[..end]))
    })
}

/// Shows the texts that templates join to what follows: all parts of a content but its last, and system messages where
/// there are several.
fn each_joined_text(messages: &mut [Value], look: &mut dyn FnMut(&mut String)) {
    let is_system = |message: &Value| message["role"] == "system" || message["role"] == "developer";
    let several = messages.iter().filter(|message| is_system(message)).count() > 1;
    for message in messages {
        let joined = several && is_system(message);
        match message.get_mut("content") {
            Some(Value::String(text)) if joined => look(text),
            Some(Value::Array(parts)) => {
                let joined_parts = if joined { parts.len() } else { parts.len().saturating_sub(1) };
                for part in &mut parts[..joined_parts] {
                    if let Some(Value::String(text)) = part.get_mut("text") {
                        look(text);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Characters that text hardly ever holds: Unicode sets them aside for private use.
fn private_use() -> impl Iterator<Item = char> {
    ('\u{fdd0}'..='\u{fdef}')
        .chain('\u{e000}'..='\u{f8ff}')
        .chain('\u{f0000}'..='\u{ffffd}')
        .chain('\u{100000}'..='\u{10fffd}')
}

fn is_private(c: char) -> bool {
    matches!(
        c,
        '\u{fdd0}'..='\u{fdef}' | '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{ffffd}' | '\u{100000}'..='\u{10fffd}'
    )
}

/// Shows every string of a value, names of fields included.
fn each_string(value: &Value, look: &mut dyn FnMut(&str)) {
    match value {
        Value::String(text) => look(text),
        Value::Array(items) => items.iter().for_each(|item| each_string(item, look)),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            look(name);
            each_string(value, look);
        }),
        _ => {}
    }
}

/// The message with the arguments of its calls as objects. Templates are given those that are JSON in a string as
/// what they spell, and `\u003c` spells the begin of many a special token.
fn with_read_arguments(mut message: Value) -> Value {
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && let Some(Ok(read)) = arguments.as_str().map(serde_json::from_str::<Map<String, Value>>)
        {
            *arguments = Value::Object(read);
        }
    }
    message
}
