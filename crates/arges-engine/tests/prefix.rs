//! Sequences that begin like earlier ones take up what is there, and get the bits of a cold run.

mod support;

use std::sync::{Arc, LazyLock};

use arges_engine::{Engine, EngineOptions, Event, GenerateRequest, PrefixCacheOptions};
use arges_model::DeviceModel;
use support::*;

fn with_cache(prefix_cache: Option<PrefixCacheOptions>) -> EngineOptions {
    EngineOptions { prefix_cache, ..options() }
}

/// What a request gets where nothing is kept.
fn cold(request: &GenerateRequest) -> Answer {
    static COLD: LazyLock<Engine> = LazyLock::new(|| engine(with_cache(None)));
    collect(COLD.submit(request.clone()).unwrap())
}

/// Runs a request, holds the answer against a cold run's, and gives it with the tokens it found in the cache.
fn run(engine: &Engine, request: &GenerateRequest) -> (Answer, usize) {
    let answer = collect(engine.submit(request.clone()).unwrap());
    let cached = answer.finished.usage.cached_tokens;
    let mut same = answer.clone();
    same.finished.usage.cached_tokens = 0;
    assert_eq!(same, cold(request), "{cached} cached tokens");
    (answer, cached)
}

fn with_logprobs(request: GenerateRequest) -> GenerateRequest {
    GenerateRequest { logprobs: Some(5), ..request }
}

#[test]
fn a_prompt_that_goes_on_from_an_earlier_one_takes_up_its_whole_chunks() {
    let engine = engine(options());
    let long = prompt(500, 1);
    assert_eq!(run(&engine, &with_logprobs(greedy(long[..300].to_vec(), 5))).1, 0);
    assert_eq!(run(&engine, &with_logprobs(seeded(long.clone(), 80, 3))).1, 256);
    assert_eq!(run(&engine, &with_logprobs(greedy(long.clone(), 80))).1, 448);
    let stats = wait_for(&engine, nothing_held);
    assert_eq!(stats.cached_tokens, 256 + 448);
    assert!(stats.cached_pages > 6 && stats.cached_states > 2, "{stats:?}");
    engine.flush_prefixes();
    wait_for(&engine, |stats| stats.cached_pages == 0 && stats.cached_states == 0 && nothing_held(stats));
    assert_eq!(run(&engine, &greedy(long, 5)).1, 0);
}

#[test]
fn the_experts_of_every_token_are_told_once_however_it_was_computed() {
    let tokens = prompt(300, 1);
    let experts =
        |answer: &Answer| answer.tokens.iter().flat_map(|token| token.experts.clone()).collect::<Vec<u8>>();
    let asked = GenerateRequest { experts: true, ..seeded(tokens.clone(), 40, 3) };
    // One at a time, and beside others; in steps of other sizes; where a beginning is kept, which does not help here.
    let engine = engine(options());
    let answer = collect(engine.submit(asked.clone()).unwrap());
    let each = answer.tokens[1].experts.len();
    assert_eq!(each, 8 * 2);
    assert_eq!(answer.tokens[0].experts.len(), 300 * each);
    assert_eq!(experts(&answer).len(), (300 + answer.tokens.len() - 1) * each);
    let others = (0..4).map(|salt| seeded(prompt(90, salt), 30, 9));
    let requests: Vec<GenerateRequest> = [asked.clone()].into_iter().chain(others).collect();
    let answers = together(&engine, &requests);
    assert_eq!((experts(&answers[0]), answers[0].ids()), (experts(&answer), answer.ids()));
    assert_eq!(answers[0].finished.usage.cached_tokens, 0);
    assert!(answers[1..].iter().all(|answer| experts(answer).is_empty()));
    let small = support::engine(EngineOptions { step_tokens: 33, max_drafts: 8, ..options() });
    assert_eq!(experts(&collect(small.submit(asked).unwrap())), experts(&answer));
    // As a prompt, the answer goes to the same experts.
    let whole: Vec<u32> = tokens.into_iter().chain(answer.ids()).collect();
    let again = GenerateRequest { experts: true, ..greedy(whole, 1) };
    let told = experts(&collect(engine.submit(again).unwrap()));
    assert_eq!(told[..told.len() - each], experts(&answer));
}

#[test]
fn a_conversation_goes_on_from_its_last_answer() {
    let engine = engine(options());
    let mut turns = prompt(100, 2);
    for turn in 0..3 {
        let request = seeded(turns.clone(), 70, turn);
        let (answer, cached) = run(&engine, &request);
        // The last token of an answer is not computed.
        assert_eq!(cached, if turn == 0 { 0 } else { (turns.len() - 20 - 1) / 64 * 64 });
        turns.extend(answer.ids());
        turns.extend(prompt(20, turn as u32));
    }
}

#[test]
fn the_last_token_of_a_prompt_is_computed_in_any_case() {
    let engine = engine(options());
    let request = with_logprobs(greedy(prompt(256, 3), 10));
    // The first leaves a state after its end, which is too far; the second one where the third can begin.
    let hits = [0; 3].map(|_| run(&engine, &request).1);
    assert_eq!(hits, [0, 0, 192]);
}

#[test]
fn where_prompts_part_a_state_is_kept() {
    let engine = engine(options());
    let request = |salt| greedy([prompt(150, 4), prompt(100, salt)].concat(), 10);
    let hits = [5, 6, 7, 8].map(|salt| run(&engine, &request(salt)).1);
    assert_eq!(hits, [0, 0, 128, 128]);
}

#[test]
fn requests_that_come_together_compute_their_common_beginning_once() {
    let engine = engine(options());
    let prefix = prompt(1000, 9);
    let requests: Vec<GenerateRequest> =
        (0..12).map(|salt| seeded([prefix.clone(), prompt(30, salt)].concat(), 20, salt.into())).collect();
    let answers = together(&engine, &requests);
    let cached: usize = answers.iter().map(|answer| answer.finished.usage.cached_tokens).sum();
    assert_eq!(cached, 11 * 960);
    for (request, mut answer) in requests.iter().zip(answers) {
        answer.finished.usage.cached_tokens = 0;
        assert_eq!(answer, cold(request));
    }
}

#[test]
fn scored_prompts_get_every_log_probability_though_they_are_cached() {
    let engine = engine(options());
    run(&engine, &greedy(prompt(300, 1), 5));
    let score =
        |max_tokens| GenerateRequest { prompt_logprobs: Some(3), ..greedy(prompt(300, 1), max_tokens) };
    for max_tokens in [0, 9] {
        let (answer, cached) = run(&engine, &score(max_tokens));
        assert_eq!((answer.prompt.unwrap().len(), cached), (300, 0));
    }
}

#[test]
fn without_room_for_states_nothing_is_found() {
    for prefix_cache in [None, Some(PrefixCacheOptions { state_bytes: 0, host_bytes: 0, interval: 64 })] {
        let engine = engine(with_cache(prefix_cache));
        assert_eq!([0; 2].map(|_| run(&engine, &greedy(prompt(300, 1), 5)).1), [0; 2]);
        assert_eq!(engine.memory().snapshots, 0);
    }
}

#[test]
fn states_that_went_to_the_host_are_taken_up_to_the_same_bits() {
    let state = DeviceModel::from(Arc::clone(&MODEL)).snapshot_bytes();
    // The first of four prompts, with the places that its states had long since taken by others.
    let hit = |host_states| {
        let options =
            PrefixCacheOptions { state_bytes: state, host_bytes: host_states * state, interval: 256 };
        let engine = engine(with_cache(Some(options)));
        for salt in 0..4 {
            run(&engine, &greedy(prompt(300, salt), 2));
        }
        run(&engine, &with_logprobs(greedy(prompt(320, 0), 80))).1
    };
    assert_eq!([0, 8].map(hit), [0, 256]);
}

#[test]
fn random_load_with_cancellations_leaves_no_memory_behind_and_changes_no_bit() {
    // Too few pages and states for all, so that both are thrown away all the time.
    let state = engine(options()).memory().snapshots / 1000;
    let prefix_cache =
        Some(PrefixCacheOptions { state_bytes: 6 * state.max(1 << 16), host_bytes: 0, interval: 128 });
    let options =
        EngineOptions { max_tokens: 1536, max_context: 640, max_sequences: 6, prefix_cache, ..options() };
    let engine = engine(options);
    let mut state = 1u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let requests: Vec<GenerateRequest> = (0..60)
        .map(|salt| {
            let shared = prompt(320, 100 + random(3) as u32)[..64 + random(250) as usize].to_vec();
            let own = prompt(random(100) as usize, salt);
            seeded([shared, own].concat(), 1 + random(60) as usize, random(5))
        })
        .collect();
    for requests in requests.chunks(20) {
        let mut generations: Vec<_> =
            requests.iter().map(|request| Some(engine.submit(request.clone()).unwrap())).collect();
        for generation in &mut generations {
            match random(4) {
                0 => *generation = None,
                1 => {
                    let first = generation.as_mut().unwrap().blocking_next();
                    assert!(matches!(first, Some(Event::Token(_))), "{first:?}");
                    *generation = None;
                }
                _ => {}
            }
        }
        for (request, generation) in requests.iter().zip(generations) {
            let Some(generation) = generation else { continue };
            let mut answer = collect(generation);
            answer.finished.usage.cached_tokens = 0;
            assert_eq!(answer, cold(request));
        }
    }
    let stats = wait_for(&engine, nothing_held);
    assert!(stats.cached_tokens > 1000 && stats.evicted_pages > 10 && stats.evicted_states > 10, "{stats:?}");
    engine.flush_prefixes();
    let empty = wait_for(&engine, |stats| stats.cached_pages == 0);
    assert!(nothing_held(empty) && empty.cached_states == 0);
}
