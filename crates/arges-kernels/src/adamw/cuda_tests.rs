use super::cuda::*;
use super::{AdamW, reference};
use crate::device::cuda::{Activations, Buffer};
use crate::matmul::Element;
use crate::matmul::cuda::GATE_GROUP;
use crate::testing::{CARDS, Random, assert_compiles, bf16_round, gpu};

const ELEMENTS: [Element; 2] = [Element::F32, Element::Bf16];

fn part(from: usize, shape: [usize; 2], to: usize, in_turn: bool) -> Part {
    Part { from, shape, to, in_turn }
}

/// The weights that values become, over what was there before.
fn become_weights_of(before: &[f32], values: &[f32], parts: &[Part], element: Element) -> Vec<f32> {
    let mut weights = before.to_vec();
    for Part { from, shape: [rows, columns], to, in_turn } in parts {
        for row in 0..*rows {
            let before = if *in_turn { row / GATE_GROUP * GATE_GROUP } else { 0 };
            let values = &values[from + row * columns..][..*columns];
            let values = if element == Element::Bf16 { bf16_round(values) } else { values.to_vec() };
            weights[to + (row + before) * columns..][..*columns].copy_from_slice(&values);
        }
    }
    weights
}

#[test]
fn steps_agree_with_the_reference_from_the_smallest_gradients_on() {
    let Some(cuda) = gpu() else { return };
    let len = 1003;
    let mut kernels = AdamWCuda::new(&cuda).unwrap();
    for size in [1.0, 1e-5, 1e-18] {
        let mut random = Random::new(51);
        let begin = random.normal(len);
        let mut values = Buffer::from_slice(&cuda, &begin).unwrap();
        let [mut m, mut v] = [0; 2].map(|_| Buffer::zeroed(&cuda, len).unwrap());
        let mut model = Activations::zeroed(&cuda, Element::F32, len).unwrap();
        let mut expected: Vec<[f64; 3]> = begin.iter().map(|x| [f64::from(*x), 0.0, 0.0]).collect();
        for step in 1..=3 {
            let gradients: Vec<f32> = random.normal(len).iter().map(|x| x * size).collect();
            let gradients_on_device = Buffer::from_slice(&cuda, &gradients).unwrap();
            let settings = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-24, weight_decay: 0.1, step };
            let mut learned =
                Learned { values: &mut values, gradients: &gradients_on_device, m: &mut m, v: &mut v };
            let mut weights = Weights::default();
            weights.add(&mut model, [part(0, [len, 1], 0, false)]);
            kernels.step(0.5, &[(3..len, settings)], &mut learned, &weights).unwrap();
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
fn new_values_are_written_as_weights_too() {
    let Some(cuda) = gpu() else { return };
    // Gates, ups and a matrix of one buffer and a vector of another, from `first` on: in fours where all begin at
    // multiples of 4, else one by one; in many pieces and in one.
    for (columns, first) in [(5, 3), (12, 3), (12, 4), (5, 0), (1024, 0), (1028, 8)] {
        let half = 24 * columns;
        let parts = [
            part(first, [24, columns], 0, true),
            part(first + half, [24, columns], GATE_GROUP * columns, true),
            part(first + 2 * half, [columns, 8], 2 * half, false),
        ];
        let (vector, room) = (first + 2 * half + 8 * columns, 2 * half + 8 * columns + 9);
        let len = vector + columns + 4;
        for element in ELEMENTS {
            let mut random = Random::new(53);
            let begin = random.normal(len);
            let [mut values, mut whole] = [0; 2].map(|_| Buffer::from_slice(&cuda, &begin).unwrap());
            let gradients = Buffer::from_slice(&cuda, &random.normal(len)).unwrap();
            let [mut m, mut v, mut whole_m, mut whole_v] =
                [0; 4].map(|_| Buffer::zeroed(&cuda, len).unwrap());
            let mut kernels = AdamWCuda::new(&cuda).unwrap();
            let before = vec![-1.0; room];
            let [mut matrices, mut packed, mut of_whole, mut of_others] =
                [0; 4].map(|_| Activations::from_f32(&cuda, element, &before).unwrap());
            let [mut norm, mut packed_norm, mut whole_norm, mut norm_of_others] =
                [0; 4].map(|_| Buffer::from_slice(&cuda, &vec![-1.0; columns]).unwrap());
            fn add<'a>(
                to: &'a mut Activations,
                norm: &'a mut Buffer<f32>,
                parts: &[Part; 3],
                at: usize,
            ) -> Weights<'a> {
                let mut weights = Weights::default();
                weights.add_vector(norm, at);
                weights.add(to, *parts);
                weights
            }
            // Ranges that end in the midst of a matrix and of four values.
            let (middle, end) = (first + half + 7, vector + columns);
            let settings =
                |decay| AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: decay, step: 1 };
            let groups = [
                (first..middle, settings(0.1)),
                (middle..vector - 3, settings(0.3)),
                (vector - 3..end, settings(0.1)),
            ];
            let mut learned = Learned { values: &mut values, gradients: &gradients, m: &mut m, v: &mut v };
            let weights = add(&mut matrices, &mut norm, &parts, vector);
            kernels.step(0.5, &groups, &mut learned, &weights).unwrap();
            let mut learned =
                Learned { values: &mut whole, gradients: &gradients, m: &mut whole_m, v: &mut whole_v };
            let weights = add(&mut of_whole, &mut whole_norm, &parts, vector);
            kernels.step(0.5, &[(first..end, settings(0.1))], &mut learned, &weights).unwrap();
            let [mut others, mut others_m, mut others_v] = {
                let values = Buffer::from_slice(&cuda, &begin).unwrap();
                [values, Buffer::zeroed(&cuda, len).unwrap(), Buffer::zeroed(&cuda, len).unwrap()]
            };
            let mut learned =
                Learned { values: &mut others, gradients: &gradients, m: &mut others_m, v: &mut others_v };
            let weights = add(&mut of_others, &mut norm_of_others, &parts, vector);
            kernels.step(0.5, &[(first..end, settings(0.3))], &mut learned, &weights).unwrap();
            kernels.pack(&values, &add(&mut packed, &mut packed_norm, &parts, vector)).unwrap();

            let what = format!("{columns} columns from {first}, {element:?}");
            let values = values.to_vec().unwrap();
            let expected = become_weights_of(&before, &values, &parts, element);
            assert_eq!(matrices.to_f32().unwrap(), expected, "{what}");
            assert_eq!(packed.to_f32().unwrap(), expected, "{what}, without a step");
            assert_eq!(norm.to_vec().unwrap(), values[vector..end], "{what}");
            assert_eq!(packed_norm.to_vec().unwrap(), values[vector..end], "{what}, without a step");
            assert_eq!(norm_of_others.to_vec().unwrap(), others.to_vec().unwrap()[vector..end], "{what}");
            // Each value is that of a step of all with its settings.
            let (mut mixed, others) = (whole.to_vec().unwrap(), others.to_vec().unwrap());
            let one_range = become_weights_of(&before, &mixed, &parts, element);
            assert_eq!(of_whole.to_f32().unwrap(), one_range, "{what}, in one range");
            assert_eq!(whole_norm.to_vec().unwrap(), mixed[vector..end], "{what}, in one range");
            mixed[middle..vector - 3].copy_from_slice(&others[middle..vector - 3]);
            assert_eq!(mixed, values, "{what}, settings in turn");
        }
    }
}

#[test]
fn squares_are_summed_in_f64() {
    let Some(cuda) = gpu() else { return };
    for len in [1, 1000, 16_384, 16_385, 300_000] {
        let x = Random::new(52).normal(len);
        let mut kernels = AdamWCuda::new(&cuda).unwrap();
        let got = kernels.sum_of_squares(&Buffer::from_slice(&cuda, &x).unwrap(), &[]).unwrap();
        let expected: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        assert!((got / expected - 1.0).abs() < 1e-12, "{got} for {expected}");
    }
}

#[test]
fn kernels_compile_for_every_architecture() {
    assert_compiles(SOURCE, &DEFINES, &CARDS);
}
