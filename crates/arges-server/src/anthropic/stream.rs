//! A message in events: each block is opened, filled and closed before the next.

use axum::response::sse::Event;
use serde_json::{Value, json};

use super::body::{Head, SIGNATURE, usage};
use super::error;
use crate::answer::events::{AnswerEvent, Part};
use crate::answer::sse::{Narrator, named};
use crate::error::ApiError;

/// Tells of a message.
pub(super) struct MessageNarrator {
    head: Head,
    open: Option<Block>,
    /// Blocks that are closed.
    blocks: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
    ToolUse,
}

impl MessageNarrator {
    pub fn new(head: Head) -> MessageNarrator {
        MessageNarrator { head, open: None, blocks: 0 }
    }

    fn part(&mut self, part: Part, out: &mut Vec<Event>) {
        match part {
            Part::Reasoning(_) if !self.head.shows_thinking => {}
            Part::Reasoning(text) => {
                self.open(Block::Thinking, json!({"type": "thinking", "thinking": "", "signature": ""}), out);
                self.delta(json!({"type": "thinking_delta", "thinking": text}), out);
            }
            Part::Content(text) => {
                self.open(Block::Text, json!({"type": "text", "text": ""}), out);
                self.delta(json!({"type": "text_delta", "text": text}), out);
            }
            Part::CallStart { id, name, .. } => {
                self.close(out);
                self.open(
                    Block::ToolUse,
                    json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
                    out,
                );
            }
            Part::CallArguments { text, .. } => {
                self.delta(json!({"type": "input_json_delta", "partial_json": text}), out);
            }
        }
    }

    /// Goes on with the block of this kind that is open, or opens one.
    fn open(&mut self, block: Block, content: Value, out: &mut Vec<Event>) {
        if self.open == Some(block) {
            return;
        }
        self.close(out);
        self.open = Some(block);
        out.push(event("content_block_start", json!({"index": self.blocks, "content_block": content})));
    }

    fn delta(&self, delta: Value, out: &mut Vec<Event>) {
        out.push(event("content_block_delta", json!({"index": self.blocks, "delta": delta})));
    }

    fn close(&mut self, out: &mut Vec<Event>) {
        let Some(block) = self.open.take() else { return };
        if block == Block::Thinking {
            self.delta(json!({"type": "signature_delta", "signature": SIGNATURE}), out);
        }
        out.push(event("content_block_stop", json!({"index": self.blocks})));
        self.blocks += 1;
    }
}

fn event(name: &str, mut fields: Value) -> Event {
    fields["type"] = json!(name);
    named(name, &fields)
}

impl Narrator for MessageNarrator {
    fn open(&mut self) -> Vec<Event> {
        vec![event("message_start", json!({"message": self.head.opening()})), event("ping", json!({}))]
    }

    fn tell(&mut self, happened: AnswerEvent) -> Vec<Event> {
        let mut out = Vec::new();
        match happened {
            AnswerEvent::Prompt(_) => {}
            AnswerEvent::Token { parts, .. } => parts.into_iter().for_each(|part| self.part(part, &mut out)),
            AnswerEvent::End { parts, end } => {
                parts.into_iter().for_each(|part| self.part(part, &mut out));
                self.close(&mut out);
                let fields = json!({"delta": self.head.stop(&end), "usage": usage(&end.usage)});
                out.push(event("message_delta", fields));
                out.push(event("message_stop", json!({})));
            }
        }
        out
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Event> {
        vec![named("error", &error::body(error))]
    }
}
