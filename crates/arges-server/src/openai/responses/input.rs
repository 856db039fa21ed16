//! Items of a request to messages of a chat.

use serde_json::{Map, Value, json};

use crate::error::ApiError;

/// The messages that instructions and items amount to. What the assistant thought, said and called between two other
/// items is one message.
///
/// # Errors
/// 400 that names the item at fault.
pub(super) fn messages(instructions: Option<String>, input: Value) -> Result<Vec<Value>, ApiError> {
    let mut messages = Messages::default();
    if let Some(instructions) = instructions.filter(|text| !text.is_empty()) {
        messages.list.push(json!({"role": "system", "content": instructions}));
    }
    match input {
        Value::String(text) => messages.list.push(json!({"role": "user", "content": text})),
        Value::Array(items) if items.is_empty() => {
            return Err(ApiError::invalid_param("input", "`input` must hold at least one item."));
        }
        Value::Array(items) => {
            for (index, item) in items.into_iter().enumerate() {
                messages.add(&format!("input[{index}]"), item)?;
            }
        }
        _ => return Err(ApiError::invalid_param("input", "`input` must be a string or a list of items.")),
    }
    Ok(messages.list)
}

#[derive(Default)]
struct Messages {
    list: Vec<Value>,
    /// Whether the last message is the assistant's and may still grow.
    open: bool,
}

impl Messages {
    fn add(&mut self, at: &str, item: Value) -> Result<(), ApiError> {
        let Value::Object(mut item) = item else {
            return Err(ApiError::invalid_param(at, "An item must be a JSON object."));
        };
        match item.get("type").and_then(Value::as_str).unwrap_or("message") {
            "message" => self.message(at, &mut item),
            "reasoning" => {
                let text = reasoning_text(&item);
                // Thinking begins a message of its own.
                let said = self.open
                    && self.assistant().keys().any(|key| key != "role" && key != "reasoning_content");
                self.open &= !said;
                let message = self.assistant();
                let before = message.get("reasoning_content").and_then(Value::as_str).unwrap_or_default();
                let together = [before, &text].concat();
                message.insert("reasoning_content".to_owned(), Value::String(together));
                Ok(())
            }
            "function_call" => {
                let field = |name: &str| text_field(at, &item, name);
                let (id, name, arguments) = (field("call_id")?, field("name")?, field("arguments")?);
                let call = json!({
                    "id": id, "type": "function", "function": {"name": name, "arguments": arguments},
                });
                let calls = self.assistant().entry("tool_calls").or_insert_with(|| json!([]));
                calls.as_array_mut().into_iter().for_each(|calls| calls.push(call.clone()));
                Ok(())
            }
            "function_call_output" => {
                let id = text_field(at, &item, "call_id")?;
                let output = item.get_mut("output").map(Value::take).unwrap_or_default();
                let content = content(&format!("{at}.output"), output)?;
                self.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
                Ok(())
            }
            kind => {
                let message = format!("Items of type `{kind}` are not supported.");
                Err(ApiError::unsupported(at, message))
            }
        }
    }

    fn message(&mut self, at: &str, item: &mut Map<String, Value>) -> Result<(), ApiError> {
        let role = text_field(at, item, "role")?;
        let text =
            content(&format!("{at}.content"), item.get_mut("content").map(Value::take).unwrap_or_default())?;
        if role == "assistant" && self.open && !self.assistant().contains_key("content") {
            self.assistant().insert("content".to_owned(), text);
        } else {
            self.push(json!({"role": role, "content": text}));
            self.open = role == "assistant";
        }
        Ok(())
    }

    fn push(&mut self, message: Value) {
        self.list.push(message);
        self.open = false;
    }

    /// The assistant's message that may still grow.
    fn assistant(&mut self) -> &mut Map<String, Value> {
        if !self.open {
            self.list.push(json!({"role": "assistant"}));
            self.open = true;
        }
        match self.list.last_mut() {
            Some(Value::Object(message)) => message,
            _ => unreachable!("the last message is an open one, which is an object"),
        }
    }
}

fn text_field(at: &str, item: &Map<String, Value>, name: &str) -> Result<String, ApiError> {
    item.get(name).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| {
        ApiError::invalid_param(
            format!("{at}.{name}"),
            format!("An item of this type needs a string `{name}`."),
        )
    })
}

/// Text, or parts of text as chat has them.
fn content(at: &str, content: Value) -> Result<Value, ApiError> {
    let Value::Array(parts) = content else { return Ok(content) };
    let parts = parts.into_iter().enumerate().map(|(index, part)| {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
        match (kind, part.get("text").or_else(|| part.get("refusal"))) {
            ("input_text" | "output_text" | "text" | "refusal", Some(Value::String(text))) => {
                Ok(json!({"type": "text", "text": text}))
            }
            _ => {
                let message =
                    format!("Content of type `{kind}` is not supported: the model reads text only.");
                Err(ApiError::unsupported(format!("{at}[{index}]"), message))
            }
        }
    });
    parts.collect::<Result<Vec<Value>, ApiError>>().map(Value::Array)
}

/// What an item of thinking holds: its own text, else its summary.
fn reasoning_text(item: &Map<String, Value>) -> String {
    let texts = |field: &str| -> Vec<&str> {
        let parts = item.get(field).and_then(Value::as_array).into_iter().flatten();
        parts.filter_map(|part| part.get("text").and_then(Value::as_str)).collect()
    };
    let own = texts("content");
    if own.is_empty() { texts("summary").join("\n") } else { own.concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_assistant_did_in_a_turn_is_one_message() {
        let thought = json!({"type": "reasoning", "id": "rs_1", "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}]});
        let call = |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"});
        let input = json!([
            {"role": "user", "content": "hi"},
            thought,
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait."}]},
            call("a"),
            call("b"),
            {"type": "function_call_output", "call_id": "a", "output": "1"},
            {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "2"}]},
            thought,
            {"role": "assistant", "content": "Done."},
        ]);
        let chat_call =
            |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
        let text = |text: &str| json!([{"type": "text", "text": text}]);
        let expected = [
            json!({"role": "system", "content": "Be brief."}),
            json!({"role": "user", "content": "hi"}),
            json!({"role": "assistant", "reasoning_content": "hm", "content": text("Wait."),
                "tool_calls": [chat_call("a"), chat_call("b")]}),
            json!({"role": "tool", "tool_call_id": "a", "content": "1"}),
            json!({"role": "tool", "tool_call_id": "b", "content": text("2")}),
            json!({"role": "assistant", "reasoning_content": "hm", "content": "Done."}),
        ];
        assert_eq!(messages(Some("Be brief.".to_owned()), input).unwrap(), expected);
    }

    #[test]
    fn a_wrong_item_is_named_by_its_path() {
        for (item, param) in [
            (json!("hi"), "input[0]"),
            (json!({"content": "hi"}), "input[0].role"),
            (json!({"type": "function_call", "call_id": "a", "name": "f"}), "input[0].arguments"),
            (json!({"type": "function_call_output", "output": "1"}), "input[0].call_id"),
            (json!({"role": "user", "content": [{"type": "input_image"}]}), "input[0].content[0]"),
            (json!({"type": "web_search_call"}), "input[0]"),
        ] {
            assert_eq!(messages(None, json!([item])).unwrap_err().param(), Some(param), "{item}");
        }
    }
}
