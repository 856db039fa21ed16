//! From a response to JSON, under limits.

use std::time::Duration;

use reqwest::Response;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use serde_json::Value;

use super::{CallError, Reply, Transfer};
use crate::http;

/// Characters of a body that are no answer of the API, in the error about it.
const EXCERPT: usize = 200;
/// Bytes of such a body that are read.
const EXCERPT_BYTES: usize = 4096;

impl Transfer {
    /// Reads a response of the API and takes its errors for what they are.
    pub(super) async fn reply(&self, what: &str, response: Response) -> Result<Reply, CallError> {
        let trace_id = header(response.headers(), "Trace-Id");
        let mut response = self.successful(what, response, &trace_id).await?;
        let is_html =
            header(response.headers(), CONTENT_TYPE.as_str()).is_some_and(|kind| kind.contains("html"));
        let limit = self.limits.json_bytes;
        let too_large = || CallError::TooLarge { what: what.to_owned(), limit };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        let mut share = None;
        while let Some(piece) = self.piece(what, &mut response).await? {
            let length = (bytes.len() + piece.len()) as u64;
            if length > limit {
                return Err(too_large());
            }
            if share.is_none() && length > self.limits.small_bytes {
                // What is not read meanwhile waits in the network.
                share = self.large_share().await;
            }
            bytes.extend_from_slice(&piece);
            if is_html && bytes.len() > EXCERPT_BYTES {
                break;
            }
        }
        let value = serde_json::from_slice(&bytes).ok().filter(Value::is_object);
        let Some(value) = value else {
            return Err(CallError::NotJson { what: what.to_owned(), excerpt: excerpt(&bytes), trace_id });
        };
        drop(bytes);
        check_base_resp(what, &value, &trace_id)?;
        Ok(Reply { what: what.to_owned(), value, trace_id, _share: share })
    }

    /// The response, unless its status tells of an error.
    pub(super) async fn successful(
        &self,
        what: &str,
        mut response: Response,
        trace_id: &Option<String>,
    ) -> Result<Response, CallError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = header(response.headers(), RETRY_AFTER.as_str());
        let mut bytes = Vec::new();
        while bytes.len() < EXCERPT_BYTES {
            let Ok(Some(piece)) = self.piece(what, &mut response).await else { break };
            bytes.extend_from_slice(&piece);
        }
        bytes.truncate(EXCERPT_BYTES);
        Err(CallError::Status {
            what: what.to_owned(),
            status: status.as_u16(),
            excerpt: excerpt(&bytes),
            trace_id: trace_id.clone(),
            retry_after: retry_after.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs),
        })
    }

    /// The next piece of a body.
    pub(super) async fn piece(
        &self,
        what: &str,
        response: &mut Response,
    ) -> Result<Option<axum::body::Bytes>, CallError> {
        let limit = self.limits.idle;
        let what = || what.to_owned();
        match tokio::time::timeout(limit, response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => Err(CallError::Broken { what: what(), reason: http::reason(error) }),
            Err(_) => Err(CallError::Timeout { what: what(), awaited: "more of the response", limit }),
        }
    }
}

/// The value of a header, if it is text.
pub(super) fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn check_base_resp(what: &str, value: &Value, trace_id: &Option<String>) -> Result<(), CallError> {
    let status = &value["base_resp"];
    let code = status["status_code"].as_i64();
    if code == Some(0) {
        return Ok(());
    }
    let what = what.to_owned();
    let trace_id = trace_id.clone();
    let Some(code) = code else {
        return Err(CallError::Missing { what, field: "base_resp.status_code", trace_id });
    };
    let message = status["status_msg"].as_str().unwrap_or("no message").to_owned();
    Err(CallError::Api { what, code, message, trace_id })
}

/// The beginning of a body on one line.
fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(EXCERPT_BYTES)]);
    let text: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()).collect();
    let text = text.join(" ");
    match text.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
