//! A model behind the routes of a server in this process.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, header};
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
    authorization: Option<axum::http::HeaderValue>,
}

impl RouterEndpoint {
    /// The server of these routes.
    pub fn new(router: Router) -> RouterEndpoint {
        RouterEndpoint { router, authorization: None }
    }

    /// The same for a client that showed these headers.
    pub(super) fn on_behalf(&self, headers: &HeaderMap) -> RouterEndpoint {
        let authorization = headers.get(header::AUTHORIZATION).cloned();
        RouterEndpoint { router: self.router.clone(), authorization }
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
        if let Some(authorization) = &self.authorization {
            builder = builder.header(header::AUTHORIZATION, authorization);
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
