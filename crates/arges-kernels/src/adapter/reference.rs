//! Adapters in plain f64.

/// `base + scale B A`, `[outputs, inputs]`.
pub fn merged(base: &[f64], a: &[f64], b: &[f64], rank: usize, scale: f64) -> Vec<f64> {
    let inputs = a.len() / rank;
    let at = |i: usize| {
        let (output, input) = (i / inputs, i % inputs);
        (0..rank).map(|k| b[output * rank + k] * a[k * inputs + input]).sum::<f64>()
    };
    base.iter().enumerate().map(|(i, base)| base + scale * at(i)).collect()
}

/// Gradients by `A` and `B` from that by the merged weights.
pub fn projected(dw: &[f64], a: &[f64], b: &[f64], rank: usize, scale: f64) -> [Vec<f64>; 2] {
    let inputs = a.len() / rank;
    let (mut da, mut db) = (vec![0.0; a.len()], vec![0.0; b.len()]);
    for (i, dw) in dw.iter().enumerate() {
        let (output, input) = (i / inputs, i % inputs);
        for k in 0..rank {
            da[k * inputs + input] += scale * b[output * rank + k] * dw;
            db[output * rank + k] += scale * a[k * inputs + input] * dw;
        }
    }
    [da, db]
}
