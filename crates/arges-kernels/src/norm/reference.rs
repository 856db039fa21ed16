//! Norms in plain f64 loops.

/// `x / sqrt(mean(x^2) + eps) * weight` for one row.
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, weight)| x / (mean + eps).sqrt() * weight).collect()
}

/// `sigmoid(gate) * rms_norm(x)` for one row.
pub fn gated_rms_norm(x: &[f64], gate: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    rms_norm(x, weight, eps).iter().zip(gate).map(|(x, gate)| x / (1.0 + (-gate).exp())).collect()
}
