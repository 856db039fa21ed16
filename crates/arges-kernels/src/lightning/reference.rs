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

/// Gradients of one head's `[q, k, v]`, each `[tokens, head_dim]`, from a zero state, given that of its outputs:
/// with `G_t = e^-s G_(t+1) + q_t do_t^T`, the gradient of the state after token `t`,
/// `dq_t = S_t do_t`, `dk_t = G_t v_t` and `dv_t = G_t^T k_t`.
pub fn lightning_attention_backward(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    head_dim: usize,
    slope: f64,
    dout: &[f64],
) -> [Vec<f64>; 3] {
    let [mut dq, mut dk, mut dv] = [vec![0.0; q.len()], vec![0.0; q.len()], vec![0.0; q.len()]];
    let decay = (-slope).exp();
    let mut state = vec![0.0; head_dim * head_dim];
    for t in (0..q.len()).step_by(head_dim) {
        for (c, row) in state.chunks_mut(head_dim).enumerate() {
            for (d, s) in row.iter_mut().enumerate() {
                *s = decay * *s + k[t + c] * v[t + d];
                dq[t + c] += *s * dout[t + d];
            }
        }
    }
    let mut gradient = vec![0.0; head_dim * head_dim];
    for t in (0..q.len()).step_by(head_dim).rev() {
        for (c, row) in gradient.chunks_mut(head_dim).enumerate() {
            for (d, g) in row.iter_mut().enumerate() {
                *g = decay * *g + q[t + c] * dout[t + d];
                dk[t + c] += *g * v[t + d];
                dv[t + d] += *g * k[t + c];
            }
        }
    }
    [dq, dk, dv]
}

/// The derivative of [`silu`].
pub fn silu_derivative(x: f64) -> f64 {
    let sigmoid = 1.0 / (1.0 + (-x).exp());
    sigmoid * (1.0 + x * (1.0 - sigmoid))
}
