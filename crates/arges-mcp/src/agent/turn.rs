//! A turn of the model, put together from the pieces of a stream or taken from a whole answer.

use serde_json::{Value, json};

/// A call that the model wants to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// Its arguments: the text of a JSON object, if the model wrote one.
    pub arguments: String,
}

/// What the model said in one turn.
#[derive(Debug, Clone, Default)]
pub struct Turn {
    pub reasoning: String,
    pub content: String,
    pub calls: Vec<ToolCall>,
    /// Why it ended, such as `stop`, `length` or `tool_calls`.
    pub finish_reason: Option<String>,
    pub usage: Option<Value>,
    /// The answer of the endpoint, if it came whole.
    pub completion: Option<Value>,
}

impl Turn {
    /// Takes a piece of a stream.
    pub fn push(&mut self, chunk: &Value) {
        if chunk["usage"].is_object() {
            self.usage = Some(chunk["usage"].clone());
        }
        let choice = &chunk["choices"][0];
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish_reason = Some(reason.to_owned());
        }
        self.take(&choice["delta"]);
    }

    /// The turn of a whole answer.
    pub fn of_completion(completion: Value) -> Turn {
        let choice = &completion["choices"][0];
        let mut turn = Turn {
            usage: Some(completion["usage"].clone()).filter(Value::is_object),
            finish_reason: choice["finish_reason"].as_str().map(str::to_owned),
            ..Turn::default()
        };
        turn.take(&choice["message"]);
        turn.finish();
        turn.completion = Some(completion);
        turn
    }

    /// Takes a message, or a part of one.
    fn take(&mut self, message: &Value) {
        self.reasoning.push_str(reasoning_of(message));
        self.content.push_str(message["content"].as_str().unwrap_or_default());
        for (position, piece) in message["tool_calls"].as_array().into_iter().flatten().enumerate() {
            // A number beyond the next one would be a hole, and can only be meant as the next.
            let index =
                piece["index"].as_u64().map_or(position, |index| index as usize).min(self.calls.len());
            if index == self.calls.len() {
                self.calls.push(ToolCall::default());
            }
            let call = &mut self.calls[index];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            call.id.push_str(&text(&piece["id"]));
            call.name.push_str(&text(&piece["function"]["name"]));
            call.arguments.push_str(&text(&piece["function"]["arguments"]));
        }
    }

    /// Gives calls an id that have none, and forgets those of an answer that was cut off: the last may be incomplete.
    pub fn finish(&mut self) {
        if self.finish_reason.as_deref() == Some("length") {
            self.calls.clear();
        }
        for (number, call) in self.calls.iter_mut().enumerate() {
            if call.id.is_empty() {
                call.id = format!("call_{number}");
            }
        }
    }

    /// The turn as a message of the conversation.
    pub fn message(&self) -> Value {
        let mut message = json!({ "role": "assistant", "content": self.content });
        if !self.reasoning.is_empty() {
            message["reasoning_content"] = self.reasoning.clone().into();
        }
        if !self.calls.is_empty() {
            let calls = self.calls.iter().map(|call| {
                json!({
                    "id": call.id,
                    "type": "function",
                    "function": { "name": call.name, "arguments": call.arguments },
                })
            });
            message["tool_calls"] = calls.collect();
        }
        message
    }
}

/// What a message or a part of one says of the model's thinking. Servers have two names for it.
pub fn reasoning_of(message: &Value) -> &str {
    let reasoning = message["reasoning_content"].as_str().or_else(|| message["reasoning"].as_str());
    reasoning.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(delta: Value) -> Value {
        json!({ "choices": [{ "delta": delta, "finish_reason": null }] })
    }

    #[test]
    fn pieces_of_calls_are_put_together() {
        let mut turn = Turn::default();
        for delta in [
            json!({ "role": "assistant", "reasoning_content": "hm" }),
            json!({ "content": "I will " }),
            json!({ "content": "look." }),
            json!({ "tool_calls": [{ "index": 0, "id": "a", "function": { "name": "f", "arguments": "" } }] }),
            json!({ "tool_calls": [{ "index": 0, "function": { "arguments": "{\"x\":" } }] }),
            json!({ "tool_calls": [{ "index": 1, "function": { "name": "g", "arguments": "{}" } }] }),
            json!({ "tool_calls": [{ "index": 0, "function": { "arguments": "1}" } }] }),
        ] {
            turn.push(&chunk(delta));
        }
        turn.push(&json!({ "choices": [{ "delta": {}, "finish_reason": "tool_calls" }] }));
        turn.push(&json!({ "choices": [], "usage": { "prompt_tokens": 1 } }));
        turn.finish();
        let call = |id: &str, name: &str, arguments: &str| ToolCall {
            id: id.into(),
            name: name.into(),
            arguments: arguments.into(),
        };
        assert_eq!(turn.calls, [call("a", "f", "{\"x\":1}"), call("call_1", "g", "{}")]);
        assert_eq!((turn.reasoning.as_str(), turn.content.as_str()), ("hm", "I will look."));
        assert_eq!(turn.finish_reason.as_deref(), Some("tool_calls"));
        assert_eq!(turn.usage, Some(json!({ "prompt_tokens": 1 })));
        assert_eq!(turn.message()["tool_calls"][0]["function"]["arguments"], "{\"x\":1}");
    }

    #[test]
    fn the_calls_of_an_answer_that_was_cut_off_are_not_made() {
        let message =
            json!({ "content": "", "tool_calls": [{ "function": { "name": "f", "arguments": "{" } }] });
        let turn =
            Turn::of_completion(json!({ "choices": [{ "message": message, "finish_reason": "length" }] }));
        assert!(turn.calls.is_empty());
    }
}
