//! What can go wrong with a call of MiniMax's API.

use std::time::Duration;

use thiserror::Error;

/// Whether a request may be sent again when it is not known what became of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It only reads, or costs nothing.
    Always,
    /// It may be charged: again only if the first was certainly not taken up.
    IfRefused,
}

/// A call that failed. Messages name the request, and the Trace-Id by which MiniMax's support finds it.
#[derive(Debug, Error)]
pub enum CallError {
    /// Nobody answered.
    #[error("{what}: cannot connect: {reason}")]
    Connect { what: String, reason: String },
    /// The answer, or a piece of it, took too long.
    #[error("{what}: no {awaited} within {} s", .limit.as_secs_f32())]
    Timeout { what: String, awaited: &'static str, limit: Duration },
    /// The connection broke, or the body was not what its head promised.
    #[error("{what}: the response broke off: {reason}")]
    Broken { what: String, reason: String },
    /// A status other than 2xx.
    #[error("{what}: HTTP status {status}{}{}", said(.excerpt), traced(.trace_id))]
    Status {
        what: String,
        status: u16,
        excerpt: String,
        trace_id: Option<String>,
        retry_after: Option<Duration>,
    },
    /// A body that is no JSON object, such as the page of a proxy.
    #[error("{what}: the response is not a JSON object{}{}", said(.excerpt), traced(.trace_id))]
    NotJson { what: String, excerpt: String, trace_id: Option<String> },
    /// A page where a file was to be.
    #[error("{what}: the address gives {content_type} and not a file")]
    NotAFile { what: String, content_type: String },
    /// More than may be taken.
    #[error("{what}: the response is larger than {limit} bytes")]
    TooLarge { what: String, limit: u64 },
    /// An error of the API: `base_resp.status_code` is not 0.
    #[error("{what}: API error {code}: {message}{}{}", hint(*.code), traced(.trace_id))]
    Api { what: String, code: i64, message: String, trace_id: Option<String> },
    /// A success without what it should bring.
    #[error("{what}: the response has no {field}{}", traced(.trace_id))]
    Missing { what: String, field: &'static str, trace_id: Option<String> },
    /// Audio that is no hexadecimal text.
    #[error("{what}: {field} is not hexadecimal{}", traced(.trace_id))]
    Hex { what: String, field: &'static str, trace_id: Option<String> },
    /// An address that cannot be fetched.
    #[error("{what}: {address:?} is not an address of the form http://… or https://…")]
    Address { what: String, address: String },
    /// The file to send, or the place for what comes, fails.
    #[error("{what}: {source}")]
    File { what: String, source: std::io::Error },
}

impl CallError {
    /// How long to wait at least before the next attempt; `None` if there must be none.
    pub(super) fn retry(&self, repeat: Repeat) -> Option<Duration> {
        let again = |yes: bool| yes.then_some(Duration::ZERO);
        let anyway = repeat == Repeat::Always;
        match self {
            Self::Connect { .. } => again(true),
            Self::Timeout { .. } | Self::Broken { .. } => again(anyway),
            Self::Status { status: 429 | 503, retry_after, .. } => {
                Some(retry_after.unwrap_or(Duration::ZERO))
            }
            Self::Status { status, .. } => again(anyway && (*status == 408 || *status >= 500)),
            // Too many requests or tokens a minute; and: unknown, timed out, internal.
            Self::Api { code: 1002 | 1039, .. } => again(true),
            Self::Api { code: 1000 | 1001 | 1013, .. } => again(anyway),
            _ => None,
        }
    }
}

fn said(excerpt: &str) -> String {
    if excerpt.is_empty() { String::new() } else { format!(": {excerpt}") }
}

fn traced(trace_id: &Option<String>) -> String {
    trace_id.as_ref().map(|id| format!(" (Trace-Id: {id})")).unwrap_or_default()
}

fn hint(code: i64) -> &'static str {
    match code {
        1004 | 2049 => {
            ". Check MINIMAX_API_KEY and MINIMAX_API_HOST: keys of https://api.minimax.io and of \
             https://api.minimaxi.com are not valid at the other"
        }
        1008 => ". The account has no balance left",
        2038 => {
            ". Voice cloning wants an account whose owner is verified: \
             https://platform.minimaxi.com/user-center/basic-information"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_charged_is_sent_again_only_if_it_was_refused() {
        let status = |status| CallError::Status {
            what: String::new(),
            status,
            excerpt: String::new(),
            trace_id: None,
            retry_after: None,
        };
        for code in [429, 503] {
            assert!(status(code).retry(Repeat::IfRefused).is_some(), "{code}");
        }
        for code in [500, 502, 504] {
            assert!(status(code).retry(Repeat::IfRefused).is_none(), "{code}");
            assert!(status(code).retry(Repeat::Always).is_some(), "{code}");
        }
        assert!(status(404).retry(Repeat::Always).is_none());
    }
}
