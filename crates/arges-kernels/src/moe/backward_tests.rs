//! The mixture's gradients put together, and what every part of them holds to.

use super::*;
use crate::device::cpu::{Cpu, CpuOptions, Isa};
use crate::matmul::PANEL;
use crate::testing::{Random, assert_close, widen};

fn cpu(isa: Isa, threads: usize) -> Cpu {
    Cpu::new(CpuOptions { isa: Some(isa), threads: Some(threads) }).unwrap()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Tokens whose experts give given rows: the loss is the sum over tokens of `dout · ((1 - c) sum_slot weight expert + c shared)`.
struct Block {
    tokens: usize,
    experts: usize,
    k: usize,
    n: usize,
    logits: Vec<f32>,
    coefficients: Vec<f32>,
    /// `[tokens, experts, n]`, `[tokens, n]`, `[tokens, n]`.
    outputs: Vec<f32>,
    shared: Vec<f32>,
    dout: Vec<f32>,
}

impl Block {
    fn new(tokens: usize, experts: usize, k: usize, n: usize) -> Self {
        let mut random = Random::new((tokens * experts + k) as u64);
        Self {
            tokens,
            experts,
            k,
            n,
            logits: random.normal(tokens * experts),
            coefficients: random.normal(tokens),
            outputs: random.normal(tokens * experts * n),
            shared: random.normal(tokens * n),
            dout: random.normal(tokens * n),
        }
    }

    fn loss_of_token(&self, t: usize, logits: &[f64], coefficient: f64) -> f64 {
        let n = self.n;
        let chosen = reference::route(logits, self.k);
        let dout = widen(&self.dout[t * n..][..n]);
        let output = |e: usize| dot(&widen(&self.outputs[(t * self.experts + e) * n..][..n]), &dout);
        let experts: f64 = chosen.iter().map(|(e, weight)| weight * output(*e)).sum();
        let c = 1.0 / (1.0 + (-coefficient).exp());
        experts * (1.0 - c) + dot(&widen(&self.shared[t * n..][..n]), &dout) * c
    }

    /// Gradients by logits and coefficients, as the layers compute them.
    fn gradients(&self) -> (Vec<f32>, Vec<f32>) {
        let (tokens, k, n) = (self.tokens, self.k, self.n);
        let mut routing = Routing::new(tokens, self.experts, k);
        routing.route(&self.logits);
        let product = |a: &[f32], b: &[f32]| dot(&widen(a), &widen(b)) as f32;
        let mut dots = vec![0.0; tokens * k];
        for segment in routing.segments() {
            for (row, value) in dots.iter_mut().enumerate().skip(segment.first).take(segment.rows) {
                let t = routing.source(row);
                let output = &self.outputs[(t * self.experts + segment.matrix) * n..][..n];
                *value = product(output, &self.dout[t * n..][..n]);
            }
        }
        let mut dweights = vec![f32::NAN; tokens * k];
        routing.choice_order(&dots, &mut dweights);
        let dshares: Vec<f32> =
            self.shared.chunks(n).zip(self.dout.chunks(n)).map(|(a, b)| product(a, b)).collect();
        let mut shares = self.coefficients.clone();
        shared_weights(&mut shares);
        let mut dcoefficients = vec![f32::NAN; tokens];
        shared_weights_backward(&routing, &shares, &dshares, &mut dweights, &mut dcoefficients);
        let mut dlogits = vec![f32::NAN; tokens * self.experts];
        router_backward(&routing, &dweights, &mut dlogits);
        (dlogits, dcoefficients)
    }
}

#[test]
fn router_and_shared_weight_get_the_gradient_of_the_mixture() {
    for (tokens, experts, k, n) in [(1, 1, 1, 3), (64, 8, 2, 5), (65, 5, 5, 4), (33, 32, 4, 2)] {
        let block = Block::new(tokens, experts, k, n);
        let (dlogits, dcoefficients) = block.gradients();
        for t in 0..tokens {
            let logits = widen(&block.logits[t * experts..][..experts]);
            let coefficient = f64::from(block.coefficients[t]);
            // In f64 by differences; those hold only to about 1e-8, far below the tolerance on f32.
            let difference = |f: &dyn Fn(f64) -> f64| (f(1e-5) - f(-1e-5)) / 2e-5;
            let by_coefficient = difference(&|step| block.loss_of_token(t, &logits, coefficient + step));
            let error = f64::from(dcoefficients[t]) - by_coefficient;
            assert!(error.abs() < 3e-6, "{experts} experts, token {t}, coefficient: {error:e}");
            for e in 0..experts {
                let by_logit = difference(&|step| {
                    let mut moved = logits.clone();
                    moved[e] += step;
                    block.loss_of_token(t, &moved, coefficient)
                });
                let error = f64::from(dlogits[t * experts + e]) - by_logit;
                assert!(error.abs() < 3e-6, "{experts} experts, token {t}, logit {e}: {error:e}");
            }
        }
    }
}

#[test]
fn swiglu_gradients_stay_finite_at_gates_far_from_zero() {
    let mut pre = vec![0.0; 2 * PANEL];
    pre[..4].copy_from_slice(&[-1e4, -90.0, 90.0, 1e4]);
    pre[PANEL..PANEL + 4].copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
    for isa in Isa::available() {
        let (mut inner, mut dpre) = (vec![f32::NAN; 4], vec![f32::NAN; 2 * PANEL]);
        swiglu(&cpu(isa, 1), &pre, &mut inner, 4);
        swiglu_backward(&cpu(isa, 1), &pre, &[1.0; 4], &mut dpre, 4);
        assert_close(&inner, &[0.0, 0.0, 270.0, 4e4], 1e-6, "inner");
        assert_close(&dpre[..4], &[0.0, 0.0, 3.0, 4.0], 1e-6, "by gate");
        assert_close(&dpre[PANEL..PANEL + 4], &[0.0, 0.0, 90.0, 1e4], 1e-6, "by up");
    }
}

#[test]
fn gradients_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(6);
    let (tokens, experts, k, width) = (100, 6, 2, 70);
    let rows = tokens * k;
    let pre = random.normal(rows * 2 * 96);
    let (weights, dinner) = (random.normal(rows), random.normal(rows * width));
    let logits = random.normal(tokens * experts);
    let mut routing = Routing::new(tokens, experts, k);
    routing.route(&logits);
    let mut balance = BalanceLoss::new(experts, k);
    balance.add(&logits);
    for isa in Isa::available() {
        let run = |threads: usize| {
            let cpu = cpu(isa, threads);
            let (mut inner, mut dinner) = (vec![f32::NAN; rows * width], dinner.clone());
            let (mut dpre, mut dots) = (vec![f32::NAN; pre.len()], vec![f32::NAN; rows]);
            swiglu(&cpu, &pre, &mut inner, width);
            weigh_backward(&cpu, &weights, &mut inner, &mut dinner, &mut dots);
            swiglu_backward(&cpu, &pre, &dinner, &mut dpre, width);
            let (mut out, mut dlogits) = (vec![0.0; tokens * width], vec![0.0; logits.len()]);
            scatter_add(&cpu, &routing, &dinner, &mut out, width);
            balance.add_gradient(&cpu, &logits, 0.1, &mut dlogits);
            [inner, dinner, dpre, dots, out, dlogits]
        };
        let alone = run(1);
        assert!(run(2) == alone && run(5) == alone, "{isa}");
        assert!(alone.iter().flatten().all(|x| x.is_finite()), "{isa}");
    }
}

#[test]
fn balance_loss_is_k_for_an_even_load_and_grows_as_one_expert_takes_all() {
    let mut even = BalanceLoss::new(4, 2);
    // Every expert in as many choices, and with the same mean probability.
    for logits in [[2.0, 1.0, 0.0, 0.0], [0.0, 2.0, 1.0, 0.0], [0.0, 0.0, 2.0, 1.0], [1.0, 0.0, 0.0, 2.0]] {
        even.add(&logits);
    }
    assert!((even.loss() - 2.0).abs() < 1e-12, "{}", even.loss());
    let mut uneven = BalanceLoss::new(4, 2);
    uneven.add(&[50.0, 1.0, 0.0, 0.0]);
    assert!((uneven.loss() - 4.0).abs() < 1e-12, "{}", uneven.loss());
}
