//! Routing in plain f64 loops.

/// The chosen experts of one token with their weights, best first.
pub fn route(logits: &[f64], k: usize) -> Vec<(usize, f64)> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut chosen: Vec<(usize, f64)> = logits.iter().map(|x| (x - max).exp()).enumerate().collect();
    chosen.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    chosen.truncate(k);
    let total: f64 = chosen.iter().map(|choice| choice.1).sum();
    chosen.iter().map(|(expert, weight)| (*expert, weight / total)).collect()
}

/// `silu(gate) * up`.
pub fn swiglu(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
}

/// Gradients of [`swiglu`] by gate and up.
pub fn swiglu_backward(gate: &[f64], up: &[f64], d: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let open = |gate: f64| 1.0 / (1.0 + (-gate).exp());
    let dgate = (0..gate.len()).map(|i| {
        let s = open(gate[i]);
        d[i] * up[i] * (s + gate[i] * s * (1.0 - s))
    });
    let dup = (0..gate.len()).map(|i| d[i] * gate[i] * open(gate[i]));
    (dgate.collect(), dup.collect())
}

/// Gradient by the logits of one token from that by the weights of its choices, best first: through the softmax
/// over all experts and the division by the sum of the chosen.
pub fn route_backward(logits: &[f64], k: usize, dweights: &[f64]) -> Vec<f64> {
    let chosen = route(logits, k);
    let p = softmax(logits);
    let total: f64 = chosen.iter().map(|(expert, _)| p[*expert]).sum();
    let mean: f64 = chosen.iter().zip(dweights).map(|((_, weight), d)| weight * d).sum();
    let mut dp = vec![0.0; logits.len()];
    for ((expert, _), d) in chosen.iter().zip(dweights) {
        dp[*expert] = (d - mean) / total;
    }
    let inner: f64 = dp.iter().zip(&p).map(|(d, p)| d * p).sum();
    p.iter().zip(&dp).map(|(p, d)| p * (d - inner)).collect()
}

/// The load-balancing loss of logits `[rows, experts]`.
pub fn balance_loss(logits: &[f64], experts: usize, k: usize) -> f64 {
    let rows = (logits.len() / experts) as f64;
    let (shares, probabilities) = balance_terms(logits, experts, k);
    experts as f64 * shares.iter().zip(&probabilities).map(|(f, p)| f / rows * p / rows).sum::<f64>()
}

/// Its gradient by the logits; the choices are no function of them.
pub fn balance_gradient(logits: &[f64], experts: usize, k: usize) -> Vec<f64> {
    let rows = (logits.len() / experts) as f64;
    let (shares, _) = balance_terms(logits, experts, k);
    let of_row = |logits: &[f64]| {
        let p = softmax(logits);
        let slope = |e: usize| experts as f64 * shares[e] / rows / rows;
        let mean: f64 = (0..experts).map(|e| p[e] * slope(e)).sum();
        (0..experts).map(|e| p[e] * (slope(e) - mean)).collect::<Vec<f64>>()
    };
    logits.chunks(experts).flat_map(of_row).collect()
}

/// Choices and probabilities of each expert, summed over the rows.
fn balance_terms(logits: &[f64], experts: usize, k: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut counts, mut sums) = (vec![0.0; experts], vec![0.0; experts]);
    for logits in logits.chunks(experts) {
        route(logits, k).iter().for_each(|(expert, _)| counts[*expert] += 1.0);
        sums.iter_mut().zip(softmax(logits)).for_each(|(sum, p)| *sum += p);
    }
    (counts, sums)
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|x| (x - max).exp()).sum();
    logits.iter().map(|x| (x - max).exp() / total).collect()
}
