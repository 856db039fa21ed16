//! Anthropic's API: messages, and counting their tokens.

mod body;
mod error;
mod input;
mod stream;

use std::sync::Arc;

use arges_text::grammar::Format;
use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::answer::sse;
use crate::answer::whole::Answer;
use crate::error::ApiError;
use crate::extract::parse_json;
use crate::frontend::Frontend;
use crate::job::Job;
use crate::request::chat::ChatRequest;
use crate::request::fields::{SharedFields, in_range};
use crate::request::format::openai_format;
use crate::request::input::StopInput;
use crate::request::thinking;
use crate::request::tools::{ToolChoice, Tools};
use crate::state::AppState;
use body::Head;
use stream::MessageNarrator;

pub(crate) use error::in_own_shape;

/// Fields of the request. Fields that are not known are ignored, `cache_control` among them.
#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct MessageFields {
    model: Option<String>,
    messages: Option<Vec<Value>>,
    system: Option<Value>,
    max_tokens: Option<i64>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    thinking: Option<ThinkingFields>,
    output_config: Option<OutputFields>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct ThinkingFields {
    #[serde(rename = "type")]
    kind: String,
    budget_tokens: Option<i64>,
    display: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct OutputFields {
    effort: Option<String>,
    format: Option<Value>,
}

/// What is wanted of thinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Thinking {
    budget: Option<usize>,
    /// Whether it is given out.
    shown: bool,
}

/// Handles `POST /v1/messages`.
pub(crate) async fn create(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let body = state.bodies.read(request).await?;
    let (job, head) = state.frontend.run(body, prepare).await?;
    let events = job.submit(&state.engine, &state.metrics)?.into_iter().next();
    let events = events.ok_or_else(|| ApiError::internal("The request has no answer."))?;
    if job.settings.stream {
        let events = sse::narrate(MessageNarrator::new(head), events);
        return Ok(sse::response(events, &state.frontend.options));
    }
    Ok(Json(head.message(Answer::of(events, false).await?)).into_response())
}

/// Handles `POST /v1/messages/count_tokens`.
pub(crate) async fn count_tokens(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
) -> Result<Json<Value>, ApiError> {
    let body = state.bodies.read(request).await?;
    let count = |frontend: &Frontend, body: &[u8]| {
        let fields: MessageFields = parse_json(body)?;
        let (request, _) = fields.request(frontend)?;
        Ok(request.prompt(frontend)?.len())
    };
    let tokens = state.frontend.run(body, count).await?;
    Ok(Json(json!({ "input_tokens": tokens })))
}

/// From the body to a job, and what the message's envelope says.
fn prepare(frontend: &Frontend, body: &[u8]) -> Result<(Job, Head), ApiError> {
    let fields: MessageFields = parse_json(body)?;
    if fields.max_tokens.is_none() {
        return Err(ApiError::missing_param("max_tokens"));
    }
    let (request, thinking) = fields.request(frontend)?;
    let stops = request.settings.stop.strings.clone();
    let job = request.prepare(frontend)?;
    let head = Head::new(frontend, job.prompts[0].ids.len(), stops, thinking.shown);
    Ok((job, head))
}

impl MessageFields {
    /// The conversation to be answered.
    ///
    /// # Errors
    /// 400 with the field at fault.
    fn request(self, frontend: &Frontend) -> Result<(ChatRequest, Thinking), ApiError> {
        let max_tokens = in_range("max_tokens", self.max_tokens, 1..=i64::MAX)?;
        let thinking = wanted_thinking(self.thinking, max_tokens)?;
        let output = self.output_config.as_ref();
        let format = output_format(output.and_then(|output| output.format.as_ref()))?;
        let effort = output.and_then(|output| output.effort.as_deref());
        let shared = SharedFields {
            model: self.model,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            stop: self.stop_sequences.map(StopInput),
            stream: self.stream,
            ..SharedFields::default()
        };
        let settings =
            shared.validate(&frontend.options).map_err(|error| error.renamed("stop", "stop_sequences"))?;
        let (choice, parallel) = tool_choice(self.tool_choice.as_ref())?;
        let tools = self.tools.unwrap_or_default().into_iter().enumerate();
        let tools = tools.map(|(index, tool)| input::tool(index, tool)).collect::<Result<_, _>>()?;
        let messages = self.messages.ok_or_else(|| ApiError::missing_param("messages"))?;
        let request = ChatRequest {
            messages_param: "messages",
            messages: input::messages(self.system, messages)?,
            tools: Tools::new(tools, choice, parallel, |index| format!("tools[{index}]"))?,
            format,
            thinking_budget: thinking.budget.or(self::effort(effort)?),
            add_generation_prompt: true,
            settings,
            max_tokens: max_tokens.map(|tokens| tokens as usize),
            logprobs: None,
        };
        Ok((request, thinking))
    }
}

/// `thinking`. A request that does not speak of it is answered by a model that thinks all the same, as M1 was trained
/// to, but not shown the thinking, which its client does not expect.
fn wanted_thinking(fields: Option<ThinkingFields>, max_tokens: Option<i64>) -> Result<Thinking, ApiError> {
    let Some(ThinkingFields { kind, budget_tokens, display }) = fields else {
        return Ok(Thinking { budget: None, shown: false });
    };
    let budget = in_range("thinking.budget_tokens", budget_tokens, 1..=i64::MAX)?;
    let shown = display.as_deref() != Some("omitted");
    match kind.as_str() {
        "disabled" => Ok(Thinking { budget: Some(0), shown: false }),
        "adaptive" | "between_tools" => Ok(Thinking { budget: None, shown }),
        "enabled" => match (budget, max_tokens) {
            (Some(budget), Some(max_tokens)) if budget >= max_tokens => {
                let message =
                    "`thinking.budget_tokens` must be less than `max_tokens`, or no answer would follow.";
                Err(ApiError::invalid_param("thinking.budget_tokens", message))
            }
            (budget, _) => Ok(Thinking { budget: budget.map(|tokens| tokens as usize), shown }),
        },
        _ => {
            let message = "`thinking.type` must be `enabled`, `disabled`, `adaptive` or `between_tools`.";
            Err(ApiError::invalid_param("thinking.type", message))
        }
    }
}

/// The budget that `output_config.effort` stands for.
fn effort(effort: Option<&str>) -> Result<Option<usize>, ApiError> {
    // The API's own word for the most.
    let effort = effort.map(|effort| if effort == "max" { "xhigh" } else { effort });
    thinking::budget(None, effort, "output_config.effort")
}

/// `output_config.format`.
fn output_format(format: Option<&Value>) -> Result<Option<(&'static str, Format)>, ApiError> {
    const PARAM: &str = "output_config.format";
    Ok(openai_format(PARAM, format)?.map(|format| match format {
        // Nothing else is said of how closely it is to be kept to.
        Format::JsonSchema { schema, .. } => (PARAM, Format::JsonSchema { schema, strict: true }),
        other => (PARAM, other),
    }))
}

/// `tool_choice`, and whether there may be several calls.
fn tool_choice(choice: Option<&Value>) -> Result<(ToolChoice, bool), ApiError> {
    let Some(choice) = choice.filter(|choice| !choice.is_null()) else { return Ok((ToolChoice::Auto, true)) };
    let parallel = choice.get("disable_parallel_tool_use").is_none_or(|disabled| disabled != true);
    let name = choice.get("name").and_then(Value::as_str);
    match (choice.get("type").and_then(Value::as_str), name) {
        (Some("auto"), _) => Ok((ToolChoice::Auto, parallel)),
        (Some("none"), _) => Ok((ToolChoice::None, parallel)),
        (Some("any"), _) => Ok((ToolChoice::Required, parallel)),
        (Some("tool"), Some(name)) => Ok((ToolChoice::Named(name.to_owned()), false)),
        _ => {
            let message =
                "`tool_choice` must be an object of type `auto`, `any`, `none`, or `tool` with a `name`.";
            Err(ApiError::invalid_param("tool_choice", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::testing::frontend;

    fn fault(field: &str, value: Value) -> String {
        let mut fields = json!({"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
        fields[field] = value;
        let error = prepare(&frontend(512), fields.to_string().as_bytes()).expect_err(field);
        error.param().unwrap_or_default().to_owned()
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        for (field, value, param) in [
            ("max_tokens", json!(null), "max_tokens"),
            ("max_tokens", json!(0), "max_tokens"),
            ("messages", json!([]), "messages"),
            ("messages", json!([{"role": "robot", "content": "hi"}]), "messages[0].role"),
            ("messages", json!([{"role": "user", "content": [{"type": "image"}]}]), "messages[0].content[0]"),
            ("system", json!(3), "system"),
            ("tools", json!([{"name": "f", "input_schema": 3}]), "tools[0].parameters"),
            ("tools", json!([{"type": "bash_20250124", "name": "bash"}]), "tools[0]"),
            ("tool_choice", json!({"type": "any"}), "tool_choice"),
            ("tool_choice", json!("auto"), "tool_choice"),
            ("thinking", json!({"type": "enabled", "budget_tokens": -1}), "thinking.budget_tokens"),
            ("thinking", json!({"type": "enabled", "budget_tokens": 9}), "thinking.budget_tokens"),
            ("thinking", json!({"type": "deep"}), "thinking.type"),
            ("output_config", json!({"effort": "extreme"}), "output_config.effort"),
            (
                "output_config",
                json!({"format": {"type": "json_schema", "schema": {"type": "potato"}}}),
                "output_config.format",
            ),
            ("stop_sequences", json!([""]), "stop_sequences"),
            ("temperature", json!(7), "temperature"),
            ("model", json!("claude"), "model"),
        ] {
            assert_eq!(fault(field, value), param, "{field}");
        }
    }

    #[test]
    fn thinking_is_shown_only_where_it_is_asked_for() {
        let of =
            |fields: Value| wanted_thinking(serde_json::from_value(fields).unwrap(), Some(5000)).unwrap();
        assert_eq!(of(json!(null)), Thinking { budget: None, shown: false });
        assert_eq!(of(json!({"type": "disabled"})), Thinking { budget: Some(0), shown: false });
        assert_eq!(of(json!({"type": "adaptive"})), Thinking { budget: None, shown: true });
        let omitted = json!({"type": "adaptive", "display": "omitted"});
        assert_eq!(of(omitted), Thinking { budget: None, shown: false });
        let enabled = json!({"type": "enabled", "budget_tokens": 1024});
        assert_eq!(of(enabled), Thinking { budget: Some(1024), shown: true });
    }
}
