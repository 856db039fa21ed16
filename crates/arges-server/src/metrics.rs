//! Figures for operators, in Prometheus's text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arges_engine::{EngineStats, MemoryPlan, Sizes, Usage};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use tracing::Span;

use crate::state::AppState;

/// Upper bounds of a histogram's buckets, in seconds.
const FIRST_TOKEN: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
const BETWEEN_TOKENS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
const WHOLE: [f64; 12] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1200.0, 3600.0];

/// What is counted over all requests.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    queue: Histogram,
    first_token: Histogram,
    between_tokens: Histogram,
    whole: Histogram,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    answer_tokens: AtomicU64,
    reasoning_tokens: AtomicU64,
    /// Finished answers by their finish reason.
    finished: Mutex<BTreeMap<&'static str, u64>>,
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

/// Times one answer, and logs what came of it.
#[derive(Debug)]
pub(crate) struct Timer {
    metrics: Arc<Metrics>,
    /// That of the request.
    span: Span,
    start: Instant,
    first_token: Option<Duration>,
    last_token: Option<Instant>,
    has_ended: bool,
}

impl Timer {
    pub fn start(metrics: &Arc<Metrics>) -> Timer {
        Timer {
            metrics: Arc::clone(metrics),
            span: Span::current(),
            start: Instant::now(),
            first_token: None,
            last_token: None,
            has_ended: false,
        }
    }

    /// A token came.
    pub fn token(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => {
                self.first_token = Some(now - self.start);
                self.metrics.first_token.observe(&FIRST_TOKEN, now - self.start);
            }
            Some(last) => self.metrics.between_tokens.observe(&BETWEEN_TOKENS, now - last),
        }
    }

    /// The answer failed.
    pub fn failed(&mut self) {
        self.has_ended = true;
        tracing::info!(parent: &self.span, seconds = self.start.elapsed().as_secs_f64(), "failed");
    }

    /// The answer ended after it had waited `queue` to be taken up.
    pub fn finished(&mut self, usage: &Usage, queue: Option<Duration>, finish_reason: &'static str) {
        self.has_ended = true;
        let metrics = &self.metrics;
        metrics.whole.observe(&WHOLE, self.start.elapsed());
        if let Some(queue) = queue {
            metrics.queue.observe(&FIRST_TOKEN, queue);
        }
        *lock(&metrics.finished).entry(finish_reason).or_default() += 1;
        tracing::info!(
            parent: &self.span,
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.cached_tokens,
            tokens = usage.completion_tokens,
            reasoning_tokens = usage.reasoning_tokens,
            queue_seconds = queue.map(|queue| queue.as_secs_f64()),
            first_token_seconds = self.first_token.map(|first| first.as_secs_f64()),
            seconds = self.start.elapsed().as_secs_f64(),
            finish_reason,
            "answered"
        );
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

impl Drop for Timer {
    fn drop(&mut self) {
        if !self.has_ended {
            tracing::info!(parent: &self.span, seconds = self.start.elapsed().as_secs_f64(), "cancelled");
        }
    }
}

/// Counters are whole even after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory that the process has, in bytes, where the system tells it.
fn resident_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(kibibytes.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
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
    /// A request was answered, or its answer has begun.
    pub fn requested(&self, route: String, status: u16) {
        *lock(&self.requests).entry((route, status)).or_default() += 1;
    }

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
        page.sizes("step_sequences", "Sequences of a step: the batch.", &stats.step_sequences);
        let tokens = "Tokens of a step, of prompts, answers and guesses.";
        page.sizes("step_tokens", tokens, &stats.step_tokens);
        page.one("preemptions_total", "counter", "Sequences set back.", stats.preemptions as f64);
        let kept = "Key-value pages and states kept for later requests.";
        page.family("prefix_cache_held", "gauge", kept);
        page.value("prefix_cache_held", "{kind=\"pages\"}", stats.cached_pages as f64);
        page.value("prefix_cache_held", "{kind=\"states\"}", stats.cached_states as f64);
        page.family("prefix_cache_evictions_total", "counter", "Of these, thrown away for want of room.");
        page.value("prefix_cache_evictions_total", "{kind=\"pages\"}", stats.evicted_pages as f64);
        page.value("prefix_cache_evictions_total", "{kind=\"states\"}", stats.evicted_states as f64);
        let hits = "Tokens taken up from earlier requests instead of being computed.";
        page.one("prefix_cache_hit_tokens_total", "counter", hits, stats.cached_tokens as f64);
        page.one("drafted_tokens_total", "counter", "Guesses that were tried.", stats.drafted_tokens as f64);
        let right = "Of these, those that were right.";
        page.one("accepted_drafts_total", "counter", right, stats.accepted_drafts as f64);
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
        for (of, bytes) in [
            ("weights", memory.weights),
            ("cache", memory.cache),
            ("prefix_states", memory.snapshots),
            ("workspace", memory.workspace),
        ] {
            page.value("memory_bytes", &format!("{{of=\"{of}\"}}"), bytes as f64);
        }
        if let Some(bytes) = resident_memory() {
            page.one("resident_memory_bytes", "gauge", "Memory that the process has.", bytes as f64);
        }
        page.family("finish_total", "counter", "Finished answers, by finish reason.");
        for (reason, count) in lock(&self.finished).iter() {
            page.value("finish_total", &format!("{{reason=\"{reason}\"}}"), *count as f64);
        }
        page.family("build_info", "gauge", "The server's version.");
        page.value("build_info", concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0);
        page.family("http_requests_total", "counter", "HTTP requests, by route and status.");
        for ((route, status), count) in lock(&self.requests).iter() {
            let labels = format!("{{route=\"{route}\",status=\"{status}\"}}");
            page.value("http_requests_total", &labels, *count as f64);
        }
        let queue = "From a request's being queued to its first step, of finished answers.";
        page.histogram("queue_seconds", queue, &self.queue, &FIRST_TOKEN);
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
        let counts = histogram.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let seconds = histogram.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
        self.buckets(name, help, bounds, counts, seconds);
    }

    fn sizes(&mut self, name: &str, help: &str, sizes: &Sizes) {
        let bounds: [f64; Sizes::BUCKETS - 1] = std::array::from_fn(|power| (1u64 << power) as f64);
        self.buckets(name, help, &bounds, sizes.counts.into_iter(), sizes.sum as f64);
    }

    /// A histogram of which `counts` has those up to each bound and above the one before, and those above all.
    fn buckets(
        &mut self,
        name: &str,
        help: &str,
        bounds: &[f64],
        counts: impl Iterator<Item = u64>,
        sum: f64,
    ) {
        self.family(name, "histogram", help);
        let bounds = bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        let mut total = 0;
        for (bound, count) in bounds.zip(counts) {
            total += count;
            self.value(&format!("{name}_bucket"), &format!("{{le=\"{bound}\"}}"), total as f64);
        }
        self.value(&format!("{name}_sum"), "", sum);
        self.value(&format!("{name}_count"), "", total as f64);
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
        timer.finished(&usage, Some(Duration::from_millis(20)), "stop");
        let memory = MemoryPlan { weights: 1, cache: 2, snapshots: 4, workspace: 3 };
        let mut stats = EngineStats::default();
        for sequences in [1, 3, 4, 100_000] {
            stats.step_sequences.observe(sequences);
        }
        let text = metrics.text(&stats, &memory);
        for line in [
            "arges_time_to_first_token_seconds_bucket{le=\"0.01\"} 1",
            "arges_time_to_first_token_seconds_bucket{le=\"+Inf\"} 1",
            "arges_inter_token_latency_seconds_count 1",
            "arges_queue_seconds_bucket{le=\"0.025\"} 1",
            "arges_step_sequences_bucket{le=\"1\"} 1",
            "arges_step_sequences_bucket{le=\"4\"} 3",
            "arges_step_sequences_bucket{le=\"65536\"} 3",
            "arges_step_sequences_bucket{le=\"+Inf\"} 4",
            "arges_step_sequences_sum 100008",
            "arges_step_sequences_count 4",
            "arges_finish_total{reason=\"stop\"} 1",
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
