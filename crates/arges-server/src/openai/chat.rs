//! `POST /v1/chat/completions`.

use std::sync::Arc;

use arges_engine::{FinishReason, TokenEvent, TokenLogprob};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::answer::{Answer, Dialect, respond};
use super::fields::{MAX_TOP_LOGPROBS, SharedFields, in_range};
use super::job::{Job, Prompt};
use super::logprobs::ChatLogprobs;
use super::messages;
use super::response::finish_reason;
use crate::error::ApiError;
use crate::extract::parse_json;
use crate::frontend::Frontend;
use crate::state::AppState;

/// Fields of a chat request beside the shared ones. Fields of the API that change what is asked for, and that
/// this server cannot do, are read so that they can be refused; all other unknown fields are ignored.
#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct ChatFields {
    messages: Option<Vec<Value>>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    response_format: Option<Value>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
    /// An extension, as in vLLM: `false` lets the model go on without a new assistant turn.
    add_generation_prompt: Option<bool>,
    modalities: Option<Vec<String>>,
    audio: Option<Value>,
    functions: Option<Value>,
    function_call: Option<Value>,
    web_search_options: Option<Value>,
}

/// Handles the request.
pub(crate) async fn create(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let body = state.bodies.read(request).await?;
    let job = state.frontend.run(body, prepare).await?;
    respond::<Chat>(&state, job).await
}

/// From the body to a job: parse, check, render, tokenise.
fn prepare(frontend: &Frontend, body: &[u8]) -> Result<Job, ApiError> {
    let settings = parse_json::<SharedFields>(body)?.validate(&frontend.options)?;
    let fields: ChatFields = parse_json(body)?;
    fields.refuse_unsupported()?;
    let max_tokens = in_range("max_tokens", fields.max_tokens, 1..=i64::MAX)?;
    let max_completion_tokens =
        in_range("max_completion_tokens", fields.max_completion_tokens, 1..=i64::MAX)?;
    let logprobs = fields.logprobs()?;

    let messages = fields.messages.ok_or_else(|| ApiError::missing_param("messages"))?;
    messages::check(&messages)?;
    // A model that must not call tools is not shown any.
    let forbidden = fields.tool_choice.as_ref().and_then(Value::as_str) == Some("none");
    let tools = fields.tools.filter(|tools| !tools.is_empty() && !forbidden);
    let text = frontend.render(&messages, tools.as_deref(), fields.add_generation_prompt.unwrap_or(true))?;
    Ok(Job {
        prompt_param: "messages",
        prompts: vec![Prompt { ids: frontend.encode(&text, "messages")?, echo: None }],
        settings,
        max_tokens: max_completion_tokens.or(max_tokens).map(|tokens| tokens as usize),
        logprobs,
    })
}

impl ChatFields {
    fn logprobs(&self) -> Result<Option<usize>, ApiError> {
        let top = in_range("top_logprobs", self.top_logprobs, 0..=MAX_TOP_LOGPROBS as i64)?;
        match (self.logprobs.unwrap_or(false), top) {
            (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
            (false, None | Some(0)) => Ok(None),
            (false, Some(_)) => {
                Err(ApiError::invalid_param("top_logprobs", "`top_logprobs` needs `logprobs` to be true."))
            }
        }
    }

    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        if let Some(format) = &self.response_format {
            check_response_format(format)?;
        }
        if let Some(choice) = &self.tool_choice {
            check_tool_choice(choice)?;
        }
        if self.modalities.iter().flatten().any(|modality| modality != "text") {
            return Err(ApiError::unsupported("modalities", "The model writes text only."));
        }
        let replaced = "is not supported; use `tools`";
        for (param, value, why) in [
            ("audio", &self.audio, "is not supported: the model writes text only"),
            ("functions", &self.functions, replaced),
            ("function_call", &self.function_call, replaced),
            ("web_search_options", &self.web_search_options, "is not supported"),
        ] {
            if value.is_some() {
                return Err(ApiError::unsupported(param, format!("`{param}` {why}.")));
            }
        }
        Ok(())
    }
}

fn check_response_format(format: &Value) -> Result<(), ApiError> {
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(()),
        Some(kind @ ("json_object" | "json_schema")) => {
            let message = format!(
                "`response_format` of type `{kind}` is not yet supported; ask for JSON in the prompt."
            );
            Err(ApiError::unsupported("response_format", message))
        }
        _ => {
            let message =
                "`response_format` must be an object whose `type` is `text`, `json_object` or `json_schema`.";
            Err(ApiError::invalid_param("response_format", message))
        }
    }
}

fn check_tool_choice(choice: &Value) -> Result<(), ApiError> {
    match choice {
        Value::String(word) if word == "auto" || word == "none" => Ok(()),
        Value::String(word) if word == "required" => {
            let message = "`tool_choice` `required` is not yet supported; use `auto` or `none`.";
            Err(ApiError::unsupported("tool_choice", message))
        }
        Value::Object(_) => {
            let message = "Forcing a function by `tool_choice` is not yet supported; use `auto` or `none`.";
            Err(ApiError::unsupported("tool_choice", message))
        }
        _ => {
            let message =
                "`tool_choice` must be `none`, `auto`, `required` or an object that names a function.";
            Err(ApiError::invalid_param("tool_choice", message))
        }
    }
}

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
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Serialize)]
struct AssistantMessage {
    role: &'static str,
    content: String,
    refusal: Option<()>,
}

/// A choice of a chunk.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ChatChunk {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Debug, Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

impl ChatChunk {
    fn content(index: usize, content: String) -> ChatChunk {
        ChatChunk { index, delta: Delta { role: None, content: Some(content) }, ..ChatChunk::default() }
    }
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

    fn choice(frontend: &Frontend, job: &Job, answer: Answer) -> ChatChoice {
        let logprobs = job.logprobs.map(|_| {
            let mut logprobs = ChatLogprobs::default();
            answer.tokens.iter().for_each(|token| logprobs.push(&frontend.tokenizer, token));
            logprobs
        });
        ChatChoice {
            index: answer.index,
            token_ids: job.settings.return_token_ids.then(|| answer.ids()),
            message: AssistantMessage { role: "assistant", content: answer.text, refusal: None },
            logprobs,
            finish_reason: finish_reason(answer.reason),
        }
    }

    fn opening(_: &Frontend, _: &Job, index: usize, (): &mut ()) -> Option<ChatChunk> {
        let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
        Some(ChatChunk { index, delta, ..ChatChunk::default() })
    }

    fn prompt(_: &Frontend, _: &Job, _: usize, _: &[Option<TokenLogprob>], (): &mut ()) -> Option<ChatChunk> {
        None
    }

    fn token(frontend: &Frontend, job: &Job, index: usize, token: TokenEvent, (): &mut ()) -> ChatChunk {
        let logprobs = job.logprobs.map(|_| {
            let mut logprobs = ChatLogprobs::default();
            logprobs.push(&frontend.tokenizer, &token);
            logprobs
        });
        let token_ids = job.settings.return_token_ids.then(|| vec![token.id]);
        ChatChunk { logprobs, token_ids, ..ChatChunk::content(index, token.text) }
    }

    fn closing(index: usize, rest: String, reason: FinishReason) -> Vec<ChatChunk> {
        let end = ChatChunk { index, finish_reason: Some(finish_reason(reason)), ..ChatChunk::default() };
        if rest.is_empty() { vec![end] } else { vec![ChatChunk::content(index, rest), end] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::testing::frontend;
    use serde_json::json;

    const USER: &str = r#"[{"role": "user", "content": "Hello"}]"#;

    fn job(mut fields: Value) -> Result<Job, ApiError> {
        let messages = fields.as_object_mut().unwrap().entry("messages");
        messages.or_insert_with(|| serde_json::from_str(USER).unwrap());
        prepare(&frontend(512), fields.to_string().as_bytes())
    }

    fn prompt_text(fields: Value) -> String {
        frontend(512).tokenizer.decode(&job(fields).unwrap().prompts[0].ids)
    }

    #[test]
    fn a_conversation_becomes_one_prompt_that_ends_where_the_answer_starts() {
        let text = prompt_text(json!({}));
        assert!(text.contains("user name=user\nHello<end_of_sentence>"), "{text}");
        assert!(text.ends_with("<beginning_of_sentence>ai name=assistant\n"), "{text}");
        assert!(prompt_text(json!({"add_generation_prompt": false})).ends_with("Hello<end_of_sentence>\n"));
    }

    #[test]
    fn tools_are_shown_unless_they_may_not_be_called() {
        let tools = json!([{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]);
        assert!(prompt_text(json!({"tools": tools})).contains("get_weather"));
        assert!(prompt_text(json!({"tools": tools, "tool_choice": "auto"})).contains("get_weather"));
        assert!(!prompt_text(json!({"tools": tools, "tool_choice": "none"})).contains("get_weather"));
    }

    #[test]
    fn the_newer_name_of_the_token_limit_wins() {
        assert_eq!(job(json!({})).unwrap().max_tokens, None);
        assert_eq!(job(json!({"max_tokens": 5})).unwrap().max_tokens, Some(5));
        assert_eq!(job(json!({"max_tokens": 5, "max_completion_tokens": 7})).unwrap().max_tokens, Some(7));
    }

    #[test]
    fn logprobs_are_given_only_when_asked_for() {
        assert_eq!(job(json!({"logprobs": false, "top_logprobs": 0})).unwrap().logprobs, None);
        assert_eq!(job(json!({"logprobs": true})).unwrap().logprobs, Some(0));
        assert_eq!(job(json!({"logprobs": true, "top_logprobs": 20})).unwrap().logprobs, Some(20));
    }

    #[test]
    fn what_is_wrong_or_unsupported_is_refused_by_name() {
        let schema = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {}}});
        let function = json!({"type": "function", "function": {"name": "f"}});
        for (field, value, code) in [
            ("messages", json!([]), "invalid_value"),
            ("messages", json!("hi"), "invalid_value"),
            ("max_tokens", json!(0), "invalid_value"),
            ("max_completion_tokens", json!(-1), "invalid_value"),
            ("top_logprobs", json!(1), "invalid_value"),
            ("top_logprobs", json!(21), "invalid_value"),
            ("logprobs", json!(3), "invalid_value"),
            ("tools", json!({}), "invalid_value"),
            ("response_format", schema, "unsupported_value"),
            ("response_format", json!({"type": "json_object"}), "unsupported_value"),
            ("response_format", json!("json"), "invalid_value"),
            ("tool_choice", json!("required"), "unsupported_value"),
            ("tool_choice", function, "unsupported_value"),
            ("tool_choice", json!("sometimes"), "invalid_value"),
            ("modalities", json!(["text", "audio"]), "unsupported_value"),
            ("functions", json!([]), "unsupported_value"),
        ] {
            let error = job(json!({ field: value })).expect_err(field);
            assert_eq!((error.param(), error.code()), (Some(field), Some(code)), "{error}");
        }
        assert_eq!(job(json!({"tools": [{}]})).unwrap_err().param(), Some("tools[0]"));
        let missing = prepare(&frontend(512), b"{}").unwrap_err();
        assert_eq!(missing.code(), Some("missing_required_parameter"));
        assert_eq!(missing.param(), Some("messages"));
    }

    #[test]
    fn a_conversation_longer_than_the_context_is_refused() {
        for words in [600, 100_000] {
            let messages = json!([{"role": "user", "content": "q ".repeat(words)}]);
            let error = job(json!({ "messages": messages })).unwrap_err();
            assert_eq!((error.param(), error.code()), (Some("messages"), Some("context_length_exceeded")));
        }
    }
}
