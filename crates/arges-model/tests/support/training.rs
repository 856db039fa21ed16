//! What tests of training share: weights of targets, and how far gradients lie apart.

/// Mean negative log-probability.
pub fn mean_loss(logprobs: &[f32]) -> f64 {
    -logprobs.iter().map(|p| f64::from(*p)).sum::<f64>() / logprobs.len() as f64
}

/// Weights that differ from target to target, so that none can be mistaken for another.
pub fn weight(targets: usize) -> impl Fn(usize, f32) -> f32 + Sync {
    move |i, logprob| (-1.0 - 0.5 * (i % 3) as f32 + 0.1 * logprob) / targets as f32
}

/// Length of the difference, as a share of that of what is expected.
pub fn relative_distance(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |x: f64| x * x;
    let distance: f64 = got.iter().zip(expected).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = expected.iter().map(|x| square(f64::from(*x))).sum();
    // An expert that no token goes to has no gradient.
    if distance == 0.0 { 0.0 } else { (distance / norm).sqrt() }
}

/// The cosine of the angle between two directions.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
