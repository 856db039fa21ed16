//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;

use super::answer::respond;
use super::chat_answer::Chat;
use crate::error::ApiError;
use crate::extract::parse_json;
use crate::frontend::Frontend;
use crate::job::Job;
use crate::request::chat::ChatRequest;
use crate::request::fields::{MAX_TOP_LOGPROBS, SharedFields, in_range};
use crate::request::format::{StructuredOutputs, openai_format};
use crate::request::thinking;
use crate::request::tools::{Tools, openai_choice};
use crate::state::AppState;

/// Fields of a chat request beside the shared ones. Fields of the API that change what is asked for, and that
/// this server cannot do, are read so that they can be refused; all other unknown fields are ignored.
#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct ChatFields {
    messages: Option<Vec<Value>>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    response_format: Option<Value>,
    /// An extension, as in vLLM.
    structured_outputs: Option<StructuredOutputs>,
    reasoning_effort: Option<String>,
    /// An extension: tokens of thinking at most.
    thinking_budget: Option<i64>,
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
    request(frontend, body)?.prepare(frontend)
}

/// From the body to a conversation to be answered.
///
/// # Errors
/// 400 with the field at fault.
pub(crate) fn request(frontend: &Frontend, body: &[u8]) -> Result<ChatRequest, ApiError> {
    let settings = parse_json::<SharedFields>(body)?.validate(&frontend.options)?;
    let fields: ChatFields = parse_json(body)?;
    fields.refuse_unsupported()?;
    let max_tokens = in_range("max_tokens", fields.max_tokens, 1..=i64::MAX)?;
    let max_completion_tokens =
        in_range("max_completion_tokens", fields.max_completion_tokens, 1..=i64::MAX)?;
    let logprobs = fields.logprobs()?;
    let effort = fields.reasoning_effort.as_deref();
    Ok(ChatRequest {
        messages_param: "messages",
        thinking_budget: thinking::budget(fields.thinking_budget, effort, "reasoning_effort")?,
        format: match fields.structured_outputs {
            Some(outputs) => Some(("structured_outputs", outputs.format()?)),
            None => openai_format("response_format", fields.response_format.as_ref())?
                .map(|format| ("response_format", format)),
        },
        tools: Tools::new(
            fields.tools.unwrap_or_default().into_iter().map(unwrapped).collect(),
            openai_choice(fields.tool_choice.as_ref())?,
            fields.parallel_tool_calls.unwrap_or(true),
            |index| format!("tools[{index}]"),
        )?,
        messages: fields.messages.ok_or_else(|| ApiError::missing_param("messages"))?,
        add_generation_prompt: fields.add_generation_prompt.unwrap_or(true),
        settings,
        max_tokens: max_completion_tokens.or(max_tokens).map(|tokens| tokens as usize),
        logprobs,
    })
}

/// A tool without its `{"type": "function", "function": …}` wrapper.
fn unwrapped(mut tool: Value) -> Value {
    match tool.get_mut("function") {
        Some(function) => function.take(),
        None => tool,
    }
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
        let schema =
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "potato"}}});
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
            ("response_format", json!({"type": "json_schema"}), "invalid_value"),
            ("response_format", schema, "invalid_value"),
            ("response_format", json!("json"), "invalid_value"),
            ("tool_choice", json!("required"), "invalid_value"),
            ("tool_choice", function, "invalid_value"),
            ("thinking_budget", json!(-1), "invalid_value"),
            ("reasoning_effort", json!("extreme"), "invalid_value"),
            ("structured_outputs", json!({"regex": "(", "json": {}}), "invalid_value"),
            ("structured_outputs", json!({"regex": "(", "grammar": "x"}), "invalid_value"),
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
