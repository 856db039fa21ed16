//! A small model, engines over it, and what generations gave.
#![allow(dead_code)] // Each test file uses a part.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arges_engine::{
    Engine, EngineOptions, EngineStats, Event, Finished, GenerateRequest, Generation, PrefixCacheOptions,
    SamplingParams, TokenEvent, TokenLogprob,
};
use arges_kernels::device::cpu::{Cpu, CpuOptions};
use arges_kernels::matmul::Compute;
use arges_model::{Checkpoint, LoadOptions, Model};
use arges_text::Tokenizer;

/// Tokens of the small model's vocabulary.
pub const VOCAB: u32 = 512;

/// Golden data of the small model.
pub fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../arges-model/tests/data/tiny-m1")
}

pub fn load(dir: &Path) -> Arc<Model> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let cpu = Arc::new(Cpu::new(CpuOptions { threads: Some(2), isa: None }).unwrap());
    let options = LoadOptions { compute: Compute::F32 };
    Arc::new(Model::load(&checkpoint, options, cpu, &mut |_| {}).unwrap())
}

/// The small model with its weights as the golden data were made from.
pub static MODEL: LazyLock<Arc<Model>> = LazyLock::new(|| load(&data().join("fp32")));

pub static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    arges_text::synthetic::write_tokenizer(dir.path(), VOCAB as usize).unwrap();
    Tokenizer::from_dir(dir.path()).unwrap()
});

pub fn options() -> EngineOptions {
    EngineOptions {
        max_sequences: 16,
        max_tokens: 8192,
        step_tokens: 64,
        max_queue: 64,
        max_context: 2048,
        max_logit_rows: 32,
        prefix_cache: Some(PrefixCacheOptions { state_bytes: 8 << 20, host_bytes: 0, interval: 256 }),
        max_drafts: 8,
        exact: false,
    }
}

pub fn engine(options: EngineOptions) -> Engine {
    Engine::start(Arc::clone(&MODEL), Some(TOKENIZER.clone()), options).unwrap()
}

/// A prompt that differs for every `salt`.
pub fn prompt(len: usize, salt: u32) -> Vec<u32> {
    let mut state = salt.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % VOCAB
    };
    (0..len).map(|_| next()).collect()
}

pub fn greedy(prompt: Vec<u32>, max_tokens: usize) -> GenerateRequest {
    let sampling = SamplingParams::greedy();
    GenerateRequest { prompt, max_tokens: Some(max_tokens), sampling, ..GenerateRequest::default() }
}

/// Samples with much randomness, from the model's own distribution.
pub fn seeded(prompt: Vec<u32>, max_tokens: usize, seed: u64) -> GenerateRequest {
    let sampling = SamplingParams { seed: Some(seed), ..SamplingParams::default() };
    GenerateRequest { sampling, ..greedy(prompt, max_tokens) }
}

/// All that one generation gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub prompt: Option<Vec<Option<TokenLogprob>>>,
    pub tokens: Vec<TokenEvent>,
    pub finished: Finished,
}

impl Answer {
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    /// All text given out.
    pub fn text(&self) -> String {
        self.tokens.iter().map(|token| token.text.as_str()).chain([self.finished.text.as_str()]).collect()
    }
}

/// Reads a generation to its end, which must be a good one.
pub fn collect(generation: Generation) -> Answer {
    try_collect(generation).unwrap_or_else(|message| panic!("{message}"))
}

/// Reads a generation to its end; the message if that was a failure.
pub fn try_collect(mut generation: Generation) -> Result<Answer, String> {
    let (mut prompt, mut tokens) = (None, Vec::new());
    loop {
        match generation.blocking_next().expect("a last event") {
            Event::Prompt { logprobs, cached_tokens } => {
                assert_eq!(cached_tokens, 0);
                assert!(prompt.is_none() && tokens.is_empty(), "the prompt comes once and first");
                prompt = Some(logprobs);
            }
            Event::Token(token) => tokens.push(token),
            Event::Finished(finished) => {
                assert_eq!(generation.blocking_next(), None);
                assert_eq!(finished.usage.completion_tokens, tokens.len());
                return Ok(Answer { prompt, tokens, finished });
            }
            Event::Failed(message) | Event::GrammarFailed(message) => {
                assert_eq!(generation.blocking_next(), None);
                return Err(message);
            }
        }
    }
}

/// Runs one request on an engine of its own.
pub fn alone(request: GenerateRequest) -> Answer {
    let engine = engine(options());
    collect(engine.submit(request).unwrap())
}

/// Submits all requests, then collects their answers in order.
pub fn together(engine: &Engine, requests: &[GenerateRequest]) -> Vec<Answer> {
    let generations: Vec<Generation> =
        requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    generations.into_iter().map(collect).collect()
}

/// Waits until the counters are as wished.
pub fn wait_for(engine: &Engine, wish: impl Fn(EngineStats) -> bool) -> EngineStats {
    let start = Instant::now();
    loop {
        let stats = engine.stats();
        if wish(stats) {
            return stats;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "still {stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn nothing_held(stats: EngineStats) -> bool {
    stats.running == 0 && stats.waiting == 0 && stats.free_pages == stats.total_pages
}
