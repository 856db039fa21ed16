//! Sends the requests at their times and collects what comes of them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::client::{Client, Outcome};
use super::workload::Workload;

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// Requests a second, at the times of a Poisson process, however many are under way.
    Rate(f64),
    /// Clients, each of which sends its next request when it has its answer.
    Clients(usize),
}

/// When no more requests are sent; those under way are still read.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    pub requests: u64,
    pub duration: Option<Duration>,
}

/// What came of all requests.
#[derive(Debug, Default)]
pub struct Measured {
    pub outcomes: Vec<Outcome>,
    /// From the first request to the last end.
    pub seconds: f64,
    /// Seconds by which the generator was late at worst.
    pub late: f64,
    /// Processor time that the generator itself took, where the system tells it.
    pub client_cpu_seconds: Option<f64>,
}

/// Runs the load; request numbers begin with `first`. On the calling thread alone, so that its processor time is the
/// generator's.
pub async fn measure(
    client: &Client,
    workload: &Workload,
    load: Load,
    extent: Extent,
    first: u64,
) -> Measured {
    let cpu = thread_cpu_seconds();
    let start = Instant::now();
    let (outcomes, late) = match load {
        Load::Rate(rate) => open(client, workload, rate, extent, first, start).await,
        Load::Clients(clients) => (closed(client, workload, clients, extent, first, start).await, 0.0),
    };
    let client_cpu_seconds = cpu.and_then(|before| Some(thread_cpu_seconds()? - before));
    Measured { outcomes, seconds: start.elapsed().as_secs_f64(), late, client_cpu_seconds }
}

async fn open(
    client: &Client,
    workload: &Workload,
    rate: f64,
    extent: Extent,
    first: u64,
    start: Instant,
) -> (Vec<Outcome>, f64) {
    let mut running = JoinSet::new();
    let mut outcomes = Vec::new();
    let mut late = 0.0f64;
    for (index, time) in (first..first + extent.requests).zip(workload.arrivals(rate)) {
        if extent.duration.is_some_and(|duration| time > duration.as_secs_f64()) {
            break;
        }
        // Made before it is due, so that making it delays nothing.
        let request = workload.request(index);
        let due = start + Duration::from_secs_f64(time);
        tokio::time::sleep_until(due.into()).await;
        late = late.max(due.elapsed().as_secs_f64());
        let client = client.clone();
        running.spawn_local(async move { client.ask(&request, due).await });
        while let Some(Ok(outcome)) = running.try_join_next() {
            outcomes.push(outcome);
        }
    }
    while let Some(Ok(outcome)) = running.join_next().await {
        outcomes.push(outcome);
    }
    (outcomes, late)
}

async fn closed(
    client: &Client,
    workload: &Workload,
    clients: usize,
    extent: Extent,
    first: u64,
    start: Instant,
) -> Vec<Outcome> {
    let next = Rc::new(Cell::new(first));
    let outcomes = Rc::new(RefCell::new(Vec::new()));
    let end = first + extent.requests;
    let mut running = JoinSet::new();
    for _ in 0..clients {
        let (client, workload) = (client.clone(), workload.clone());
        let (next, outcomes) = (Rc::clone(&next), Rc::clone(&outcomes));
        running.spawn_local(async move {
            while next.get() < end && extent.duration.is_none_or(|duration| start.elapsed() < duration) {
                let request = workload.request(next.replace(next.get() + 1));
                let outcome = client.ask(&request, Instant::now()).await;
                let has_failed = outcome.error.is_some();
                outcomes.borrow_mut().push(outcome);
                if has_failed {
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                }
            }
        });
    }
    while running.join_next().await.is_some() {}
    outcomes.take()
}

/// A client that was refused does not ask again at once.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// Processor time of the calling thread.
fn thread_cpu_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds: f64 = text.split(' ').next()?.parse().ok()?;
    Some(nanoseconds / 1e9)
}
