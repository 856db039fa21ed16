//! Measurements that docs/serving.md cites. They need an idle machine and some minutes:
//! `cargo test --release -p arges-engine --test measured -- --ignored --nocapture --test-threads 1`

mod support;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arges_engine::{Engine, EngineOptions, Event, GenerateRequest, Generation, PrefixCacheOptions};
use arges_kernels::device::cpu::{Cpu, CpuOptions};
use arges_kernels::matmul::Compute;
use arges_model::synth::{SynthOptions, SynthShape, write_checkpoint};
use arges_model::{Checkpoint, LoadOptions, Model};
use support::{Answer, collect, greedy, prompt, seeded};

/// A random model of 3 M parameters.
static SYNTH: LazyLock<Arc<Model>> = LazyLock::new(|| {
    let shape = SynthShape {
        hidden: 128,
        layers: 8,
        heads: 4,
        kv_heads: 1,
        head_dim: 32,
        rotary_dim: 16,
        experts: 8,
        intermediate: 128,
        vocab: 1024,
        ..SynthShape::default()
    };
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(&shape.config().unwrap(), dir.path(), &SynthOptions::default(), &mut |_| {}).unwrap();
    let cpu = Arc::new(Cpu::new(CpuOptions { threads: Some(2), isa: None }).unwrap());
    let options = LoadOptions { compute: Compute::Bf16 };
    Arc::new(Model::load(&Checkpoint::open(dir.path()).unwrap(), options, cpu, &mut |_| {}).unwrap())
});

fn options() -> EngineOptions {
    EngineOptions {
        max_sequences: 16,
        max_tokens: 160 << 10,
        max_context: 128 << 10,
        step_tokens: 1024,
        max_logit_rows: 64,
        prefix_cache: Some(PrefixCacheOptions { state_bytes: 64 << 20, host_bytes: 0, interval: 4096 }),
        ..support::options()
    }
}

fn engine(options: EngineOptions) -> Engine {
    Engine::start(Arc::clone(&SYNTH), None, options).unwrap()
}

fn first_token(engine: &Engine, request: GenerateRequest) -> Duration {
    let start = Instant::now();
    let mut generation = engine.submit(request).unwrap();
    assert!(matches!(generation.blocking_next(), Some(Event::Token(_))));
    let taken = start.elapsed();
    collect_rest(generation);
    taken
}

fn collect_rest(mut generation: Generation) {
    while generation.blocking_next().is_some() {}
}

#[test]
#[ignore = "a measurement"]
fn time_to_first_token_behind_a_shared_prefix_of_16k_tokens() {
    let warm = engine(options());
    let shared = prompt(16 << 10, 1);
    let request = |salt| greedy([shared.clone(), prompt(40, salt)].concat(), 32);
    let cold = first_token(&warm, request(1));
    first_token(&warm, request(2));
    let mut hits: Vec<Duration> = (3..12).map(|salt| first_token(&warm, request(salt))).collect();
    hits.sort();
    let ratio = cold.as_secs_f64() / hits[4].as_secs_f64();
    println!("cold {cold:?}, hit {:?} (median of 9): {ratio:.0} times faster", hits[4]);
    // The same to the last bit of each log-probability as on an engine that keeps nothing.
    let hit = collect(warm.submit(request(12)).unwrap());
    let whole =
        collect(engine(EngineOptions { prefix_cache: None, ..options() }).submit(request(12)).unwrap());
    let bits = |answer: &Answer| -> Vec<(u32, u32)> {
        answer.tokens.iter().map(|token| (token.id, token.logprob.to_bits())).collect()
    };
    println!("{} tokens taken up; {} tokens alike", hit.finished.usage.cached_tokens, bits(&hit).len());
    assert!(hit.finished.usage.cached_tokens >= 16 << 10, "no hit");
    assert_eq!(whole.finished.usage.cached_tokens, 0);
    assert_eq!(bits(&hit), bits(&whole));
    assert!(ratio > 20.0);
}

#[test]
#[ignore = "a measurement"]
fn speed_of_guesses_on_a_text_that_repeats_itself() {
    let bias: Vec<(u32, f32)> = (0..1000).filter(|id| id % 97 != 0).map(|id| (id, -100.0)).collect();
    let request = |salt| {
        // Ten tokens to choose from, so that a random model repeats what it said, as others do code or quotations.
        let mut request = greedy(prompt(64, salt), 600);
        request.sampling.logit_bias = bias.clone();
        request
    };
    let run = |max_drafts, clients: u32| {
        let engine = engine(EngineOptions { max_drafts, prefix_cache: None, ..options() });
        let start = Instant::now();
        let generations: Vec<_> = (0..clients).map(|salt| engine.submit(request(salt)).unwrap()).collect();
        let answers: Vec<Vec<u32>> = generations.into_iter().map(|g| collect(g).ids()).collect();
        (start.elapsed().as_secs_f64(), answers, engine.stats())
    };
    for clients in [1, 4] {
        let mut ratios = Vec::new();
        for _ in 0..5 {
            let (plain, expected, _) = run(0, clients);
            let (guessing, answers, stats) = run(8, clients);
            assert_eq!(answers, expected);
            println!("{clients}: {plain:.3} s, with guesses {guessing:.3} s, {stats:?}");
            ratios.push(plain / guessing);
        }
        ratios.sort_by(f64::total_cmp);
        println!("{clients} clients: {:.2} times as fast (median of 5)", ratios[2]);
    }
}

/// Seconds between tokens of eight clients, which ask for one answer after the other as long as `goes_on` says; the first
/// is whole in any case.
fn latencies(engine: &Engine, goes_on: impl Fn() -> bool + Sync) -> Vec<f64> {
    let clients: Vec<_> = (0..8).collect();
    std::thread::scope(|scope| {
        let client = |client: &u32| {
            let mut gaps = Vec::new();
            for answer in 0.. {
                let salt = 1000 * client + answer;
                let mut request = seeded(prompt(100, salt), 4000, u64::from(salt));
                request.stop.ignore_eos = true;
                let mut generation = engine.submit(request).unwrap();
                let mut last = None::<Instant>;
                while let Some(Event::Token(_)) = generation.blocking_next() {
                    let now = Instant::now();
                    gaps.extend(last.map(|last| (now - last).as_secs_f64()));
                    last = Some(now);
                    if answer > 0 && !goes_on() {
                        break;
                    }
                }
                if !goes_on() {
                    break;
                }
            }
            gaps
        };
        let threads: Vec<_> = clients.iter().map(|salt| scope.spawn(move || client(salt))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q) as usize]
}

#[test]
#[ignore = "a measurement"]
fn latency_between_tokens_while_another_prompt_of_100k_tokens_is_read() {
    let engine = engine(EngineOptions { max_drafts: 0, ..options() });
    let mut alone = latencies(&engine, || false);
    let long = engine.submit(greedy(prompt(100 << 10, 77), 1)).unwrap();
    let start = Instant::now();
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut beside = std::thread::scope(|scope| {
        scope.spawn(|| {
            collect_rest(long);
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        latencies(&engine, || !done.load(std::sync::atomic::Ordering::Acquire))
    });
    let taken = start.elapsed();
    let [before, under] = [&mut alone, &mut beside].map(|gaps| [0.5, 0.99].map(|q| 1e3 * quantile(gaps, q)));
    println!("alone: p50 {:.2} ms, p99 {:.2} ms; {} gaps", before[0], before[1], alone.len());
    println!("beside: p50 {:.2} ms, p99 {:.2} ms; {} gaps in {taken:?}", under[0], under[1], beside.len());
    println!("p99 is {:.2} times what it is alone", under[1] / before[1]);
    assert!(under[1] < 3.0 * before[1]);
}
