use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// Logits of roughly the shape a model gives: most of them low, a few high.
fn model_like_logits(len: usize, seed: u64) -> Vec<f32> {
    let logit = |id: usize| {
        let normal: f64 = (0..12).map(|k| uniform(seed, (id * 12 + k) as u64)).sum::<f64>() - 6.0;
        (normal * 2.5 + if id % 977 == 5 { 12.0 } else { 0.0 }) as f32
    };
    (0..len).map(logit).collect()
}

fn sample_at(logits: &[f32], params: &SamplingParams, position: u64) -> Result<Sampled, SampleError> {
    let sampler = Sampler::new(params.clone(), 17, &[]).unwrap();
    let row = RowLogprobs::new(logits)?;
    let constraints = RowConstraints::vocabulary(logits.len());
    sampler.sample(&row, position, &constraints, &mut SampleScratch::new(logits.len()))
}

fn unconstrained(_: u32) -> bool {
    true
}

fn all_kinds_of_params() -> Vec<SamplingParams> {
    let base = SamplingParams::default;
    vec![
        base(),
        SamplingParams { temperature: 0.6, ..base() },
        SamplingParams { top_k: 40, ..base() },
        SamplingParams { top_p: 0.95, ..base() },
        SamplingParams { top_p: 0.3, temperature: 1.5, ..base() },
        SamplingParams { min_p: 0.05, ..base() },
        SamplingParams { top_k: 300, top_p: 0.9, min_p: 0.02, temperature: 1.2, ..base() },
        SamplingParams { top_k: 1_000_000, top_p: 0.999, ..base() },
    ]
}

#[test]
fn draws_equal_those_of_the_f64_reference() {
    for len in [1, 2, 63, 1000, 5003] {
        let logits = model_like_logits(len, 3);
        for params in all_kinds_of_params() {
            let expected = reference::distribution(&logits, &params, &[], &[], unconstrained).unwrap();
            for position in 0..200 {
                let sampled = sample_at(&logits, &params, position).unwrap();
                let id = reference::draw(&expected, uniform(17, position)).unwrap();
                assert_eq!(sampled.id as usize, id, "{len} {params:?} {position}");
                let logprob = reference::logprob(&logits, id);
                assert!((f64::from(sampled.logprob) - logprob).abs() < 1e-6 * logprob.abs().max(1.0));
            }
        }
    }
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [0.0f32, 1.0, 2.0, 1.5, -1.0, 0.5, f32::NEG_INFINITY];
    for params in [
        SamplingParams::default(),
        SamplingParams { temperature: 0.7, ..SamplingParams::default() },
        SamplingParams { top_p: 0.8, ..SamplingParams::default() },
    ] {
        let expected = reference::distribution(&logits, &params, &[], &[], unconstrained).unwrap();
        const DRAWS: u64 = 20_000;
        let mut counts = [0u32; 7];
        for position in 0..DRAWS {
            counts[sample_at(&logits, &params, position).unwrap().id as usize] += 1;
        }
        let mut chi_square = 0.0;
        for (&count, &probability) in counts.iter().zip(&expected) {
            let mean = probability * DRAWS as f64;
            if mean == 0.0 {
                assert_eq!(count, 0);
            } else {
                chi_square += (f64::from(count) - mean).powi(2) / mean;
            }
        }
        // Five degrees of freedom at most: 20.5 is exceeded once in a thousand seeds.
        assert!(chi_square < 20.5, "{params:?}: {chi_square}");
    }
}

#[test]
fn penalties_and_biases_change_the_distribution_as_their_formulas_say() {
    let logits = [2.0f32, -1.0, 0.5, 1.0, 3.0];
    let params = SamplingParams {
        frequency_penalty: 0.4,
        presence_penalty: 0.3,
        repetition_penalty: 1.3,
        logit_bias: vec![(1, 2.5), (3, -1.0), (1, 0.5)],
        ..SamplingParams::default()
    };
    let (prompt, answer) = ([0u32, 1], [4u32, 4, 2]);
    let expected = [2.0 / 1.3, -1.3 + 3.0, 0.5 / 1.3 - 0.4 - 0.3, 1.0 - 1.0, 3.0 / 1.3 - 2.0 * 0.4 - 0.3f64]
        .map(f64::exp);
    let mass: f64 = expected.iter().sum();
    let reference = reference::distribution(&logits, &params, &prompt, &answer, unconstrained).unwrap();
    for (weight, probability) in expected.iter().zip(&reference) {
        assert!((weight / mass - probability).abs() < 1e-6);
    }
    let mut sampler = Sampler::new(params, 5, &prompt).unwrap();
    answer.iter().for_each(|&id| sampler.record(id));
    let mut scratch = SampleScratch::new(5);
    let row = RowLogprobs::new(&logits).unwrap();
    for position in 0..1000 {
        let sampled = sampler.sample(&row, position, &RowConstraints::vocabulary(5), &mut scratch).unwrap();
        assert_eq!(Some(sampled.id as usize), reference::draw(&reference, uniform(5, position)));
        assert_eq!(sampled.logprob, row.logprob(sampled.id));
    }
}

#[test]
fn constraints_keep_tokens_from_being_sampled() {
    let logits = [1.0f32, 9.0, 3.0, 4.0, 5.0, 8.0];
    let sampler = Sampler::new(SamplingParams::greedy(), 0, &[]).unwrap();
    let row = RowLogprobs::new(&logits).unwrap();
    let mut scratch = SampleScratch::new(6);
    let mut sample = |constraints| sampler.sample(&row, 0, &constraints, &mut scratch).map(|s| s.id);
    let all = RowConstraints::vocabulary(6);
    assert_eq!(sample(all), Ok(1));
    assert_eq!(sample(RowConstraints { forbidden: &[1, 99], ..all }), Ok(5));
    assert_eq!(sample(RowConstraints { forbidden: &[1], sampleable: 5, ..all }), Ok(4));
    assert_eq!(sample(RowConstraints { allowed: Some(&[0b1101]), ..all }), Ok(3));
    assert_eq!(sample(RowConstraints { allowed: Some(&[0b1101]), forbidden: &[3], ..all }), Ok(2));
    assert_eq!(sample(RowConstraints { allowed: Some(&[]), ..all }), Err(SampleError::NothingAllowed));
    assert_eq!(sample(RowConstraints { sampleable: 0, ..all }), Err(SampleError::NothingAllowed));
}

#[test]
fn logits_that_are_no_numbers_are_errors_that_name_the_token() {
    let mut logits = model_like_logits(3000, 1);
    logits[1234] = f32::NAN;
    let error = sample_at(&logits, &SamplingParams::default(), 0).unwrap_err();
    assert!(matches!(error, SampleError::NotANumber { id: 1234, .. }), "{error}");
    logits[1234] = f32::INFINITY;
    let error = sample_at(&logits, &SamplingParams::greedy(), 0).unwrap_err();
    assert_eq!(error, SampleError::NotANumber { id: 1234, logit: f32::INFINITY });
    let nothing = sample_at(&[f32::NEG_INFINITY; 40], &SamplingParams::default(), 0);
    assert_eq!(nothing, Err(SampleError::NothingAllowed));
    assert_eq!(sample_at(&[], &SamplingParams::default(), 0), Err(SampleError::NothingAllowed));
}

#[test]
fn greedy_ties_go_to_the_lower_id() {
    let logits = [1.0f32, -0.0, 7.0, 7.0, 0.0, 7.0];
    assert_eq!(sample_at(&logits, &SamplingParams::greedy(), 0).unwrap().id, 2);
    let top_1 = SamplingParams { top_k: 1, ..SamplingParams::default() };
    assert!((0..100).all(|position| sample_at(&logits, &top_1, position).unwrap().id == 2));
}

#[test]
fn equal_seeds_and_positions_give_equal_tokens_and_others_differ() {
    let logits = vec![0.0f32; 4096];
    let draws = |seed: u64| -> Vec<u32> {
        let sampler = Sampler::new(SamplingParams::default(), seed, &[]).unwrap();
        let row = RowLogprobs::new(&logits).unwrap();
        let constraints = RowConstraints::vocabulary(logits.len());
        // A fresh scratch each time and positions in reverse: nothing is remembered between draws.
        let draw = |position| {
            sampler.sample(&row, position, &constraints, &mut SampleScratch::new(4096)).unwrap().id
        };
        let mut ids: Vec<u32> = (0..32).rev().map(draw).collect();
        ids.reverse();
        ids
    };
    let expected: Vec<u32> = (0..32).map(|position| (uniform(9, position) * 4096.0) as u32).collect();
    assert_eq!(draws(9), expected);
    assert_ne!(draws(10), expected);
}

#[test]
fn extreme_temperatures_neither_overflow_nor_panic() {
    let logits = model_like_logits(2000, 8);
    let greedy = sample_at(&logits, &SamplingParams::greedy(), 0).unwrap().id;
    for temperature in [f32::MIN_POSITIVE, 1e-40, 1e-6] {
        let params = SamplingParams { temperature, ..SamplingParams::default() };
        assert_eq!(sample_at(&logits, &params, 3).unwrap().id, greedy);
    }
    let params = SamplingParams { temperature: f32::MAX, ..SamplingParams::default() };
    let distinct: HashMap<u32, ()> =
        (0..200).map(|position| (sample_at(&logits, &params, position).unwrap().id, ())).collect();
    assert!(distinct.len() > 150, "nearly uniform over 2,000 tokens");
}

#[test]
fn a_parameter_out_of_its_range_is_named() {
    let bad = |params: SamplingParams| params.validate().unwrap_err().name;
    let base = SamplingParams::default;
    assert_eq!(base().validate(), Ok(()));
    assert_eq!(bad(SamplingParams { temperature: -0.1, ..base() }), "temperature");
    assert_eq!(bad(SamplingParams { temperature: f32::INFINITY, ..base() }), "temperature");
    assert_eq!(bad(SamplingParams { top_p: 1.1, ..base() }), "top_p");
    assert_eq!(bad(SamplingParams { top_p: 0.0, ..base() }), "top_p");
    assert_eq!(bad(SamplingParams { min_p: -0.5, ..base() }), "min_p");
    assert_eq!(bad(SamplingParams { frequency_penalty: f32::NAN, ..base() }), "frequency_penalty");
    assert_eq!(bad(SamplingParams { presence_penalty: f32::INFINITY, ..base() }), "presence_penalty");
    assert_eq!(bad(SamplingParams { repetition_penalty: 0.0, ..base() }), "repetition_penalty");
    assert_eq!(bad(SamplingParams { logit_bias: vec![(0, f32::NAN)], ..base() }), "logit_bias");
}

proptest! {
    #[test]
    fn a_draw_is_always_among_the_tokens_the_reference_keeps(
        // Few distinct values, so that ties are common.
        logits in prop::collection::vec((-12i8..12).prop_map(|l| f32::from(l) * 0.5), 1..80),
        top_k in 0usize..90,
        top_p in 0.01f32..=1.0,
        min_p in 0.0f32..0.9,
        temperature in 0.0f32..3.0,
        position in any::<u64>(),
    ) {
        let params = SamplingParams { top_k, top_p, min_p, temperature, ..SamplingParams::default() };
        let id = sample_at(&logits, &params, position).unwrap().id as usize;
        let allowed = reference::distribution(&logits, &params, &[], &[], unconstrained).unwrap();
        // A cut that falls within rounding of a token may go either way there.
        let near = SamplingParams { top_p: (top_p + 1e-5).min(1.0), min_p: min_p * 0.9999, ..params };
        let nearly_allowed = reference::distribution(&logits, &near, &[], &[], unconstrained).unwrap();
        prop_assert!(allowed[id] > 0.0 || nearly_allowed[id] > 0.0);
        prop_assert!(!allowed.iter().all(|&probability| probability == 0.0));
    }

    #[test]
    fn log_probabilities_sum_to_one(logits in prop::collection::vec(-50.0f32..50.0, 1..3000)) {
        let row = RowLogprobs::new(&logits).unwrap();
        let sum: f64 = (0..logits.len() as u32).map(|id| f64::from(row.logprob(id)).exp()).sum();
        prop_assert!((sum - 1.0).abs() < 1e-5, "{}", sum);
    }
}
