//! Gradients of the mixture: of SwiGLU, of the weights of choices, of the router, and the load-balancing loss.
//!
//! For an expert with inner activations `h`, down projection `D` and weight `w`, and `g = dout · D` the gradient by
//! `h` if the weight were 1, the derivative by the weight is `h · g`, the gradient by `h` is `w g`, and that by `D`
//! is `dout^T (w h)`. The experts' outputs are not needed.

use super::Routing;
use crate::device::cpu::simd::{Simd, sigmoid, simd_dispatch, sum};
use crate::device::cpu::{Cpu, SharedMut};
use crate::matmul::PANEL;

/// Rows of one task.
const GRAIN: usize = 16;

/// `inner[rows, width] = silu(gate) * up`, from `pre` in the order of a gate-up matrix's panels.
///
/// # Panics
/// When sizes do not agree.
pub fn swiglu(cpu: &Cpu, pre: &[f32], inner: &mut [f32], width: usize) {
    let wide = 2 * width.next_multiple_of(PANEL);
    assert_eq!(pre.len() / wide, inner.len() / width);
    let rows = inner.len() / width;
    let inner = SharedMut::new(inner);
    cpu.for_rows(rows, GRAIN, |range| {
        for row in range {
            // SAFETY: rows do not overlap.
            let inner = unsafe { inner.slice(row * width, width) };
            // SAFETY: `pre` holds two panels for each of `inner`.
            unsafe { swiglu_on(cpu.isa(), &pre[row * wide..][..wide], inner) };
        }
    });
}

/// From the gradient by `inner` of [`swiglu`] to `dpre`, in the order of the panels, zero in their padding.
///
/// # Panics
/// When sizes do not agree.
pub fn swiglu_backward(cpu: &Cpu, pre: &[f32], dinner: &[f32], dpre: &mut [f32], width: usize) {
    let wide = 2 * width.next_multiple_of(PANEL);
    let rows = dinner.len() / width;
    assert_eq!((pre.len(), dpre.len()), (rows * wide, rows * wide));
    let dpre = SharedMut::new(dpre);
    cpu.for_rows(rows, GRAIN, |range| {
        for row in range {
            // SAFETY: rows do not overlap.
            let dpre = unsafe { dpre.slice(row * wide, wide) };
            let dinner = &dinner[row * width..][..width];
            // SAFETY: `pre` and `dpre` hold two panels for each of `dinner`.
            unsafe { swiglu_backward_on(cpu.isa(), &pre[row * wide..][..wide], dinner, dpre) };
        }
    });
}

/// For each row: `dots = inner · dinner`, then both rows times the row's weight.
///
/// # Panics
/// When sizes do not agree.
pub fn weigh_backward(cpu: &Cpu, weights: &[f32], inner: &mut [f32], dinner: &mut [f32], dots: &mut [f32]) {
    let rows = weights.len();
    assert_eq!((dots.len(), inner.len()), (rows, dinner.len()));
    let width = inner.len() / rows.max(1);
    let (inner, dinner) = (SharedMut::new(inner), SharedMut::new(dinner));
    let dots = SharedMut::new(dots);
    cpu.for_rows(rows, GRAIN, |range| {
        for row in range {
            // SAFETY: rows do not overlap.
            unsafe {
                let (inner, dinner) = (inner.slice(row * width, width), dinner.slice(row * width, width));
                weigh_on(cpu.isa(), weights[row], inner, dinner, &mut dots.slice(row, 1)[0]);
            }
        }
    });
}

/// `out[t] += sum over the token's choices of rows[place]`, in the order of the choices; both `[_, n]`.
///
/// # Panics
/// When sizes do not agree.
pub fn scatter_add(cpu: &Cpu, routing: &Routing, rows: &[f32], out: &mut [f32], n: usize) {
    let k = routing.experts_per_token;
    assert_eq!(out.len(), routing.tokens * n);
    let out = SharedMut::new(out);
    cpu.for_rows(routing.tokens, GRAIN, |tokens| {
        for t in tokens {
            // SAFETY: rows do not overlap.
            let out = unsafe { out.slice(t * n, n) };
            for place in &routing.places[t * k..(t + 1) * k] {
                // SAFETY: both are `n` long.
                unsafe { add_on(cpu.isa(), out, &rows[*place as usize * n..][..n]) };
            }
        }
    });
}

impl Routing {
    /// Weight of each packed row; `shared`, where a shared MLP takes that share of a token, leaves the rest.
    ///
    /// # Panics
    /// When `weights` has no room for every choice.
    pub fn row_weights(&self, shared: Option<&[f32]>, weights: &mut [f32]) {
        for (choice, (place, weight)) in self.places.iter().zip(self.weights()).enumerate() {
            let left = shared.map_or(1.0, |shared| 1.0 - shared[choice / self.experts_per_token]);
            weights[*place as usize] = weight * left;
        }
    }

    /// Brings a value of each packed row into the order of the choices, `[tokens, k]`.
    ///
    /// # Panics
    /// When sizes do not agree.
    pub fn choice_order(&self, rows: &[f32], choices: &mut [f32]) {
        assert_eq!((rows.len(), choices.len()), (self.weights().len(), self.weights().len()));
        for (place, value) in self.places.iter().zip(choices) {
            *value = rows[*place as usize];
        }
    }
}

/// From the derivatives by the weights of the choices, `[tokens, k]`, to those by the router's logits,
/// `[tokens, experts]`. The weights are a softmax over the chosen logits, so that the others have none.
///
/// # Panics
/// When sizes do not agree.
pub fn router_backward(routing: &Routing, dweights: &[f32], dlogits: &mut [f32]) {
    let k = routing.experts_per_token;
    assert_eq!(dweights.len(), routing.weights().len());
    let experts = routing.counts.len();
    assert_eq!(dlogits.len(), routing.tokens * experts);
    dlogits.fill(0.0);
    for (t, dlogits) in dlogits.chunks_exact_mut(experts).enumerate() {
        let range = t * k..(t + 1) * k;
        let (weights, dweights) = (&routing.weights()[range.clone()], &dweights[range.clone()]);
        let mean: f32 = weights.iter().zip(dweights).map(|(w, d)| w * d).sum();
        for ((expert, weight), dweight) in routing.experts()[range].iter().zip(weights).zip(dweights) {
            dlogits[*expert as usize] = weight * (dweight - mean);
        }
    }
}

/// Sigmoids of the shared MLP's coefficients, in place.
pub fn shared_weights(coefficients: &mut [f32]) {
    for c in coefficients {
        *c = 1.0 / (1.0 + (-*c).exp());
    }
}

/// Through `out = moe * (1 - c) + shared * c`, where `c[tokens]` is a sigmoid: `dots[tokens]` is the derivative by
/// the shared MLP's weight and `dweights[tokens, k]` those by the weights of the choices, both as if the whole
/// output were theirs. Gives the derivative by the coefficient before the sigmoid, and leaves the choices their
/// share.
///
/// # Panics
/// When sizes do not agree.
pub fn shared_weights_backward(
    routing: &Routing,
    coefficients: &[f32],
    dots: &[f32],
    dweights: &mut [f32],
    dcoefficients: &mut [f32],
) {
    let k = routing.experts_per_token;
    assert_eq!((coefficients.len(), dots.len()), (routing.tokens, routing.tokens));
    for t in 0..routing.tokens {
        let (c, dweights) = (coefficients[t], &mut dweights[t * k..(t + 1) * k]);
        let weights = &routing.weights()[t * k..(t + 1) * k];
        let moe: f32 = weights.iter().zip(&*dweights).map(|(w, d)| w * d).sum();
        dcoefficients[t] = (dots[t] - moe) * c * (1.0 - c);
        dweights.iter_mut().for_each(|d| *d *= 1.0 - c);
    }
}

/// The load-balancing loss (Fedus et al., "Switch Transformers", 2021, as the official code has it): over the
/// router logits of all layers together, `E * sum over slots k and experts e of f_ke P_e`, where `f_ke` is the share
/// of tokens whose choice `k` is `e`, and `P_e` the mean probability of `e`.
pub struct BalanceLoss {
    experts_per_token: usize,
    rows: usize,
    /// Choices of each expert, over all slots.
    counts: Vec<u64>,
    probabilities: Vec<f64>,
}

impl BalanceLoss {
    /// Of nothing yet.
    pub fn new(experts: usize, experts_per_token: usize) -> Self {
        Self { experts_per_token, rows: 0, counts: vec![0; experts], probabilities: vec![0.0; experts] }
    }

    /// Forgets all logits.
    pub fn clear(&mut self) {
        self.rows = 0;
        self.counts.fill(0);
        self.probabilities.fill(0.0);
    }

    /// Adds the logits of a layer, `[tokens, experts]`.
    pub fn add(&mut self, logits: &[f32]) {
        let experts = self.counts.len();
        let mut softmax = vec![0.0; experts];
        for logits in logits.chunks_exact(experts) {
            softmax_row(logits, &mut softmax);
            for (sum, p) in self.probabilities.iter_mut().zip(&softmax) {
                *sum += p;
            }
            for expert in 0..experts {
                let better = |other: &usize| {
                    logits[*other] > logits[expert] || (logits[*other] == logits[expert] && *other < expert)
                };
                let rank = (0..experts).filter(better).count();
                self.counts[expert] += u64::from(rank < self.experts_per_token);
            }
            self.rows += 1;
        }
    }

    /// The loss of all logits added; 0 without any.
    pub fn loss(&self) -> f64 {
        let rows = self.rows.max(1) as f64;
        let terms = self.counts.iter().zip(&self.probabilities);
        let sum: f64 = terms.map(|(count, p)| *count as f64 / rows * p / rows).sum();
        self.counts.len() as f64 * sum
    }

    /// Adds `coefficient` times the gradient by the logits of a layer that were added before.
    ///
    /// # Panics
    /// When sizes do not agree.
    pub fn add_gradient(&self, cpu: &Cpu, logits: &[f32], coefficient: f32, dlogits: &mut [f32]) {
        let experts = self.counts.len();
        assert_eq!(logits.len(), dlogits.len());
        let rows = self.rows.max(1) as f64;
        let scale = f64::from(coefficient) * experts as f64 / (rows * rows);
        let slopes: Vec<f64> = self.counts.iter().map(|count| scale * *count as f64).collect();
        let dlogits = SharedMut::new(dlogits);
        cpu.for_rows(logits.len() / experts, 64, |range| {
            let mut softmax = vec![0.0; experts];
            for row in range {
                softmax_row(&logits[row * experts..][..experts], &mut softmax);
                let mean: f64 = softmax.iter().zip(&slopes).map(|(p, slope)| p * slope).sum();
                // SAFETY: rows do not overlap.
                let dlogits = unsafe { dlogits.slice(row * experts, experts) };
                for ((dlogit, p), slope) in dlogits.iter_mut().zip(&softmax).zip(&slopes) {
                    *dlogit += (p * (slope - mean)) as f32;
                }
            }
        });
    }
}

fn softmax_row(logits: &[f32], out: &mut [f64]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for (out, logit) in out.iter_mut().zip(logits) {
        *out = f64::from(logit - max).exp();
    }
    let total: f64 = out.iter().sum();
    out.iter_mut().for_each(|p| *p /= total);
}

simd_dispatch!(fn swiglu_on(pre: &[f32], inner: &mut [f32]) => swiglu_row);
simd_dispatch!(fn swiglu_backward_on(pre: &[f32], dinner: &[f32], dpre: &mut [f32]) => swiglu_backward_row);
simd_dispatch!(
    fn weigh_on(weight: f32, inner: &mut [f32], dinner: &mut [f32], dot: &mut f32) => weigh_row
);
simd_dispatch!(fn add_on(out: &mut [f32], row: &[f32]) => add_row);

#[inline(always)]
unsafe fn swiglu_row<S: Simd>(pre: &[f32], inner: &mut [f32]) {
    for (pre, inner) in pre.chunks_exact(2 * PANEL).zip(inner.chunks_mut(PANEL)) {
        let (gate, up) = pre.split_at(PANEL);
        let mut values = [0.0f32; PANEL];
        for i in (0..PANEL).step_by(S::LANES) {
            // SAFETY: panels hold whole vectors, and S is the instruction set we run on.
            unsafe {
                let gate = S::load(gate.as_ptr().add(i));
                let silu = S::mul(gate, sigmoid::<S>(gate));
                S::store(values.as_mut_ptr().add(i), S::mul(silu, S::load(up.as_ptr().add(i))));
            }
        }
        inner.copy_from_slice(&values[..inner.len()]);
    }
}

/// With `s = sigmoid(gate)`: `dgate = d up s (1 + gate (1 - s))`, `dup = d gate s`.
#[inline(always)]
unsafe fn swiglu_backward_row<S: Simd>(pre: &[f32], dinner: &[f32], dpre: &mut [f32]) {
    let panels = pre.chunks_exact(2 * PANEL).zip(dpre.chunks_exact_mut(2 * PANEL));
    for ((pre, dpre), dinner) in panels.zip(dinner.chunks(PANEL)) {
        let mut d = [0.0f32; PANEL];
        d[..dinner.len()].copy_from_slice(dinner);
        for i in (0..PANEL).step_by(S::LANES) {
            // SAFETY: panels hold whole vectors, and S is the instruction set we run on.
            unsafe {
                let one = S::splat(1.0);
                let gate = S::load(pre.as_ptr().add(i));
                let up = S::load(pre.as_ptr().add(PANEL + i));
                let d = S::load(d.as_ptr().add(i));
                let open = sigmoid::<S>(gate);
                let slope = S::fma(gate, S::sub(one, open), one);
                let dgate = S::mul(S::mul(d, up), S::mul(open, slope));
                S::store(dpre.as_mut_ptr().add(i), dgate);
                S::store(dpre.as_mut_ptr().add(PANEL + i), S::mul(d, S::mul(gate, open)));
            }
        }
    }
}

#[inline(always)]
unsafe fn weigh_row<S: Simd>(weight: f32, inner: &mut [f32], dinner: &mut [f32], dot: &mut f32) {
    let whole = inner.len() / S::LANES * S::LANES;
    // SAFETY: both rows are equally long, and S is the instruction set we run on.
    unsafe {
        let mut dots = S::splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            dots = S::fma(S::load(inner.as_ptr().add(i)), S::load(dinner.as_ptr().add(i)), dots);
        }
        let rest: f32 = (whole..inner.len()).map(|i| inner[i] * dinner[i]).sum();
        *dot = sum::<S>(dots) + rest;
    }
    for (inner, dinner) in inner.iter_mut().zip(dinner) {
        *inner *= weight;
        *dinner *= weight;
    }
}

#[inline(always)]
unsafe fn add_row<S: Simd>(out: &mut [f32], row: &[f32]) {
    for (out, x) in out.iter_mut().zip(row) {
        *out += x;
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;
    use crate::device::cpu::{CpuOptions, Isa};
    use crate::testing::{Random, assert_close, assert_gradient, widen};

    fn cpus() -> impl Iterator<Item = Cpu> {
        Isa::available().map(|isa| Cpu::new(CpuOptions { threads: Some(3), isa: Some(isa) }).unwrap())
    }

    fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    /// One row of gates and one of ups in the order of panels, padding filled with `rest`.
    fn in_panels(gate: &[f32], up: &[f32], rest: f32) -> Vec<f32> {
        let mut out = Vec::new();
        for (gate, up) in gate.chunks(PANEL).zip(up.chunks(PANEL)) {
            for part in [gate, up] {
                out.extend_from_slice(part);
                out.resize(out.len().next_multiple_of(PANEL), rest);
            }
        }
        out
    }

    #[test]
    fn the_reference_gradients_are_slopes_of_the_reference() {
        let mut random = Random::new(1);
        let [gate, up, d] = std::array::from_fn(|_| widen(&random.normal(9)));
        let (dgate, dup) = reference::swiglu_backward(&gate, &up, &d);
        assert_gradient(|gate| dot(&reference::swiglu(gate, &up), &d), &gate, &dgate, "gate");
        assert_gradient(|up| dot(&reference::swiglu(&gate, up), &d), &up, &dup, "up");
        let (logits, d) = (widen(&random.normal(7)), widen(&random.normal(3)));
        let weights = |logits: &[f64]| {
            let weights: Vec<f64> = reference::route(logits, 3).into_iter().map(|choice| choice.1).collect();
            dot(&weights, &d)
        };
        assert_gradient(weights, &logits, &reference::route_backward(&logits, 3, &d), "router");
        let logits = widen(&random.normal(5 * 4));
        let balance = |logits: &[f64]| reference::balance_loss(logits, 4, 2);
        assert_gradient(balance, &logits, &reference::balance_gradient(&logits, 4, 2), "balance");
    }

    #[test]
    fn swiglu_and_its_gradient_agree_with_the_reference_over_odd_widths() {
        for cpu in cpus() {
            for (rows, width) in [(1, 1), (3, 20), (17, 64), (40, 97)] {
                let mut random = Random::new(width as u64);
                let [gate, up, d] = std::array::from_fn(|_| random.normal(rows * width));
                let row = |x: &[f32], row: usize| x[row * width..][..width].to_vec();
                let pre: Vec<f32> =
                    (0..rows).flat_map(|r| in_panels(&row(&gate, r), &row(&up, r), 3.0)).collect();
                let mut inner = vec![f32::NAN; rows * width];
                swiglu(&cpu, &pre, &mut inner, width);
                let mut dpre = vec![f32::NAN; pre.len()];
                swiglu_backward(&cpu, &pre, &d, &mut dpre, width);
                let [gate, up, d] = [&gate, &up, &d].map(|x| widen(x));
                let what = format!("{rows}x{width} on {}", cpu.isa());
                assert_close(&inner, &reference::swiglu(&gate, &up), 1e-5, &what);
                let (dgate, dup) = reference::swiglu_backward(&gate, &up, &d);
                let narrow = |x: &[f64], r: usize| -> Vec<f32> {
                    x[r * width..][..width].iter().map(|x| *x as f32).collect()
                };
                let expected: Vec<f64> = (0..rows)
                    .flat_map(|r| in_panels(&narrow(&dgate, r), &narrow(&dup, r), 0.0))
                    .map(f64::from)
                    .collect();
                assert_close(&dpre, &expected, 1e-5, &what);
            }
        }
    }

    #[test]
    fn rows_are_weighed_and_their_dots_taken_before() {
        for cpu in cpus() {
            let mut random = Random::new(3);
            let (rows, width) = (21, 37);
            let (weights, mut inner, mut d) =
                (random.normal(rows), random.normal(rows * width), random.normal(rows * width));
            let (inner64, d64) = (widen(&inner), widen(&d));
            let mut dots = vec![f32::NAN; rows];
            weigh_backward(&cpu, &weights, &mut inner, &mut d, &mut dots);
            let weighed = |x: &[f64]| -> Vec<f64> {
                x.iter().enumerate().map(|(i, x)| x * f64::from(weights[i / width])).collect()
            };
            let expected: Vec<f64> =
                inner64.chunks(width).zip(d64.chunks(width)).map(|(a, b)| dot(a, b)).collect();
            assert_close(&dots, &expected, 1e-5, "dots");
            assert_close(&inner, &weighed(&inner64), 1e-6, "inner");
            assert_close(&d, &weighed(&d64), 1e-6, "gradient");
        }
    }

    #[test]
    fn gradients_of_the_router_agree_with_the_reference() {
        let mut random = Random::new(4);
        for (tokens, experts, k) in [(1, 1, 1), (30, 8, 2), (9, 5, 5)] {
            let (logits, dweights) = (random.normal(tokens * experts), random.normal(tokens * k));
            let mut routing = Routing::new(tokens, experts, k);
            routing.route(&logits);
            let mut dlogits = vec![f32::NAN; tokens * experts];
            router_backward(&routing, &dweights, &mut dlogits);
            let expected: Vec<f64> = (0..tokens)
                .flat_map(|t| {
                    let d = widen(&dweights[t * k..][..k]);
                    reference::route_backward(&widen(&logits[t * experts..][..experts]), k, &d)
                })
                .collect();
            assert_close(&dlogits, &expected, 1e-5, "router");
        }
    }

    #[test]
    fn the_balance_loss_of_several_layers_is_that_of_all_their_tokens() {
        for cpu in cpus() {
            let mut random = Random::new(5);
            let (experts, k) = (6, 2);
            let layers = [random.normal(40 * experts), random.normal(40 * experts)];
            let mut loss = BalanceLoss::new(experts, k);
            assert_eq!(loss.loss(), 0.0);
            layers.iter().for_each(|logits| loss.add(logits));
            let all = widen(&layers.concat());
            assert!((loss.loss() - reference::balance_loss(&all, experts, k)).abs() < 1e-9);
            let expected = reference::balance_gradient(&all, experts, k);
            for (layer, logits) in layers.iter().enumerate() {
                let mut gradient = vec![0.0; logits.len()];
                loss.add_gradient(&cpu, logits, 0.5, &mut gradient);
                let expected: Vec<f64> =
                    expected[layer * logits.len()..][..logits.len()].iter().map(|x| 0.5 * x).collect();
                assert_close(&gradient, &expected, 1e-5, "balance");
            }
            loss.clear();
            assert_eq!(loss.loss(), 0.0);
        }
    }

    #[test]
    fn gathered_gradients_return_to_their_tokens_and_shares_to_their_choices() {
        let cpu = Cpu::new(CpuOptions::default()).unwrap();
        let mut random = Random::new(6);
        let (tokens, experts, k, n) = (50, 4, 2, 5);
        let mut routing = Routing::new(tokens, experts, k);
        routing.route(&random.normal(tokens * experts));
        let rows = random.normal(tokens * k * n);
        let mut out = vec![1.0; tokens * n];
        scatter_add(&cpu, &routing, &rows, &mut out, n);
        let mut expected = vec![1.0; tokens * n];
        for row in 0..tokens * k {
            for i in 0..n {
                expected[routing.source(row) * n + i] += f64::from(rows[row * n + i]);
            }
        }
        assert_close(&out, &expected, 1e-6, "scattered");
        let shared = random.normal(tokens);
        let (mut weights, mut choices) = (vec![f32::NAN; tokens * k], vec![f32::NAN; tokens * k]);
        routing.row_weights(Some(&shared), &mut weights);
        routing.choice_order(&weights, &mut choices);
        for (choice, (got, weight)) in choices.iter().zip(routing.weights()).enumerate() {
            assert_eq!(*got, weight * (1.0 - shared[choice / k]));
        }
    }

    #[test]
    fn a_shared_mlp_takes_its_share_of_the_gradient() {
        let mut random = Random::new(7);
        let (tokens, experts, k) = (3, 4, 2);
        let mut routing = Routing::new(tokens, experts, k);
        routing.route(&random.normal(tokens * experts));
        let logits = random.normal(tokens);
        let mut c = logits.clone();
        shared_weights(&mut c);
        let (dots, raw) = (random.normal(tokens), random.normal(tokens * k));
        let (mut dweights, mut dlogits) = (raw.clone(), vec![f32::NAN; tokens]);
        shared_weights_backward(&routing, &c, &dots, &mut dweights, &mut dlogits);
        for t in 0..tokens {
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
            let output = |x: f64| {
                let moe: f64 =
                    (0..k).map(|i| f64::from(routing.weights()[t * k + i]) * f64::from(raw[t * k + i])).sum();
                moe * (1.0 - sigmoid(x)) + f64::from(dots[t]) * sigmoid(x)
            };
            let x = f64::from(logits[t]);
            let slope = (output(x + 1e-5) - output(x - 1e-5)) / 2e-5;
            assert!((f64::from(dlogits[t]) - slope).abs() < 1e-5);
            assert!((dweights[t * k] - raw[t * k] * (1.0 - c[t])).abs() < 1e-6);
        }
    }
}
