//! Errors in Anthropic's shape: `{"type": "error", "error": {"type", "message"}}`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::ApiError;

/// The response with the error in it, if there is one, in Anthropic's shape. `param`, which that has no place for,
/// stands beside it.
pub(crate) async fn in_own_shape(response: Response) -> Response {
    let Some(error) = response.extensions().get::<ApiError>() else { return response };
    let own = Json(body(error)).into_response();
    let (mut parts, _) = response.into_parts();
    let (own_parts, own_body) = own.into_parts();
    parts.headers.extend(own_parts.headers);
    parts.headers.remove(axum::http::header::CONTENT_LENGTH);
    Response::from_parts(parts, own_body)
}

/// The error as a body, or as the data of an event.
pub(super) fn body(error: &ApiError) -> Value {
    let kind = match error.status() {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_client_error() => "invalid_request_error",
        _ => "api_error",
    };
    let param = error.body()["error"]["param"].take();
    json!({"type": "error", "error": {"type": kind, "message": error.message(), "param": param}})
}
