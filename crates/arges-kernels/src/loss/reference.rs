//! The head with its loss in plain f64 loops.

/// Log-probability of `target` and entropy of `softmax(logits)`, in nats.
pub fn score(logits: &[f64], target: usize) -> (f64, f64) {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    let logprob = |x: f64| x - max - log_sum;
    let entropy = -logits.iter().map(|x| logprob(*x).exp() * logprob(*x)).sum::<f64>();
    (logprob(logits[target]), entropy)
}

/// Gradient by the logits of `weight` times the log-probability of `target`.
pub fn score_backward(logits: &[f64], target: usize, weight: f64) -> Vec<f64> {
    let of_target = score(logits, target).0;
    let p = |i: usize| (logits[i] - logits[target] + of_target).exp();
    (0..logits.len()).map(|i| weight * (f64::from(u8::from(i == target)) - p(i))).collect()
}
