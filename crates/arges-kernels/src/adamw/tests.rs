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

#[test]
fn gradients_of_every_size_and_both_usual_beta2_stay_with_the_f64_reference() {
    let cpu = Cpu::new(CpuOptions::default()).unwrap();
    for beta2 in [0.95, 0.999] {
        let mut random = Random::new(3);
        // From 1e-18 to 1e3, each weight with gradients of its own size, which drifts in the course of training.
        let sizes: Vec<f64> = (0..211).map(|i| 10f64.powf(-18.0 + 0.1 * f64::from(i))).collect();
        let start = random.normal(sizes.len());
        let (mut values, mut m, mut v) = (start.clone(), vec![0.0; start.len()], vec![0.0; start.len()]);
        let mut expected: Vec<[f64; 3]> = start.iter().map(|x| [f64::from(*x), 0.0, 0.0]).collect();
        for step in 1..=1000 {
            let drift = 1.5 + (step as f64 / 100.0).sin();
            let gradients: Vec<f32> = random
                .normal(sizes.len())
                .iter()
                .zip(&sizes)
                .map(|(g, size)| (f64::from(*g) * size * drift) as f32)
                .collect();
            let settings = AdamW { step, beta2, ..SETTINGS };
            adamw(&cpu, settings, 1e-3, &mut values, &gradients, &mut m, &mut v);
            for (state, gradient) in expected.iter_mut().zip(&gradients) {
                let [value, m, v] = *state;
                *state = reference::adamw(settings, value, f64::from(1e-3_f32) * f64::from(*gradient), m, v);
            }
        }
        for (i, (got, expected)) in values.iter().zip(&expected).enumerate() {
            let error = (f64::from(*got) - expected[0]).abs();
            assert!(error < 3e-5, "beta2 {beta2}, gradients of {:e}: {got} and {}", sizes[i], expected[0]);
            // The smallest gradients move by lr * 1e-21 / 1e-15 a step, less than a weight's last place: their
            // moments still are what they should be.
            let root = expected[2].sqrt();
            assert!((f64::from(m[i]) - expected[1]).abs() < 1e-5 * root, "beta2 {beta2}, mean of {i}");
            let got = (f64::from(v[i]) / f64::from(cpu::V_SCALE)).sqrt();
            assert!((got - root).abs() < 1e-4 * root, "beta2 {beta2}, root of {i}: {got:e} and {root:e}");
        }
    }
}

#[test]
fn a_gradient_scale_of_1e_3_leaves_gradients_of_1e_18_their_share_of_eps_1e_15() {
    let cpu = Cpu::new(CpuOptions::default()).unwrap();
    for gradient in [1e-18_f32, -1e-18] {
        let (mut value, mut m, mut v) = ([0.0f32], [0.0], [0.0]);
        adamw(&cpu, SETTINGS, 1e-3, &mut value, &[gradient], &mut m, &mut v);
        let g = f64::from(gradient) * f64::from(1e-3_f32);
        let expected = -1e-3 * g / (g.abs() + 1e-15);
        assert!((f64::from(value[0]) / expected - 1.0).abs() < 1e-5, "{} and {expected:e}", value[0]);
    }
}

#[test]
fn steps_have_the_same_bits_on_every_instruction_set_and_number_of_threads() {
    let mut random = Random::new(4);
    let (start, gradients) = (random.normal(40_001), random.normal(40_001));
    let run = |isa: Isa, threads: usize| {
        let cpu = Cpu::new(CpuOptions { isa: Some(isa), threads: Some(threads) }).unwrap();
        let mut state = [start.clone(), vec![0.0; start.len()], vec![0.0; start.len()]];
        let [values, m, v] = &mut state;
        for step in 1..=3 {
            adamw(&cpu, AdamW { step, ..SETTINGS }, 0.7, values, &gradients, m, v);
        }
        (state, sum_of_squares(&cpu, &gradients))
    };
    let expected = run(Isa::Plain, 1);
    for isa in Isa::available() {
        for threads in [1, 2, 5] {
            assert!(run(isa, threads) == expected, "{isa}, {threads} threads");
        }
    }
}

/// Run with `cargo test --release -p arges-kernels adamw::tests::speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed_over_a_hundred_million_values() {
    let cpu = Cpu::new(CpuOptions::default()).unwrap();
    let n = 100 << 20;
    let (mut values, gradients) = (vec![0.5; n], vec![1e-6; n]);
    let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
    for step in 1..=4 {
        let start = std::time::Instant::now();
        adamw(&cpu, AdamW { step, ..SETTINGS }, 1.0, &mut values, &gradients, &mut m, &mut v);
        let of_step = start.elapsed().as_secs_f64();
        let start = std::time::Instant::now();
        assert!(sum_of_squares(&cpu, &gradients) > 0.0);
        let of_sum = start.elapsed().as_secs_f64();
        let gigabytes = |bytes: usize, time: f64| (bytes * n) as f64 / time / 1e9;
        println!("step {:.1} GB/s, sum of squares {:.1} GB/s", gigabytes(28, of_step), gigabytes(4, of_sum));
    }
}
