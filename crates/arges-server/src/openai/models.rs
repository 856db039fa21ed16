//! `GET /v1/models` and `GET /v1/models/{id}`: the one model there is.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::state::AppState;

/// The list of models.
pub(crate) async fn list(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!({ "object": "list", "data": [describe(&state)] }))
}

/// One model; the id may hold slashes.
pub(crate) async fn retrieve(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let served = &state.frontend.options.model_name;
    if &id == served { Ok(Json(describe(&state))) } else { Err(ApiError::model_not_found(&id, served)) }
}

fn describe(state: &AppState) -> Value {
    json!({
        "id": state.frontend.options.model_name,
        "object": "model",
        "created": state.started,
        "owned_by": "arges",
        "max_model_len": state.frontend.max_context,
    })
}
