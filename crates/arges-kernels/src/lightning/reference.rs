//! The recurrence in plain f64 loops.

/// Outputs and final state of one head over `q, k, v [tokens, head_dim]`, from `state [head_dim, head_dim]`
/// (key channel by value channel).
pub fn lightning_attention(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    head_dim: usize,
    slope: f64,
    state: &mut [f64],
) -> Vec<f64> {
    let decay = (-slope).exp();
    let mut out = Vec::with_capacity(q.len());
    for ((q, k), v) in q.chunks(head_dim).zip(k.chunks(head_dim)).zip(v.chunks(head_dim)) {
        for (c, row) in state.chunks_mut(head_dim).enumerate() {
            for (d, s) in row.iter_mut().enumerate() {
                *s = decay * *s + k[c] * v[d];
            }
        }
        out.extend((0..head_dim).map(|d| (0..head_dim).map(|c| q[c] * state[c * head_dim + d]).sum::<f64>()));
    }
    out
}

/// x · sigmoid(x).
pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}
