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
        for (rows, end, width, sigmoid) in [(1, 1, 8, false), (9, 7, 96, false), (5, 5, 1032, true)] {
            let (gate, up) = (round(random.normal(rows * width)), round(random.normal(rows * width)));
            let (dinner, weights) = (round(random.normal(rows * width)), random.normal(rows));
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
            let d_weights = Buffer::from_slice(&cuda, &weights).unwrap();
            let count = Buffer::from_slice(&cuda, &[0, end as i32]).unwrap();
            let mut inner = Activations::zeroed(&cuda, element, rows * width).unwrap();
            let mut dpre = Activations::zeroed(&cuda, element, 2 * rows * width).unwrap();
            let mut dots = Buffer::zeroed(&cuda, rows).unwrap();
            kernels
                .swiglu_backward(Swiglu {
                    pre: &d_pre,
                    dinner: &d_dinner,
                    weights: match sigmoid {
                        true => RowWeights::Sigmoid(&d_weights),
                        false => RowWeights::Each(&d_weights),
                    },
                    end: Some((&count, 1)),
                    rows,
                    width,
                    inner: &mut inner,
                    dpre: &mut dpre,
                    dots: &mut dots,
                })
                .unwrap();
            let (got_inner, got_dpre) = (inner.to_f32().unwrap(), dpre.to_f32().unwrap());
            let dots = dots.to_vec().unwrap();
            for t in 0..end {
                let [gate, up, d] = [&gate, &up, &dinner].map(|v| widen(&v[t * width..][..width]));
                let weight = f64::from(weights[t]);
                let weight = if sigmoid { 1.0 / (1.0 + (-weight).exp()) } else { weight };
                let h = reference::swiglu(&gate, &up);
                let weighed: Vec<f64> = h.iter().map(|h| weight * h).collect();
                assert_close(&got_inner[t * width..][..width], &weighed, tolerance, "inner");
                assert!((f64::from(dots[t]) - dot(&h, &d)).abs() < 1e-4 * (width as f64).sqrt());
                let scaled: Vec<f64> = d.iter().map(|d| weight * d).collect();
                let (dgate, dup) = reference::swiglu_backward(&gate, &up, &scaled);
                let of = |half: usize| -> Vec<f32> {
                    (t * width..(t + 1) * width).map(|i| got_dpre[place(i) + half * GATE_GROUP]).collect()
                };
                assert_close(&of(0), &dgate, tolerance, "gates");
                assert_close(&of(1), &dup, tolerance, "ups");
            }
            assert!(got_inner[end * width..].iter().all(|x| *x == 0.0), "rows of no expert are left alone");
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

        for shared in [None, Some(&d_coefficients)] {
            let c = |t: usize| shared.map_or(0.0, |_| 1.0 / (1.0 + f64::from(-coefficients[t]).exp()));
            let mut row_weights = Buffer::zeroed(&cuda, rows * choices).unwrap();
            kernels.row_weights(&routing, rows, shared, &mut row_weights).unwrap();
            let row_weights = row_weights.to_vec().unwrap();
            for (i, place) in places.iter().enumerate() {
                let expected = f64::from(weights[i]) * (1.0 - c(i / choices));
                assert!((f64::from(row_weights[*place as usize]) - expected).abs() < 1e-6);
            }
            for with_balance in [false, true] {
                let mut dlogits = Activations::zeroed(&cuda, Element::F32, rows * experts).unwrap();
                let loss = with_balance.then_some(&balance);
                kernels.router_backward(&routing, rows, &d_dots, shared, loss, &mut dlogits).unwrap();
                let mut expected = Vec::new();
                for t in 0..rows {
                    let row = widen(&logits[t * experts..][..experts]);
                    let dweights: Vec<f64> = (t * choices..(t + 1) * choices)
                        .map(|i| f64::from(dots[places[i] as usize]) * (1.0 - c(t)))
                        .collect();
                    expected.extend(reference::route_backward(&row, choices, &dweights));
                }
                if with_balance {
                    expected.iter_mut().zip(&of_balance).for_each(|(sum, d)| *sum += 0.5 * d);
                }
                assert_close(&dlogits.to_f32().unwrap(), &expected, 1e-5, "logits");
            }
        }
        let mut dcoefficients = Buffer::zeroed(&cuda, rows).unwrap();
        kernels
            .shared_backward(&routing, rows, &d_dots, &d_shared_dots, &d_coefficients, &mut dcoefficients)
            .unwrap();
        let expected: Vec<f64> = (0..rows)
            .map(|t| {
                let c = 1.0 / (1.0 + f64::from(-coefficients[t]).exp());
                let moe: f64 = (t * choices..(t + 1) * choices)
                    .map(|i| f64::from(weights[i]) * f64::from(dots[places[i] as usize]))
                    .sum();
                (f64::from(shared_dots[t]) - moe) * c * (1.0 - c)
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
