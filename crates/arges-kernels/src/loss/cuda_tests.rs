use super::cuda::*;
use super::reference;
use crate::device::cuda::{Activations, Buffer};
use crate::matmul::Element;
use crate::sample::cuda::{DeviceSampler, Rule};
use crate::testing::{CARDS, Random, assert_close, assert_compiles, gpu, widen};

#[test]
fn scores_and_their_gradients_agree_with_the_reference() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(41);
    for (element, tolerance) in [(Element::F32, 1e-5), (Element::Bf16, 4e-3)] {
        for (rows, vocab) in [(1, 1), (2, 7), (65, 513), (4, 32_768), (3, 32_769)] {
            let logits: Vec<f32> = random.normal(rows * vocab).iter().map(|x| 4.0 * x).collect();
            let targets: Vec<i32> = (0..rows).map(|_| (random.bits() % vocab as u64) as i32).collect();
            let weights = random.normal(rows);
            let loss = LossCuda::new(&cuda, element, vocab).unwrap();
            let mut scores = Scores::zeroed(&cuda, rows).unwrap();
            let (d_logits, d_weights) =
                (Buffer::from_slice(&cuda, &logits).unwrap(), Buffer::from_slice(&cuda, &weights).unwrap());
            let d_targets = Buffer::from_slice(&cuda, &targets).unwrap();
            loss.score(&d_logits, rows, &d_targets, &mut scores).unwrap();
            let mut out = Activations::zeroed(&cuda, element, rows * vocab).unwrap();
            loss.score_backward(&d_logits, rows, &d_targets, &scores, &d_weights, &mut out).unwrap();
            let (logprobs, entropies) =
                (scores.logprobs.to_vec().unwrap(), scores.entropies.to_vec().unwrap());
            let out = out.to_f32().unwrap();
            for t in 0..rows {
                let (row, target) = (widen(&logits[t * vocab..][..vocab]), targets[t] as usize);
                let (logprob, entropy) = reference::score(&row, target);
                assert!((f64::from(logprobs[t]) - logprob).abs() < 1e-5 * (1.0 + logprob.abs()));
                assert!((f64::from(entropies[t]) - entropy).abs() < 1e-5 * (1.0 + entropy), "entropy");
                let expected = reference::score_backward(&row, target, f64::from(weights[t]));
                assert_close(&out[t * vocab..][..vocab], &expected, tolerance, "logits");
            }
        }
    }
}

#[test]
fn scores_and_gradients_made_at_once_have_the_same_bits() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(42);
    for element in [Element::F32, Element::Bf16] {
        for (rows, vocab) in [(2, 7), (65, 516), (4, 32_768), (3, 40_000)] {
            let mut logits: Vec<f32> = random.normal(rows * vocab).iter().map(|x| 4.0 * x).collect();
            logits[vocab] = f32::NAN;
            let logits = Buffer::from_slice(&cuda, &logits).unwrap();
            let targets: Vec<i32> = (0..rows).map(|_| (random.bits() % vocab as u64) as i32).collect();
            let targets = Buffer::from_slice(&cuda, &targets).unwrap();
            let loss = LossCuda::new(&cuda, element, vocab).unwrap();
            let weights = Buffer::from_slice(&cuda, &vec![-0.3; rows]).unwrap();
            let [mut apart, mut at_once] = [(), ()].map(|()| {
                let gradients = Activations::zeroed(&cuda, element, rows * vocab).unwrap();
                (Scores::zeroed(&cuda, rows).unwrap(), gradients)
            });
            loss.score(&logits, rows, &targets, &mut apart.0).unwrap();
            loss.score_backward(&logits, rows, &targets, &apart.0, &weights, &mut apart.1).unwrap();
            loss.score_and_backward(&logits, rows, &targets, &mut at_once.0, -0.3, &mut at_once.1).unwrap();
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let [apart, at_once] = [apart, at_once].map(|(scores, gradients)| {
                let scores = [scores.logprobs, scores.entropies].map(|values| bits(values.to_vec().unwrap()));
                (scores, bits(gradients.to_f32().unwrap()))
            });
            assert!(apart == at_once, "{rows} rows of {vocab}");
        }
    }
}

#[test]
fn a_token_is_scored_with_the_bits_with_which_it_was_sampled() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(43);
    for (rows, vocab, spread) in
        [(1, 1, 1.0), (3, 31, 4.0), (130, 2048, 2.0), (7, 32_768, 5.0), (9, 40_003, 6.0), (5, 200_064, 1.0)]
    {
        let mut logits: Vec<f32> = random.normal(rows * vocab).iter().map(|x| spread * x).collect();
        // Whole shares of impossible tokens, and single ones.
        logits.iter_mut().skip(1).step_by(7).for_each(|logit| *logit = f32::NEG_INFINITY);
        logits.iter_mut().skip(1).take(vocab / 3).for_each(|logit| *logit = f32::NEG_INFINITY);
        let device = Buffer::from_slice(&cuda, &logits).unwrap();
        let mut sampler = DeviceSampler::new(&cuda, vocab, rows).unwrap();
        let rules: Vec<Rule> = (0..rows)
            .map(|row| match row % 4 {
                0 => Rule::draw(random.uniform(), 1.0, 0, 1.0, 0.0),
                1 => Rule::draw(random.uniform(), 0.7, 20, 0.9, 0.0),
                2 => Rule::largest(),
                _ => Rule::given(0),
            })
            .collect();
        sampler.set_rules(rules.iter().map(|rule| (*rule, None)));
        sampler.run(&device, vocab).unwrap();
        cuda.synchronize().unwrap();
        let sampled: Vec<_> = (0..rows).map(|row| sampler.chosen(row).unwrap()).collect();
        let targets: Vec<i32> = sampled.iter().map(|token| token.id.cast_signed()).collect();
        let targets = Buffer::from_slice(&cuda, &targets).unwrap();
        let loss = LossCuda::new(&cuda, Element::F32, vocab).unwrap();
        let mut scores = Scores::zeroed(&cuda, rows).unwrap();
        loss.score(&device, rows, &targets, &mut scores).unwrap();
        let scored = scores.logprobs.to_vec().unwrap();
        for (row, (sampled, scored)) in sampled.iter().zip(&scored).enumerate() {
            assert_eq!(
                sampled.logprob.to_bits(),
                scored.to_bits(),
                "row {row} of {vocab}: {sampled:?}, {scored}"
            );
        }
    }
}

#[test]
fn logits_that_are_not_finite_give_no_number() {
    let Some(cuda) = gpu() else { return };
    let loss = LossCuda::new(&cuda, Element::F32, 3).unwrap();
    let mut scores = Scores::zeroed(&cuda, 2).unwrap();
    let logits = Buffer::from_slice(&cuda, &[0.0, f32::NAN, 1.0, f32::INFINITY, 0.0, 0.0]).unwrap();
    let targets = Buffer::from_slice(&cuda, &[0, 1]).unwrap();
    loss.score(&logits, 2, &targets, &mut scores).unwrap();
    assert!(scores.logprobs.to_vec().unwrap().iter().all(|x| !x.is_finite()));
}

#[test]
fn kernels_compile_for_every_architecture() {
    for element in [Element::F32, Element::Bf16] {
        assert_compiles(SOURCE, &defines(element), &CARDS);
    }
}
