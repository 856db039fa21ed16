//! Requests to the judge.

use std::io;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::RewardModelConfig;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 1 << 20;
/// Longest part of a refusal that is told.
const MAX_TOLD: usize = 300;
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why a judge cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum RewardModelError {
    #[error("the reward model at {url} refuses requests with status {status}: {body}")]
    Refused { url: String, status: u16, body: String },
    #[error("the reward model's address {url} cannot be used: {reason}")]
    Address { url: String, reason: String },
}

#[derive(Debug)]
pub(super) struct Client {
    agent: ureq::Agent,
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
    pub(super) fn new(config: RewardModelConfig) -> Self {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(config.timeout))
            .http_status_as_error(false)
            .build()
            .new_agent();
        let url = format!("{}/chat/completions", config.url.trim_end_matches('/'));
        Self { agent, config, url }
    }

    /// What the judge says, or why it says nothing.
    pub(super) fn ask(&self, prompt: &str) -> Result<Result<String, String>, RewardModelError> {
        let mut pause = self.config.pause;
        let mut reason = String::new();
        for attempt in 0..=self.config.retries {
            match self.attempt(prompt)? {
                Attempt::Said(text) => return Ok(Ok(text)),
                Attempt::Failed(why, wait) => {
                    reason = why;
                    if attempt < self.config.retries {
                        std::thread::sleep(wait.unwrap_or(pause).min(LONGEST_PAUSE));
                        pause = pause.saturating_mul(2);
                    }
                }
            }
        }
        Ok(Err(reason))
    }

    fn attempt(&self, prompt: &str) -> Result<Attempt, RewardModelError> {
        let body = json!({
            "model": self.config.model,
            "messages": [{ "role": "user", "content": prompt }],
            "temperature": 0,
            "max_tokens": self.config.max_tokens,
        });
        let mut request = self.agent.post(&self.url);
        if let Some(key) = &self.config.api_key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = match request.send_json(&body) {
            Ok(response) => response,
            Err(error) => return self.unsent(error),
        };
        let status = response.status().as_u16();
        let header = response.headers().get("Retry-After").and_then(|value| value.to_str().ok());
        let wait = header.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
        let read = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        let body = match read {
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

    /// An error before there was an answer: of the network, mostly.
    fn unsent(&self, error: ureq::Error) -> Result<Attempt, RewardModelError> {
        match &error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::TlsRequired => {
                Err(RewardModelError::Address { url: self.url.clone(), reason: error.to_string() })
            }
            ureq::Error::Io(source) if source.kind() == io::ErrorKind::Unsupported => {
                Err(RewardModelError::Address { url: self.url.clone(), reason: error.to_string() })
            }
            _ => Ok(Attempt::Failed(format!("it cannot be reached: {error}"), None)),
        }
    }
}

fn read_answer(body: &[u8]) -> Option<String> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    answer.choices.into_iter().next()?.message.content
}
