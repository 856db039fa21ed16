//! The message object.

use arges_engine::{StopCause, Usage};
use serde_json::{Map, Value, json};

use crate::answer::events::{End, EndReason};
use crate::answer::ids::unique_id;
use crate::answer::whole::{Answer, Call};
use crate::frontend::Frontend;

/// Thinking is signed where another server made it; here there is nothing to prove.
pub(super) const SIGNATURE: &str = "unsigned";

/// What is known of a message before its text.
#[derive(Debug)]
pub(super) struct Head {
    id: String,
    model: String,
    prompt_tokens: usize,
    stops: Vec<String>,
    pub shows_thinking: bool,
}

impl Head {
    pub fn new(frontend: &Frontend, prompt_tokens: usize, stops: Vec<String>, shows_thinking: bool) -> Head {
        let model = frontend.options.model_name.clone();
        Head { id: unique_id("msg_"), model, prompt_tokens, stops, shows_thinking }
    }

    /// The message before its text.
    pub fn opening(&self) -> Value {
        let usage = usage(&Usage { prompt_tokens: self.prompt_tokens, ..Usage::default() });
        self.envelope(Vec::new(), json!({"stop_reason": null, "stop_sequence": null}), usage)
    }

    /// A whole message.
    pub fn message(&self, answer: Answer) -> Value {
        let Answer { reasoning, content, calls, end, .. } = answer;
        let mut blocks = Vec::new();
        if self.shows_thinking && !reasoning.is_empty() {
            blocks.push(json!({"type": "thinking", "thinking": reasoning, "signature": SIGNATURE}));
        }
        if !content.is_empty() {
            blocks.push(json!({"type": "text", "text": content}));
        }
        blocks.extend(calls.into_iter().map(|Call { id, name, arguments }| {
            json!({"type": "tool_use", "id": id, "name": name, "input": read(&arguments)})
        }));
        self.envelope(blocks, self.stop(&end), usage(&end.usage))
    }

    /// `stop_reason` and `stop_sequence`.
    pub fn stop(&self, end: &End) -> Value {
        let sequence = match end.stop {
            Some(StopCause::Text(index)) => self.stops.get(index),
            _ => None,
        };
        let reason = match end.reason {
            EndReason::ToolCalls => "tool_use",
            EndReason::Stop if sequence.is_some() => "stop_sequence",
            EndReason::Stop => "end_turn",
            // The API has no word for an answer that was cut because it went round in circles, or by an operator.
            EndReason::Length | EndReason::Repetition | EndReason::Abort => "max_tokens",
        };
        json!({"stop_reason": reason, "stop_sequence": sequence})
    }

    fn envelope(&self, content: Vec<Value>, stop: Value, usage: Value) -> Value {
        let mut message = json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
        });
        message["stop_reason"] = stop["stop_reason"].clone();
        message["stop_sequence"] = stop["stop_sequence"].clone();
        message["usage"] = usage;
        message
    }
}

/// `usage`. Tokens that came from a cache are not counted as input again.
pub(super) fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    })
}

/// The arguments as an object. Those that were cut off are none; they are kept as the text they are.
fn read(arguments: &str) -> Value {
    let read = serde_json::from_str::<Map<String, Value>>(arguments);
    read.map_or_else(|_| json!({ "unfinished": arguments }), Value::Object)
}
