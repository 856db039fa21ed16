//! From the bytes of a request to a typed value, under the limits on size, time and nesting.

use axum::body::{Body, Bytes};
use axum::http::Request;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use std::sync::Arc;
use std::time::Duration;

use crate::error::ApiError;

/// Unit in which the body budget is counted, in bytes.
const BUDGET_UNIT: usize = 1024;

/// Bounds what request bodies may hold of memory, one by one and together.
#[derive(Debug)]
pub(crate) struct BodyReader {
    limit: usize,
    timeout: Duration,
    budget: Arc<Semaphore>,
}

/// A body read whole. Its share of the budget comes back when it is dropped.
#[derive(Debug)]
pub(crate) struct ReadBody {
    pub bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

impl BodyReader {
    /// Bodies of at most `limit` bytes, `budget` bytes over all of them (at least one body's worth), each to
    /// arrive within `timeout`.
    pub fn new(limit: usize, budget: usize, timeout: Duration) -> BodyReader {
        let units = budget.max(limit).div_ceil(BUDGET_UNIT).min(Semaphore::MAX_PERMITS);
        BodyReader { limit, timeout, budget: Arc::new(Semaphore::new(units)) }
    }

    /// Reads the body of `request`.
    ///
    /// # Errors
    /// 413 above the limit, 408 when it is too slow, 429 when the budget is used up, 400 when it breaks off.
    pub async fn read(&self, request: Request<Body>) -> Result<ReadBody, ApiError> {
        let too_large = || ApiError::body_too_large(self.limit);
        if content_length(&request).is_some_and(|length| length > self.limit as u64) {
            return Err(too_large());
        }
        let mut share = self.share(0)?;
        let mut stream = request.into_body().into_data_stream();
        let read = async {
            let mut bytes = Vec::new();
            while let Some(piece) = stream.next().await {
                let piece = piece.map_err(|error| {
                    ApiError::invalid_request(format!("The request body broke off: {error}."))
                })?;
                let length = bytes.len() + piece.len();
                if length > self.limit {
                    return Err(too_large());
                }
                let missing = length.div_ceil(BUDGET_UNIT) - share.num_permits();
                share.merge(self.share(missing)?);
                bytes.extend_from_slice(&piece);
            }
            Ok(Bytes::from(bytes))
        };
        let bytes =
            tokio::time::timeout(self.timeout, read).await.map_err(|_| ApiError::body_timeout())??;
        Ok(ReadBody { bytes, _share: share })
    }

    /// `units` of the budget.
    fn share(&self, units: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        u32::try_from(units)
            .ok()
            .and_then(|units| Arc::clone(&self.budget).try_acquire_many_owned(units).ok())
            .ok_or_else(|| ApiError::overloaded("Too many large requests at once; try again shortly."))
    }
}

fn content_length(request: &Request<Body>) -> Option<u64> {
    request.headers().get(axum::http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Parses a JSON object; unknown fields are accepted. Nesting deeper than 128 levels is an error (serde_json's
/// own limit), so that nothing that walks the value can run out of stack.
///
/// # Errors
/// 400: `invalid_json` where the text is not JSON, otherwise with the path of the wrong field as `param`.
pub(crate) fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // serde would take an array for the fields in order.
    if bytes.trim_ascii_start().first().is_some_and(|&first| first != b'{') {
        return Err(ApiError::invalid_json("The request body must be a JSON object."));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        match error.classify() {
            serde_json::error::Category::Data if path != "." => {
                ApiError::invalid_param(path.clone(), format!("Wrong value for `{path}`: {error}."))
            }
            serde_json::error::Category::Data => {
                ApiError::invalid_request(format!("Wrong request body: {error}."))
            }
            _ => not_json(&error),
        }
    })?;
    deserializer.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

fn not_json(error: &serde_json::Error) -> ApiError {
    ApiError::invalid_json(format!("The request body is not valid JSON: {error}."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;
    use serde::Deserialize;
    use serde_json::Value;

    #[derive(Debug, Deserialize)]
    struct Outer {
        inner: Inner,
        #[serde(default)]
        list: Vec<Value>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        count: u32,
    }

    fn fault(json: &str) -> ApiError {
        parse_json::<Outer>(json.as_bytes()).expect_err("the body was accepted")
    }

    #[test]
    fn a_wrong_type_is_named_by_its_path() {
        let error = fault(r#"{"inner": {"count": "many"}}"#);
        assert_eq!(error.param(), Some("inner.count"));
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn text_that_is_not_json_is_said_to_be_none() {
        for json in ["", "{", r#"{"inner": {"count": 1}} x"#, "{'inner': 1}", "\u{0}", "[[1]]", "1"] {
            assert_eq!(fault(json).code(), Some("invalid_json"), "{json:?}");
        }
        let invalid_utf8 = parse_json::<Value>(b"{\"a\": \"\xff\"}").unwrap_err();
        assert_eq!(invalid_utf8.code(), Some("invalid_json"));
    }

    #[test]
    fn nesting_without_end_is_refused_and_unknown_fields_are_skipped() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert_eq!(
            fault(&format!(r#"{{"inner": {{"count": 1}}, "list": {deep}}}"#)).code(),
            Some("invalid_json")
        );
        let known: Outer =
            parse_json(format!(r#"{{"inner": {{"count": 1}}, "unknown": {deep}}}"#).as_bytes()).unwrap();
        assert_eq!((known.inner.count, known.list.len()), (1, 0));
    }

    fn post(body: Body, length: Option<usize>) -> Request<Body> {
        let mut request = Request::builder();
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        request.body(body).unwrap()
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_whether_announced_or_not() {
        let reader = BodyReader::new(8, 64, Duration::from_secs(5));
        for length in [None, Some(9)] {
            let refused = reader.read(post(Body::from("123456789"), length)).await.unwrap_err();
            assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
        }
        let read = reader.read(post(Body::from("12345678"), Some(8))).await.unwrap();
        assert_eq!(&read.bytes[..], b"12345678");
    }

    #[tokio::test]
    async fn bodies_share_one_budget_and_give_it_back() {
        let reader = BodyReader::new(2 * BUDGET_UNIT, 3 * BUDGET_UNIT, Duration::from_secs(5));
        let body = || post(Body::from(vec![b' '; 2 * BUDGET_UNIT]), Some(2 * BUDGET_UNIT));
        let held = reader.read(body()).await.unwrap();
        assert_eq!(reader.read(body()).await.unwrap_err().status(), StatusCode::TOO_MANY_REQUESTS);
        drop(held);
        reader.read(body()).await.unwrap();
    }

    #[tokio::test]
    async fn a_body_that_never_ends_times_out() {
        let reader = BodyReader::new(8, 64, Duration::from_millis(10));
        let endless = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let refused = reader.read(post(endless, None)).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
    }
}
