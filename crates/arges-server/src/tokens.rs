//! `/tokenize`, `/detokenize` and `/tokenizer_info`: the tokenizer over HTTP, as in vLLM.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::extract::parse_json;
use crate::frontend::Frontend;
use crate::openai::chat;
use crate::state::AppState;

/// A text, or else the fields of a chat request.
#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct TokenizeFields {
    prompt: Option<String>,
    return_token_strs: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct DetokenizeFields {
    tokens: Option<Vec<u32>>,
}

/// Handles `POST /tokenize`.
pub(crate) async fn tokenize(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
) -> Result<Json<Value>, ApiError> {
    let body = state.bodies.read(request).await?;
    state.frontend.run(body, |frontend, body| Ok(Json(tokens(frontend, body)?))).await
}

fn tokens(frontend: &Frontend, body: &[u8]) -> Result<Value, ApiError> {
    let fields: TokenizeFields = parse_json(body)?;
    let tokenizer = &frontend.tokenizer;
    let ids = match &fields.prompt {
        Some(prompt) => tokenizer.encode(prompt).map_err(|error| {
            ApiError::invalid_param("prompt", format!("The prompt cannot be tokenised: {error}."))
        })?,
        None => chat::request(frontend, body)?.prompt(frontend)?,
    };
    let strings = fields
        .return_token_strs
        .unwrap_or(false)
        .then(|| ids.iter().map(|id| tokenizer.decode(std::slice::from_ref(id))).collect::<Vec<String>>());
    Ok(json!({
        "count": ids.len(), "max_model_len": frontend.max_context, "tokens": ids, "token_strs": strings,
    }))
}

/// Handles `POST /detokenize`.
pub(crate) async fn detokenize(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
) -> Result<Json<Value>, ApiError> {
    let body = state.bodies.read(request).await?;
    let text = |frontend: &Frontend, body: &[u8]| {
        let fields: DetokenizeFields = parse_json(body)?;
        let ids = fields.tokens.ok_or_else(|| ApiError::missing_param("tokens"))?;
        let unknown = |id: &&u32| frontend.tokenizer.token_bytes(**id).is_none();
        match ids.iter().find(unknown) {
            Some(id) => Err(ApiError::invalid_param("tokens", format!("No token has the id {id}."))),
            None => Ok(Json(json!({ "prompt": frontend.tokenizer.decode(&ids) }))),
        }
    };
    state.frontend.run(body, text).await
}

/// Handles `GET /tokenizer_info`.
pub(crate) async fn tokenizer_info(State(state): State<Arc<AppState>>) -> Json<Value> {
    let tokenizer = &state.frontend.tokenizer;
    let text = |id: u32| tokenizer.decode(&[id]);
    Json(json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": tokenizer.vocab_size(),
        "eos_token": tokenizer.end_token().map(text),
        "eos_token_id": tokenizer.end_token(),
        "special_tokens": tokenizer.special_tokens(),
        "model_max_length": state.frontend.max_context,
    }))
}
