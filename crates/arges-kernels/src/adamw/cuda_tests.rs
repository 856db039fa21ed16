use super::cuda::*;
use super::{AdamW, reference};
use crate::device::cuda::Buffer;
use crate::testing::{CARDS, Random, assert_compiles, gpu};

#[test]
fn steps_agree_with_the_reference_from_the_smallest_gradients_on() {
    let Some(cuda) = gpu() else { return };
    let len = 1003;
    let kernels = AdamWCuda::new(&cuda, len).unwrap();
    for size in [1.0, 1e-5, 1e-18] {
        let mut random = Random::new(51);
        let begin = random.normal(len);
        let mut values = Buffer::from_slice(&cuda, &begin).unwrap();
        let [mut m, mut v] = [0; 2].map(|_| Buffer::zeroed(&cuda, len).unwrap());
        let mut expected: Vec<[f64; 3]> = begin.iter().map(|x| [f64::from(*x), 0.0, 0.0]).collect();
        for step in 1..=3 {
            let gradients: Vec<f32> = random.normal(len).iter().map(|x| x * size).collect();
            let gradients_on_device = Buffer::from_slice(&cuda, &gradients).unwrap();
            let settings = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-24, weight_decay: 0.1, step };
            let mut learned =
                Learned { values: &mut values, gradients: &gradients_on_device, m: &mut m, v: &mut v };
            kernels.step(settings, 0.5, 3..len, &mut learned).unwrap();
            for ([value, m, v], gradient) in expected[3..].iter_mut().zip(&gradients[3..]) {
                [*value, *m, *v] = reference::adamw(settings, *value, 0.5 * f64::from(*gradient), *m, *v);
            }
        }
        for (i, (got, [value, ..])) in values.to_vec().unwrap().iter().zip(&expected).enumerate() {
            assert!((f64::from(*got) - value).abs() < 2e-6, "{size:e}: value {i} is {got}, not {value}");
        }
    }
}

#[test]
fn squares_are_summed_in_f64() {
    let Some(cuda) = gpu() else { return };
    for len in [1, 1000, 16_384, 16_385, 300_000] {
        let x = Random::new(52).normal(len);
        let mut kernels = AdamWCuda::new(&cuda, len).unwrap();
        let got = kernels.sum_of_squares(&Buffer::from_slice(&cuda, &x).unwrap()).unwrap();
        let expected: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        assert!((got / expected - 1.0).abs() < 1e-12, "{got} for {expected}");
    }
}

#[test]
fn kernels_compile_for_every_architecture() {
    assert_compiles(SOURCE, &DEFINES, &CARDS);
}
