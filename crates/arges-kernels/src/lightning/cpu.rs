//! Lightning attention on the CPU: a task is one head of one sequence.

use super::rows::silu_row;
use super::{CHUNK, Decays, Shape};
use crate::device::cpu::simd::{Simd, simd_dispatch};
use crate::device::cpu::{Cpu, Scratch, SharedMut};
use crate::matmul::small::{Block, Start, small_product};

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First row.
    pub first: usize,
    /// Number of rows.
    pub rows: usize,
    /// Position of the first row in its sequence.
    pub position: usize,
    /// Which cache the sequence has.
    pub slot: usize,
}

/// Rows that attend to the same keys of their chunk at once.
const STRIP: usize = 12;

/// f32 values of scratch that a thread needs.
pub fn scratch_len(shape: Shape) -> usize {
    STRIP * CHUNK + (3 * CHUNK + 1) * shape.padded_dim()
}

/// Attends and moves every span's sequence on.
///
/// `qkv` holds rows of `stride` values that start with `[heads, 3, head_dim]` (query, key, value of each head,
/// before SiLU). `caches` holds [`Shape::cache_len`] values for each slot; a span at position 0 clears its own.
/// `out` is `[rows, heads * head_dim]`.
///
/// # Panics
/// When a size does not agree, or two spans share a slot.
#[allow(clippy::too_many_arguments)]
pub fn lightning_attention(
    cpu: &Cpu,
    shape: Shape,
    decays: &Decays,
    qkv: &[f32],
    stride: usize,
    spans: &[Span],
    caches: &mut [f32],
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let Shape { heads, head_dim } = shape;
    assert_eq!(decays.heads(), heads);
    assert!(stride >= heads * 3 * head_dim && scratch.each() >= scratch_len(shape));
    for (i, span) in spans.iter().enumerate() {
        assert!((span.first + span.rows) * stride <= qkv.len(), "rows of the input");
        assert!((span.first + span.rows) * heads * head_dim <= out.len(), "rows of the output");
        assert!(spans[..i].iter().all(|other| other.slot != span.slot), "slot {} twice", span.slot);
    }
    let each = scratch.each();
    let (caches, out, scratch) = (SharedMut::new(caches), SharedMut::new(out), scratch.shared());
    cpu.pool().run(spans.len() * heads, |task, thread| {
        let (span, head) = (spans[task / heads], task % heads);
        if span.rows == 0 {
            return;
        }
        // SAFETY: one cache for each head and slot, and no slot twice; one scratch for each thread.
        let (cache, scratch) = unsafe {
            let len = shape.head_cache_len();
            (caches.slice((span.slot * heads + head) * len, len), scratch.slice(thread * each, each))
        };
        // SAFETY: sizes were checked above; this task alone writes these columns of the span's rows.
        unsafe {
            head_on(
                cpu.isa(),
                &Head { shape, head, decays, span },
                qkv[span.first * stride + head * 3 * head_dim..].as_ptr(),
                stride,
                cache,
                out.as_mut_ptr().add((span.first * heads + head) * head_dim),
                scratch,
            );
        }
    });
}

struct Head<'a> {
    shape: Shape,
    head: usize,
    decays: &'a Decays,
    span: Span,
}

simd_dispatch!(
    fn head_on(
        head: &Head<'_>,
        qkv: *const f32,
        stride: usize,
        cache: &mut [f32],
        out: *mut f32,
        scratch: &mut [f32],
    ) => attend
);

/// One head over one span, chunk by chunk.
#[inline(always)]
unsafe fn attend<S: Simd>(
    head: &Head<'_>,
    qkv: *const f32,
    stride: usize,
    cache: &mut [f32],
    out: *mut f32,
    scratch: &mut [f32],
) {
    let (d, padded) = (head.shape.head_dim, head.shape.padded_dim());
    if head.span.position == 0 {
        cache.fill(0.0);
    }
    let (state, rest) = cache.split_at_mut(d * padded);
    let (keys, values) = rest.split_at_mut(d * CHUNK);
    let (key, rest) = scratch.split_at_mut(padded);
    let (queries, rest) = rest.split_at_mut(CHUNK * padded);
    let (weights, rest) = rest.split_at_mut(STRIP * CHUNK);
    let (sums, rest) = rest.split_at_mut(CHUNK * padded);
    let decayed_values = &mut rest[..CHUNK * padded];
    let powers = head.decays.powers(head.head);

    let mut row = 0;
    while row < head.span.rows {
        let place = (head.span.position + row) % CHUNK;
        let count = (CHUNK - place).min(head.span.rows - row);
        let seen = place + count;
        // SAFETY: the caller's rows are valid; blocks have the sizes of the slices above, `seen` is at most
        // CHUNK, and S is the instruction set we run on.
        unsafe {
            for r in 0..count {
                let source = std::slice::from_raw_parts(qkv.add((row + r) * stride), 3 * d);
                silu_row::<S>(&source[..d], &mut queries[r * padded..][..padded]);
                silu_row::<S>(&source[d..2 * d], key);
                silu_row::<S>(&source[2 * d..], &mut values[(place + r) * padded..][..padded]);
                for (key, keys) in key[..d].iter().zip(keys.chunks_exact_mut(CHUNK)) {
                    keys[place + r] = *key;
                }
            }

            let q = Block { start: queries.as_ptr(), stride: padded };
            let o = Block { start: sums.as_mut_ptr(), stride: padded };
            let k = Block { start: keys.as_ptr(), stride: CHUNK };
            let v = Block { start: values.as_ptr(), stride: padded };
            let s = Block { start: state.as_ptr(), stride: padded };
            small_product::<S, f32>([count, padded, d], q, s, o, Start::Zero);
            for first in (0..count).step_by(STRIP) {
                let rows = STRIP.min(count - first);
                // Keys after the strip's last row weigh nothing.
                let seen = place + first + rows;
                let columns = seen.next_multiple_of(16);
                let q = q.skip(first);
                let p = Block { start: weights.as_mut_ptr(), stride: CHUNK };
                small_product::<S, f32>([rows, columns, d], q, k, p, Start::Zero);
                for r in 0..rows {
                    let mask = head.decays.mask(head.head, place + first + r);
                    multiply::<S>(&mut weights[r * CHUNK..][..columns], mask);
                }
                let p = Block { start: weights.as_ptr(), stride: CHUNK };
                let o = Block { start: o.start.add(first * padded), stride: padded };
                let scaled = Start::Scaled { scales: powers[place + first + 1..].as_ptr(), stride: 1 };
                small_product::<S, f32>([rows, padded, seen], p, v, o, scaled);
            }
            for r in 0..count {
                let target = out.add((row + r) * head.shape.heads * d);
                std::ptr::copy_nonoverlapping(sums.as_ptr().add(r * padded), target, d);
            }
            if seen == CHUNK {
                let mask = head.decays.mask(head.head, CHUNK - 1);
                for (j, decay) in mask.iter().enumerate() {
                    let target = decayed_values[j * padded..][..padded].iter_mut();
                    target.zip(&values[j * padded..]).for_each(|(target, x)| *target = x * decay);
                }
                let v = Block { start: decayed_values.as_ptr(), stride: padded };
                let s = Block { start: state.as_mut_ptr(), stride: padded };
                let scaled = Start::Scaled { scales: &raw const powers[CHUNK], stride: 0 };
                small_product::<S, f32>([d, padded, CHUNK], k, v, s, scaled);
            }
        }
        row += count;
    }
}

#[inline(always)]
unsafe fn multiply<S: Simd>(x: &mut [f32], by: &[f32]) {
    for (x, by) in x.chunks_exact_mut(S::LANES).zip(by.chunks_exact(S::LANES)) {
        // SAFETY: chunks hold LANES values.
        unsafe { S::store(x.as_mut_ptr(), S::mul(S::load(x.as_ptr()), S::load(by.as_ptr()))) };
    }
}

/// The recurrent state after `tokens` tokens, `[heads, head_dim, head_dim]` (key channel by value channel), from
/// a sequence's cache of one layer.
///
/// # Panics
/// When the cache is not of [`Shape::cache_len`].
pub fn materialize_state(shape: Shape, decays: &Decays, cache: &[f32], tokens: usize) -> Vec<f32> {
    assert_eq!(cache.len(), shape.cache_len());
    let (d, padded, pending) = (shape.head_dim, shape.padded_dim(), tokens % CHUNK);
    let mut out = Vec::with_capacity(shape.heads * d * d);
    for (head, cache) in cache.chunks_exact(shape.head_cache_len()).enumerate() {
        let (state, rest) = cache.split_at(d * padded);
        let (keys, values) = rest.split_at(d * CHUNK);
        let powers = decays.powers(head);
        for c in 0..d {
            for column in 0..d {
                let mut sum = f64::from(state[c * padded + column]) * f64::from(powers[pending]);
                for j in 0..pending {
                    let key = f64::from(keys[c * CHUNK + j]) * f64::from(powers[pending - 1 - j]);
                    sum += key * f64::from(values[j * padded + column]);
                }
                out.push(sum as f32);
            }
        }
    }
    out
}
