//! A model at an address.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;

use super::endpoint::{ChatEndpoint, Chunks, EndpointError, PATH, chunks, completion, refused};
use crate::http;

const CONNECT: Duration = Duration::from_secs(10);

/// An OpenAI-compatible server.
#[derive(Debug, Clone)]
pub struct HttpEndpoint {
    client: Client,
    base: String,
    key: Option<String>,
}

impl HttpEndpoint {
    /// The server whose API begins at `base`, such as `http://127.0.0.1:8000/v1`; a base without a path gets `/v1`.
    ///
    /// # Errors
    /// An address that is none, and TLS that cannot be set up.
    pub fn new(base: &str, key: Option<String>) -> Result<HttpEndpoint, EndpointError> {
        let parsed = reqwest::Url::parse(base).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let Some(parsed) = parsed else {
            return Err(EndpointError::Failed(format!(
                "{base:?} is not an address of the form http://… or https://…"
            )));
        };
        let version = if parsed.path() == "/" { "/v1" } else { "" };
        let client = http::client(CONNECT).map_err(|error| EndpointError::Failed(http::reason(error)))?;
        Ok(HttpEndpoint { client, base: format!("{}{version}", base.trim_end_matches('/')), key })
    }

    /// The first model that the server names, if it names any.
    ///
    /// # Errors
    /// A server that cannot be reached or refuses to tell.
    pub async fn first_model(&self) -> Result<Option<String>, EndpointError> {
        let response = self.answered(self.client.get(format!("{}/models", self.base))).await?;
        let body = response.bytes().await.map_err(|error| EndpointError::Failed(http::reason(error)))?;
        let models: Value =
            serde_json::from_slice(&body).map_err(|error| EndpointError::Answer(error.to_string()))?;
        Ok(models["data"][0]["id"].as_str().map(str::to_owned))
    }

    async fn send(&self, request: &Value) -> Result<Response, EndpointError> {
        self.answered(self.client.post(format!("{}{PATH}", self.base)).json(request)).await
    }

    async fn answered(&self, mut builder: RequestBuilder) -> Result<Response, EndpointError> {
        if let Some(key) = &self.key {
            builder = builder.bearer_auth(key);
        }
        let failed = |error| EndpointError::Failed(format!("{}: {}", self.base, http::reason(error)));
        let response = builder.send().await.map_err(failed)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        Err(refused(status.as_u16(), &response.bytes().await.unwrap_or_default()))
    }
}

impl ChatEndpoint for HttpEndpoint {
    fn complete(&self, request: Value) -> BoxFuture<'_, Result<Value, EndpointError>> {
        async move {
            let body = self.send(&request).await?.bytes().await;
            completion(&body.map_err(|error| EndpointError::Failed(http::reason(error)))?)
        }
        .boxed()
    }

    fn stream(&self, request: Value) -> BoxFuture<'_, Result<Chunks, EndpointError>> {
        async move { Ok(chunks(self.send(&request).await?.bytes_stream())) }.boxed()
    }
}
