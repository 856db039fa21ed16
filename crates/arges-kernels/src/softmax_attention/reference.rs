//! Causal attention of one head in plain f64 loops.

/// Outputs for `q [tokens, head_dim]` over `k, v [keys, head_dim]`; the last query sees all keys.
pub fn softmax_attention(q: &[f64], k: &[f64], v: &[f64], head_dim: usize) -> Vec<f64> {
    let (tokens, keys) = (q.len() / head_dim, k.len() / head_dim);
    let mut out = Vec::with_capacity(q.len());
    for (t, q) in q.chunks(head_dim).enumerate() {
        let seen = keys - tokens + t + 1;
        let scores: Vec<f64> = k
            .chunks(head_dim)
            .take(seen)
            .map(|k| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (head_dim as f64).sqrt())
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        out.extend((0..head_dim).map(|d| {
            weights.iter().zip(v.chunks(head_dim)).map(|(weight, v)| weight * v[d]).sum::<f64>() / total
        }));
    }
    out
}
