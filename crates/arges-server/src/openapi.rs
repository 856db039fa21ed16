//! `GET /openapi.json`: what the server understands, for tools that read such descriptions.

use axum::http::header;
use axum::response::IntoResponse;

/// The description; a test holds it against the routes there are.
pub(crate) const DOCUMENT: &str = include_str!("../openapi.json");

/// Handles the request.
pub(crate) async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT)
}
