//! Where rollouts come from besides this process, and how long they may take.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::http::is_url;

/// Endpoints that sample for a run, and where its weights are published for them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteConfig {
    /// URLs of `arges serve`, each with the same admin key.
    pub endpoints: Vec<String>,
    /// Directory for published weights; on a file system that the endpoints see too, unless `url` is given.
    pub publish: PathBuf,
    /// Where endpoints fetch what is in `publish`.
    #[serde(default)]
    pub url: Option<String>,
    /// File with the admin key; the environment's `ARGES_ADMIN_KEY` when absent.
    #[serde(default)]
    pub admin_key_file: Option<PathBuf>,
    /// File with the API key, where the endpoints want one.
    #[serde(default)]
    pub api_key_file: Option<PathBuf>,
    /// Turns that one endpoint samples at once.
    #[serde(default = "turns")]
    pub turns: usize,
    /// Seconds between two looks at an endpoint.
    #[serde(default = "interval")]
    pub interval: f64,
    /// Seconds in which an endpoint has to answer whether it is there.
    #[serde(default = "answer_timeout")]
    pub answer_timeout: f64,
    /// Seconds without a new token after which a turn goes elsewhere.
    #[serde(default = "token_timeout")]
    pub token_timeout: f64,
    /// Seconds in which an endpoint has to take new weights.
    #[serde(default = "update_timeout")]
    pub update_timeout: f64,
    /// Seconds for which a turn waits for an endpoint that is free before it is given up.
    #[serde(default = "patience")]
    pub patience: f64,
    /// Endpoints that may fail at a turn before it is given up.
    #[serde(default = "attempts")]
    pub attempts: usize,
    /// Deltas against one full publication before the next is full.
    #[serde(default = "deltas")]
    pub deltas: usize,
    /// Published versions that stay.
    #[serde(default = "keep")]
    pub keep: usize,
}

fn turns() -> usize {
    32
}

fn interval() -> f64 {
    2.0
}

fn answer_timeout() -> f64 {
    5.0
}

fn token_timeout() -> f64 {
    120.0
}

fn update_timeout() -> f64 {
    600.0
}

fn patience() -> f64 {
    600.0
}

fn attempts() -> usize {
    5
}

fn deltas() -> usize {
    15
}

fn keep() -> usize {
    4
}

/// Endpoints cannot be used so.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A field that makes no sense.
    #[error("remote.{field}: {reason}")]
    Invalid { field: &'static str, reason: String },
    /// The same endpoint twice.
    #[error("remote.endpoints: {url} is named twice")]
    Twice { url: String },
    /// A key that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Key { path: PathBuf, source: std::io::Error },
    /// There is no admin key.
    #[error("an admin key is needed: remote.admin_key_file, or ARGES_ADMIN_KEY")]
    NoKey,
    /// The HTTP client does not start.
    #[error("the HTTP client does not start: {0}")]
    Client(String),
    /// The directory for weights cannot be made.
    #[error(transparent)]
    Publication(#[from] arges_model::publication::PublicationError),
    /// Threads do not start.
    #[error("the threads for endpoints do not start: {0}")]
    Threads(std::io::Error),
}

/// The keys that requests carry.
#[derive(Clone)]
pub(crate) struct Keys {
    pub admin: String,
    pub api: Option<String>,
}

impl RemoteConfig {
    /// With the defaults of all that may be absent.
    pub fn new(endpoints: Vec<String>, publish: PathBuf) -> Self {
        Self {
            endpoints,
            publish,
            url: None,
            admin_key_file: None,
            api_key_file: None,
            turns: turns(),
            interval: interval(),
            answer_timeout: answer_timeout(),
            token_timeout: token_timeout(),
            update_timeout: update_timeout(),
            patience: patience(),
            attempts: attempts(),
            deltas: deltas(),
            keep: keep(),
        }
    }

    /// Reads the keys, if all else makes sense.
    pub(crate) fn check(&self) -> Result<Keys, RemoteError> {
        let invalid = |field, reason: &str| Err(RemoteError::Invalid { field, reason: reason.to_owned() });
        if self.endpoints.is_empty() {
            return invalid("endpoints", "names none");
        }
        for url in self.endpoints.iter().chain(&self.url) {
            if !is_url(url) {
                return invalid("endpoints", &format!("{url:?} is no URL such as http://10.0.0.2:8000"));
            }
        }
        if self.publish.as_os_str().is_empty() {
            return invalid("publish", "a directory is needed");
        }
        for (field, count) in [("turns", self.turns), ("attempts", self.attempts), ("keep", self.keep)] {
            if count == 0 {
                return invalid(field, "must be at least 1");
            }
        }
        for (field, seconds) in [
            ("interval", self.interval),
            ("answer_timeout", self.answer_timeout),
            ("token_timeout", self.token_timeout),
            ("update_timeout", self.update_timeout),
            ("patience", self.patience),
        ] {
            if !(seconds > 0.0 && seconds < 1e9) {
                return invalid(field, "must be a number of seconds above 0");
            }
        }
        let admin = match &self.admin_key_file {
            Some(path) => read_key(path)?,
            None => std::env::var("ARGES_ADMIN_KEY").map_err(|_| RemoteError::NoKey)?,
        };
        Ok(Keys { admin, api: self.api_key_file.as_ref().map(read_key).transpose()? })
    }

    pub(crate) fn answer_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.answer_timeout)
    }
}

fn read_key(path: &PathBuf) -> Result<String, RemoteError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| RemoteError::Key { path: path.clone(), source })?;
    Ok(text.trim().to_owned())
}
