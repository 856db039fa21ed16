//! The API keys.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use subtle::{Choice, ConstantTimeEq};

use crate::error::ApiError;
use crate::state::AppState;

/// Lets a request pass that carries one of the keys, if there are any.
///
/// # Errors
/// 401 for a missing or wrong key.
pub(crate) async fn require_key(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
    next: Next,
) -> Result<Response, ApiError> {
    let keys = &state.frontend.options.api_keys;
    if !keys.is_empty() {
        let given = given_key(&request).ok_or_else(|| {
            ApiError::unauthorized(
                "This server needs an API key, as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
            )
        })?;
        // All are compared, so that the time does not tell which was nearly right.
        let is_right = keys.iter().fold(Choice::from(0), |found, key| found | given.ct_eq(key.as_bytes()));
        if !bool::from(is_right) {
            return Err(ApiError::unauthorized("The API key is wrong."));
        }
    }
    Ok(next.run(request).await)
}

/// The key that a request carries, in either way.
pub(crate) fn given_key(request: &Request<Body>) -> Option<&[u8]> {
    bearer(request).or_else(|| Some(request.headers().get("x-api-key")?.as_bytes()))
}

fn bearer(request: &Request<Body>) -> Option<&[u8]> {
    let value = request.headers().get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
}
