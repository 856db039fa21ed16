//! A response in events: each item is opened, filled and closed before the next.

use axum::response::sse::Event;
use serde_json::{Value, json};

use super::body::{
    Echo, Outcome, Status, call_item, message_item, reasoning_item, reasoning_part, text_part,
};
use crate::answer::events::{AnswerEvent, Part};
use crate::answer::ids::unique_id;
use crate::answer::sse::{Narrator, named};
use crate::error::ApiError;

/// Tells of a response.
pub(super) struct ResponseNarrator {
    echo: Echo,
    /// The items that are closed.
    items: Vec<Value>,
    open: Option<Item>,
    events: u64,
}

/// The item being filled.
struct Item {
    id: String,
    kind: Kind,
    text: String,
}

enum Kind {
    Reasoning,
    Message,
    Call { call_id: String, name: String },
}

impl Item {
    fn new(prefix: &str, kind: Kind) -> Item {
        Item { id: unique_id(prefix), kind, text: String::new() }
    }

    fn value(&self, status: Status) -> Value {
        match &self.kind {
            Kind::Reasoning => reasoning_item(&self.id, &self.text, status),
            Kind::Message => message_item(&self.id, &self.text, status),
            Kind::Call { call_id, name } => call_item(&self.id, call_id, name, &self.text, status),
        }
    }

    /// The part that holds the text; a call has none.
    fn part(&self) -> Option<Value> {
        match self.kind {
            Kind::Reasoning => Some(reasoning_part(&self.text)),
            Kind::Message => Some(text_part(&self.text)),
            Kind::Call { .. } => None,
        }
    }

    /// The event that adds to the text, and the one that ends it.
    fn events(&self) -> [&'static str; 2] {
        match self.kind {
            Kind::Reasoning => ["response.reasoning_text.delta", "response.reasoning_text.done"],
            Kind::Message => ["response.output_text.delta", "response.output_text.done"],
            Kind::Call { .. } => {
                ["response.function_call_arguments.delta", "response.function_call_arguments.done"]
            }
        }
    }
}

impl ResponseNarrator {
    pub fn new(echo: Echo) -> ResponseNarrator {
        ResponseNarrator { echo, items: Vec::new(), open: None, events: 0 }
    }

    fn event(&mut self, name: &str, mut fields: Value) -> Event {
        fields["type"] = json!(name);
        fields["sequence_number"] = json!(self.events);
        self.events += 1;
        named(name, &fields)
    }

    /// An event about the item being filled.
    fn item_event(&mut self, item: &Item, name: &str, mut fields: Value) -> Event {
        fields["item_id"] = json!(item.id);
        fields["output_index"] = json!(self.items.len());
        if !matches!(item.kind, Kind::Call { .. }) {
            fields["content_index"] = json!(0);
        }
        self.event(name, fields)
    }

    fn part(&mut self, part: Part, out: &mut Vec<Event>) {
        match part {
            Part::Reasoning(text) => {
                if !matches!(&self.open, Some(Item { kind: Kind::Reasoning, .. })) {
                    self.open(Item::new("rs_", Kind::Reasoning), out);
                }
                self.add(&text, out);
            }
            Part::Content(text) => {
                if !matches!(&self.open, Some(Item { kind: Kind::Message, .. })) {
                    self.open(Item::new("msg_", Kind::Message), out);
                }
                self.add(&text, out);
            }
            Part::CallStart { id, name, .. } => {
                self.open(Item::new("fc_", Kind::Call { call_id: id, name }), out);
            }
            Part::CallArguments { text, .. } => self.add(&text, out),
        }
    }

    fn open(&mut self, item: Item, out: &mut Vec<Event>) {
        self.close(Status::Completed, out);
        let index = self.items.len();
        out.push(self.event(
            "response.output_item.added",
            json!({"output_index": index, "item": item.value(Status::InProgress)}),
        ));
        if let Some(part) = item.part() {
            out.push(self.item_event(&item, "response.content_part.added", json!({ "part": part })));
        }
        self.open = Some(item);
    }

    fn add(&mut self, text: &str, out: &mut Vec<Event>) {
        let Some(mut item) = self.open.take() else { return };
        item.text += text;
        let mut fields = json!({ "delta": text });
        if matches!(item.kind, Kind::Message) {
            fields["logprobs"] = json!([]);
        }
        out.push(self.item_event(&item, item.events()[0], fields));
        self.open = Some(item);
    }

    fn close(&mut self, status: Status, out: &mut Vec<Event>) {
        let Some(item) = self.open.take() else { return };
        let fields = match &item.kind {
            Kind::Reasoning => json!({ "text": item.text }),
            Kind::Message => json!({ "text": item.text, "logprobs": [] }),
            Kind::Call { name, .. } => json!({ "name": name, "arguments": item.text }),
        };
        out.push(self.item_event(&item, item.events()[1], fields));
        if let Some(part) = item.part() {
            out.push(self.item_event(&item, "response.content_part.done", json!({ "part": part })));
        }
        let (index, value) = (self.items.len(), item.value(status));
        out.push(self.event("response.output_item.done", json!({"output_index": index, "item": value})));
        self.items.push(value);
    }

    fn finish(&mut self, outcome: Outcome, out: &mut Vec<Event>) {
        let name = format!("response.{}", outcome.status);
        let response = self.echo.response(&self.items, outcome);
        out.push(self.event(&name, json!({ "response": response })));
    }
}

impl Narrator for ResponseNarrator {
    fn open(&mut self) -> Vec<Event> {
        let response = self.echo.response(&[], Outcome::in_progress());
        ["response.created", "response.in_progress"]
            .map(|name| self.event(name, json!({ "response": response })))
            .into()
    }

    fn tell(&mut self, event: AnswerEvent) -> Vec<Event> {
        let mut out = Vec::new();
        match event {
            AnswerEvent::Prompt(_) => {}
            AnswerEvent::Token { parts, .. } => parts.into_iter().for_each(|part| self.part(part, &mut out)),
            AnswerEvent::End { parts, end } => {
                parts.into_iter().for_each(|part| self.part(part, &mut out));
                if self.items.is_empty() && self.open.is_none() {
                    self.open(Item::new("msg_", Kind::Message), &mut out);
                }
                self.close(Status::of_last(&end), &mut out);
                self.finish(Outcome::of(&end), &mut out);
            }
        }
        out
    }

    fn fail(&mut self, error: &ApiError) -> Vec<Event> {
        let mut out = Vec::new();
        self.close(Status::Incomplete, &mut out);
        self.finish(Outcome::failed(error), &mut out);
        out
    }
}
