//! Endpoints that leave thinking and calls in the text, as the model wrote them.

use std::collections::VecDeque;

use arges_text::{AnswerPart, ThinkingParser, ToolCallParser};
use futures_util::future::BoxFuture;
use futures_util::stream::unfold;
use futures_util::{FutureExt, StreamExt};
use serde_json::{Value, json};

use super::endpoint::{ChatEndpoint, Chunks, EndpointError};

/// An endpoint whose answers have M1's thinking and calls told apart from their content, whether it does so itself or
/// not. What it tells apart is left as it is.
#[derive(Debug, Clone)]
pub struct Divided<E>(pub E);

impl<E: ChatEndpoint> ChatEndpoint for Divided<E> {
    fn complete(&self, request: Value) -> BoxFuture<'_, Result<Value, EndpointError>> {
        async move { Ok(divided_completion(self.0.complete(request).await?)) }.boxed()
    }

    fn stream(&self, request: Value) -> BoxFuture<'_, Result<Chunks, EndpointError>> {
        async move { Ok(divided_chunks(self.0.stream(request).await?)) }.boxed()
    }
}

fn divided_completion(mut completion: Value) -> Value {
    let message = &completion["choices"][0]["message"];
    let Some(content) = message["content"].as_str().map(str::to_owned) else { return completion };
    if message["tool_calls"].is_array() {
        return completion;
    }
    let choice = &mut completion["choices"][0];
    let mut divider = Divider::default();
    let mut deltas = divider.push(&content);
    deltas.extend(divider.finish());
    let text = |key: &str| -> String { deltas.iter().filter_map(|delta| delta[key].as_str()).collect() };
    let (content, reasoning) = (text("content"), text("reasoning_content"));
    let message = &mut choice["message"];
    message["content"] = content.into();
    if !reasoning.is_empty() {
        message["reasoning_content"] = reasoning.into();
    }
    if divider.calls.calls() > 0 {
        let mut turn = super::Turn::default();
        for delta in deltas {
            turn.push(&json!({ "choices": [{ "delta": delta }] }));
        }
        turn.finish();
        message["tool_calls"] = turn.message()["tool_calls"].take();
        if choice["finish_reason"] == "stop" {
            choice["finish_reason"] = "tool_calls".into();
        }
    }
    completion
}

fn divided_chunks(chunks: Chunks) -> Chunks {
    let state = (chunks, Divider::default(), VecDeque::new());
    unfold(state, |(mut chunks, mut divider, mut ready)| async move {
        loop {
            if let Some(chunk) = ready.pop_front() {
                return Some((Ok(chunk), (chunks, divider, ready)));
            }
            match chunks.next().await? {
                Ok(chunk) => ready.extend(divider.divide(chunk)),
                Err(error) => return Some((Err(error), (chunks, divider, ready))),
            }
        }
    })
    .boxed()
}

/// Divides the text of one answer.
#[derive(Debug, Default)]
struct Divider {
    thinking: ThinkingParser,
    calls: ToolCallParser,
}

impl Divider {
    /// A chunk as the ones that stand for it.
    fn divide(&mut self, mut chunk: Value) -> Vec<Value> {
        let choice = &chunk["choices"][0];
        let content = choice["delta"]["content"].as_str().map(str::to_owned);
        let ends = !choice["finish_reason"].is_null();
        if !choice.is_object() || (content.is_none() && !ends) {
            return vec![chunk];
        }
        let choice = &mut chunk["choices"][0];
        let mut deltas = self.push(content.as_deref().unwrap_or_default());
        if ends {
            deltas.extend(self.finish());
            if self.calls.calls() > 0 && choice["finish_reason"] == "stop" {
                choice["finish_reason"] = "tool_calls".into();
            }
        }
        if let Some(delta) = choice["delta"].as_object_mut() {
            delta.remove("content");
        }
        let rest = chunk;
        let mut template = rest.clone();
        template["choices"][0]["delta"] = json!({});
        template["choices"][0]["finish_reason"] = Value::Null;
        if let Some(fields) = template.as_object_mut() {
            fields.remove("usage");
        }
        let mut chunks: Vec<Value> = deltas
            .into_iter()
            .map(|delta| {
                let mut chunk = template.clone();
                chunk["choices"][0]["delta"] = delta;
                chunk
            })
            .collect();
        let says_more = rest["choices"][0]["delta"].as_object().is_some_and(|delta| !delta.is_empty());
        if ends {
            chunks.push(rest);
        } else if says_more {
            // The role, for one, which comes before the text.
            chunks.insert(0, rest);
        }
        chunks
    }

    fn push(&mut self, text: &str) -> Vec<Value> {
        let divided = self.thinking.push(text);
        let parts = self.calls.push(&divided.answer);
        deltas(&divided.reasoning, parts)
    }

    fn finish(&mut self) -> Vec<Value> {
        let divided = self.thinking.finish();
        let mut parts = self.calls.push(&divided.answer);
        parts.extend(self.calls.finish());
        deltas(&divided.reasoning, parts)
    }
}

fn deltas(reasoning: &str, parts: Vec<AnswerPart>) -> Vec<Value> {
    let reasoning = (!reasoning.is_empty()).then(|| json!({ "reasoning_content": reasoning }));
    let call =
        |index: usize, function: Value| json!({ "tool_calls": [{ "index": index, "function": function }] });
    let parts = parts.into_iter().map(|part| match part {
        AnswerPart::Content(text) => json!({ "content": text }),
        AnswerPart::CallStart { index, name } => call(index, json!({ "name": name, "arguments": "" })),
        AnswerPart::CallArguments { index, text } => call(index, json!({ "arguments": text })),
    });
    reasoning.into_iter().chain(parts).collect()
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;
    use crate::agent::Turn;

    const TEXT: &str = "<think>\nhm\n</think>\nLet me see.\n<tool_calls>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_calls>";

    fn check(turn: &Turn) {
        assert_eq!((turn.reasoning.trim(), turn.content.trim()), ("hm", "Let me see."));
        assert_eq!((turn.calls[0].name.as_str(), turn.calls[0].arguments.as_str()), ("f", "{\"x\": 1}"));
        assert_eq!((turn.calls.len(), turn.finish_reason.as_deref()), (1, Some("tool_calls")));
    }

    #[tokio::test]
    async fn thinking_and_calls_are_told_apart_in_a_stream() {
        for size in [1, 7, 1000] {
            let chunk = |delta: Value, reason: Value| {
                Ok(json!({ "id": "a", "choices": [{ "delta": delta, "finish_reason": reason }] }))
            };
            let mut chunks = vec![chunk(json!({ "role": "assistant", "content": "" }), Value::Null)];
            let pieces: Vec<char> = TEXT.chars().collect();
            for piece in pieces.chunks(size) {
                chunks.push(chunk(json!({ "content": String::from_iter(piece) }), Value::Null));
            }
            chunks.push(chunk(json!({}), "stop".into()));
            let mut turn = Turn::default();
            let mut divided = divided_chunks(stream::iter(chunks).boxed());
            while let Some(chunk) = divided.next().await {
                let chunk = chunk.unwrap();
                assert_eq!(chunk["id"], "a");
                turn.push(&chunk);
            }
            turn.finish();
            check(&turn);
        }
    }

    #[test]
    fn thinking_and_calls_are_told_apart_in_a_whole_answer() {
        let completion = json!({ "choices": [{ "message": { "content": TEXT }, "finish_reason": "stop" }] });
        check(&Turn::of_completion(divided_completion(completion)));
    }

    #[test]
    fn chunks_of_another_form_go_through() {
        for chunk in [json!({}), json!({ "choices": [] }), json!({ "choices": [5] }), json!({ "choices": 1 })]
        {
            assert_eq!(Divider::default().divide(chunk.clone()), [chunk]);
        }
        let odd = json!({ "choices": [{ "delta": 3, "finish_reason": "stop" }] });
        assert_eq!(Divider::default().divide(odd.clone()), [odd]);
    }

    #[test]
    fn what_is_told_apart_already_stays_as_it_is() {
        let call = json!({ "id": "a", "function": { "name": "f", "arguments": "{}" } });
        let message = json!({ "content": "x", "reasoning_content": "y", "tool_calls": [call] });
        let completion = json!({ "choices": [{ "message": message, "finish_reason": "tool_calls" }] });
        assert_eq!(divided_completion(completion.clone()), completion);
    }
}
