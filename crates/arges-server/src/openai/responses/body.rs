//! The response object and its items.

use arges_engine::Usage;
use serde_json::{Map, Value, json};

use super::ResponseFields;
use crate::answer::events::{End, EndReason};
use crate::answer::ids::{unique_id, unix_time};
use crate::answer::whole::{Answer, Call};
use crate::error::ApiError;
use crate::frontend::Frontend;

/// What every form of a response repeats of its request.
#[derive(Debug, Clone)]
pub(super) struct Echo {
    fields: Map<String, Value>,
}

/// How far a response is.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    pub status: &'static str,
    pub incomplete: Option<&'static str>,
    pub error: Option<ApiError>,
    pub usage: Option<Usage>,
}

impl Outcome {
    pub fn of(end: &End) -> Outcome {
        let incomplete = match end.reason {
            EndReason::Stop | EndReason::ToolCalls => None,
            EndReason::Length => Some("max_output_tokens"),
            EndReason::Repetition => Some("repetition"),
            EndReason::Abort => Some("abort"),
        };
        let status = if incomplete.is_some() { "incomplete" } else { "completed" };
        Outcome { status, incomplete, error: None, usage: Some(end.usage) }
    }

    pub fn in_progress() -> Outcome {
        Outcome { status: "in_progress", ..Outcome::default() }
    }

    pub fn failed(error: &ApiError) -> Outcome {
        Outcome { status: "failed", error: Some(error.clone()), ..Outcome::default() }
    }
}

impl Echo {
    pub fn new(frontend: &Frontend, request: &ResponseFields) -> Echo {
        let defaults = &frontend.options.defaults;
        let text_format = request.text.as_ref().and_then(|text| text.format.clone());
        let effort = request.reasoning.as_ref().and_then(|reasoning| reasoning.effort.clone());
        let fields = json!({
            "id": unique_id("resp_"),
            "object": "response",
            "created_at": unix_time(),
            "model": frontend.options.model_name,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata.clone().unwrap_or_default(),
            "parallel_tool_calls": request.parallel_tool_calls.unwrap_or(true),
            "previous_response_id": null,
            "reasoning": {"effort": effort, "summary": null},
            "store": false,
            "temperature": request.temperature.unwrap_or(decimal(defaults.temperature)),
            "text": {"format": text_format.unwrap_or_else(|| json!({"type": "text"}))},
            "tool_choice": request.tool_choice.clone().unwrap_or_else(|| json!("auto")),
            "tools": request.tools.clone().unwrap_or_default(),
            "top_p": request.top_p.unwrap_or(decimal(defaults.top_p)),
            "truncation": "disabled",
        });
        let Value::Object(fields) = fields else { unreachable!("the literal is an object") };
        Echo { fields }
    }

    /// The response with these items.
    pub fn response(&self, output: &[Value], outcome: Outcome) -> Value {
        let mut response = self.fields.clone();
        let error = outcome.error.map(|error| json!({"code": "server_error", "message": error.message()}));
        let incomplete = outcome.incomplete.map(|reason| json!({ "reason": reason }));
        response.insert("status".to_owned(), json!(outcome.status));
        response.insert("error".to_owned(), json!(error));
        response.insert("incomplete_details".to_owned(), json!(incomplete));
        response.insert("output".to_owned(), json!(output));
        response.insert("usage".to_owned(), outcome.usage.as_ref().map(usage).unwrap_or_default());
        Value::Object(response)
    }
}

/// The number as it was written, without the digits that f64 would add.
fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}

fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}

/// How far an item is, as the API says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    InProgress,
    Completed,
    /// Cut off by the end of the response.
    Incomplete,
}

impl Status {
    /// Of the last item of an answer with this end.
    pub fn of_last(end: &End) -> Status {
        match end.reason {
            EndReason::Stop | EndReason::ToolCalls => Status::Completed,
            EndReason::Length | EndReason::Repetition | EndReason::Abort => Status::Incomplete,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Status::InProgress => "in_progress",
            Status::Completed => "completed",
            Status::Incomplete => "incomplete",
        }
    }

    /// The parts that hold a text: none while it is still to come.
    fn parts(self, part: Value) -> Vec<Value> {
        if self == Status::InProgress { Vec::new() } else { vec![part] }
    }
}

/// An item of thinking.
pub(super) fn reasoning_item(id: &str, text: &str, status: Status) -> Value {
    let content = status.parts(reasoning_part(text));
    json!({"id": id, "type": "reasoning", "summary": [], "content": content, "status": status.word()})
}

/// An item of content.
pub(super) fn message_item(id: &str, text: &str, status: Status) -> Value {
    let content = status.parts(text_part(text));
    json!({"id": id, "type": "message", "role": "assistant", "content": content, "status": status.word()})
}

/// An item of a call.
pub(super) fn call_item(id: &str, call_id: &str, name: &str, arguments: &str, status: Status) -> Value {
    json!({
        "id": id, "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments,
        "status": status.word(),
    })
}

pub(super) fn reasoning_part(text: &str) -> Value {
    json!({"type": "reasoning_text", "text": text})
}

pub(super) fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

/// The items of a whole answer.
pub(super) fn items(answer: Answer) -> Vec<Value> {
    let Answer { reasoning, content, calls, end, .. } = answer;
    let done = Status::Completed;
    let reasoning = (!reasoning.is_empty()).then(|| reasoning_item(&unique_id("rs_"), &reasoning, done));
    let says_nothing = content.is_empty() && (!calls.is_empty() || reasoning.is_some());
    let message = (!says_nothing).then(|| message_item(&unique_id("msg_"), &content, done));
    let calls = calls
        .into_iter()
        .map(|Call { id, name, arguments }| call_item(&unique_id("fc_"), &id, &name, &arguments, done));
    let mut items: Vec<Value> = reasoning.into_iter().chain(message).chain(calls).collect();
    if let Some(last) = items.last_mut() {
        last["status"] = json!(Status::of_last(&end).word());
    }
    items
}
