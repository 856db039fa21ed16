//! Messages and tools as clients send them, brought into the shape a template reads.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::probe::Expectations;
use crate::TextError;
use crate::python_json::{DumpStyle, dumps};

/// Deepest nesting of arrays and objects in a message or tool. The JSON reader of a server allows
/// as much; deeper values come from elsewhere and would cost stack.
const MAX_NESTING: usize = 128;

/// The tools without OpenAI's `{"type": "function", "function": …}` wrapper. `strict` goes with
/// the wrapper: it speaks to the server, not to the model.
pub(super) fn bare_tools(tools: &[Value]) -> Result<Vec<Value>, TextError> {
    let bare = |(index, tool): (usize, &Value)| {
        let fail = |reason: &str| TextError::Tool { index, reason: reason.to_owned() };
        if nests_deeper(tool, MAX_NESTING) {
            return Err(fail("nested too deeply"));
        }
        let tool = match tool.get("function") {
            Some(function) => {
                let mut function = function.clone();
                function.as_object_mut().map(|function| function.shift_remove("strict"));
                function
            }
            None => tool.clone(),
        };
        match tool.get("name") {
            Some(Value::String(_)) => Ok(tool),
            _ => Err(fail("a tool is an object with a `name` that is a string")),
        }
    };
    tools.iter().enumerate().map(bare).collect()
}

/// The messages in the shape `expected`.
pub(super) fn shape(messages: &[Value], expected: &Expectations) -> Result<Vec<Value>, TextError> {
    let mut shaped: Vec<Message> = Vec::with_capacity(messages.len());
    let mut tool_names: HashMap<String, String> = HashMap::new();
    let question =
        messages.iter().rposition(|message| message.get("role").is_some_and(|role| role == "user"));
    for (index, message) in messages.iter().enumerate() {
        let fail = |reason: String| TextError::Message { index, reason };
        let mut message = Message::read(message).map_err(fail)?;
        for (id, name) in message.parse_tool_calls().map_err(fail)? {
            tool_names.insert(id, name);
        }
        if message.role == "tool" {
            message.name_results(&tool_names, expected).map_err(fail)?;
            let previous = shaped.last_mut().filter(|previous| previous.role == "tool");
            if let (true, Some(previous)) = (expected.named_results, previous) {
                previous.parts.append(&mut message.parts);
                continue;
            }
        }
        if !expected.reasoning {
            let current = question.is_none_or(|question| index > question);
            message.write_out_reasoning(current);
        }
        if !expected.tool_calls {
            message.write_out_tool_calls().map_err(fail)?;
        }
        shaped.push(message);
    }
    Ok(shaped.into_iter().map(|message| message.into_value(expected)).collect())
}

/// A message whose content is a list of parts.
struct Message {
    role: String,
    parts: Vec<Value>,
    /// The message's fields, in their order; `role` and `content` hold the place of the above.
    fields: Map<String, Value>,
}

impl Message {
    fn read(message: &Value) -> Result<Self, String> {
        if nests_deeper(message, MAX_NESTING) {
            return Err("nested too deeply".to_owned());
        }
        let mut fields = message.as_object().ok_or("a message is an object")?.clone();
        let role = match fields.get("role").and_then(Value::as_str) {
            Some("developer") => "system",
            Some("function") => "tool",
            Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
            Some(role) => {
                return Err(format!(
                    "unknown role {role:?}; there are system, developer, user, assistant, tool"
                ));
            }
            None => return Err("a message has a `role` that is a string".to_owned()),
        };
        let role = role.to_owned();
        let parts = match fields.get_mut("content").map(Value::take) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(text)) => vec![text_part(text)],
            Some(Value::Array(parts)) => parts,
            Some(_) => return Err("`content` is a string, a list of parts or null".to_owned()),
        };
        check_parts(&role, &parts)?;
        if !matches!(fields.get("reasoning_content"), None | Some(Value::Null | Value::String(_))) {
            return Err("`reasoning_content` is a string or null".to_owned());
        }
        Ok(Self { role, parts, fields })
    }

    /// Turns `arguments` written as a string into the object they spell, and returns the calls'
    /// ids with the names of their tools. Arguments that spell no object stay as they are: a model
    /// wrote them, and the conversation has to go on.
    fn parse_tool_calls(&mut self) -> Result<Vec<(String, String)>, String> {
        let calls = match self.fields.get_mut("tool_calls") {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(calls)) => calls,
            Some(_) => return Err("`tool_calls` is a list".to_owned()),
        };
        let mut names = Vec::new();
        for (index, call) in calls.iter_mut().enumerate() {
            let id = call.get("id").and_then(Value::as_str).map(str::to_owned);
            let function = call.get_mut("function").and_then(Value::as_object_mut);
            let function = function.ok_or_else(|| format!("tool_calls[{index}] has no `function`"))?;
            let name = function.get("name").and_then(Value::as_str);
            let name = name.ok_or_else(|| format!("tool_calls[{index}].function has no `name`"))?;
            names.extend(id.map(|id| (id, name.to_owned())));
            let arguments = function.entry("arguments").or_insert_with(|| json!({}));
            if let Value::String(text) = arguments {
                if text.trim().is_empty() {
                    *arguments = json!({});
                } else if let Ok(parsed) = serde_json::from_str::<Map<String, Value>>(text) {
                    *arguments = Value::Object(parsed);
                }
            }
        }
        Ok(names)
    }

    /// Makes a tool's result one part that carries the tool's name, for templates that read it
    /// there. Parts that have names already are left alone.
    fn name_results(
        &mut self,
        names: &HashMap<String, String>,
        expected: &Expectations,
    ) -> Result<(), String> {
        if !expected.named_results || self.parts.iter().any(|part| part.get("name").is_some()) {
            return Ok(());
        }
        let id = self.fields.get("tool_call_id").and_then(Value::as_str);
        let name = self.fields.get("name").and_then(Value::as_str);
        let name = name.or_else(|| id.and_then(|id| names.get(id)).map(String::as_str));
        let name = name.ok_or_else(|| match id {
            Some(id) => format!("tool_call_id {id:?} belongs to no tool call before it"),
            None => "a tool's message has a `tool_call_id` or a `name`".to_owned(),
        })?;
        self.parts = vec![json!({"name": name, "type": "text", "text": self.joined_text()})];
        Ok(())
    }

    /// Moves `reasoning_content` to the front of the content, as M1 writes what it thinks. Thinking
    /// before the last question, `current` not set, is no part of a conversation that goes on.
    fn write_out_reasoning(&mut self, current: bool) {
        let Some(Value::String(thinking)) = self.fields.shift_remove("reasoning_content") else {
            return;
        };
        if current && self.role == "assistant" && !thinking.is_empty() {
            self.parts.insert(0, text_part(format!("<think>\n{thinking}\n</think>\n")));
        }
    }

    /// Moves `tool_calls` into the content, as the block of text M1 writes them in.
    fn write_out_tool_calls(&mut self) -> Result<(), String> {
        let Some(Value::Array(calls)) = self.fields.shift_remove("tool_calls") else {
            return Ok(());
        };
        if calls.is_empty() {
            return Ok(());
        }
        let mut block = String::from("<tool_calls>\n");
        for call in calls {
            let function = &call["function"];
            let line = json!({"name": function["name"], "arguments": function["arguments"]});
            block += &dumps(&line, &DumpStyle::default()).map_err(|error| error.to_string())?;
            block.push('\n');
        }
        block += "</tool_calls>";
        let last_text = self.parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
            Some(Value::String(text)) => Some(text),
            _ => None,
        });
        match last_text {
            Some(text) => {
                if !text.is_empty() && !text.ends_with('\n') {
                    text.push('\n');
                }
                text.push_str(&block);
            }
            None => self.parts.push(text_part(block)),
        }
        Ok(())
    }

    fn into_value(mut self, expected: &Expectations) -> Value {
        let as_parts = expected.parts || (expected.named_results && self.role == "tool");
        let unread = self.parts.len() > 1 && !expected.every_part && self.role != "tool";
        let content = if !as_parts {
            Value::String(self.joined_text())
        } else if self.parts.is_empty() || unread {
            json!([text_part(self.joined_text())])
        } else {
            Value::Array(self.parts)
        };
        self.fields.insert("role".to_owned(), Value::String(self.role));
        self.fields.insert("content".to_owned(), content);
        Value::Object(self.fields)
    }

    /// The text of all text parts: an answer's run on, others stand one a line.
    fn joined_text(&self) -> String {
        let texts = self.parts.iter().filter(|part| part.get("type").is_some_and(|kind| kind == "text"));
        let texts: Vec<&str> = texts.filter_map(|part| part.get("text").and_then(Value::as_str)).collect();
        texts.join(if self.role == "assistant" { "" } else { "\n" })
    }
}

/// Parts are objects with a `type`, and text parts hold text. Other types are let through in an
/// assistant's message, where templates skip them; elsewhere they would be lost in silence.
fn check_parts(role: &str, parts: &[Value]) -> Result<(), String> {
    for (index, part) in parts.iter().enumerate() {
        match part.get("type").and_then(Value::as_str) {
            Some("text") if part.get("text").is_some_and(Value::is_string) => {}
            Some("text") => return Err(format!("content[{index}] has no `text` that is a string")),
            Some(kind) if role != "assistant" => {
                return Err(format!("content[{index}] is of type {kind:?}; only text is supported"));
            }
            Some(_) => {}
            None => return Err(format!("content[{index}] has no `type` that is a string")),
        }
    }
    Ok(())
}

fn text_part(text: String) -> Value {
    json!({"type": "text", "text": text})
}

/// Whether arrays and objects nest in `value` more than `limit` deep.
fn nests_deeper(value: &Value, limit: usize) -> bool {
    let mut level: Vec<&Value> = vec![value];
    for _ in 0..=limit {
        level = level
            .into_iter()
            .flat_map(|value| -> Box<dyn Iterator<Item = &Value>> {
                match value {
                    Value::Array(items) => Box::new(items.iter()),
                    Value::Object(fields) => Box::new(fields.values()),
                    _ => Box::new(std::iter::empty()),
                }
            })
            .collect();
        if level.is_empty() {
            return false;
        }
    }
    true
}
