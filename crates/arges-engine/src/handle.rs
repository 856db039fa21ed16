//! The handle through which everything else talks to the engine's thread.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arges_text::grammar::GrammarState;
use tokio::sync::{mpsc as events, watch};

use crate::control::{Order, Reply};
use crate::request::{Event, GenerateRequest, Generation, MAX_TOP_LOGPROBS, SubmitError};
use crate::stats::{EngineStats, MemoryPlan};

/// What the thread is told.
pub(crate) enum Message {
    Submit(Box<Submission>),
    /// Pause, take new weights, resume.
    Order(Box<Order>, Reply),
    /// Forget what is kept of sequences for later ones.
    FlushPrefixes,
    /// Finish what is queued and running, then end.
    Drain,
    /// End now; what is queued and running fails.
    Shutdown,
}

/// A validated request on its way to the thread.
pub(crate) struct Submission {
    pub request: GenerateRequest,
    /// Seed of the sampler: the request's, or drawn at random.
    pub seed: u64,
    /// Tokens to generate at most, cut to what the context allows.
    pub max_tokens: usize,
    /// The beginning of the request's grammar.
    pub grammar: Option<GrammarState>,
    pub events: events::UnboundedSender<Event>,
    pub queue_place: QueuePlace,
}

impl Submission {
    /// Answers a request that came too late.
    pub fn refuse(self) {
        // An error means that the generation was dropped already.
        let _ = self.events.send(Event::Failed(SubmitError::ShutDown.to_string()));
    }
}

/// A place in the queue, given back when dropped.
pub(crate) struct QueuePlace {
    shared: Arc<Shared>,
    since: Instant,
    /// How long it was held.
    wait: Arc<OnceLock<Duration>>,
}

impl QueuePlace {
    /// Takes a place if one is free.
    fn take(shared: &Arc<Shared>) -> Result<Self, SubmitError> {
        let max = shared.limits.max_queue;
        let one_more = |queued| (queued < max).then_some(queued + 1);
        match shared.queued.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more) {
            Ok(_) => Ok(Self { shared: Arc::clone(shared), since: Instant::now(), wait: Arc::default() }),
            Err(_) => Err(SubmitError::QueueFull { max }),
        }
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.wait.get_or_init(|| self.since.elapsed());
        self.shared.queued.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a request is held against before it is queued.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub vocab_size: usize,
    /// Longest prompt and answer together: the smaller of `max_context` and the caches.
    pub context: usize,
    pub max_queue: usize,
    pub has_tokenizer: bool,
    /// Whether it can tell which experts served tokens.
    pub tells_experts: bool,
}

/// State both sides see.
pub(crate) struct Shared {
    pub limits: Limits,
    pub memory: MemoryPlan,
    /// Set once no more requests are taken.
    pub closed: AtomicBool,
    /// Version of the weights in force.
    pub weight_version: AtomicU64,
    /// Requests sent and not yet admitted for the first time.
    queued: AtomicUsize,
    stats: Mutex<EngineStats>,
}

impl Shared {
    pub fn new(limits: Limits, memory: MemoryPlan) -> Self {
        Self {
            limits,
            memory,
            closed: AtomicBool::new(false),
            weight_version: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
            stats: Mutex::new(EngineStats::default()),
        }
    }

    pub fn stats(&self) -> MutexGuard<'_, EngineStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle to an engine; clones are handles to the same one. The thread ends, after what is queued and
/// running, when the last handle is dropped.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    messages: mpsc::Sender<Message>,
    stopped: watch::Receiver<bool>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Engine {
    pub(crate) fn from_parts(
        shared: Arc<Shared>,
        messages: mpsc::Sender<Message>,
        stopped: watch::Receiver<bool>,
        thread: JoinHandle<()>,
    ) -> Self {
        Self { shared, messages, stopped, thread: Arc::new(Mutex::new(Some(thread))) }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Sends the thread a message; an error means that it has ended.
    pub(crate) fn send(&self, message: Message) -> Result<(), ()> {
        self.messages.send(message).map_err(|_| ())
    }

    /// Queues a request. Its events come from the returned [`Generation`].
    ///
    /// # Errors
    /// A request that is malformed, can never fit, or finds the queue full or the engine closed.
    pub fn submit(&self, request: GenerateRequest) -> Result<Generation, SubmitError> {
        let max_tokens = check(&request, &self.shared.limits)?;
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(SubmitError::ShutDown);
        }
        let queue_place = QueuePlace::take(&self.shared)?;
        let wait = Arc::clone(&queue_place.wait);
        let (sender, receiver) = events::unbounded_channel();
        let seed = request.sampling.seed.unwrap_or_else(random_seed);
        let grammar = request.grammar.as_ref().map(arges_text::grammar::Grammar::start);
        let submission = Submission { request, seed, max_tokens, grammar, events: sender, queue_place };
        self.messages.send(Message::Submit(Box::new(submission))).map_err(|_| SubmitError::ShutDown)?;
        Ok(Generation::new(receiver, wait))
    }

    /// Counters as of the last step.
    pub fn stats(&self) -> EngineStats {
        *self.shared.stats()
    }

    /// Memory fixed at start.
    pub fn memory(&self) -> MemoryPlan {
        self.shared.memory
    }

    /// Longest prompt and answer together that one request may have, in tokens.
    pub fn max_context(&self) -> usize {
        self.shared.limits.context
    }

    /// Forgets what is kept of sequences for later ones, before the next step. What sequences that run now have computed
    /// is not kept either: it may be of weights that are no more.
    pub fn flush_prefixes(&self) {
        // An error means that the thread has ended, and its caches with it.
        let _ = self.messages.send(Message::FlushPrefixes);
    }

    /// Refuses new requests and waits until those queued and running have ended.
    pub async fn drain(&self) {
        self.close(Message::Drain);
        let mut stopped = self.stopped.clone();
        // An error means that the thread is gone, which is what is waited for.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    }

    /// Refuses new requests, fails those queued and running, and waits for the thread to end.
    pub fn shutdown(&self) {
        self.close(Message::Shutdown);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // The thread catches its panics; one that got out has already been reported by the runtime.
            let _ = thread.join();
        }
    }

    fn close(&self, how: Message) {
        self.shared.closed.store(true, Ordering::Release);
        // An error means that the thread has ended already.
        let _ = self.messages.send(how);
    }
}

/// A seed from the operating system's randomness, by way of the standard library's hasher keys.
fn random_seed() -> u64 {
    RandomState::new().hash_one(0u64)
}

/// Holds a request against the limits; gives the number of tokens to generate at most.
fn check(request: &GenerateRequest, limits: &Limits) -> Result<usize, SubmitError> {
    let prompt = request.prompt.len();
    if prompt == 0 {
        return Err(SubmitError::EmptyPrompt);
    }
    let scores_only = request.max_tokens == Some(0);
    let max = if scores_only { limits.context } else { limits.context.saturating_sub(1) };
    if prompt > max {
        return Err(SubmitError::TooLong { prompt, max });
    }
    let biased = request.sampling.logit_bias.iter().map(|&(id, _)| id);
    let vocab_size = limits.vocab_size;
    for id in request.prompt.iter().copied().chain(request.stop.tokens.iter().copied()).chain(biased) {
        if id as usize >= vocab_size {
            return Err(SubmitError::UnknownToken { id, vocab_size });
        }
    }
    let invalid = |name, reason: String| Err(SubmitError::InvalidParameter { name, reason });
    if let Err(error) = request.sampling.validate() {
        return invalid(error.name, error.reason);
    }
    for (name, top) in [("logprobs", request.logprobs), ("prompt_logprobs", request.prompt_logprobs)] {
        if top.is_some_and(|top| top > MAX_TOP_LOGPROBS) {
            return invalid(name, format!("must be at most {MAX_TOP_LOGPROBS}"));
        }
    }
    let strings = &request.stop.strings;
    if !strings.is_empty() && !limits.has_tokenizer {
        return invalid("stop", "strings need a tokenizer, and this model has none".to_owned());
    }
    if strings.iter().any(String::is_empty) {
        return invalid("stop", "must not hold an empty string".to_owned());
    }
    for (name, needs) in [("thinking", request.thinking.is_some()), ("grammar", request.grammar.is_some())] {
        if needs && !limits.has_tokenizer {
            return invalid(name, "needs a tokenizer, and this model has none".to_owned());
        }
    }
    if request.experts && !limits.tells_experts {
        return invalid("experts", "are told by the CPU alone, of models with 256 at most".to_owned());
    }
    if let Some(repetition) = request.stop.repetition
        && (repetition.tokens == 0 || !(0.0..1.0).contains(&repetition.probability))
    {
        return invalid(
            "repetition",
            "must be a run of at least 1 token above a probability below 1".to_owned(),
        );
    }
    let room = limits.context - prompt;
    Ok(request.max_tokens.map_or(room, |max_tokens| max_tokens.min(room)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{RepetitionStop, SamplingParams, StopConditions, Thinking};

    const LIMITS: Limits =
        Limits { vocab_size: 100, context: 16, max_queue: 4, has_tokenizer: true, tells_experts: true };

    fn request(prompt: usize) -> GenerateRequest {
        GenerateRequest { prompt: vec![7; prompt], ..GenerateRequest::default() }
    }

    #[test]
    fn an_empty_prompt_is_refused() {
        assert_eq!(check(&request(0), &LIMITS), Err(SubmitError::EmptyPrompt));
    }

    #[test]
    fn a_prompt_that_leaves_no_room_is_refused_unless_it_is_only_scored() {
        assert_eq!(check(&request(16), &LIMITS), Err(SubmitError::TooLong { prompt: 16, max: 15 }));
        let scored = |prompt| GenerateRequest { max_tokens: Some(0), ..request(prompt) };
        assert_eq!(check(&scored(16), &LIMITS), Ok(0));
        assert_eq!(check(&scored(17), &LIMITS), Err(SubmitError::TooLong { prompt: 17, max: 16 }));
    }

    #[test]
    fn the_token_limit_is_cut_to_the_context() {
        assert_eq!(check(&request(10), &LIMITS), Ok(6));
        assert_eq!(check(&GenerateRequest { max_tokens: Some(3), ..request(10) }, &LIMITS), Ok(3));
        assert_eq!(check(&GenerateRequest { max_tokens: Some(usize::MAX), ..request(10) }, &LIMITS), Ok(6));
    }

    #[test]
    fn ids_outside_the_vocabulary_are_refused_wherever_they_stand() {
        let unknown = Err(SubmitError::UnknownToken { id: 100, vocab_size: 100 });
        let prompt = GenerateRequest { prompt: vec![1, 100], ..request(1) };
        let stop = StopConditions { tokens: vec![100], ..StopConditions::default() };
        let stop = GenerateRequest { stop, ..request(1) };
        let sampling = SamplingParams { logit_bias: vec![(100, 1.0)], ..SamplingParams::default() };
        let bias = GenerateRequest { sampling, ..request(1) };
        for bad in [prompt, stop, bias] {
            assert_eq!(check(&bad, &LIMITS), unknown);
        }
    }

    #[test]
    fn a_bad_parameter_is_refused_by_name() {
        let name = |request: GenerateRequest, limits: &Limits| match check(&request, limits) {
            Err(SubmitError::InvalidParameter { name, .. }) => name,
            other => panic!("{other:?}"),
        };
        let sampling = SamplingParams { top_p: 0.0, ..SamplingParams::default() };
        assert_eq!(name(GenerateRequest { sampling, ..request(1) }, &LIMITS), "top_p");
        let sampling = SamplingParams { temperature: f32::NAN, ..SamplingParams::default() };
        assert_eq!(name(GenerateRequest { sampling, ..request(1) }, &LIMITS), "temperature");
        let logprobs = Some(MAX_TOP_LOGPROBS + 1);
        assert_eq!(name(GenerateRequest { logprobs, ..request(1) }, &LIMITS), "logprobs");
        let stop =
            |text: &str| StopConditions { strings: vec![text.to_owned()], ..StopConditions::default() };
        assert_eq!(name(GenerateRequest { stop: stop(""), ..request(1) }, &LIMITS), "stop");
        let no_tokenizer = Limits { has_tokenizer: false, ..LIMITS };
        assert_eq!(name(GenerateRequest { stop: stop("x"), ..request(1) }, &no_tokenizer), "stop");
        let on_gpu = Limits { tells_experts: false, ..LIMITS };
        assert_eq!(name(GenerateRequest { experts: true, ..request(1) }, &on_gpu), "experts");
        let thinking = Some(Thinking::default());
        assert_eq!(name(GenerateRequest { thinking, ..request(1) }, &no_tokenizer), "thinking");
        for repetition in [(0, 0.99), (1, 1.0), (1, -0.1), (1, f32::NAN)] {
            let (tokens, probability) = repetition;
            let repetition = Some(RepetitionStop { tokens, probability });
            let stop = StopConditions { repetition, ..StopConditions::default() };
            assert_eq!(name(GenerateRequest { stop, ..request(1) }, &LIMITS), "repetition");
        }
    }
}
