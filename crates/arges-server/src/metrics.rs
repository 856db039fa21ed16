//! Figures for operators, in Prometheus's text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arges_engine::{EngineStats, MemoryPlan, Usage};
use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::state::AppState;

/// Upper bounds of a histogram's buckets, in seconds.
const FIRST_TOKEN: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
const BETWEEN_TOKENS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
const WHOLE: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1200.0, 3600.0];

/// What is counted over all requests.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    first_token: Histogram,
    between_tokens: Histogram,
    whole: Histogram,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    answer_tokens: AtomicU64,
    reasoning_tokens: AtomicU64,
    /// Requests by route and status.
    requests: Mutex<BTreeMap<(String, u16), u64>>,
}

/// Counts of a duration; the bounds are given when it is written.
#[derive(Debug, Default)]
struct Histogram {
    /// Observations up to each bound and above the one before; the last is for those above all.
    buckets: [AtomicU64; 13],
    nanoseconds: AtomicU64,
}

impl Histogram {
    fn observe(&self, bounds: &[f64; 12], duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = bounds.iter().position(|bound| seconds <= *bound).unwrap_or(bounds.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

/// Times one answer.
#[derive(Debug)]
pub(crate) struct Timer {
    metrics: Arc<Metrics>,
    start: Instant,
    last_token: Option<Instant>,
}

impl Timer {
    pub fn start(metrics: &Arc<Metrics>) -> Timer {
        Timer { metrics: Arc::clone(metrics), start: Instant::now(), last_token: None }
    }

    /// A token came.
    pub fn token(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => self.metrics.first_token.observe(&FIRST_TOKEN, now - self.start),
            Some(last) => self.metrics.between_tokens.observe(&BETWEEN_TOKENS, now - last),
        }
    }

    /// The answer ended.
    pub fn finished(&self, usage: &Usage) {
        let metrics = &self.metrics;
        metrics.whole.observe(&WHOLE, self.start.elapsed());
        let answer = usage.completion_tokens - usage.reasoning_tokens;
        for (counter, tokens) in [
            (&metrics.prompt_tokens, usage.prompt_tokens - usage.cached_tokens),
            (&metrics.cached_tokens, usage.cached_tokens),
            (&metrics.answer_tokens, answer),
            (&metrics.reasoning_tokens, usage.reasoning_tokens),
        ] {
            counter.fetch_add(tokens as u64, Ordering::Relaxed);
        }
    }
}

/// Counts requests by route and status.
pub(crate) async fn count(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    // What matches no route has no name of its own: clients choose it.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    let mut requests = state.metrics.requests.lock().unwrap_or_else(PoisonError::into_inner);
    *requests.entry((route, response.status().as_u16())).or_default() += 1;
    drop(requests);
    response
}

/// `GET /metrics`.
pub(crate) async fn metrics(State(state): State<Arc<AppState>>) -> Response {
    let text = state.metrics.text(&state.engine.stats(), &state.engine.memory());
    let mut response = text.into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

impl Metrics {
    fn text(&self, stats: &EngineStats, memory: &MemoryPlan) -> String {
        let mut page = Page(String::new());
        page.one("requests_running", "gauge", "Requests in the batch.", stats.running as f64);
        page.one("requests_waiting", "gauge", "Requests in the queue.", stats.waiting as f64);
        let used = stats.total_pages - stats.free_pages;
        page.one("cache_pages_used", "gauge", "Pages of the key-value cache in use.", used as f64);
        page.one("cache_pages", "gauge", "Pages of the key-value cache.", stats.total_pages as f64);
        page.one("steps_total", "counter", "Steps of the model.", stats.steps as f64);
        let computed = "Tokens put through the model, those computed again included.";
        page.one("computed_tokens_total", "counter", computed, stats.computed_tokens as f64);
        page.one("preemptions_total", "counter", "Sequences set back.", stats.preemptions as f64);
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        page.family("tokens_total", "counter", "Tokens of finished answers and their prompts, by kind.");
        for (kind, counter) in [
            ("prompt", &self.prompt_tokens),
            ("cached_prompt", &self.cached_tokens),
            ("answer", &self.answer_tokens),
            ("reasoning", &self.reasoning_tokens),
        ] {
            page.value("tokens_total", &format!("{{kind=\"{kind}\"}}"), load(counter));
        }
        page.family("answers_total", "counter", "Answers, by how they ended.");
        for (end, count) in
            [("finished", stats.finished), ("cancelled", stats.cancelled), ("failed", stats.failed)]
        {
            page.value("answers_total", &format!("{{end=\"{end}\"}}"), count as f64);
        }
        page.family("memory_bytes", "gauge", "Memory fixed at the start, by use.");
        for (of, bytes) in
            [("weights", memory.weights), ("cache", memory.cache), ("workspace", memory.workspace)]
        {
            page.value("memory_bytes", &format!("{{of=\"{of}\"}}"), bytes as f64);
        }
        page.family("http_requests_total", "counter", "HTTP requests, by route and status.");
        for ((route, status), count) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let labels = format!("{{route=\"{route}\",status=\"{status}\"}}");
            page.value("http_requests_total", &labels, *count as f64);
        }
        let first = "From a request's being queued to its first token.";
        page.histogram("time_to_first_token_seconds", first, &self.first_token, &FIRST_TOKEN);
        let between = "Between two tokens of an answer.";
        page.histogram("inter_token_latency_seconds", between, &self.between_tokens, &BETWEEN_TOKENS);
        let whole = "From a request's being queued to the end of its answer.";
        page.histogram("answer_seconds", whole, &self.whole, &WHOLE);
        page.0
    }
}

/// Text in Prometheus's format. Writing to a string does not fail.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP arges_{name} {help}\n# TYPE arges_{name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.0, "arges_{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.value(name, "", value);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram, bounds: &[f64; 12]) {
        self.family(name, "histogram", help);
        let mut count = 0;
        for (bucket, observed) in histogram.buckets.iter().enumerate() {
            count += observed.load(Ordering::Relaxed);
            let bound = bounds.get(bucket).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            self.value(&format!("{name}_bucket"), &format!("{{le=\"{bound}\"}}"), count as f64);
        }
        let seconds = histogram.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
        self.value(&format!("{name}_sum"), "", seconds);
        self.value(&format!("{name}_count"), "", count as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_counted_up_and_every_family_is_described() {
        let metrics = Arc::new(Metrics::default());
        let mut timer = Timer::start(&metrics);
        timer.token();
        timer.token();
        let usage = Usage { prompt_tokens: 5, completion_tokens: 7, reasoning_tokens: 3, cached_tokens: 2 };
        timer.finished(&usage);
        let memory = MemoryPlan { weights: 1, cache: 2, workspace: 3 };
        let text = metrics.text(&EngineStats::default(), &memory);
        for line in [
            "arges_time_to_first_token_seconds_bucket{le=\"0.01\"} 1",
            "arges_time_to_first_token_seconds_bucket{le=\"+Inf\"} 1",
            "arges_inter_token_latency_seconds_count 1",
            "arges_tokens_total{kind=\"prompt\"} 3",
            "arges_tokens_total{kind=\"cached_prompt\"} 2",
            "arges_tokens_total{kind=\"answer\"} 4",
            "arges_tokens_total{kind=\"reasoning\"} 3",
            "arges_memory_bytes{of=\"cache\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let family =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(text.contains(&format!("# TYPE {family} ")), "{line}");
        }
    }
}
