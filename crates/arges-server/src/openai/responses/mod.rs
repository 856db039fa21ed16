//! `POST /v1/responses`, without memory of earlier ones: clients send the whole conversation again.

mod body;
mod input;
mod stream;

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::answer::sse;
use crate::answer::whole::Answer;
use crate::error::ApiError;
use crate::extract::parse_json;
use crate::frontend::Frontend;
use crate::job::Job;
use crate::request::chat::ChatRequest;
use crate::request::fields::{SharedFields, in_range};
use crate::request::format::openai_format;
use crate::request::thinking;
use crate::request::tools::{Tools, openai_choice};
use crate::state::AppState;
use body::{Echo, Outcome};
use stream::ResponseNarrator;

/// Fields of the request. Those that ask for what this server has not are read so that they can be refused; all other
/// unknown fields are ignored.
#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct ResponseFields {
    model: Option<String>,
    input: Option<Value>,
    instructions: Option<String>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    text: Option<TextFields>,
    reasoning: Option<ReasoningFields>,
    /// An extension: tokens of thinking at most.
    thinking_budget: Option<i64>,
    max_output_tokens: Option<i64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    seed: Option<i64>,
    stream: Option<bool>,
    metadata: Option<Map<String, Value>>,
    previous_response_id: Option<String>,
    conversation: Option<Value>,
    background: Option<bool>,
    prompt: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct TextFields {
    format: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct ReasoningFields {
    effort: Option<String>,
}

/// Handles the request.
pub(crate) async fn create(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let body = state.bodies.read(request).await?;
    let (job, echo) = state.frontend.run(body, prepare).await?;
    let events = job.submit(&state.engine, &state.metrics)?.into_iter().next();
    let events = events.ok_or_else(|| ApiError::internal("The request has no answer."))?;
    if job.settings.stream {
        let events = sse::narrate(ResponseNarrator::new(echo), events);
        return Ok(sse::response(events, &state.frontend.options));
    }
    let answer = Answer::of(events, false).await?;
    let end = answer.end;
    Ok(Json(echo.response(&body::items(answer), Outcome::of(&end))).into_response())
}

/// From the body to a job, and what the response repeats of the request.
fn prepare(frontend: &Frontend, body: &[u8]) -> Result<(Job, Echo), ApiError> {
    let fields: ResponseFields = parse_json(body)?;
    fields.refuse_unsupported()?;
    let echo = Echo::new(frontend, &fields);
    let shared = SharedFields {
        model: fields.model,
        temperature: fields.temperature,
        top_p: fields.top_p,
        seed: fields.seed,
        stream: fields.stream,
        ..SharedFields::default()
    };
    let settings = shared.validate(&frontend.options)?;
    let max_tokens = in_range("max_output_tokens", fields.max_output_tokens, 1..=i64::MAX)?;
    let effort = fields.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_deref());
    let format = fields.text.as_ref().and_then(|text| text.format.as_ref());
    let input = fields.input.ok_or_else(|| ApiError::missing_param("input"))?;
    let tools = fields.tools.unwrap_or_default().into_iter().enumerate();
    let request = ChatRequest {
        messages_param: "input",
        messages: input::messages(fields.instructions, input)?,
        tools: Tools::new(
            tools
                .filter(|(_, tool)| !is_hosted(tool))
                .map(|(index, tool)| function(index, tool))
                .collect::<Result<_, _>>()?,
            openai_choice(fields.tool_choice.as_ref())?,
            fields.parallel_tool_calls.unwrap_or(true),
            |index| format!("tools[{index}]"),
        )?,
        format: openai_format("text.format", format)?.map(|format| ("text.format", format)),
        thinking_budget: thinking::budget(fields.thinking_budget, effort, "reasoning.effort")?,
        add_generation_prompt: true,
        settings,
        max_tokens: max_tokens.map(|tokens| tokens as usize),
        logprobs: None,
    };
    Ok((request.prepare(frontend)?, echo))
}

/// Tools that a provider runs on its own side, by the beginning of their types. Agents offer them to whatever server
/// they talk to.
const HOSTED: [&str; 7] = [
    "web_search",
    "file_search",
    "code_interpreter",
    "image_generation",
    "computer_use",
    "mcp",
    "tool_search",
];

/// Whether the tool is none of this server's: the model is not told of it.
fn is_hosted(tool: &Value) -> bool {
    let kind = tool.get("type").and_then(Value::as_str).unwrap_or_default();
    HOSTED.iter().any(|hosted| kind.starts_with(hosted))
}

/// The tool as the model is shown it.
fn function(index: usize, mut tool: Value) -> Result<Value, ApiError> {
    match tool.get("type").and_then(Value::as_str) {
        Some("function") => {
            tool.as_object_mut().and_then(|tool| tool.shift_remove("type"));
            Ok(tool)
        }
        Some(kind) => {
            let message = format!("Tools of type `{kind}` are not supported; only functions are.");
            Err(ApiError::unsupported(format!("tools[{index}]"), message))
        }
        None => {
            Err(ApiError::invalid_param(format!("tools[{index}]"), "A tool must be an object with a `type`."))
        }
    }
}

impl ResponseFields {
    fn refuse_unsupported(&self) -> Result<(), ApiError> {
        let stateless =
            "is not supported: this server keeps no responses. Send the whole conversation as `input`.";
        for (param, given, why) in [
            ("previous_response_id", self.previous_response_id.is_some(), stateless),
            ("conversation", self.conversation.is_some(), stateless),
            ("background", self.background == Some(true), stateless),
            ("prompt", self.prompt.is_some(), "is not supported; use `input`."),
        ] {
            if given {
                return Err(ApiError::unsupported(param, format!("`{param}` {why}")));
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

    fn fault(fields: Value) -> (String, &'static str) {
        let error = prepare(&frontend(512), fields.to_string().as_bytes()).expect_err("it was accepted");
        (error.param().unwrap_or_default().to_owned(), error.code().unwrap_or_default())
    }

    #[test]
    fn what_is_wrong_or_unsupported_is_refused_by_name() {
        let missing = (String::from("input"), "missing_required_parameter");
        assert_eq!(fault(json!({})), missing);
        for (field, value, param, code) in [
            ("input", json!([]), "input", "invalid_value"),
            ("input", json!(7), "input", "invalid_value"),
            ("input", json!([{"type": "item_reference", "id": "x"}]), "input[0]", "unsupported_value"),
            ("tools", json!([{"type": "custom", "name": "f"}]), "tools[0]", "unsupported_value"),
            ("tools", json!([{"type": "function"}]), "tools[0]", "invalid_value"),
            ("tool_choice", json!("required"), "tool_choice", "invalid_value"),
            ("text", json!({"format": {"type": "xml"}}), "text.format", "invalid_value"),
            ("reasoning", json!({"effort": "extreme"}), "reasoning.effort", "invalid_value"),
            ("thinking_budget", json!(-5), "thinking_budget", "invalid_value"),
            ("max_output_tokens", json!(0), "max_output_tokens", "invalid_value"),
            ("previous_response_id", json!("resp_1"), "previous_response_id", "unsupported_value"),
            ("background", json!(true), "background", "unsupported_value"),
            ("temperature", json!(9), "temperature", "invalid_value"),
        ] {
            let mut fields = json!({"input": "hi"});
            fields[field] = value;
            assert_eq!(fault(fields), (param.to_owned(), code), "{field}");
        }
    }

    #[test]
    fn tools_of_a_providers_own_are_left_out() {
        let job = |tools: Value| {
            let fields = json!({"input": "hi", "tools": tools});
            prepare(&frontend(512), fields.to_string().as_bytes()).unwrap().0
        };
        assert_eq!(job(json!([{"type": "web_search_preview"}, {"type": "mcp"}])), job(json!([])));
        let function = json!({"type": "function", "name": "f"});
        assert_ne!(job(json!([{"type": "web_search"}, function])), job(json!([])));
    }

    #[test]
    fn text_and_a_message_of_it_are_the_same() {
        let job = |input: Value| {
            let fields = json!({"input": input, "instructions": "Be brief.", "store": true, "include": []});
            prepare(&frontend(512), fields.to_string().as_bytes()).unwrap().0
        };
        let part = json!({"type": "input_text", "text": "hi"});
        assert_eq!(job(json!("hi")), job(json!([{"type": "message", "role": "user", "content": [part]}])));
    }
}
