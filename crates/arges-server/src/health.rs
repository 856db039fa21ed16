//! `/health` (the process lives) and `/ready` (it takes work), for load balancers; no key needed.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::state::AppState;

/// Always 200 while the server runs, with what the engine is doing.
pub(crate) async fn health(State(state): State<Arc<AppState>>) -> Json<Value> {
    let stats = state.engine.stats();
    Json(json!({ "status": "ok", "running": stats.running, "waiting": stats.waiting }))
}

/// 200 while requests are taken, 503 once the server is shutting down.
pub(crate) async fn ready(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    if state.is_draining() { Err(ApiError::shutting_down()) } else { Ok(Json(json!({ "status": "ready" }))) }
}
