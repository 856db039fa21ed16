//! Rollouts from other machines: `arges serve` with an admin key, by the URL.
//!
//! Each endpoint is watched by a task of its own. One that answers and has the newest weights gets turns; one that does
//! not is given the weights again as soon as it answers, and then comes back. A turn whose endpoint is lost goes on
//! elsewhere with the tokens that had arrived: the draws are functions of the seed and of a token's place. So a lost
//! endpoint costs time, and nothing else.
//!
//! Who runs the endpoints and finds new ones is not decided here; NVIDIA Dynamo, say, does that.

mod config;
mod endpoint;
mod publish;
mod turn;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, watch};

pub use config::{RemoteConfig, RemoteError};
pub use publish::Remote;

use super::policy::{Policy, PolicyError, Sampled, Turn, TurnEnd};
use crate::http;
use endpoint::Endpoint;
use turn::{Answer, Broken};

/// The weights that endpoints should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Counts publications: a version that was published anew is another one.
    pub number: u64,
    pub version: u64,
}

/// What all endpoints share.
pub(crate) struct Shared {
    pub config: RemoteConfig,
    pub client: reqwest::Client,
    pub target: watch::Sender<Option<Target>>,
    /// Told when an endpoint has room or comes back.
    pub changed: Notify,
}

/// What became of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointState {
    /// Its address.
    pub url: String,
    /// Whether it gets turns.
    pub ready: bool,
    /// Version of the weights it had when it was last asked.
    pub version: Option<u64>,
    /// Turns that it samples now.
    pub turns: usize,
    /// Times that it was lost.
    pub losses: u64,
    /// Why it gets no turns.
    pub reason: Option<String>,
}

/// Endpoints that sample, and perhaps the engine of this process among them.
pub struct RolloutEndpoints {
    shared: Arc<Shared>,
    endpoints: Vec<Arc<Endpoint>>,
    local: Option<Local>,
    runtime: Option<Runtime>,
}

struct Local {
    policy: Arc<dyn Policy>,
    turns: Arc<Mutex<usize>>,
    most: usize,
}

/// Where a turn goes.
enum Place<'a> {
    Remote(endpoint::Seat),
    Local(&'a dyn Policy, LocalSeat),
}

struct LocalSeat {
    turns: Arc<Mutex<usize>>,
    shared: Arc<Shared>,
}

impl Drop for LocalSeat {
    fn drop(&mut self) {
        *self.turns.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.shared.changed.notify_waiters();
    }
}

impl RolloutEndpoints {
    /// Endpoints of a configuration. They get turns once they have weights: see [`RolloutEndpoints::publish`]. `local`
    /// takes its part, at most so many turns at once, and is there when all others are lost.
    ///
    /// # Errors
    /// No endpoint, one that is no URL or is named twice; no key; threads that do not start.
    pub fn new(config: RemoteConfig, local: Option<(Arc<dyn Policy>, usize)>) -> Result<Self, RemoteError> {
        let admin_key = config.check()?;
        let mut seen = HashSet::new();
        if let Some(url) = config.endpoints.iter().find(|url| !seen.insert(url.trim_end_matches('/'))) {
            return Err(RemoteError::Twice { url: url.clone() });
        }
        let client = http::client(config.answer_timeout()).map_err(RemoteError::Client)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("arges-endpoints")
            .enable_all()
            .build()
            .map_err(RemoteError::Threads)?;
        let (target, _) = watch::channel(None);
        let endpoints: Vec<String> = config.endpoints.clone();
        let shared = Arc::new(Shared { config, client, target, changed: Notify::new() });
        let endpoints: Vec<Arc<Endpoint>> = endpoints
            .iter()
            .map(|url| Arc::new(Endpoint::new(url, admin_key.clone(), Arc::clone(&shared))))
            .collect();
        for endpoint in &endpoints {
            runtime.spawn(Arc::clone(endpoint).watch());
        }
        let local = local.map(|(policy, most)| Local { policy, turns: Arc::default(), most: most.max(1) });
        Ok(Self { shared, endpoints, local, runtime: Some(runtime) })
    }

    /// Tells the endpoints that a version is published. Each gets no new turns before it has it; turns under way go on
    /// with it. This does not wait for them.
    pub fn publish(&self, version: u64) {
        self.shared.target.send_modify(|target| {
            let number = target.as_ref().map_or(0, |target| target.number) + 1;
            *target = Some(Target { number, version });
        });
    }

    /// How the endpoints are.
    pub fn states(&self) -> Vec<EndpointState> {
        self.endpoints.iter().map(|endpoint| endpoint.state()).collect()
    }

    /// Waits until so many endpoints are ready; whether they are.
    pub fn wait_ready(&self, count: usize, limit: Duration) -> bool {
        let start = std::time::Instant::now();
        loop {
            if self.states().iter().filter(|state| state.ready).count() >= count {
                return true;
            }
            if start.elapsed() >= limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The least busy place, as soon as there is one.
    async fn place(&self) -> Result<Place<'_>, PolicyError> {
        let patience = Duration::from_secs_f64(self.shared.config.patience);
        let found = async {
            loop {
                // Before looking, so that no change is missed.
                let changed = self.shared.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(place) = self.free_place() {
                    return place;
                }
                changed.await;
            }
        };
        tokio::time::timeout(patience, found).await.map_err(|_| {
            let reasons: Vec<String> = self
                .states()
                .into_iter()
                .map(|state| format!("{}: {}", state.url, state.reason.unwrap_or_else(|| "busy".to_owned())))
                .collect();
            PolicyError::Failed(format!("no endpoint was free for {patience:?} ({})", reasons.join("; ")))
        })
    }

    fn free_place(&self) -> Option<Place<'_>> {
        let local = self.local.as_ref().map(|local| {
            let turns = *local.turns.lock().unwrap_or_else(PoisonError::into_inner);
            (local, turns as f64 / local.most as f64)
        });
        let load = |endpoint: &Endpoint| endpoint.load();
        let best = self.endpoints.iter().filter_map(|one| Some((one, load(one)?)));
        let best = best.min_by(|(_, one), (_, two)| one.total_cmp(two)).filter(|(_, load)| *load < 1.0);
        if let Some((local, load)) = local.filter(|(_, load)| *load < 1.0)
            && best.is_none_or(|(_, remote)| load < remote)
        {
            *local.turns.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            let seat = LocalSeat { turns: Arc::clone(&local.turns), shared: Arc::clone(&self.shared) };
            return Some(Place::Local(&*local.policy, seat));
        }
        best.and_then(|(endpoint, _)| endpoint.take_seat()).map(Place::Remote)
    }
}

impl Policy for RolloutEndpoints {
    fn sample(&self, turn: Turn) -> BoxFuture<'_, Result<Sampled, PolicyError>> {
        Box::pin(async move {
            let mut failures = 0;
            loop {
                let seat = match self.place().await? {
                    Place::Local(policy, _seat) => return policy.sample(turn).await,
                    Place::Remote(seat) => seat,
                };
                let Broken { sampled, reason } = match seat.sample(&turn).await {
                    Answer::Whole(sampled)
                        if sampled.end == TurnEnd::Aborted && sampled.tokens.is_empty() =>
                    {
                        // It was paused before it began; somewhere else it may go on at once.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                    Answer::Whole(sampled) => return Ok(sampled),
                    Answer::Refused(reason) => return Err(PolicyError::Failed(reason)),
                    Answer::Busy => {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                        continue;
                    }
                    Answer::Broken(broken) => broken,
                };
                tracing::warn!(reason, tokens = sampled.tokens.len(), "a turn was broken off");
                if !sampled.tokens.is_empty() {
                    return Ok(sampled);
                }
                failures += 1;
                if failures >= self.shared.config.attempts {
                    return Err(PolicyError::Failed(reason));
                }
            }
        })
    }
}

impl Drop for RolloutEndpoints {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // It may be dropped where waiting is not allowed.
            runtime.shutdown_background();
        }
    }
}
