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
