//! AdamW in plain f64.

use super::AdamW;

/// One step of one weight: its new value and moments.
pub fn adamw(settings: AdamW, value: f64, gradient: f64, m: f64, v: f64) -> [f64; 3] {
    let AdamW { lr, beta1, beta2, eps, weight_decay, step } = settings;
    let m = beta1 * m + (1.0 - beta1) * gradient;
    let v = beta2 * v + (1.0 - beta2) * gradient * gradient;
    let corrected = |moment: f64, beta: f64| moment / (1.0 - beta.powi(step as i32));
    let update = corrected(m, beta1) / (corrected(v, beta2).sqrt() + eps);
    [value - lr * (update + weight_decay * value), m, v]
}
