//! States at a grid point, copied out of a sequence's cache and into another's.
//!
//! At a grid point the unfinished chunk is empty, so that the state alone is all that a sequence keeps. Later rows of its
//! chunk are written before they are read.

use super::Shape;

/// Copies the state of one layer from a sequence's cache to `snapshot`, of [`Shape::state_len`].
///
/// # Panics
/// When a length does not agree.
pub fn save_state(shape: Shape, cache: &[f32], snapshot: &mut [f32]) {
    assert_eq!((cache.len(), snapshot.len()), (shape.cache_len(), shape.state_len()));
    let each = shape.head_dim * shape.padded_dim();
    for (cache, state) in cache.chunks_exact(shape.head_cache_len()).zip(snapshot.chunks_exact_mut(each)) {
        state.copy_from_slice(&cache[..each]);
    }
}

/// Copies a snapshot of one layer into a sequence's cache.
///
/// # Panics
/// When a length does not agree.
pub fn load_state(shape: Shape, snapshot: &[f32], cache: &mut [f32]) {
    assert_eq!((cache.len(), snapshot.len()), (shape.cache_len(), shape.state_len()));
    let each = shape.head_dim * shape.padded_dim();
    for (cache, state) in cache.chunks_exact_mut(shape.head_cache_len()).zip(snapshot.chunks_exact(each)) {
        cache[..each].copy_from_slice(state);
    }
}
