//! What the operator decides: name, key, defaults and limits.

use std::time::Duration;

use arges_engine::RepetitionStop;

/// Settings of the server, passed in by the command.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The id under which the model is served (`GET /v1/models`, `model` of a request).
    pub model_name: String,
    /// Where there are any, every path but `/health`, `/ready` and the chat page's files wants one of them, as
    /// `Authorization: Bearer <key>` or `x-api-key: <key>`.
    pub api_keys: Vec<String>,
    /// When set, `/admin` is there and wants this key, which is none of the API's.
    pub admin_key: Option<String>,
    /// Sampling parameters of a request that does not name them.
    pub defaults: GenerationDefaults,
    /// Largest request body accepted, in bytes.
    pub body_limit: usize,
    /// Bytes of request bodies held at once over all requests that are being read and tokenised; a request
    /// that would pass it is answered 429. At least `body_limit`.
    pub body_budget: usize,
    /// How long a client may take to send its body.
    pub body_timeout: Duration,
    /// Requests whose text is rendered and tokenised at the same time; others wait for their turn.
    pub text_workers: usize,
    /// How long a client may take to send the head of a request, and a connection may be idle between requests.
    pub header_timeout: Duration,
    /// Connections open at once; others wait to be accepted.
    pub max_connections: usize,
    /// Ends answers that go round in circles, in requests that do not say whether.
    pub repetition_stop: Option<RepetitionStop>,
    /// Silence after which a stream sends a comment, so that nothing between closes the connection.
    pub keep_alive: Duration,
    /// How long running requests may take to finish once a shutdown is asked for.
    pub drain_limit: Duration,
}

impl ServerOptions {
    /// Options with the usual limits: 32 MiB bodies (a prompt of a million tokens is about 5 MB of text), no API
    /// key, 30 seconds for a request's head, a comment every 15 seconds, 30 seconds to drain.
    pub fn new(model_name: impl Into<String>) -> ServerOptions {
        ServerOptions {
            model_name: model_name.into(),
            api_keys: Vec::new(),
            admin_key: None,
            defaults: GenerationDefaults::default(),
            body_limit: 32 << 20,
            body_budget: 256 << 20,
            body_timeout: Duration::from_secs(60),
            text_workers: 2,
            header_timeout: Duration::from_secs(30),
            max_connections: 4096,
            repetition_stop: None,
            keep_alive: Duration::from_secs(15),
            drain_limit: Duration::from_secs(30),
        }
    }
}

/// Sampling parameters used where a request says nothing. The default is M1's model card: temperature 1.0,
/// top-p 0.95, nothing else.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationDefaults {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus size in (0, 1]; 1 is off.
    pub top_p: f32,
    /// Candidates kept; 0 is off.
    pub top_k: usize,
    /// Least probability kept, relative to the most likely token; 0 is off.
    pub min_p: f32,
    /// Factor on the logits of tokens already seen; 1 is off.
    pub repetition_penalty: f32,
}

impl Default for GenerationDefaults {
    fn default() -> GenerationDefaults {
        GenerationDefaults { temperature: 1.0, top_p: 0.95, top_k: 0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}
