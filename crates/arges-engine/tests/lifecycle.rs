//! How generations end: stops, limits, cancellation, failure, shutdown.

mod support;

use std::path::Path;
use std::time::Duration;

use arges_engine::{
    Engine, EngineError, EngineOptions, Event, FinishReason, GenerateRequest, SamplingParams, StopCause,
    StopConditions, SubmitError,
};
use arges_text::Tokenizer;
use support::*;

#[test]
fn the_text_of_an_answer_is_the_decoding_of_its_tokens() {
    let request = seeded(prompt(20, 1), 200, 3);
    let answer = alone(request);
    assert_eq!(answer.text(), TOKENIZER.decode(&answer.ids()));
    assert!(answer.tokens.iter().any(|token| token.text.is_empty()), "half characters are held back");
}

#[test]
fn without_a_tokenizer_tokens_come_without_text() {
    let engine = Engine::start(MODEL.clone(), None, options()).unwrap();
    let answer = collect(engine.submit(greedy(prompt(20, 1), 20)).unwrap());
    assert_eq!((answer.tokens.len(), answer.text().as_str()), (20, ""));
}

#[test]
fn ids_that_the_tokenizer_does_not_have_are_never_sampled() {
    const KNOWN: usize = 300;
    let dir = tempfile::tempdir().unwrap();
    arges_text::synthetic::write_tokenizer(dir.path(), KNOWN).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let engine = Engine::start(MODEL.clone(), Some(tokenizer), options()).unwrap();
    let answer = collect(engine.submit(seeded(prompt(20, 1), 200, 3)).unwrap());
    assert!(answer.ids().iter().all(|&id| (id as usize) < KNOWN));
    assert!(alone(seeded(prompt(20, 1), 200, 3)).ids().iter().any(|&id| id as usize >= KNOWN));
}

#[test]
fn a_stop_string_ends_the_answer_before_it_wherever_it_starts() {
    let free = alone(seeded(prompt(20, 1), 60, 3));
    let text = free.text();
    let chars: Vec<char> = text.chars().collect();
    for start in [0, 5, chars.len() / 2, chars.len() - 6] {
        let stop: String = chars[start..start + 5].iter().collect();
        let before = &text[..text.find(&stop).unwrap()];
        let strings = vec!["never in there".to_owned(), stop];
        let stop = StopConditions { strings, ..StopConditions::default() };
        let answer = alone(GenerateRequest { stop, ..seeded(prompt(20, 1), 60, 3) });
        assert_eq!(answer.text(), before);
        assert_eq!(answer.finished.reason, FinishReason::Stop);
        assert_eq!(answer.finished.stop, Some(StopCause::Text(1)));
        assert!(free.ids().starts_with(&answer.ids()));
    }
}

#[test]
fn a_begun_stop_string_that_does_not_come_is_given_out_at_the_end() {
    let free = alone(seeded(prompt(20, 1), 40, 3));
    let last: String = free.text().chars().rev().take(2).collect::<Vec<_>>().into_iter().rev().collect();
    let strings = vec![format!("{last} and then never")];
    let stop = StopConditions { strings, ..StopConditions::default() };
    let answer = alone(GenerateRequest { stop, ..seeded(prompt(20, 1), 40, 3) });
    assert_eq!(answer.text(), free.text());
    assert_eq!(answer.finished.reason, FinishReason::Length);
    assert!(answer.finished.text.ends_with(&last));
}

#[test]
fn a_stop_token_ends_the_answer_and_is_given_without_text() {
    let free = alone(greedy(prompt(7, 1), 30));
    let stop_id = free.ids()[9];
    let place = free.ids().iter().position(|&id| id == stop_id).unwrap();
    let stop = StopConditions { tokens: vec![3, stop_id], ..StopConditions::default() };
    let answer = alone(GenerateRequest { stop, ..greedy(prompt(7, 1), 30) });
    assert_eq!(answer.ids(), free.ids()[..=place]);
    assert_eq!(answer.finished.stop, Some(StopCause::Token(stop_id)));
    assert_eq!(answer.tokens[place].text, "");
    assert_eq!(answer.text(), TOKENIZER.decode(&free.ids()[..place]));
}

#[test]
fn stops_cannot_happen_before_the_least_number_of_tokens() {
    let free = alone(greedy(prompt(7, 1), 30));
    let first = free.ids()[0];
    let stop = StopConditions { tokens: vec![first], min_tokens: 12, ..StopConditions::default() };
    let answer = alone(GenerateRequest { stop, ..greedy(prompt(7, 1), 30) });
    assert!(answer.tokens.len() > 12);
    assert!(!answer.ids()[..12].contains(&first));
    let early = TOKENIZER.decode(&free.ids()[..3]);
    let stop = StopConditions { strings: vec![early], min_tokens: 12, ..StopConditions::default() };
    let answer = alone(GenerateRequest { stop, ..greedy(prompt(7, 1), 12) });
    assert_eq!(answer.ids(), free.ids()[..12], "a stop string does not change what is sampled");
}

/// Copies the small model into `dir` with changes to its configuration and weights.
fn copy_model(
    dir: &Path,
    change_config: impl Fn(&mut serde_json::Value),
    change_weights: impl Fn(&mut [u8]),
) {
    for entry in std::fs::read_dir(data().join("fp32")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if path.ends_with("config.json") {
            let mut config = serde_json::from_slice(&bytes).unwrap();
            change_config(&mut config);
            bytes = serde_json::to_vec(&config).unwrap();
        } else if path.extension().is_some_and(|extension| extension == "safetensors") {
            change_weights(&mut bytes);
        }
        std::fs::write(dir.join(path.file_name().unwrap()), bytes).unwrap();
    }
}

#[test]
fn the_models_end_token_ends_the_answer_unless_it_is_ignored() {
    let free = alone(greedy(prompt(7, 1), 30));
    let end = free.ids()[9];
    let place = free.ids().iter().position(|&id| id == end).unwrap();
    let dir = tempfile::tempdir().unwrap();
    copy_model(dir.path(), |config| config["eos_token_id"] = end.into(), |_| {});
    let engine = Engine::start(load(dir.path()), None, options()).unwrap();
    let run = |stop| collect(engine.submit(GenerateRequest { stop, ..greedy(prompt(7, 1), 30) }).unwrap());
    let answer = run(StopConditions::default());
    assert_eq!(answer.ids(), free.ids()[..=place]);
    assert_eq!(answer.finished.reason, FinishReason::Stop);
    assert_eq!(answer.finished.stop, Some(StopCause::EndToken(end)));
    let answer = run(StopConditions { ignore_eos: true, ..StopConditions::default() });
    assert_eq!(answer.ids(), free.ids());
    let answer = run(StopConditions { min_tokens: 20, ..StopConditions::default() });
    assert!(answer.tokens.len() > 20 || answer.finished.reason == FinishReason::Length);
    assert!(!answer.ids()[..20].contains(&end));
}

#[test]
fn the_tokenizers_end_token_ends_the_answer_of_a_model_that_names_none() {
    let dir = tempfile::tempdir().unwrap();
    let end = arges_text::synthetic::write_tokenizer(dir.path(), 512).unwrap().end_of_sentence;
    let tokenizer = arges_text::Tokenizer::from_dir(dir.path()).unwrap();
    let engine = Engine::start(load(&data().join("fp32")), Some(tokenizer), options()).unwrap();
    let sampling = SamplingParams { logit_bias: vec![(end, 100.0)], ..SamplingParams::greedy() };
    let answer = collect(engine.submit(GenerateRequest { sampling, ..greedy(prompt(7, 1), 30) }).unwrap());
    assert_eq!(answer.ids(), [end]);
    assert_eq!(answer.finished.stop, Some(StopCause::EndToken(end)));
}

#[test]
fn a_request_that_spoils_its_numbers_fails_alone_and_its_memory_can_be_used_again() {
    const POISON: u32 = 11;
    let dir = tempfile::tempdir().unwrap();
    let poison = |bytes: &mut [u8]| {
        let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
        let Some(embedding) = header.get("model.embed_tokens.weight") else { return };
        let start = 8 + header_len + embedding["data_offsets"][0].as_u64().unwrap() as usize;
        let row = embedding["shape"][1].as_u64().unwrap() as usize * 4;
        for word in bytes[start + POISON as usize * row..][..row].chunks_exact_mut(4) {
            word.copy_from_slice(&f32::NAN.to_le_bytes());
        }
    };
    copy_model(dir.path(), |_| {}, poison);
    let options = EngineOptions { max_sequences: 2, ..options() };
    let engine = Engine::start(load(dir.path()), None, options).unwrap();
    let sampling = SamplingParams { logit_bias: vec![(POISON, -100.0)], ..SamplingParams::greedy() };
    let clean = |salt| {
        let prompt = prompt(50, salt).into_iter().map(|id| if id == POISON { 12 } else { id }).collect();
        GenerateRequest { sampling: sampling.clone(), ..greedy(prompt, 10) }
    };
    let expected: Vec<_> = (0..6).map(|salt| alone(clean(salt)).ids()).collect();
    for salt in 0..3 {
        let mut poisoned = clean(salt);
        poisoned.prompt[40] = POISON;
        let bad = engine.submit(poisoned).unwrap();
        let good = [salt * 2, salt * 2 + 1].map(|salt| engine.submit(clean(salt)).unwrap());
        let message = try_collect(bad).unwrap_err();
        assert!(message.contains("NaN"), "{message}");
        for (generation, expected) in good.into_iter().zip(&expected[salt as usize * 2..]) {
            assert_eq!(collect(generation).ids(), *expected);
        }
    }
    let stats = wait_for(&engine, nothing_held);
    assert_eq!((stats.failed, stats.finished), (3, 6));
}

#[test]
fn dropping_a_generation_frees_its_memory_and_disturbs_nobody() {
    let engine = engine(options());
    let mate = engine.submit(greedy(prompt(40, 2), 100)).unwrap();
    let mut dropped = engine.submit(greedy(prompt(40, 1), 2000)).unwrap();
    assert!(matches!(dropped.blocking_next(), Some(Event::Token(_))));
    drop(dropped);
    // A prompt whose computation takes many steps, dropped before its first token.
    drop(engine.submit(greedy(prompt(1500, 3), 10)).unwrap());
    let mate = collect(mate);
    assert_eq!(mate, alone(greedy(prompt(40, 2), 100)));
    let stats = wait_for(&engine, nothing_held);
    assert_eq!((stats.cancelled, stats.finished), (2, 1));
    assert!(stats.generated_tokens < 1000, "{stats:?}");
}

#[test]
fn without_a_limit_an_answer_goes_to_the_end_of_the_context() {
    let engine = engine(EngineOptions { max_context: 100, ..options() });
    let request = GenerateRequest { max_tokens: None, ..greedy(prompt(30, 1), 0) };
    let answer = collect(engine.submit(request).unwrap());
    assert_eq!((answer.tokens.len(), answer.finished.reason), (70, FinishReason::Length));
    assert_eq!(
        engine.submit(greedy(prompt(100, 1), 1)).unwrap_err(),
        SubmitError::TooLong { prompt: 100, max: 99 }
    );
    assert_eq!(collect(engine.submit(greedy(prompt(99, 1), 50)).unwrap()).tokens.len(), 1);
}

#[test]
fn a_request_that_fills_all_caches_runs_and_a_longer_one_is_refused() {
    let engine = engine(EngineOptions { max_tokens: 128, ..options() });
    assert_eq!(engine.max_context(), 128);
    let answer = collect(engine.submit(greedy(prompt(100, 1), 500)).unwrap());
    assert_eq!(answer.tokens.len(), 28);
    assert_eq!(
        engine.submit(greedy(prompt(128, 1), 1)).unwrap_err(),
        SubmitError::TooLong { prompt: 128, max: 127 }
    );
}

#[test]
fn more_requests_than_may_wait_are_refused_and_places_come_back() {
    let engine = engine(EngineOptions { max_sequences: 1, max_queue: 2, ..options() });
    let running = engine.submit(greedy(prompt(5, 0), 2000)).unwrap();
    wait_for(&engine, |stats| stats.running == 1);
    let waiting = [1, 2].map(|salt| engine.submit(greedy(prompt(5, salt), 3)).unwrap());
    assert_eq!(engine.submit(greedy(prompt(5, 3), 3)).unwrap_err(), SubmitError::QueueFull { max: 2 });
    let [first, second] = waiting;
    drop(first);
    wait_for(&engine, |stats| stats.cancelled == 1);
    let third = engine.submit(greedy(prompt(5, 3), 3)).unwrap();
    drop(running);
    assert_eq!(collect(second).tokens.len(), 3);
    assert_eq!(collect(third).tokens.len(), 3);
}

#[test]
fn higher_priorities_overtake_those_that_wait() {
    let engine = engine(EngineOptions { max_sequences: 1, ..options() });
    let running = engine.submit(greedy(prompt(5, 0), 300)).unwrap();
    wait_for(&engine, |stats| stats.running == 1);
    let low = engine.submit(greedy(prompt(5, 1), 2000)).unwrap();
    let high = engine.submit(GenerateRequest { priority: 1, ..greedy(prompt(5, 2), 50) }).unwrap();
    wait_for(&engine, |stats| stats.waiting == 2);
    drop(running);
    collect(high);
    let stats = wait_for(&engine, |stats| stats.finished > 0);
    assert_eq!(stats.finished, 1, "the one that came first is not done");
    drop(low);
}

#[test]
fn draining_finishes_what_was_taken_and_refuses_more() {
    let engine = engine(EngineOptions { max_sequences: 2, ..options() });
    let generations: Vec<_> =
        (0..5).map(|salt| engine.submit(greedy(prompt(20, salt), 30)).unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let drained = engine.drain();
        tokio::time::timeout(Duration::from_secs(60), drained).await.unwrap();
        assert_eq!(engine.submit(greedy(vec![1], 1)).unwrap_err(), SubmitError::ShutDown);
        for mut generation in generations {
            let mut tokens = 0;
            while let Some(event) = generation.next().await {
                match event {
                    Event::Token(_) => tokens += 1,
                    Event::Finished(finished) => assert_eq!(finished.usage.completion_tokens, tokens),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(tokens, 30);
        }
        engine.drain().await;
    });
}

#[test]
fn shutting_down_fails_what_runs_and_what_waits() {
    let engine = engine(EngineOptions { max_sequences: 1, ..options() });
    let generations = [0, 1].map(|salt| engine.submit(greedy(prompt(20, salt), 2000)).unwrap());
    wait_for(&engine, |stats| stats.running == 1);
    engine.shutdown();
    for generation in generations {
        assert!(try_collect(generation).unwrap_err().contains("shut down"));
    }
    assert_eq!(engine.submit(greedy(vec![1], 1)).unwrap_err(), SubmitError::ShutDown);
    assert!(nothing_held(engine.stats()));
    engine.shutdown();
}

#[test]
fn generations_outlive_the_handles_of_their_engine() {
    let engine = engine(options());
    let generation = engine.clone().submit(greedy(prompt(20, 1), 50)).unwrap();
    drop(engine);
    assert_eq!(collect(generation).tokens.len(), 50);
}

#[test]
fn options_that_contradict_each_other_are_refused_by_name() {
    let name = |options| match Engine::start(MODEL.clone(), None, options) {
        Err(EngineError::InvalidOption { name, .. }) => name,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the engine started"),
    };
    assert_eq!(name(EngineOptions { max_sequences: 0, ..options() }), "max_sequences");
    assert_eq!(name(EngineOptions { max_tokens: 0, ..options() }), "max_tokens");
    assert_eq!(name(EngineOptions { max_queue: 0, ..options() }), "max_queue");
    assert_eq!(name(EngineOptions { max_context: 0, ..options() }), "max_context");
    assert_eq!(name(EngineOptions { step_tokens: 15, ..options() }), "step_tokens");
    assert_eq!(name(EngineOptions { max_logit_rows: 15, ..options() }), "max_logit_rows");
}

#[test]
fn the_memory_plan_names_every_part() {
    let small = engine(options()).memory();
    let large = engine(EngineOptions { max_tokens: 16_384, step_tokens: 128, ..options() }).memory();
    assert_eq!(small.weights, MODEL.weight_bytes());
    assert!(large.cache > small.cache && large.workspace > small.workspace);
    assert!(small.snapshots > 7 << 20 && small.snapshots <= 8 << 20, "{small}");
    assert_eq!(small.total(), small.weights + small.cache + small.snapshots + small.workspace);
    assert!(small.to_string().contains("caches"), "{small}");
}
