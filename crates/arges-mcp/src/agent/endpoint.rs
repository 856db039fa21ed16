//! Where a model is asked.

use std::fmt::Display;

use axum::body::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, TryStreamExt};
use serde_json::Value;
use sse_stream::SseStream;
use thiserror::Error;

/// The path of OpenAI's chat API, after the base.
pub(super) const PATH: &str = "/chat/completions";
/// Characters of an error's body that are told.
const EXCERPT: usize = 500;

/// A model that did not answer.
#[derive(Debug, Error)]
pub enum EndpointError {
    /// The request was refused.
    #[error("the endpoint refuses the request ({status}): {message}")]
    Refused { status: u16, message: String },
    /// The answer is not one of OpenAI's API.
    #[error("the endpoint's answer is not understood: {0}")]
    Answer(String),
    /// The endpoint cannot be reached, or the answer broke off.
    #[error("the endpoint fails: {0}")]
    Failed(String),
}

/// Chunks of an answer, in order.
pub type Chunks = BoxStream<'static, Result<Value, EndpointError>>;

/// Something that speaks OpenAI's chat API.
pub trait ChatEndpoint: Send + Sync {
    /// A whole answer.
    fn complete(&self, request: Value) -> BoxFuture<'_, Result<Value, EndpointError>>;

    /// An answer in pieces.
    fn stream(&self, request: Value) -> BoxFuture<'_, Result<Chunks, EndpointError>>;
}

/// The chunks in a stream of server-sent events.
pub(super) fn chunks<E: Display + Send + 'static>(
    bytes: impl Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static,
) -> Chunks {
    let bytes = bytes.map_err(|error| std::io::Error::other(error.to_string()));
    let events = SseStream::from_bytes_stream(bytes);
    let data = events.filter_map(|event| async move {
        match event {
            Ok(event) => event.data.filter(|data| data != "[DONE]").map(Ok),
            Err(error) => Some(Err(EndpointError::Failed(error.to_string()))),
        }
    });
    data.map(|data| chunk(&data?)).boxed()
}

fn chunk(data: &str) -> Result<Value, EndpointError> {
    let chunk: Value =
        serde_json::from_str(data).map_err(|error| EndpointError::Answer(format!("{error}: {data:.100}")))?;
    match chunk.get("error").filter(|error| !error.is_null()) {
        Some(error) => Err(EndpointError::Failed(message_of(error))),
        None if !chunk.is_object() => Err(EndpointError::Answer(format!("{data:.100} is not a JSON object"))),
        None => Ok(chunk),
    }
}

/// The error of an answer whose status is not 200.
pub(super) fn refused(status: u16, body: &[u8]) -> EndpointError {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let message = match parsed.as_ref().and_then(|body| body.get("error")) {
        Some(error) => message_of(error),
        None => String::from_utf8_lossy(body).chars().take(EXCERPT).collect(),
    };
    EndpointError::Refused { status, message }
}

fn message_of(error: &Value) -> String {
    error["message"].as_str().or(error.as_str()).map_or_else(|| error.to_string(), str::to_owned)
}

/// A whole answer from its bytes.
pub(super) fn completion(body: &[u8]) -> Result<Value, EndpointError> {
    let answer: Value =
        serde_json::from_slice(body).map_err(|error| EndpointError::Answer(error.to_string()))?;
    if answer["choices"][0]["message"].is_object() {
        Ok(answer)
    } else {
        Err(EndpointError::Answer("it has no `choices[0].message`".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunks_are_read_however_the_bytes_are_cut() {
        let text = "data: {\"a\":1}\n\n: alive\n\ndata: {\"b\":\"ü\"}\r\n\r\ndata: [DONE]\n\n";
        for size in [1, 3, 1000] {
            let pieces: Vec<Result<Bytes, std::convert::Infallible>> =
                text.as_bytes().chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            let read: Vec<Value> = chunks(futures_util::stream::iter(pieces)).try_collect().await.unwrap();
            assert_eq!(read, [serde_json::json!({ "a": 1 }), serde_json::json!({ "b": "ü" })]);
        }
    }

    #[test]
    fn an_error_is_told_in_the_words_of_the_endpoint() {
        let error = refused(400, br#"{"error": {"message": "no such model"}}"#);
        assert_eq!(error.to_string(), "the endpoint refuses the request (400): no such model");
        assert_eq!(
            chunk(r#"{"error": {"message": "out of memory"}}"#).unwrap_err().to_string(),
            "the endpoint fails: out of memory"
        );
    }
}
