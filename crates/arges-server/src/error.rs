//! Errors as clients see them, in the shape of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`.
//! `anthropic` writes the same errors in the shape of Anthropic's.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Seconds a client is asked to wait before it tries again after an overload or during a shutdown.
const RETRY_AFTER_SECONDS: u32 = 1;

/// An error as a client of the OpenAI API sees it.
///
/// `param` names the request field at fault as a path (`messages[1].content`), `code` is the machine-readable
/// reason clients branch on (`context_length_exceeded`, `model_not_found`, …).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, kind, message: message.into(), param: None, code: None }
    }

    fn with_param(mut self, param: impl Into<String>) -> ApiError {
        self.param = Some(param.into());
        self
    }

    /// The error with another machine-readable reason.
    pub fn with_code(mut self, code: &'static str) -> ApiError {
        self.code = Some(code);
        self
    }

    /// 400: the request cannot be understood as a whole (no single field is at fault).
    pub fn invalid_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 400: the body is not JSON.
    pub fn invalid_json(message: impl Into<String>) -> ApiError {
        ApiError::invalid_request(message).with_code("invalid_json")
    }

    /// 400: the value of `param` is wrong.
    pub fn invalid_param(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError::invalid_request(message).with_param(param).with_code("invalid_value")
    }

    /// 400: the field `param` is missing.
    pub fn missing_param(param: &'static str) -> ApiError {
        ApiError::invalid_request(format!("`{param}` is required."))
            .with_param(param)
            .with_code("missing_required_parameter")
    }

    /// 400: the value of `param` is legal in the API but this server does not implement it.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError::invalid_request(message).with_param(param).with_code("unsupported_value")
    }

    /// 400: prompt and answer do not fit the context.
    pub fn context_length(param: &'static str, message: impl Into<String>) -> ApiError {
        ApiError::invalid_request(message).with_param(param).with_code("context_length_exceeded")
    }

    /// 401: the API key is missing or wrong.
    pub fn unauthorized(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", message).with_code("invalid_api_key")
    }

    /// 404: this server serves another model.
    pub fn model_not_found(model: &str, served: &str) -> ApiError {
        let message = format!("The model `{model}` does not exist; this server serves `{served}`.");
        ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
            .with_param("model")
            .with_code("model_not_found")
    }

    /// 404: there is nothing at this path.
    pub fn unknown_path(method: &str, path: &str) -> ApiError {
        let message = format!("Unknown request URL: {method} {path}. See GET /v1/models for what is served.");
        ApiError::new(StatusCode::NOT_FOUND, "invalid_request_error", message).with_code("unknown_url")
    }

    /// 405: the path exists, but not with this method.
    pub fn wrong_method(method: &str, path: &str) -> ApiError {
        let message = format!("Method {method} is not allowed at {path}.");
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
            .with_code("method_not_allowed")
    }

    /// 408: the client did not send its body in time.
    pub fn body_timeout() -> ApiError {
        let message = "The request body did not arrive in time.";
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message).with_code("body_timeout")
    }

    /// 409: what was asked for was overtaken by something else.
    pub fn conflict(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, "invalid_request_error", message).with_code("conflict")
    }

    /// 413: the body is larger than `limit` bytes.
    pub fn body_too_large(limit: usize) -> ApiError {
        let message = format!("The request body is larger than the limit of {limit} bytes.");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
            .with_code("body_too_large")
    }

    /// 429 with Retry-After: the server has as much work as it takes.
    pub fn overloaded(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            .with_code("rate_limit_exceeded")
    }

    /// 503 with Retry-After: the server is shutting down.
    pub fn shutting_down() -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "The server is shutting down.")
            .with_code("shutting_down")
    }

    /// 500: the fault is ours.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message).with_code("internal_error")
    }

    /// The error with the field `from` called `to`, for an API that has another name for it.
    pub fn renamed(mut self, from: &str, to: &str) -> ApiError {
        if self.param.as_deref() == Some(from) {
            self.param = Some(to.to_owned());
            self.message = self.message.replace(&format!("`{from}`"), &format!("`{to}`"));
        }
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What happened, with the field at fault where that is not named yet.
    pub fn message(&self) -> String {
        match &self.param {
            Some(param) if !self.message.contains(param.as_str()) => format!("{param}: {}", self.message),
            _ => self.message.clone(),
        }
    }

    /// The body of the response; also what a stream sends as `data:` when it fails half way.
    pub fn body(&self) -> Value {
        json!({ "error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        // For layers that write it in the shape of another API.
        response.extensions_mut().insert(self.clone());
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // What is left of the body is not read, so the connection cannot be used again.
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
impl ApiError {
    pub fn param(&self) -> Option<&str> {
        self.param.as_deref()
    }

    pub fn code(&self) -> Option<&'static str> {
        self.code
    }
}
