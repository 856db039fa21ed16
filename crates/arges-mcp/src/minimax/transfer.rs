//! What calls of the API and downloads have in common: turns, time limits, retries.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{CallError, Repeat};
use crate::http;
use crate::limits::Limits;

/// A longer wait than this is not worth a retry.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Sends requests under limits.
#[derive(Debug)]
pub struct Transfer {
    pub(super) client: Client,
    pub(super) limits: Limits,
    turns: Semaphore,
    large: Arc<Semaphore>,
}

impl Transfer {
    /// # Errors
    /// TLS that cannot be set up.
    pub fn new(limits: Limits) -> reqwest::Result<Transfer> {
        Ok(Transfer {
            client: http::client(limits.connect)?,
            turns: Semaphore::new(limits.concurrent),
            large: Arc::new(Semaphore::new(limits.large_responses)),
            limits,
        })
    }

    /// Runs an attempt when it is its turn, within the time for one.
    pub(super) async fn in_turn<T>(
        &self,
        what: &str,
        attempt: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let limit = self.limits.total;
        let timeout = |awaited| CallError::Timeout { what: what.to_owned(), awaited, limit };
        let turn = tokio::time::timeout(limit, self.turns.acquire()).await;
        let _turn = turn.map_err(|_| timeout("turn among other requests"))?;
        tokio::time::timeout(limit, attempt).await.map_err(|_| timeout("complete response"))?
    }

    /// Sends a request and waits for the head of its response.
    pub(super) async fn send(&self, what: &str, request: RequestBuilder) -> Result<Response, CallError> {
        let limit = self.limits.answer;
        let timeout = || CallError::Timeout { what: what.to_owned(), awaited: "response", limit };
        let sent = tokio::time::timeout(limit, request.send()).await.map_err(|_| timeout())?;
        sent.map_err(|error| {
            let what = what.to_owned();
            if error.is_connect() {
                CallError::Connect { what, reason: http::reason(error) }
            } else {
                CallError::Broken { what, reason: http::reason(error) }
            }
        })
    }

    /// The right to hold a response that is not small.
    pub(super) async fn large_share(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed, so that there always is one in the end.
        Arc::clone(&self.large).acquire_owned().await.ok()
    }

    /// The attempts at one request.
    pub(super) fn attempts(&self, repeat: Repeat) -> Attempts {
        Attempts { left: self.limits.attempts, pause: self.limits.backoff, repeat }
    }
}

/// Counts the attempts at one request, and waits between them.
#[derive(Debug)]
pub(super) struct Attempts {
    left: u32,
    pause: Duration,
    repeat: Repeat,
}

impl Attempts {
    /// Waits until it is time for another attempt.
    ///
    /// # Errors
    /// The error itself, where no other attempt is to be made.
    pub async fn after(&mut self, error: CallError) -> Result<(), CallError> {
        self.left = self.left.saturating_sub(1);
        let wait = error.retry(self.repeat).filter(|wait| self.left > 0 && *wait <= LONGEST_WAIT);
        let Some(wait) = wait else { return Err(error) };
        tracing::debug!(%error, left = self.left, "trying again");
        tokio::time::sleep(wait.max(spread(self.pause))).await;
        self.pause *= 2;
        Ok(())
    }
}

/// Between half of the pause and all of it, so that calls that failed together do not return together.
fn spread(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(()) as u32;
    pause.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread_over_half_their_length() {
        let pause = Duration::from_secs(2);
        for _ in 0..100 {
            assert!((Duration::from_secs(1)..=pause).contains(&spread(pause)));
        }
    }
}
