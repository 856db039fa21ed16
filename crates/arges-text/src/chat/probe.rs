//! What shape of messages a template reads, found by rendering small conversations through it.

use serde_json::{Value, json};

/// The shape of messages a template reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expectations {
    /// Content is read as a list of parts; otherwise as a string.
    pub(super) parts: bool,
    /// Every text part of a content is read; otherwise only the first.
    pub(super) every_part: bool,
    /// `tool_calls` of an assistant's message are read.
    pub(super) tool_calls: bool,
    /// `reasoning_content` of an assistant's message is read.
    pub(super) reasoning: bool,
    /// The parts of a tool's message are read with the tool's name in each.
    pub(super) named_results: bool,
}

const FIRST: &str = "probe-first-text";
const SECOND: &str = "probe-second-text";
const THOUGHT: &str = "probe-thought";
const TOOL: &str = "probe_tool";
const RESULT_NAME: &str = "probe_result_name";

/// Finds the expectations of a template; `render` gives `None` where it fails. A template that
/// fails on everything is taken to be like M1's.
pub(super) fn expectations(render: &dyn Fn(&[Value]) -> Option<String>) -> Expectations {
    let shows = |messages: &[Value], text: &str| render(messages).is_some_and(|out| out.contains(text));
    let two_parts = [user(json!([text_part(FIRST), text_part(SECOND)]))];
    let of_parts = render(&two_parts).filter(|out| out.contains(FIRST) && !shows_structure(out));
    let parts = of_parts.is_some() || !shows(&[user(json!(FIRST))], FIRST);
    let every_part = of_parts.is_some_and(|out| out.contains(SECOND));

    let content = |text: &str| if parts { json!([text_part(text)]) } else { json!(text) };
    let asked = user(content(FIRST));
    let call = json!({"id": "call_0", "type": "function", "function": {"name": TOOL, "arguments": {}}});
    let called = json!({"role": "assistant", "content": content(SECOND), "tool_calls": [call]});
    let thought = json!({"role": "assistant", "content": content(SECOND), "reasoning_content": THOUGHT});
    let result_part = json!({"name": RESULT_NAME, "type": "text", "text": FIRST});
    let result = json!({"role": "tool", "tool_call_id": "call_0", "name": TOOL, "content": [result_part]});
    Expectations {
        parts,
        every_part,
        tool_calls: shows(&[asked.clone(), called.clone()], TOOL),
        reasoning: shows(&[asked.clone(), thought], THOUGHT),
        named_results: render(&[asked, called, result])
            .is_some_and(|out| out.contains(RESULT_NAME) && !shows_structure(&out)),
    }
}

fn user(content: Value) -> Value {
    json!({"role": "user", "content": content})
}

fn text_part(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// Whether a template printed a list of parts as it stands instead of reading it.
fn shows_structure(out: &str) -> bool {
    out.contains("\"type\"") || out.contains("'type'")
}
