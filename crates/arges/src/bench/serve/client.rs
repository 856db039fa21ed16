//! One request to a server, its stream read and timed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use sse_stream::SseStream;

use super::workload::{Prompt, Request};

/// Which of OpenAI's APIs is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Api {
    /// `/completions`
    Completions,
    /// `/chat/completions`
    Chat,
}

/// Asks a server.
#[derive(Debug, Clone)]
pub struct Client {
    pub http: reqwest::Client,
    /// Address that ends in `/v1`.
    pub url: String,
    pub key: Option<String>,
    pub api: Api,
    pub model: String,
    pub temperature: f32,
    pub ignore_eos: bool,
    pub timeout: Duration,
}

/// What came of one request; all times in seconds.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// From the request's being due to the first piece of the answer.
    pub first: Option<f64>,
    /// Between pieces.
    pub gaps: Vec<f64>,
    /// From the request's being due to its end.
    pub whole: f64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    /// Tokens of the answer as the server counts them, or its pieces where it does not.
    pub tokens: u64,
    pub is_counted_by_server: bool,
    pub error: Option<Failure>,
}

/// Why there is no whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A short name, the same for errors alike.
    pub kind: String,
    pub message: String,
}

impl Failure {
    fn new(kind: impl Into<String>, message: impl ToString) -> Self {
        Self { kind: kind.into(), message: message.to_string().chars().take(300).collect() }
    }

    fn of(error: reqwest::Error) -> Self {
        let kind = match &error {
            error if error.is_timeout() => "timeout",
            error if error.is_connect() => "cannot connect",
            _ => "connection broke off",
        };
        Self::new(kind, arges_mcp::http::reason(error))
    }
}

/// What is read of a chunk; all the rest is passed over.
#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    /// Of completions.
    text: Option<String>,
    /// Of chat.
    delta: Option<Delta>,
}

#[derive(Debug, Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    prompt_tokens_details: Option<BTreeMap<String, Value>>,
}

impl Chunk {
    /// Whether there is anything of the answer in it.
    fn has_text(&self) -> bool {
        let some = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        self.choices.iter().any(|choice| {
            some(&choice.text)
                || choice.delta.as_ref().is_some_and(|delta| {
                    some(&delta.content)
                        || some(&delta.reasoning_content)
                        || some(&delta.reasoning)
                        || delta.tool_calls.as_ref().is_some_and(|calls| !calls.is_null())
                })
        })
    }
}

impl Client {
    /// Sends a request that was due at `due`, and reads its answer to the end.
    pub async fn ask(&self, request: &Request, due: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        let read = self.read(request, due, &mut outcome);
        outcome.error = match tokio::time::timeout(self.timeout, read).await {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) => Some(Failure::new("timeout", format!("no whole answer within {:?}", self.timeout))),
        };
        outcome.whole = due.elapsed().as_secs_f64();
        outcome
    }

    async fn read(&self, request: &Request, due: Instant, outcome: &mut Outcome) -> Result<(), Failure> {
        let path = match self.api {
            Api::Completions => "completions",
            Api::Chat => "chat/completions",
        };
        let mut sent = self.http.post(format!("{}/{path}", self.url)).json(&self.body(request));
        if let Some(key) = &self.key {
            sent = sent.bearer_auth(key);
        }
        let reply = sent.send().await.map_err(Failure::of)?;
        let status = reply.status();
        if status != StatusCode::OK {
            let text = reply.text().await.unwrap_or_default();
            return Err(Failure::new(format!("HTTP {}", status.as_u16()), text));
        }
        let mut events = SseStream::from_bytes_stream(reply.bytes_stream());
        let mut last: Option<Instant> = None;
        let mut pieces = 0;
        while let Some(event) = events.next().await {
            let event = event.map_err(|error| Failure::new("connection broke off", error))?;
            let Some(data) = event.data else { continue };
            if data == "[DONE]" {
                break;
            }
            let now = Instant::now();
            let chunk: Chunk = serde_json::from_str(&data)
                .map_err(|error| Failure::new("no JSON", format!("{error}: {data}")))?;
            if let Some(error) = chunk.error.as_ref().filter(|error| !error.is_null()) {
                return Err(Failure::new("error in the stream", error));
            }
            if chunk.has_text() {
                pieces += 1;
                match last.replace(now) {
                    None => outcome.first = Some((now - due).as_secs_f64()),
                    Some(last) => outcome.gaps.push((now - last).as_secs_f64()),
                }
            }
            if let Some(usage) = chunk.usage {
                outcome.take(&usage);
            }
        }
        if !outcome.is_counted_by_server {
            outcome.tokens = pieces;
        }
        if outcome.tokens == 0 {
            return Err(Failure::new("empty answer", "the stream ended without a token"));
        }
        // What was held back to the end, as half a character is, comes with it.
        outcome.first.get_or_insert_with(|| due.elapsed().as_secs_f64());
        Ok(())
    }

    fn body(&self, request: &Request) -> Value {
        let prompt = match &request.prompt {
            Prompt::Text(text) => json!(text),
            Prompt::Ids(ids) => json!(ids),
        };
        let mut body = json!({
            "model": self.model,
            "max_tokens": request.max_tokens,
            "temperature": self.temperature,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        match self.api {
            Api::Completions => body["prompt"] = prompt,
            Api::Chat => body["messages"] = json!([{"role": "user", "content": prompt}]),
        }
        if self.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        body
    }
}

impl Outcome {
    fn take(&mut self, usage: &Usage) {
        self.prompt_tokens = usage.prompt_tokens;
        self.tokens = usage.completion_tokens;
        let details = usage.prompt_tokens_details.as_ref();
        self.cached_tokens =
            details.and_then(|details| details.get("cached_tokens")?.as_u64()).unwrap_or_default();
        self.is_counted_by_server = true;
    }

    /// Mean time between tokens after the first, where there are any.
    pub fn per_token(&self) -> Option<f64> {
        let rest = self.tokens.checked_sub(1).filter(|rest| *rest > 0)?;
        Some(self.gaps.iter().sum::<f64>() / rest as f64)
    }
}
