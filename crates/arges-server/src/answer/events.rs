//! From the engine's events to those of an answer: thinking, content and calls of tools.

use std::sync::Arc;

use arges_engine::{Event, FinishReason, Finished, Generation, StopCause, TokenEvent, TokenLogprob, Usage};
use arges_text::{AnswerPart, ToolCallParser};

use super::ids::unique_id;
use crate::error::ApiError;
use crate::metrics::{Metrics, Timer};

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part {
    /// Thinking.
    Reasoning(String),
    /// Text for the reader.
    Content(String),
    /// A call begins.
    CallStart { index: usize, id: String, name: String },
    /// More of the arguments of the call that began last.
    CallArguments { index: usize, text: String },
}

/// What happens in an answer, in order: at most one `Prompt`, any number of `Token`, one `End`.
#[derive(Debug)]
pub(crate) enum AnswerEvent {
    /// Log-probabilities of the prompt are known.
    Prompt(Vec<Option<TokenLogprob>>),
    /// A token, and what became certain with it.
    Token { token: TokenEvent, parts: Vec<Part> },
    /// The end, and what was held back until now.
    End { parts: Vec<Part>, end: End },
}

/// How an answer ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub reason: EndReason,
    /// On what, where the reason is [`EndReason::Stop`].
    pub stop: Option<StopCause>,
    pub usage: Usage,
    /// Version of the weights at the end.
    pub weight_version: u64,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndReason {
    Stop,
    /// By itself, and there are calls in it.
    ToolCalls,
    Length,
    Repetition,
    /// An operator's pause ended it.
    Abort,
}

impl EndReason {
    /// OpenAI's word for it.
    pub fn name(self) -> &'static str {
        match self {
            EndReason::Stop => "stop",
            EndReason::ToolCalls => "tool_calls",
            EndReason::Length => "length",
            EndReason::Repetition => "repetition",
            EndReason::Abort => "abort",
        }
    }
}

/// One answer while it is generated. Dropping it cancels it.
#[derive(Debug)]
pub(crate) struct AnswerEvents {
    generation: Generation,
    calls: Option<ToolCallParser>,
    timer: Timer,
}

impl AnswerEvents {
    /// `parse_calls`: whether calls of tools are looked for.
    pub fn new(generation: Generation, parse_calls: bool, metrics: &Arc<Metrics>) -> AnswerEvents {
        let calls = parse_calls.then(ToolCallParser::new);
        AnswerEvents { generation, calls, timer: Timer::start(metrics) }
    }

    /// The next event; `None` after the end.
    ///
    /// # Errors
    /// 500 where the generation failed, 400 where its grammar did; nothing comes after it.
    pub async fn next(&mut self) -> Option<Result<AnswerEvent, ApiError>> {
        Some(match self.generation.next().await? {
            Event::Prompt { logprobs, .. } => Ok(AnswerEvent::Prompt(logprobs)),
            Event::Token(mut token) => {
                self.timer.token();
                let texts = (std::mem::take(&mut token.reasoning), std::mem::take(&mut token.text));
                Ok(AnswerEvent::Token { token, parts: self.parts(texts, false) })
            }
            Event::Finished(Finished { reason, stop, text, reasoning, usage, weight_version, .. }) => {
                let parts = self.parts((reasoning, text), true);
                let has_calls = self.calls.as_ref().is_some_and(|calls| calls.calls() > 0);
                let reason = match reason {
                    FinishReason::Stop if has_calls => EndReason::ToolCalls,
                    FinishReason::Stop => EndReason::Stop,
                    FinishReason::Length => EndReason::Length,
                    FinishReason::Repetition => EndReason::Repetition,
                    FinishReason::Abort => EndReason::Abort,
                };
                let queue = self.generation.queue_time();
                self.timer.finished(&usage, queue, reason.name());
                Ok(AnswerEvent::End { parts, end: End { reason, stop, usage, weight_version } })
            }
            Event::GrammarFailed(message) => {
                self.timer.failed();
                let message = format!("The answer cannot be held to what was asked for: {message}.");
                Err(ApiError::invalid_request(message).with_code("grammar_too_complex"))
            }
            Event::Failed(message) => {
                self.timer.failed();
                tracing::error!(message, "a generation failed");
                Err(ApiError::internal(format!("The generation failed: {message}.")))
            }
        })
    }

    fn parts(&mut self, (reasoning, text): (String, String), last: bool) -> Vec<Part> {
        let mut parts = Vec::new();
        if !reasoning.is_empty() {
            parts.push(Part::Reasoning(reasoning));
        }
        match &mut self.calls {
            None if text.is_empty() => {}
            None => parts.push(Part::Content(text)),
            Some(calls) => {
                let mut found = calls.push(&text);
                if last {
                    found.append(&mut calls.finish());
                }
                parts.extend(found.into_iter().map(Part::from));
            }
        }
        parts
    }
}

impl From<AnswerPart> for Part {
    fn from(part: AnswerPart) -> Part {
        match part {
            AnswerPart::Content(text) => Part::Content(text),
            AnswerPart::CallStart { index, name } => Part::CallStart { index, id: unique_id("call_"), name },
            AnswerPart::CallArguments { index, text } => Part::CallArguments { index, text },
        }
    }
}
