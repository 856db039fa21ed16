//! A model behind the routes of a server in this process.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, HeaderName, Request, header};
use axum::response::Response;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tower::ServiceExt;

use super::endpoint::{ChatEndpoint, Chunks, EndpointError, PATH, chunks, completion, refused};

/// Bytes of a whole answer at most.
const ANSWER: usize = 256 << 20;

/// The chat API of a server in this process.
#[derive(Debug, Clone)]
pub struct RouterEndpoint {
    router: Router,
    /// What shows that the client may ask.
    credentials: HeaderMap,
}

/// Headers that carry a key.
const CREDENTIALS: [HeaderName; 2] = [header::AUTHORIZATION, HeaderName::from_static("x-api-key")];

impl RouterEndpoint {
    /// The server of these routes.
    pub fn new(router: Router) -> RouterEndpoint {
        RouterEndpoint { router, credentials: HeaderMap::new() }
    }

    /// The same for a client that showed these headers.
    pub(super) fn on_behalf(&self, headers: &HeaderMap) -> RouterEndpoint {
        let shown =
            CREDENTIALS.into_iter().filter_map(|name| Some((name.clone(), headers.get(name)?.clone())));
        RouterEndpoint { router: self.router.clone(), credentials: shown.collect() }
    }

    /// The server's own answer to a request.
    pub(super) async fn pass(&self, request: Request<Body>) -> Response {
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    async fn send(&self, request: &Value) -> Result<Response, EndpointError> {
        let mut builder =
            Request::post(format!("/v1{PATH}")).header(header::CONTENT_TYPE, "application/json");
        for (name, value) in &self.credentials {
            builder = builder.header(name, value);
        }
        let request = builder
            .body(Body::from(request.to_string()))
            .map_err(|error| EndpointError::Failed(error.to_string()))?;
        let response = self.pass(request).await;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = to_bytes(response.into_body(), ANSWER).await.unwrap_or_default();
        Err(refused(status.as_u16(), &body))
    }
}

impl ChatEndpoint for RouterEndpoint {
    fn complete(&self, request: Value) -> BoxFuture<'_, Result<Value, EndpointError>> {
        async move {
            let body = to_bytes(self.send(&request).await?.into_body(), ANSWER).await;
            completion(&body.map_err(|error| EndpointError::Failed(error.to_string()))?)
        }
        .boxed()
    }

    fn stream(&self, request: Value) -> BoxFuture<'_, Result<Chunks, EndpointError>> {
        async move { Ok(chunks(self.send(&request).await?.into_body().into_data_stream())) }.boxed()
    }
}
