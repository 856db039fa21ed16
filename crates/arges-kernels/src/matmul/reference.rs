//! The product in plain f64 loops.

/// `y[T, N] = x[T, K] · w[N, K]^T`.
pub fn matmul(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    x.chunks_exact(k)
        .flat_map(|x| w.chunks_exact(k).map(move |w| x.iter().zip(w).map(|(x, w)| x * w).sum()))
        .collect()
}
