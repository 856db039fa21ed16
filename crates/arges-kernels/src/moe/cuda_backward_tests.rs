use super::cuda::*;
use super::{BalanceLoss, reference};
use crate::device::cuda::{Activations, Buffer};
use crate::matmul::Element;
use crate::matmul::cuda::DeviceRows;
use crate::matmul::cuda::GATE_GROUP;
use crate::testing::{CARDS, Random, assert_close, assert_compiles, bf16_round, gpu, widen};

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn experts_inner_gradients_agree_with_the_reference() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(31);
    for (element, tolerance) in [(Element::F32, 1e-5), (Element::Bf16, 4e-3)] {
        let round = |x: Vec<f32>| if element == Element::Bf16 { bf16_round(&x) } else { x };
        let kernels = MixtureGradients::new(&cuda, element, 4, 2).unwrap();
        for (rows, end, width) in [(1, 1, 8), (9, 7, 96), (5, 5, 1032), (2, 2, 4104)] {
            let (gate, up) = (round(random.normal(rows * width)), round(random.normal(rows * width)));
            let dinner = round(random.normal(rows * width));
            let place = |i: usize| {
                let n = i % width;
                i / width * 2 * width + n / GATE_GROUP * 2 * GATE_GROUP + n % GATE_GROUP
            };
            let mut pre = vec![0.0; 2 * rows * width];
            for i in 0..rows * width {
                (pre[place(i)], pre[place(i) + GATE_GROUP]) = (gate[i], up[i]);
            }
            let d_pre = Activations::from_f32(&cuda, element, &pre).unwrap();
            let d_dinner = Activations::from_f32(&cuda, element, &dinner).unwrap();
            let count = Buffer::from_slice(&cuda, &[0, end as i32]).unwrap();
            let mut dpre = Activations::zeroed(&cuda, element, 2 * rows * width).unwrap();
            let mut dots = Buffer::zeroed(&cuda, rows).unwrap();
            kernels
                .swiglu_backward(Swiglu {
                    pre: &d_pre,
                    dinner: &d_dinner,
                    end: Some((&count, 1)),
                    rows,
                    width,
                    dpre: &mut dpre,
                    dots: &mut dots,
                })
                .unwrap();
            let (got_dpre, dots) = (dpre.to_f32().unwrap(), dots.to_vec().unwrap());
            for t in 0..end {
                let [gate, up, d] = [&gate, &up, &dinner].map(|v| widen(&v[t * width..][..width]));
                let h = reference::swiglu(&gate, &up);
                assert!((f64::from(dots[t]) - dot(&h, &d)).abs() < 1e-4 * (width as f64).sqrt());
                let (dgate, dup) = reference::swiglu_backward(&gate, &up, &d);
                let of = |half: usize| -> Vec<f32> {
                    (t * width..(t + 1) * width).map(|i| got_dpre[place(i) + half * GATE_GROUP]).collect()
                };
                assert_close(&of(0), &dgate, tolerance, "gates");
                assert_close(&of(1), &dup, tolerance, "ups");
            }
            assert!(
                got_dpre[2 * end * width..].iter().all(|x| *x == 0.0),
                "rows of no expert are left alone"
            );
        }
    }
}

#[test]
fn gradients_are_weighed_for_each_choice_and_for_a_shared_mlp() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(33);
    for element in [Element::F32, Element::Bf16] {
        for (rows, active, width, choices) in [(1, 1, 8, 1), (21, 19, 264, 2), (9, 9, 1608, 3)] {
            let experts = 5;
            let router = Router::new(&cuda, width, experts, choices, [element, Element::F32]).unwrap();
            let kernels = MixtureGradients::new(&cuda, element, experts, choices).unwrap();
            let rows_of = |values: &[f32]| {
                let mut x = DeviceRows::zeroed(&cuda, values.len() / width, width, element).unwrap();
                *x.data_mut() = Activations::from_f32(&cuda, element, values).unwrap();
                x
            };
            let (x, dout) = (random.normal(rows * width), bf16_round(&random.normal(rows * width)));
            let matrix = Activations::from_f32(&cuda, Element::F32, &random.normal(experts * width)).unwrap();
            let mut routing = DeviceRouting::zeroed(&cuda, rows, experts, choices).unwrap();
            let active = Buffer::from_slice(&cuda, &[active]).unwrap();
            router.route(&rows_of(&x), rows, &active, &matrix, &mut routing).unwrap();
            let (places, weights) = (routing.places.to_vec().unwrap(), routing.weights.to_vec().unwrap());
            let coefficients = random.normal(rows);
            let d_coefficients = Buffer::from_slice(&cuda, &coefficients).unwrap();
            for with_shared in [false, true] {
                let mut out = rows_of(&vec![7.0; rows * choices * width]);
                let mut of_shared = rows_of(&vec![7.0; rows * width]);
                let shared =
                    with_shared.then_some(SharedRows { coefficients: &d_coefficients, dout: &mut of_shared });
                kernels.weigh(&rows_of(&dout), &routing, rows, shared, &mut out).unwrap();
                let mut expected = vec![7.0; rows * choices * width];
                let mut expected_shared = vec![7.0; rows * width];
                for (i, place) in places.iter().enumerate() {
                    let t = i / choices;
                    let c = 1.0 / (1.0 + f64::from(-coefficients[t]).exp());
                    let left = if with_shared { 1.0 - c } else { 1.0 };
                    let row = &dout[t * width..][..width];
                    let weighed = |factor| row.iter().map(move |x| factor * f64::from(*x));
                    if with_shared {
                        expected_shared.splice(t * width..(t + 1) * width, weighed(c));
                    }
                    if let Ok(place) = usize::try_from(*place) {
                        let factor = left * f64::from(weights[i]);
                        expected.splice(place * width..(place + 1) * width, weighed(factor));
                    }
                }
                let tolerance = if element == Element::F32 { 1e-6 } else { 4e-3 };
                assert_close(&out.data().to_f32().unwrap(), &expected, tolerance, "packed rows");
                assert_close(&of_shared.data().to_f32().unwrap(), &expected_shared, tolerance, "shared rows");
            }
        }
    }
}

#[test]
fn router_gradients_agree_with_the_reference_with_a_shared_mlp_and_without() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(32);
    for (rows, experts, choices) in [(1, 4, 2), (70, 5, 1), (257, 33, 3)] {
        let width = 16;
        let router = Router::new(&cuda, width, experts, choices, [Element::F32; 2]).unwrap();
        let kernels = MixtureGradients::new(&cuda, Element::F32, experts, choices).unwrap();
        let mut x = DeviceRows::zeroed(&cuda, rows, width, Element::F32).unwrap();
        *x.data_mut() = Activations::from_f32(&cuda, Element::F32, &random.normal(rows * width)).unwrap();
        let matrix = Activations::from_f32(&cuda, Element::F32, &random.normal(experts * width)).unwrap();
        let mut routing = DeviceRouting::zeroed(&cuda, rows, experts, choices).unwrap();
        let active = Buffer::from_slice(&cuda, &[rows as i32]).unwrap();
        router.route(&x, rows, &active, &matrix, &mut routing).unwrap();
        let (logits, places) = (routing.logits.to_vec().unwrap(), routing.places.to_vec().unwrap());
        let weights = routing.weights.to_vec().unwrap();
        let [dots, shared_dots, coefficients] = [rows * choices, rows, rows].map(|len| random.normal(len));
        let [d_dots, d_shared_dots, d_coefficients] =
            [&dots, &shared_dots, &coefficients].map(|v| Buffer::from_slice(&cuda, v).unwrap());

        // The loss of two layers that are alike.
        let mut balance = DeviceBalance::new(&cuda, experts, rows).unwrap();
        let mut host = BalanceLoss::new(experts, choices);
        for _ in 0..2 {
            kernels.balance_add(&routing, rows, &mut balance).unwrap();
            host.add(&logits);
        }
        assert!((balance.loss().unwrap() - host.loss()).abs() < 1e-6 * host.loss());
        kernels.balance_slopes(&mut balance, 0.5).unwrap();
        let both = [widen(&logits), widen(&logits)].concat();
        let of_balance = reference::balance_gradient(&both, experts, choices);

        for with_balance in [false, true] {
            let mut dlogits = Activations::zeroed(&cuda, Element::F32, rows * experts).unwrap();
            let loss = with_balance.then_some(&balance);
            kernels.router_backward(&routing, rows, &d_dots, loss, &mut dlogits).unwrap();
            let mut expected = Vec::new();
            for t in 0..rows {
                let row = widen(&logits[t * experts..][..experts]);
                let dweights: Vec<f64> = (t * choices..(t + 1) * choices)
                    .map(|i| f64::from(dots[places[i] as usize]) / f64::from(weights[i]))
                    .collect();
                expected.extend(reference::route_backward(&row, choices, &dweights));
            }
            if with_balance {
                expected.iter_mut().zip(&of_balance).for_each(|(sum, d)| *sum += 0.5 * d);
            }
            assert_close(&dlogits.to_f32().unwrap(), &expected, 1e-5, "logits");
        }
        let mut dcoefficients = Buffer::zeroed(&cuda, rows).unwrap();
        kernels
            .shared_backward(&routing, rows, &d_dots, &d_shared_dots, &d_coefficients, &mut dcoefficients)
            .unwrap();
        let expected: Vec<f64> = (0..rows)
            .map(|t| {
                let c = 1.0 / (1.0 + f64::from(-coefficients[t]).exp());
                // By the experts' part of the output and by the shared one.
                let moe: f64 = (t * choices..(t + 1) * choices)
                    .map(|i| f64::from(dots[places[i] as usize]) / (1.0 - c))
                    .sum();
                (f64::from(shared_dots[t]) / c - moe) * c * (1.0 - c)
            })
            .collect();
        assert_close(&dcoefficients.to_vec().unwrap(), &expected, 1e-5, "coefficients");
    }
}

#[test]
fn gradient_kernels_compile_for_every_architecture() {
    for element in [Element::F32, Element::Bf16] {
        assert_compiles(GRADIENTS, &gradient_defines(element), &CARDS);
    }
}
