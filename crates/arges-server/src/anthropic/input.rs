//! Anthropic's messages and tools to those of a chat.

use serde_json::{Map, Value, json};

use crate::error::ApiError;

/// The messages that a system text and a conversation amount to. Results of tools, which stand in a user's message,
/// become messages of their own before the rest of it.
///
/// # Errors
/// 400 that names the message or block at fault.
pub(super) fn messages(system: Option<Value>, messages: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    let mut chat = Vec::with_capacity(messages.len() + 1);
    match system {
        None | Some(Value::Null) => {}
        Some(system @ (Value::String(_) | Value::Array(_))) => {
            let content = texts("system", system)?;
            if content != "" && content != json!([]) {
                chat.push(json!({"role": "system", "content": content}));
            }
        }
        Some(_) => {
            return Err(ApiError::invalid_param(
                "system",
                "`system` must be a string or a list of text blocks.",
            ));
        }
    }
    if messages.is_empty() {
        return Err(ApiError::invalid_param("messages", "`messages` must hold at least one message."));
    }
    for (index, message) in messages.into_iter().enumerate() {
        let at = format!("messages[{index}]");
        let Value::Object(mut message) = message else {
            return Err(ApiError::invalid_param(at, "A message must be a JSON object."));
        };
        let content = message.get_mut("content").map(Value::take).unwrap_or_default();
        match message.get("role").and_then(Value::as_str) {
            Some("user") => user(&at, content, &mut chat)?,
            Some("assistant") => chat.push(assistant(&at, content)?),
            _ => {
                let message = "A message needs a `role`, which is `user` or `assistant`.";
                return Err(ApiError::invalid_param(format!("{at}.role"), message));
            }
        }
    }
    Ok(chat)
}

/// A tool with its schema where chat has it.
///
/// # Errors
/// 400 for a tool that Anthropic's own servers would run, or one that is no object.
pub(super) fn tool(index: usize, tool: Value) -> Result<Value, ApiError> {
    let at = format!("tools[{index}]");
    let Value::Object(mut tool) = tool else {
        return Err(ApiError::invalid_param(at, "A tool must be a JSON object."));
    };
    match tool.get("type").and_then(Value::as_str) {
        None | Some("custom") => {}
        Some(kind) => {
            let message = format!("Tools of type `{kind}` are not supported; only custom ones are.");
            return Err(ApiError::unsupported(at, message));
        }
    }
    let mut bare = Map::new();
    for (own, chat) in [
        ("name", "name"),
        ("description", "description"),
        ("input_schema", "parameters"),
        ("strict", "strict"),
    ] {
        if let Some(value) = tool.get_mut(own) {
            bare.insert(chat.to_owned(), value.take());
        }
    }
    Ok(Value::Object(bare))
}

fn user(at: &str, content: Value, chat: &mut Vec<Value>) -> Result<(), ApiError> {
    let Value::Array(blocks) = content else {
        chat.push(json!({"role": "user", "content": content}));
        return Ok(());
    };
    let mut parts = Vec::new();
    let none = blocks.is_empty();
    for (index, mut block) in blocks.into_iter().enumerate() {
        let at = format!("{at}.content[{index}]");
        match kind(&block) {
            "text" => parts.push(text_part(&at, &block)?),
            "tool_result" => {
                let id = field(&at, &block, "tool_use_id")?;
                let content = match block.get_mut("content").map(Value::take) {
                    None | Some(Value::Null) => json!(""),
                    Some(Value::Array(blocks)) if blocks.is_empty() => json!(""),
                    Some(content) => texts(&format!("{at}.content"), content)?,
                };
                chat.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
            }
            kind => return Err(unsupported(&at, kind)),
        }
    }
    // A list without blocks is refused where messages are checked.
    if none || !parts.is_empty() {
        chat.push(json!({"role": "user", "content": parts}));
    }
    Ok(())
}

fn assistant(at: &str, content: Value) -> Result<Value, ApiError> {
    let Value::Array(blocks) = content else { return Ok(json!({"role": "assistant", "content": content})) };
    let (mut parts, mut thinking, mut calls) = (Vec::new(), String::new(), Vec::new());
    for (index, block) in blocks.iter().enumerate() {
        let at = format!("{at}.content[{index}]");
        match kind(block) {
            "text" => parts.push(text_part(&at, block)?),
            "thinking" => thinking += &field(&at, block, "thinking")?,
            // Written by other models, and for them alone.
            "redacted_thinking" => {}
            "tool_use" => {
                let (id, name) = (field(&at, block, "id")?, field(&at, block, "name")?);
                let arguments = block.get("input").cloned().unwrap_or_else(|| json!({}));
                calls.push(
                    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}),
                );
            }
            kind => return Err(unsupported(&at, kind)),
        }
    }
    let mut message = json!({"role": "assistant", "content": parts});
    if !thinking.is_empty() {
        message["reasoning_content"] = Value::String(thinking);
    }
    if !calls.is_empty() {
        message["tool_calls"] = Value::Array(calls);
    }
    Ok(message)
}

/// Text, or blocks of text as parts of a chat's content.
fn texts(at: &str, content: Value) -> Result<Value, ApiError> {
    let Value::Array(blocks) = content else { return Ok(content) };
    let parts = blocks.iter().enumerate().map(|(index, block)| {
        let at = format!("{at}[{index}]");
        if kind(block) == "text" { text_part(&at, block) } else { Err(unsupported(&at, kind(block))) }
    });
    parts.collect::<Result<Vec<Value>, ApiError>>().map(Value::Array)
}

fn kind(block: &Value) -> &str {
    block.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn text_part(at: &str, block: &Value) -> Result<Value, ApiError> {
    Ok(json!({"type": "text", "text": field(at, block, "text")?}))
}

fn field(at: &str, block: &Value, name: &str) -> Result<String, ApiError> {
    block.get(name).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| {
        ApiError::invalid_param(
            format!("{at}.{name}"),
            format!("A block of this type needs a string `{name}`."),
        )
    })
}

fn unsupported(at: &str, kind: &str) -> ApiError {
    let message = format!("Blocks of type `{kind}` are not supported here: the model reads text only.");
    ApiError::unsupported(at, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_calls_and_results_find_their_places() {
        let conversation = vec![
            json!({"role": "user", "content": "hi"}),
            json!({"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "Wait."},
                {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
            ]}),
            json!({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "1"}]},
                {"type": "text", "text": "And?"},
            ]}),
        ];
        let text = |text: &str| json!([{"type": "text", "text": text}]);
        let call = json!({"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}});
        let expected = [
            json!({"role": "system", "content": text("Be brief.")}),
            json!({"role": "user", "content": "hi"}),
            json!({"role": "assistant", "content": text("Wait."), "reasoning_content": "hm", "tool_calls": [call]}),
            json!({"role": "tool", "tool_call_id": "a", "content": text("1")}),
            json!({"role": "user", "content": text("And?")}),
        ];
        let system = json!([{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]);
        assert_eq!(messages(Some(system), conversation).unwrap(), expected);
    }

    #[test]
    fn a_tool_keeps_its_name_description_and_schema() {
        let given =
            json!({"type": "custom", "name": "f", "cache_control": {}, "input_schema": {"type": "object"}});
        assert_eq!(tool(0, given).unwrap(), json!({"name": "f", "parameters": {"type": "object"}}));
    }
}
