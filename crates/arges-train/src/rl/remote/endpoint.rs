//! One endpoint: whether it is there, whether it has the newest weights, how busy it is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::config::Keys;
use super::turn::{Answer, stream};
use super::{EndpointState, Shared, Target, Turn};
use crate::http::chain;

/// Answers of an endpoint that are no stream are no longer than this.
const MAX_ANSWER: usize = 1 << 20;

pub(crate) struct Endpoint {
    url: String,
    keys: Keys,
    shared: Arc<Shared>,
    status: Mutex<Status>,
    /// Counts losses; turns under way look at it.
    losses: watch::Sender<u64>,
    /// Makes the watch look at once.
    look: tokio::sync::Notify,
}

#[derive(Default)]
struct Status {
    /// Publication that it has taken, since it was last seen to have others.
    has: Option<u64>,
    version: Option<u64>,
    /// Tells one life of the server from the next.
    instance: Option<String>,
    turns: usize,
    reason: Option<String>,
}

impl Endpoint {
    pub fn new(url: &str, keys: Keys, shared: Arc<Shared>) -> Self {
        let status = Status { reason: Some("it was not asked yet".to_owned()), ..Status::default() };
        Self {
            url: url.trim_end_matches('/').to_owned(),
            keys,
            shared,
            status: Mutex::new(status),
            losses: watch::channel(0).0,
            look: tokio::sync::Notify::new(),
        }
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn target(&self) -> Option<Target> {
        self.shared.target.borrow().clone()
    }

    fn is_ready(&self, status: &Status) -> bool {
        status.reason.is_none() && self.target().is_some_and(|target| status.has == Some(target.number))
    }

    pub fn state(&self) -> EndpointState {
        let status = self.status();
        EndpointState {
            url: self.url.clone(),
            ready: self.is_ready(&status),
            version: status.version,
            turns: status.turns,
            losses: *self.losses.borrow(),
            reason: status.reason.clone(),
        }
    }

    /// Turns as a share of the most it gets; `None` when it gets none.
    pub fn load(&self) -> Option<f64> {
        let status = self.status();
        self.is_ready(&status).then(|| status.turns as f64 / self.shared.config.turns as f64)
    }

    /// A place for a turn, if it may have one.
    pub fn take_seat(self: &Arc<Self>) -> Option<Seat> {
        let mut status = self.status();
        let free = self.is_ready(&status) && status.turns < self.shared.config.turns;
        free.then(|| {
            status.turns += 1;
            Seat { endpoint: Arc::clone(self) }
        })
    }

    /// Looks after the endpoint for ever: whether it answers, and that it has the weights it should.
    pub async fn watch(self: Arc<Self>) {
        let mut target = self.shared.target.subscribe();
        let interval = Duration::from_secs_f64(self.shared.config.interval);
        loop {
            if let Err(reason) = self.bring_up_to_date().await {
                self.lose(&reason);
            }
            tokio::select! {
                changed = target.changed() => if changed.is_err() { return },
                () = self.look.notified() => {}
                () = tokio::time::sleep(interval) => {}
            }
        }
    }

    async fn bring_up_to_date(&self) -> Result<(), String> {
        let timeout = self.shared.config.answer_timeout();
        let state = self.ask("weight_version", None, timeout).await?;
        let version = state["weight_version"].as_u64();
        let Some(target) = self.target() else {
            self.status().version = version;
            return Ok(());
        };
        let instance = state["instance"].as_str().map(str::to_owned);
        let (has, same) = {
            let status = self.status();
            (status.has, status.instance == instance && version == Some(target.version))
        };
        if has != Some(target.number) || !same {
            // It was begun anew, or never had these weights.
            self.status().has = None;
            let timeout = Duration::from_secs_f64(self.shared.config.update_timeout);
            let place = match &self.shared.config.url {
                Some(url) => json!({ "url": url }),
                None => json!({ "path": self.shared.config.publish.canonicalize().unwrap_or_default() }),
            };
            let mut order = place;
            order["version"] = json!(target.version);
            self.ask("update_weights", Some(order), timeout).await?;
        }
        if state["paused"] == true {
            // By a trainer that did not come to resuming it.
            self.ask("resume", Some(json!({})), timeout).await?;
        }
        let mut status = self.status();
        (status.has, status.version, status.reason) = (Some(target.number), Some(target.version), None);
        status.instance = instance;
        drop(status);
        self.shared.changed.notify_waiters();
        Ok(())
    }

    /// Sends an order, or a question where there is none.
    async fn ask(&self, verb: &str, order: Option<Value>, timeout: Duration) -> Result<Value, String> {
        let url = format!("{}/admin/{verb}", self.url);
        let request = match order {
            Some(order) => self.shared.client.post(url).json(&order),
            None => self.shared.client.get(url),
        };
        let exchange = async {
            let response =
                request.bearer_auth(&self.keys.admin).send().await.map_err(|error| chain(&error))?;
            let status = response.status();
            let body = response.bytes().await.map_err(|error| chain(&error))?;
            let text = || String::from_utf8_lossy(&body[..body.len().min(MAX_ANSWER)]).into_owned();
            let value: Value = serde_json::from_slice(&body).unwrap_or_default();
            match (status.is_success(), value["error"]["message"].as_str()) {
                (true, _) => Ok(value),
                (false, Some(message)) => Err(format!("{verb}: {message} ({status})")),
                (false, None) => Err(format!("{verb}: {status}: {}", text())),
            }
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("{verb}: no answer for {timeout:?}")))
    }

    /// Gives it no more turns until it has answered; those under way are broken off.
    pub fn lose(&self, reason: &str) {
        let mut status = self.status();
        let was_there = status.reason.is_none();
        status.reason = Some(reason.to_owned());
        // What answers next may be another process, with other weights.
        status.has = None;
        drop(status);
        if was_there {
            tracing::warn!(url = self.url, reason, "an endpoint is lost");
            self.losses.send_modify(|losses| *losses += 1);
        }
    }
}

/// A turn's place at an endpoint.
pub(crate) struct Seat {
    endpoint: Arc<Endpoint>,
}

impl Seat {
    /// Samples a turn there.
    pub async fn sample(self, turn: &Turn) -> Answer {
        let endpoint = &self.endpoint;
        let config = &endpoint.shared.config;
        let mut losses = endpoint.losses.subscribe();
        let url = format!("{}/v1/completions", endpoint.url);
        let key = endpoint.keys.api.as_deref();
        let timeout = Duration::from_secs_f64(config.token_timeout);
        let lost = async move {
            // The sender lives as long as the endpoint.
            let _ = losses.changed().await;
        };
        let answer = stream(&endpoint.shared.client, &url, key, turn, timeout, lost).await;
        if let Answer::Broken(broken) = &answer {
            endpoint.lose(&broken.reason);
            endpoint.look.notify_one();
        }
        answer
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.endpoint.status().turns -= 1;
        self.endpoint.shared.changed.notify_waiters();
    }
}
