//! Nothing that runs beside a request changes what it gets.

mod support;

use arges_engine::{
    EngineOptions, Event, FinishReason, GenerateRequest, SamplingParams, StopConditions, TokenEvent,
};
use support::*;

#[test]
fn greedy_tokens_equal_those_of_the_official_code() {
    let text = std::fs::read_to_string(data().join("greedy_fp32.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let ids = |value: &serde_json::Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let engine = engine(options());
    let requests: Vec<GenerateRequest> =
        cases.iter().map(|case| greedy(ids(&case["prompt"]), ids(&case["tokens"]).len())).collect();
    assert!(requests.len() > 3);
    for (case, answer) in cases.iter().zip(together(&engine, &requests)) {
        assert_eq!(answer.ids(), ids(&case["tokens"]), "prompt of {}", case["prompt_len"]);
        assert_eq!(answer.finished.reason, FinishReason::Length);
    }
}

/// Requests of many kinds and lengths.
fn mixture() -> Vec<GenerateRequest> {
    (0..16u32)
        .map(|index| {
            let prompt = prompt([1, 63, 64, 65, 150, 17, 200, 5][index as usize % 8], index);
            let max_tokens = 10 + index as usize * 3;
            match index % 4 {
                0 => greedy(prompt, max_tokens),
                1 => seeded(prompt, max_tokens, u64::from(index)),
                2 => GenerateRequest {
                    prompt_logprobs: Some(2),
                    logprobs: Some(3),
                    ..greedy(prompt, max_tokens)
                },
                _ => {
                    let sampling = SamplingParams {
                        seed: Some(99),
                        temperature: 1.3,
                        top_p: 0.9,
                        frequency_penalty: 0.5,
                        repetition_penalty: 1.1,
                        ..SamplingParams::default()
                    };
                    GenerateRequest { sampling, ..greedy(prompt, max_tokens) }
                }
            }
        })
        .collect()
}

#[test]
fn each_of_sixteen_requests_at_once_gets_the_answer_it_gets_alone() {
    let requests = mixture();
    let engine = engine(options());
    let answers = together(&engine, &requests);
    for (request, answer) in requests.into_iter().zip(answers) {
        assert_eq!(alone(request), answer);
    }
    let stats = wait_for(&engine, nothing_held);
    assert_eq!((stats.finished, stats.preemptions), (16, 0));
}

#[test]
fn the_size_of_steps_changes_no_bit() {
    let requests = &mixture()[..8];
    let expected = together(&engine(options()), requests);
    for (step_tokens, max_logit_rows) in [(8, 8), (9, 11), (1000, 300)] {
        let engine = engine(EngineOptions { max_sequences: 8, step_tokens, max_logit_rows, ..options() });
        assert_eq!(together(&engine, requests), expected, "{step_tokens} tokens a step");
    }
}

#[test]
fn preemption_changes_no_bit() {
    let mut requests = mixture();
    for request in &mut requests {
        request.max_tokens = Some(250 - request.prompt.len());
    }
    let expected = together(&engine(options()), &requests);
    // Eight pages, of which each request needs four in the end.
    let engine = engine(EngineOptions { max_tokens: 512, max_context: 256, step_tokens: 24, ..options() });
    assert_eq!(together(&engine, &requests), expected);
    let stats = wait_for(&engine, nothing_held);
    // How many depends on when the requests arrive.
    assert!(stats.preemptions > 0, "{stats:?}");
    assert_eq!(stats.finished, 16);
}

#[test]
fn seeds_give_the_same_tokens_beside_other_requests_and_different_ones_differ() {
    let engine = engine(options());
    let requests: Vec<GenerateRequest> = (0..8).map(|i| seeded(prompt(30, 1), 40, [7, 8][i % 2])).collect();
    let answers = together(&engine, &requests);
    assert!(answers.iter().step_by(2).all(|answer| *answer == answers[0]));
    assert!(answers.iter().skip(1).step_by(2).all(|answer| *answer == answers[1]));
    assert_ne!(answers[0].ids(), answers[1].ids());
    let unseeded = GenerateRequest { sampling: SamplingParams::default(), ..requests[0].clone() };
    let answers = together(&engine, &[unseeded.clone(), unseeded]);
    assert_ne!(answers[0].ids(), answers[1].ids(), "without a seed each request has its own");
}

#[test]
fn log_probabilities_of_decoding_and_of_scoring_are_the_same_bits() {
    let engine = engine(options());
    for (len, salt) in [(1, 1), (63, 2), (100, 3)] {
        let request = GenerateRequest { logprobs: Some(4), ..seeded(prompt(len, salt), 80, 5) };
        let answer = collect(engine.submit(request.clone()).unwrap());
        let whole: Vec<u32> = request.prompt.iter().copied().chain(answer.ids()).collect();
        let score = GenerateRequest { prompt_logprobs: Some(4), ..greedy(whole.clone(), 0) };
        let scored = collect(engine.submit(score).unwrap());
        assert_eq!(scored.tokens, []);
        assert_eq!(scored.finished.usage.prompt_tokens, whole.len());
        let scores = scored.prompt.unwrap();
        assert_eq!(scores.len(), whole.len());
        assert_eq!(scores[0], None);
        for (token, score) in answer.tokens.iter().zip(&scores[len..]) {
            let score = score.as_ref().unwrap();
            assert_eq!((token.id, token.logprob.to_bits()), (score.id, score.logprob.to_bits()));
            assert_eq!(token.top, score.top);
            assert_eq!(token.top.len(), 4);
            assert!(token.top.iter().all(|&(_, logprob)| logprob <= token.top[0].1));
        }
    }
}

#[test]
fn tokens_that_are_told_at_the_end_are_those_told_one_by_one() {
    let engine = engine(options());
    for (request, with_text) in [
        (seeded(prompt(40, 1), 30, 5), false),
        (
            GenerateRequest {
                stop: StopConditions { strings: vec!["never".to_owned()], ..StopConditions::default() },
                ..seeded(prompt(20, 2), 25, 6)
            },
            true,
        ),
    ] {
        let expected = together(&engine, std::slice::from_ref(&request)).remove(0);
        let request = GenerateRequest { tokens_at_end: true, ..request };
        let mut generation = engine.submit(request).unwrap();
        let Some(Event::Finished(finished)) = generation.blocking_next() else { panic!("no end") };
        assert_eq!(generation.blocking_next(), None);
        if with_text {
            assert_eq!(finished.tokens, expected.tokens);
            assert_eq!(finished.text, expected.finished.text);
        }
        let bits = |tokens: &[TokenEvent]| -> Vec<(u32, u32)> {
            tokens.iter().map(|token| (token.id, token.logprob.to_bits())).collect()
        };
        assert_eq!(bits(&finished.tokens), bits(&expected.tokens));
        assert!(with_text || finished.tokens.iter().all(|token| token.text.is_empty()));
        assert_eq!((finished.reason, finished.usage), (expected.finished.reason, expected.finished.usage));
        assert!(expected.finished.tokens.is_empty());
    }
}

#[test]
fn a_prompt_can_be_scored_and_continued_in_one_request() {
    let engine = engine(options());
    let both = GenerateRequest { prompt_logprobs: Some(0), ..greedy(prompt(90, 4), 5) };
    let score_only = GenerateRequest { max_tokens: Some(0), ..both.clone() };
    let answers = together(&engine, &[both, score_only, greedy(prompt(90, 4), 5)]);
    assert_eq!(answers[0].prompt, answers[1].prompt);
    assert_eq!(answers[0].tokens, answers[2].tokens);
    let single = |max_tokens| GenerateRequest { prompt_logprobs: Some(1), ..greedy(vec![9], max_tokens) };
    let answers = together(&engine, &[single(0), single(2)]);
    assert_eq!(answers[0].prompt, Some(vec![None]));
    assert_eq!(answers[1].prompt, Some(vec![None]));
    assert_eq!((answers[0].tokens.len(), answers[1].tokens.len()), (0, 2));
}
