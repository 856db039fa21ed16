//! The API key.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use subtle::ConstantTimeEq;

use crate::error::ApiError;
use crate::state::AppState;

/// Lets a request pass that carries the key, if there is one.
///
/// # Errors
/// 401 for a missing or wrong key.
pub(crate) async fn require_key(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
    next: Next,
) -> Result<Response, ApiError> {
    if let Some(key) = &state.frontend.options.api_key {
        let given = bearer(&request).or_else(|| Some(request.headers().get("x-api-key")?.as_bytes()));
        let given = given.ok_or_else(|| {
            ApiError::unauthorized(
                "This server needs an API key, as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
            )
        })?;
        if !bool::from(given.ct_eq(key.as_bytes())) {
            return Err(ApiError::unauthorized("The API key is wrong."));
        }
    }
    Ok(next.run(request).await)
}

fn bearer(request: &Request<Body>) -> Option<&[u8]> {
    let value = request.headers().get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
}
