use super::cuda::{DeviceSampler, Rule, SOURCE};
use super::reference::{distribution, draw, logprob};
use super::{SampleError, SamplingParams};
use crate::device::cuda::Buffer;
use crate::testing::{CARDS, Random, assert_compiles, gpu};

#[test]
fn the_largest_sampleable_logit_is_chosen_with_its_logprob() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(1);
    for (rows, vocabulary, sampleable) in [(1, 5, 5), (3, 512, 500), (9, 70_001, 70_001)] {
        let mut logits = random.normal(rows * vocabulary);
        // Equal ones: the lower id wins; and one that may not be sampled.
        (logits[1], logits[3]) = (9.0, 9.0);
        if sampleable < vocabulary {
            logits[vocabulary - 1] = 10.0;
        }
        let device = Buffer::from_slice(&cuda, &logits).unwrap();
        let mut sampler = DeviceSampler::new(&cuda, vocabulary, rows).unwrap();
        // The last row is asked for a token of its own.
        let rule = |row| if row > 0 && row + 1 == rows { Rule::given(4) } else { Rule::largest() };
        sampler.set_rules((0..rows).map(|row| (rule(row), None)));
        sampler.run(&device, sampleable).unwrap();
        cuda.synchronize().unwrap();
        for r in 0..rows {
            let row = &logits[r * vocabulary..][..vocabulary];
            let best = (0..sampleable).fold(0, |best, i| if row[i] > row[best] { i } else { best });
            let expected = if rule(r) == Rule::largest() { best } else { 4 };
            let chosen = sampler.chosen(r).unwrap();
            assert_eq!(chosen.id, expected as u32, "row {r}");
            assert!((f64::from(chosen.logprob) - logprob(row, expected)).abs() < 1e-5, "row {r}");
        }
    }
}

/// Logits with ties and impossible tokens among them.
fn row(random: &mut Random, vocabulary: usize, spread: f32) -> Vec<f32> {
    let mut row: Vec<f32> = random.normal(vocabulary).iter().map(|x| x * spread).collect();
    for i in 0..vocabulary {
        match random.bits() % 16 {
            0 => row[i] = f32::NEG_INFINITY,
            1 => row[i] = row[i / 2],
            _ => (),
        }
    }
    row[vocabulary / 3] = 0.5;
    row
}

#[test]
fn draws_are_those_of_the_reference() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(2);
    let settings = [
        (1.0, 0, 1.0, 0.0),
        (0.7, 0, 0.9, 0.0),
        (1.3, 40, 1.0, 0.0),
        (1.0, 5, 0.5, 0.0),
        (2.0, 1, 1.0, 0.0),
        (1.0, 0, 1.0, 0.05),
        (0.8, 20, 0.95, 0.1),
        (1.0, 0, 1e-6, 0.0),
        (1e-3, 0, 0.99, 0.0),
    ];
    let (mut draws, mut other) = (0, 0);
    for (vocabulary, spread) in [(7, 1.0), (1000, 2.0), (40_003, 4.0), (200_064, 0.3)] {
        let logits = row(&mut random, vocabulary, spread);
        let mask: Vec<u32> = (0..vocabulary.div_ceil(32)).map(|_| random.bits() as u32 | 1).collect();
        let sampleable = vocabulary - vocabulary / 50;
        let rows = 2 * settings.len();
        let device = Buffer::from_slice(&cuda, &logits.repeat(rows)).unwrap();
        let mut sampler = DeviceSampler::new(&cuda, vocabulary, rows).unwrap();
        // The reference's distributions, of a row without and one with a mask for every setting.
        let masks = [None, Some(&mask[..])];
        let cases: Vec<_> = settings.iter().flat_map(|setting| masks.map(|mask| (*setting, mask))).collect();
        let expected: Vec<_> = cases
            .iter()
            .map(|&((temperature, top_k, top_p, min_p), mask)| {
                let params = SamplingParams { temperature, top_k, top_p, min_p, ..SamplingParams::default() };
                let bit = |id: u32| mask.is_none_or(|mask| mask[id as usize / 32] >> (id % 32) & 1 == 1);
                distribution(&logits, &params, &[], &[], |id| (id as usize) < sampleable && bit(id)).unwrap()
            })
            .collect();
        for _ in 0..8 {
            let uniforms: Vec<f64> = cases.iter().map(|_| random.uniform()).collect();
            let rules = cases.iter().zip(&uniforms).map(|(((temperature, top_k, top_p, min_p), mask), u)| {
                (Rule::draw(*u, *temperature, *top_k, *top_p, *min_p), *mask)
            });
            sampler.set_rules(rules);
            sampler.run(&device, sampleable).unwrap();
            cuda.synchronize().unwrap();
            for (row, (probabilities, u)) in expected.iter().zip(&uniforms).enumerate() {
                let chosen = sampler.chosen(row).unwrap();
                let what = format!("row {row} of {vocabulary}: {:?}", cases[row].0);
                let id = chosen.id as usize;
                assert!((f64::from(chosen.logprob) - logprob(&logits, id)).abs() < 2e-5, "{what}");
                draws += 1;
                if Some(id) != draw(probabilities, *u) {
                    // Rounding may move a boundary; so little that the draw was next to it.
                    other += 1;
                    let before: f64 = probabilities[..id].iter().sum();
                    let miss = (before - u).max(u - before - probabilities[id]);
                    assert!(miss < 1e-5, "{what}: {id} lies {miss} beside {u}");
                }
            }
        }
    }
    assert!(other * 50 <= draws, "{other} of {draws} differ");
}

#[test]
fn rows_without_a_choice_say_so() {
    let Some(cuda) = gpu() else { return };
    let vocabulary = 40;
    let mut logits = vec![0.0; 4 * vocabulary];
    logits[vocabulary + 7] = f32::NAN;
    logits[2 * vocabulary + 39] = f32::INFINITY;
    let device = Buffer::from_slice(&cuda, &logits).unwrap();
    let mut sampler = DeviceSampler::new(&cuda, vocabulary, 4).unwrap();
    let nothing = [0u32; 2];
    let draw = Rule::draw(0.5, 1.0, 0, 0.9, 0.0);
    let rules = [(draw, Some(&nothing[..])), (draw, None), (Rule::largest(), None), (draw, None)];
    sampler.set_rules(rules.into_iter());
    sampler.run(&device, vocabulary).unwrap();
    cuda.synchronize().unwrap();
    assert_eq!(sampler.chosen(0), Err(SampleError::NothingAllowed));
    for row in 1..3 {
        assert!(matches!(sampler.chosen(row), Err(SampleError::NotANumber { .. })), "row {row}");
    }
    assert!(sampler.chosen(3).is_ok());
}

#[test]
fn the_kernels_compile_for_every_architecture() {
    assert_compiles(SOURCE, &[], &CARDS);
}
