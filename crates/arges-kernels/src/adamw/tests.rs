use super::*;
use crate::device::cpu::{Cpu, CpuOptions, Isa};
use crate::testing::Random;

const SETTINGS: AdamW = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-15, weight_decay: 0.1, step: 1 };

#[test]
fn a_thousand_steps_stay_with_the_f64_reference() {
    for isa in Isa::available() {
        let cpu = Cpu::new(CpuOptions { isa: Some(isa), threads: Some(2) }).unwrap();
        let mut random = Random::new(1);
        let len = 37;
        let mut values = random.normal(len);
        let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
        let mut expected: Vec<[f64; 3]> = values.iter().map(|value| [f64::from(*value), 0.0, 0.0]).collect();
        for step in 1..=1000 {
            let gradients = random.normal(len);
            let settings = AdamW { step, ..SETTINGS };
            adamw(&cpu, settings, 0.5, &mut values, &gradients, &mut m, &mut v);
            for (state, gradient) in expected.iter_mut().zip(&gradients) {
                let [value, m, v] = *state;
                *state = reference::adamw(settings, value, 0.5 * f64::from(*gradient), m, v);
            }
        }
        for (got, expected) in values.iter().zip(&expected) {
            let error = (f64::from(*got) - expected[0]).abs();
            assert!(error < 3e-5, "{isa}: {got} and {}", expected[0]);
        }
    }
}

#[test]
fn gradients_of_1e_18_move_weights_as_far_as_large_ones_do() {
    let cpu = Cpu::new(CpuOptions::default()).unwrap();
    for (gradient, scale) in [(1e-18, 1.0), (1e-15, 1e-3), (1e-5, 1.0), (1e-18, 0.1)] {
        let (mut value, mut m, mut v) = ([0.0f32], [0.0], [0.0]);
        let settings = AdamW { weight_decay: 0.0, eps: 1e-24, ..SETTINGS };
        for step in 1..=10 {
            adamw(&cpu, AdamW { step, ..settings }, scale, &mut value, &[gradient], &mut m, &mut v);
        }
        assert!((value[0] + 0.01).abs() < 3e-4, "gradient {gradient:e} * {scale}: moved by {}", value[0]);
    }
}

#[test]
fn eps_of_1e_15_tells_gradients_apart_that_1e_8_buries() {
    let cpu = Cpu::new(CpuOptions::default()).unwrap();
    let moved = |gradient: f32, eps: f64| {
        let (mut value, mut m, mut v) = ([0.0f32], [0.0], [0.0]);
        let settings = AdamW { weight_decay: 0.0, eps, ..SETTINGS };
        adamw(&cpu, settings, 1.0, &mut value, &[gradient], &mut m, &mut v);
        -f64::from(value[0])
    };
    // lr * g / (g + eps).
    assert!((moved(1e-18, 1e-15) / (1e-3 * 1e-18 / (1e-18 + 1e-15)) - 1.0).abs() < 1e-5);
    assert!((moved(1e-15, 1e-15) / 5e-4 - 1.0).abs() < 1e-5);
    assert!(moved(1e-18, 1e-8) < 1e-12);
}

#[test]
fn decay_takes_a_share_of_the_weight_and_no_part_in_the_moments() {
    let cpu = Cpu::new(CpuOptions::default()).unwrap();
    let (mut value, mut m, mut v) = ([2.0f32], [0.0], [0.0]);
    adamw(&cpu, SETTINGS, 1.0, &mut value, &[0.0], &mut m, &mut v);
    assert_eq!((value[0], m[0], v[0]), (2.0 - 2e-4, 0.0, 0.0));
}

#[test]
fn sums_of_squares_are_those_of_f64_and_do_not_depend_on_threads() {
    let x = Random::new(2).normal(100_001);
    let expected: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
    let of =
        |threads| sum_of_squares(&Cpu::new(CpuOptions { threads: Some(threads), isa: None }).unwrap(), &x);
    assert!((of(1) / expected - 1.0).abs() < 1e-12);
    assert_eq!(of(1).to_bits(), of(5).to_bits());
}
