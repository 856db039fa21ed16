//! Follows requests: an id for each, a span for what is logged about it, and a count.
//!
//! Nothing that a client or the model wrote is logged, but the request's id.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use crate::answer::ids::unique_id;
use crate::state::AppState;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is taken from a client.
const MAX_ID: usize = 128;

/// Gives the request an id (its own `x-request-id`, or a new one), which its response carries too, and counts it by
/// route and status.
pub(crate) async fn follow(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let start = Instant::now();
    // What matches no route has no name of its own: clients choose it.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let id = given_id(&request).unwrap_or_else(|| unique_id("req_"));
    let model = &state.frontend.options.model_name;
    let span = tracing::info_span!("request", %id, method = %request.method(), api = route, model);
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    let seconds = start.elapsed().as_secs_f64();
    if status.is_client_error() || status.is_server_error() {
        tracing::info!(parent: &span, status = status.as_u16(), seconds, "refused");
    } else {
        tracing::debug!(parent: &span, status = status.as_u16(), seconds, "response begins");
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    state.metrics.requested(route, status.as_u16());
    response
}

/// The client's id, if it is one that can stand in a log: visible ASCII, and not long.
fn given_id(request: &Request<Body>) -> Option<String> {
    let id = request.headers().get(REQUEST_ID)?.to_str().ok()?;
    let is_plain = !id.is_empty() && id.len() <= MAX_ID && id.bytes().all(|byte| byte.is_ascii_graphic());
    is_plain.then(|| id.to_owned())
}
