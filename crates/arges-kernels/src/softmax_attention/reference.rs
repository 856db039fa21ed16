//! Causal attention of one head in plain f64 loops.

/// For each of `q [tokens, head_dim]`, its scores with those of `k [keys, head_dim]` that it sees.
fn scores<'a>(q: &'a [f64], k: &'a [f64], head_dim: usize) -> impl Iterator<Item = Vec<f64>> + 'a {
    let (tokens, keys) = (q.len() / head_dim, k.len() / head_dim);
    q.chunks(head_dim).enumerate().map(move |(t, q)| {
        let seen = k.chunks(head_dim).take(keys - tokens + t + 1);
        seen.map(|k| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (head_dim as f64).sqrt()).collect()
    })
}

/// For each query, the logarithm of the sum of `e^score` over the keys that it sees.
pub fn log_sum_exp(q: &[f64], k: &[f64], head_dim: usize) -> Vec<f64> {
    let sum = |scores: Vec<f64>| {
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        max + scores.iter().map(|score| (score - max).exp()).sum::<f64>().ln()
    };
    scores(q, k, head_dim).map(sum).collect()
}

/// For each query, what it weighs the keys that it sees.
fn weights<'a>(q: &'a [f64], k: &'a [f64], head_dim: usize) -> impl Iterator<Item = Vec<f64>> + 'a {
    let sums = log_sum_exp(q, k, head_dim);
    scores(q, k, head_dim)
        .zip(sums)
        .map(|(scores, sum)| scores.iter().map(|score| (score - sum).exp()).collect())
}

/// Outputs for `q [tokens, head_dim]` over `k, v [keys, head_dim]`; the last query sees all keys.
pub fn softmax_attention(q: &[f64], k: &[f64], v: &[f64], head_dim: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(q.len());
    for weights in weights(q, k, head_dim) {
        out.extend(
            (0..head_dim).map(|d| {
                weights.iter().zip(v.chunks(head_dim)).map(|(weight, v)| weight * v[d]).sum::<f64>()
            }),
        );
    }
    out
}

/// Gradients of one head's `[q, k, v]` given that of its outputs. With the weights `P`,
/// `dP_ij = do_i·v_j` and `dS_ij = P_ij (dP_ij - sum_l P_il dP_il)`:
/// `dq_i = sum_j dS_ij k_j / sqrt(head_dim)`, `dk_j = sum_i dS_ij q_i / sqrt(head_dim)`, `dv_j = sum_i P_ij do_i`.
pub fn softmax_attention_backward(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    head_dim: usize,
    dout: &[f64],
) -> [Vec<f64>; 3] {
    let [mut dq, mut dk, mut dv] = [vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]];
    let scale = 1.0 / (head_dim as f64).sqrt();
    let rows = dq.chunks_mut(head_dim).zip(q.chunks(head_dim)).zip(dout.chunks(head_dim));
    for (((dq, q), dout), weights) in rows.zip(weights(q, k, head_dim)) {
        let dweights: Vec<f64> = v
            .chunks(head_dim)
            .take(weights.len())
            .map(|v| dout.iter().zip(v).map(|(x, v)| x * v).sum())
            .collect();
        let delta: f64 = weights.iter().zip(&dweights).map(|(weight, dweight)| weight * dweight).sum();
        for (j, (weight, dweight)) in weights.iter().zip(&dweights).enumerate() {
            let dscore = weight * (dweight - delta) * scale;
            for c in 0..head_dim {
                dq[c] += dscore * k[j * head_dim + c];
                dk[j * head_dim + c] += dscore * q[c];
                dv[j * head_dim + c] += weight * dout[c];
            }
        }
    }
    [dq, dk, dv]
}
