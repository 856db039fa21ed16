//! Guesses of what comes next change no token, however many are right.

mod support;

use arges_engine::{Engine, EngineOptions, GenerateRequest, SamplingParams, StopConditions, Thinking};
use support::*;

fn plain() -> Engine {
    engine(EngineOptions { max_drafts: 0, ..options() })
}

fn repeating(period: usize, salt: u32) -> Vec<u32> {
    prompt(period, salt).repeat(150_usize.div_ceil(period))
}

/// Makes the answer repeat itself too, now and then.
fn biased(request: GenerateRequest) -> GenerateRequest {
    let logit_bias = vec![(11, 9.0), (12, 9.0)];
    let sampling = SamplingParams { logit_bias, ..request.sampling };
    GenerateRequest { sampling, ..request }
}

fn requests() -> Vec<GenerateRequest> {
    let mut requests: Vec<GenerateRequest> = Vec::new();
    for salt in 0..4 {
        let prompt = repeating(3 + 4 * salt as usize, salt);
        requests.push(greedy(prompt.clone(), 150));
        requests.push(biased(seeded(prompt.clone(), 120, u64::from(salt))));
        let sampling = SamplingParams {
            seed: Some(5),
            temperature: 0.7,
            frequency_penalty: 0.3,
            repetition_penalty: 1.2,
            ..SamplingParams::default()
        };
        let thinking = Some(Thinking { prompt_end: "<think>\n".to_owned(), budget: Some(30) });
        let stop =
            StopConditions { strings: vec!["e".to_owned()], min_tokens: 90, ..StopConditions::default() };
        let request = GenerateRequest { thinking, stop, logprobs: Some(3), ..greedy(prompt, 140) };
        requests.push(biased(GenerateRequest { sampling, ..request }));
    }
    requests
}

#[test]
fn answers_are_those_without_guesses() {
    let requests = requests();
    let expected = together(&plain(), &requests);
    for max_drafts in [1, 8, 63] {
        let max_logit_rows = 16 + max_drafts;
        let guessing = engine(EngineOptions { max_drafts, max_logit_rows, step_tokens: 100, ..options() });
        assert_eq!(together(&guessing, &requests), expected, "{max_drafts}");
        for (request, expected) in requests.iter().zip(&expected).take(4) {
            let mut answer = collect(guessing.submit(request.clone()).unwrap());
            answer.finished.usage.cached_tokens = expected.finished.usage.cached_tokens;
            assert_eq!(answer, *expected, "alone");
        }
        let stats = wait_for(&guessing, nothing_held);
        assert!(stats.drafted_tokens > 20 && stats.accepted_drafts > 10, "{stats:?}");
        assert!(stats.accepted_drafts < stats.drafted_tokens, "some are wrong: {stats:?}");
    }
}

#[test]
fn right_guesses_save_steps() {
    let request = greedy(repeating(5, 3), 200);
    let bias = SamplingParams { logit_bias: vec![(11, 100.0)], ..SamplingParams::greedy() };
    let request = GenerateRequest { sampling: bias, ..request };
    let steps = |engine: &Engine| {
        assert_eq!(collect(engine.submit(request.clone()).unwrap()).ids(), [11; 200]);
        wait_for(engine, nothing_held).steps
    };
    let (guessing, plain) = (steps(&engine(options())), steps(&plain()));
    assert!(plain >= 200 && guessing < plain / 2, "{guessing} steps, {plain} without guesses");
}

#[test]
fn pages_that_run_out_cost_guesses_and_not_answers() {
    let requests = requests();
    let expected = together(&plain(), &requests);
    let small = engine(EngineOptions { max_tokens: 640, max_context: 320, ..options() });
    let answers = together(&small, &requests);
    for (mut answer, expected) in answers.into_iter().zip(expected) {
        answer.finished.usage.cached_tokens = expected.finished.usage.cached_tokens;
        assert_eq!(answer, expected);
    }
    let stats = wait_for(&small, nothing_held);
    assert!(stats.preemptions > 0 && stats.accepted_drafts > 0, "{stats:?}");
}
