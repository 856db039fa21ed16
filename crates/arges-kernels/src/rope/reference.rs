//! The rotation in plain f64 loops.

/// One head of `x` at `position`, rotated on its first `rotary_dim` channels.
pub fn rotate(x: &[f64], position: usize, theta: f64, rotary_dim: usize) -> Vec<f64> {
    let half = rotary_dim / 2;
    let mut out = x.to_vec();
    for i in 0..half {
        let angle = position as f64 * theta.powf(-2.0 * i as f64 / rotary_dim as f64);
        out[i] = x[i] * angle.cos() - x[i + half] * angle.sin();
        out[i + half] = x[i + half] * angle.cos() + x[i] * angle.sin();
    }
    out
}

/// The opposite rotation, and the transpose, of [`rotate`]: from the gradient of its result to that of its input.
pub fn rotate_back(x: &[f64], position: usize, theta: f64, rotary_dim: usize) -> Vec<f64> {
    let half = rotary_dim / 2;
    let mut out = x.to_vec();
    for i in 0..half {
        let angle = position as f64 * theta.powf(-2.0 * i as f64 / rotary_dim as f64);
        out[i] = x[i] * angle.cos() + x[i + half] * angle.sin();
        out[i + half] = x[i + half] * angle.cos() - x[i] * angle.sin();
    }
    out
}
