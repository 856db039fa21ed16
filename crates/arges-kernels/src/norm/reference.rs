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

/// Gradients of [`rms_norm`] by `x` and by the weight.
pub fn rms_norm_backward(x: &[f64], weight: &[f64], eps: f64, dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let n = x.len() as f64;
    let scale = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / n + eps).sqrt();
    let dot: f64 = (0..x.len()).map(|i| x[i] * weight[i] * dy[i]).sum();
    let dx = (0..x.len()).map(|i| scale * weight[i] * dy[i] - x[i] * scale.powi(3) / n * dot).collect();
    (dx, x.iter().zip(dy).map(|(x, dy)| x * scale * dy).collect())
}

/// Gradients of [`gated_rms_norm`] by `x`, by the gate and by the weight.
pub fn gated_rms_norm_backward(
    x: &[f64],
    gate: &[f64],
    weight: &[f64],
    eps: f64,
    dy: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let open: Vec<f64> = gate.iter().map(|gate| 1.0 / (1.0 + (-gate).exp())).collect();
    let dnormed: Vec<f64> = open.iter().zip(dy).map(|(open, dy)| open * dy).collect();
    let (dx, dweight) = rms_norm_backward(x, weight, eps, &dnormed);
    let normed = rms_norm(x, weight, eps);
    let dgate = (0..x.len()).map(|i| dnormed[i] * normed[i] * (1.0 - open[i])).collect();
    (dx, dgate, dweight)
}
