//! Telling a client that its call goes on.

use std::time::{Duration, Instant};

use rmcp::model::{ProgressNotificationParam, ProgressToken};
use rmcp::service::{Peer, RoleServer};

/// Reports of one call, if its client asked for them.
#[derive(Debug)]
pub struct Progress {
    to: Option<(Peer<RoleServer>, ProgressToken)>,
    started: Instant,
}

impl Progress {
    /// Reports to a client that gave a token.
    pub fn new(peer: Peer<RoleServer>, token: Option<ProgressToken>) -> Progress {
        Progress { to: token.map(|token| (peer, token)), started: Instant::now() }
    }

    /// Says how far the call is; `total` is the value at its end, if it is known.
    pub async fn report(&self, done: f64, total: Option<f64>, message: impl Into<String>) {
        let Some((peer, token)) = &self.to else { return };
        let mut report = ProgressNotificationParam::new(token.clone(), done).with_message(message);
        if let Some(total) = total {
            report = report.with_total(total);
        }
        if let Err(error) = peer.notify_progress(report).await {
            tracing::debug!(%error, "a report of progress was not sent");
        }
    }

    /// Waits for a result of which nothing is known until it is there, and reports every `pause` that it is still
    /// worked on.
    pub async fn wait<T>(&self, what: &str, pause: Duration, result: impl Future<Output = T>) -> T {
        let mut result = std::pin::pin!(result);
        loop {
            match tokio::time::timeout(pause, result.as_mut()).await {
                Ok(result) => return result,
                Err(_) => {
                    let seconds = self.started.elapsed().as_secs_f64();
                    self.report(seconds, None, format!("{what}, {seconds:.0} s so far")).await;
                }
            }
        }
    }
}
