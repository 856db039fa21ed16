//! How the chat API writes answers.

use arges_engine::{TokenEvent, TokenLogprob};
use serde::Serialize;

use super::answer::Dialect;
use super::logprobs::ChatLogprobs;
use super::response::AnswerWeights;
use crate::answer::events::{End, Part};
use crate::answer::whole::{Answer, Call};
use crate::frontend::Frontend;
use crate::job::Job;

/// The chat API's way of writing answers.
#[derive(Debug)]
pub(crate) struct Chat;

/// A choice of a whole answer.
#[derive(Debug, Serialize)]
pub(crate) struct ChatChoice {
    index: usize,
    message: AssistantMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
    #[serde(flatten)]
    weights: AnswerWeights,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Serialize)]
struct AssistantMessage {
    role: &'static str,
    /// `null` where there are calls and nothing else.
    content: Option<String>,
    refusal: Option<()>,
    #[serde(flatten)]
    thinking: Option<Reasoning>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

/// Thinking, under both names that clients look for.
#[derive(Debug, Serialize)]
struct Reasoning {
    reasoning_content: String,
    reasoning: String,
}

impl Reasoning {
    fn new(text: String) -> Reasoning {
        Reasoning { reasoning_content: text.clone(), reasoning: text }
    }
}

#[derive(Debug, Serialize)]
struct ToolCall {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function,
}

#[derive(Debug, Serialize)]
struct Function {
    name: String,
    arguments: String,
}

impl From<Call> for ToolCall {
    fn from(Call { id, name, arguments }: Call) -> ToolCall {
        ToolCall { id, kind: "function", function: Function { name, arguments } }
    }
}

/// A choice of a chunk.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ChatChunk {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(flatten)]
    thinking: Option<Reasoning>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[ToolCallDelta; 1]>,
}

#[derive(Debug, Serialize)]
struct ToolCallDelta {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: FunctionDelta,
}

#[derive(Debug, Serialize)]
struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl From<Part> for Delta {
    fn from(part: Part) -> Delta {
        let call = |index, id: Option<String>, name, arguments| {
            let kind = id.is_some().then_some("function");
            let function = FunctionDelta { name, arguments };
            Delta { tool_calls: Some([ToolCallDelta { index, id, kind, function }]), ..Delta::default() }
        };
        match part {
            Part::Reasoning(text) => Delta { thinking: Some(Reasoning::new(text)), ..Delta::default() },
            Part::Content(text) => Delta { content: Some(text), ..Delta::default() },
            Part::CallStart { index, id, name } => call(index, Some(id), Some(name), String::new()),
            Part::CallArguments { index, text } => call(index, None, None, text),
        }
    }
}

fn chunks(index: usize, parts: Vec<Part>) -> Vec<ChatChunk> {
    let chunk = |part| ChatChunk { index, delta: Delta::from(part), ..ChatChunk::default() };
    parts.into_iter().map(chunk).collect()
}

impl Dialect for Chat {
    const ID_PREFIX: &'static str = "chatcmpl-";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";
    const PROMPT_IDS_IN_ENVELOPE: bool = true;
    type Choice = ChatChoice;
    type Chunk = ChatChunk;
    /// Chat logprobs carry no offsets.
    type Progress = ();

    fn choice(frontend: &Frontend, job: &Job, index: usize, answer: Answer) -> ChatChoice {
        let logprobs = job.logprobs.map(|_| {
            let mut logprobs = ChatLogprobs::default();
            answer.tokens.iter().for_each(|token| logprobs.push(&frontend.tokenizer, token));
            logprobs
        });
        let calls_alone = answer.content.is_empty() && !answer.calls.is_empty();
        ChatChoice {
            index,
            weights: AnswerWeights::of(job, &answer),
            token_ids: job.settings.return_token_ids.then(|| answer.ids()),
            logprobs,
            finish_reason: answer.end.reason.name(),
            message: AssistantMessage {
                role: "assistant",
                content: (!calls_alone).then_some(answer.content),
                refusal: None,
                thinking: (!answer.reasoning.is_empty()).then(|| Reasoning::new(answer.reasoning)),
                tool_calls: answer.calls.into_iter().map(ToolCall::from).collect(),
            },
        }
    }

    fn opening(_: &Frontend, _: &Job, index: usize, (): &mut ()) -> Option<ChatChunk> {
        let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
        Some(ChatChunk { index, delta, ..ChatChunk::default() })
    }

    fn prompt(_: &Frontend, _: &Job, _: usize, _: &[Option<TokenLogprob>], (): &mut ()) -> Option<ChatChunk> {
        None
    }

    fn token(
        frontend: &Frontend,
        job: &Job,
        index: usize,
        token: &TokenEvent,
        parts: Vec<Part>,
        (): &mut (),
    ) -> Vec<ChatChunk> {
        let mut chunks = chunks(index, parts);
        if chunks.is_empty() {
            let delta = Delta { content: Some(String::new()), ..Delta::default() };
            chunks.push(ChatChunk { index, delta, ..ChatChunk::default() });
        }
        chunks[0].token_ids = job.settings.return_token_ids.then(|| vec![token.id]);
        chunks[0].weight_version = job.settings.return_token_ids.then_some(token.weight_version);
        chunks[0].logprobs = job.logprobs.map(|_| {
            let mut logprobs = ChatLogprobs::default();
            logprobs.push(&frontend.tokenizer, token);
            logprobs
        });
        chunks
    }

    fn closing(index: usize, parts: Vec<Part>, end: &End) -> Vec<ChatChunk> {
        let finish_reason = Some(end.reason.name());
        let mut chunks = chunks(index, parts);
        let weight_version = Some(end.weight_version);
        chunks.push(ChatChunk { index, finish_reason, weight_version, ..ChatChunk::default() });
        chunks
    }
}
