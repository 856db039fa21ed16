//! Requests to the judge.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;

use super::RewardModelConfig;
use crate::http::{self, chain};

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// Longest part of a refusal that is told.
const MAX_TOLD: usize = 300;
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why a judge cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum RewardModelError {
    #[error("the reward model at {url} refuses requests with status {status}: {body}")]
    Refused { url: String, status: u16, body: String },
    #[error("the reward model's address {url:?} is no URL such as http://127.0.0.1:8000/v1")]
    Address { url: String },
    #[error("the HTTP client does not start: {0}")]
    Client(String),
}

#[derive(Debug)]
pub(super) struct Client {
    client: reqwest::Client,
    places: Semaphore,
    config: RewardModelConfig,
    url: String,
}

#[derive(Deserialize)]
struct Answer {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
}

/// How one attempt went.
enum Attempt {
    Said(String),
    /// Worth another attempt, after as long as the endpoint asked for.
    Failed(String, Option<Duration>),
}

impl Client {
    pub(super) fn new(config: RewardModelConfig) -> Result<Self, RewardModelError> {
        if !http::is_url(&config.url) {
            return Err(RewardModelError::Address { url: config.url });
        }
        let client = http::client(config.timeout).map_err(RewardModelError::Client)?;
        let url = format!("{}/chat/completions", config.url.trim_end_matches('/'));
        Ok(Self { client, places: Semaphore::new(config.concurrency), config, url })
    }

    pub(super) fn config(&self) -> &RewardModelConfig {
        &self.config
    }

    /// What the judge says, or why it says nothing.
    pub(super) async fn ask(&self, prompt: &str) -> Result<Result<String, String>, RewardModelError> {
        let mut pause = self.config.pause;
        let mut reason = String::new();
        for attempt in 0..=self.config.retries {
            // The places are never closed. A pause takes none.
            let place = self.places.acquire().await;
            let timed_out = || Attempt::Failed(format!("no answer for {:?}", self.config.timeout), None);
            let outcome = tokio::time::timeout(self.config.timeout, self.attempt(prompt)).await;
            drop(place);
            match outcome.unwrap_or_else(|_| Ok(timed_out()))? {
                Attempt::Said(text) => return Ok(Ok(text)),
                Attempt::Failed(why, wait) => {
                    reason = why;
                    if attempt < self.config.retries {
                        tokio::time::sleep(wait.unwrap_or(pause).min(LONGEST_PAUSE)).await;
                        pause = pause.saturating_mul(2);
                    }
                }
            }
        }
        Ok(Err(reason))
    }

    async fn attempt(&self, prompt: &str) -> Result<Attempt, RewardModelError> {
        let body = json!({
            "model": self.config.model,
            "messages": [{ "role": "user", "content": prompt }],
            "temperature": 0,
            "max_tokens": self.config.max_tokens,
        });
        let mut request = self.client.post(&self.url).json(&body);
        if let Some(key) = &self.config.api_key {
            request = request.bearer_auth(key);
        }
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                return Ok(Attempt::Failed(format!("it cannot be reached: {}", chain(&error)), None));
            }
        };
        let status = response.status().as_u16();
        let header = response.headers().get("Retry-After").and_then(|value| value.to_str().ok());
        let wait = header.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
        let body = match read(response).await {
            Ok(body) => body,
            Err(error) => return Ok(Attempt::Failed(format!("its answer broke off: {error}"), None)),
        };
        match status {
            200..=299 => Ok(match read_answer(&body) {
                Some(text) => Attempt::Said(text),
                None => Attempt::Failed("its answer is none of a chat".to_owned(), None),
            }),
            408 | 425 | 429 | 500..=599 => {
                Ok(Attempt::Failed(format!("it answers with status {status}"), wait))
            }
            _ => {
                let body = String::from_utf8_lossy(&body).chars().take(MAX_TOLD).collect();
                Err(RewardModelError::Refused { url: self.url.clone(), status, body })
            }
        }
    }
}

async fn read(mut response: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(format!("it is longer than {MAX_ANSWER} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn read_answer(body: &[u8]) -> Option<String> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    answer.choices.into_iter().next()?.message.content
}
