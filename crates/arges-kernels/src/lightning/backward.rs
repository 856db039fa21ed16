//! Gradients of lightning attention on the CPU: a task is one head of one span, walked twice.
//!
//! The first walk goes forwards and keeps the state at chunk boundaries; the second goes backwards and carries the
//! gradient `dS` of the state. In a chunk of `n` tokens with the state `S` before it, the decays `w_ij = e^(-s(i-j))`
//! for `j <= i` and 0 else, `P = w ∘ (Q K^T)` and `dP = w ∘ (dO V^T)`:
//! ```text
//! dq_i = e^(-s(i+1)) S do_i + sum_j dP_ij k_j
//! dk_j = e^(-s(CHUNK-1-j)) dS v_j + sum_i dP_ij q_i
//! dv_j = e^(-s(CHUNK-1-j)) dS^T k_j + sum_i P_ij do_i
//! dS  <- e^(-s CHUNK) dS + sum_i e^(-s(i+1)) q_i do_i^T
//! ```
//! Of the boundaries of a long span only the first of every segment of chunks is kept from the first walk; the
//! others of a segment are computed again when the second walk enters it, so that the states held grow with the
//! square root of the span's length (see [`backward_scratch_len`]).

use super::rows::{multiply_on, scale_on, silu_gradient_on, silu_on};
use super::{CHUNK, Decays, Shape, Span};
use crate::device::cpu::{Cpu, Isa, Scratch, SharedMut};
use crate::matmul::blocks::{Initial, View, ViewMut, product, transpose};

/// Chunks up to which all boundary states are kept.
const KEPT: usize = 32;

/// Rows and columns of the parts in which triangular matrices are computed.
const PART: usize = 32;

/// How the chunks of a span fall into segments.
#[derive(Clone, Copy)]
struct Segments {
    /// Chunks of a segment; the last may have fewer.
    len: usize,
    count: usize,
}

impl Segments {
    fn of(chunks: usize) -> Self {
        let root = chunks.isqrt();
        let len = (root + usize::from(root * root < chunks)).max(KEPT).min(chunks).max(1);
        Self { len, count: chunks.div_ceil(len) }
    }
}

/// f32 values of scratch that a thread needs for spans of up to `longest` rows: the states of a segment and one
/// for every segment, which are `chunks + 1` states of `head_dim²` up to 32 chunks and about `2 sqrt(chunks)` for
/// long spans, and the blocks of one chunk.
pub fn backward_scratch_len(shape: Shape, longest: usize) -> usize {
    let segments = Segments::of(longest.div_ceil(CHUNK));
    (segments.len + segments.count) * state_len(shape) + Buffers::len(shape)
}

fn state_len(shape: Shape) -> usize {
    shape.head_dim * shape.padded_dim()
}

/// Gradients of [`lightning_attention`](super::lightning_attention) over whole sequences.
///
/// `qkv` is the forward pass's input, rows of `stride` values that start with `[heads, 3, head_dim]`, before SiLU,
/// and `dout [rows, heads * head_dim]` the gradient of its output. Rows of spans in `dqkv`, which are `stride`
/// apart as well, get the gradient of the first `heads * 3 * head_dim` values; nothing else is written. A span's
/// gradients depend on nothing but the span, whatever it is packed with; slots are not used.
///
/// # Panics
/// When a size does not agree, a span does not begin at position 0, or the scratch is too small for it (see
/// [`backward_scratch_len`]). Spans must not overlap.
#[allow(clippy::too_many_arguments)]
pub fn lightning_attention_backward(
    cpu: &Cpu,
    shape: Shape,
    decays: &Decays,
    qkv: &[f32],
    stride: usize,
    spans: &[Span],
    dout: &[f32],
    dqkv: &mut [f32],
    scratch: &mut Scratch,
) {
    let Shape { heads, head_dim } = shape;
    assert_eq!(decays.heads(), heads);
    assert!(stride >= heads * 3 * head_dim, "a row of {stride} for {heads} heads of {head_dim}");
    for (i, span) in spans.iter().enumerate() {
        let end = span.first + span.rows;
        assert!(end * stride <= qkv.len() && end * stride <= dqkv.len(), "rows of the input");
        assert!(end * heads * head_dim <= dout.len(), "rows of the output");
        assert!(scratch.each() >= backward_scratch_len(shape, span.rows), "scratch for {} rows", span.rows);
        assert_eq!(span.position, 0, "training spans are whole sequences");
        let apart = |other: &Span| other.first + other.rows <= span.first || end <= other.first;
        assert!(spans[..i].iter().all(apart), "spans overlap");
    }
    let each = scratch.each();
    let (dqkv, scratch) = (SharedMut::new(dqkv), scratch.shared());
    cpu.pool().run(spans.len() * heads, |task, thread| {
        let (span, head) = (spans[task / heads], task % heads);
        // SAFETY: one scratch for each thread.
        let scratch = unsafe { scratch.slice(thread * each, each) };
        Head { isa: cpu.isa(), shape, decays, head, span, qkv, stride, dout, dqkv: &dqkv }.run(scratch);
    });
}

/// One head of one span.
struct Head<'a> {
    isa: Isa,
    shape: Shape,
    decays: &'a Decays,
    head: usize,
    span: Span,
    qkv: &'a [f32],
    stride: usize,
    dout: &'a [f32],
    dqkv: &'a SharedMut<'a, f32>,
}

/// Places of the query, key and value in a head's part of a row.
const QUERY: usize = 0;
const KEY: usize = 1;
const VALUE: usize = 2;

/// The blocks of one chunk, `D'` being `head_dim` rounded up to 16. Rows after the chunk's last token are zero up
/// to a whole part, where they are read at all.
struct Buffers<'a> {
    /// `[CHUNK, D']`.
    queries: &'a mut [f32],
    keys: &'a mut [f32],
    /// Values; later the keys' gradients.
    values: &'a mut [f32],
    dout: &'a mut [f32],
    dqueries: &'a mut [f32],
    dvalues: &'a mut [f32],
    /// `[D', CHUNK]`.
    keys_transposed: &'a mut [f32],
    values_transposed: &'a mut [f32],
    dkeys_transposed: &'a mut [f32],
    /// `P` and its gradient, `[CHUNK, CHUNK]`.
    weights: &'a mut [f32],
    dweights: &'a mut [f32],
    /// Gradient of the state after the chunk, `[head_dim, D']`, key channel by value channel.
    dstate: &'a mut [f32],
}

impl<'a> Buffers<'a> {
    fn len(shape: Shape) -> usize {
        9 * CHUNK * shape.padded_dim() + 2 * CHUNK * CHUNK + state_len(shape)
    }

    fn new(shape: Shape, mut scratch: &'a mut [f32]) -> Self {
        let mut take = |len: usize| scratch.split_off_mut(..len).expect("the scratch's size was checked");
        let block = CHUNK * shape.padded_dim();
        Self {
            queries: take(block),
            keys: take(block),
            values: take(block),
            dout: take(block),
            dqueries: take(block),
            dvalues: take(block),
            keys_transposed: take(block),
            values_transposed: take(block),
            dkeys_transposed: take(block),
            weights: take(CHUNK * CHUNK),
            dweights: take(CHUNK * CHUNK),
            dstate: take(state_len(shape)),
        }
    }
}

impl Head<'_> {
    fn run(&self, scratch: &mut [f32]) {
        let chunks = self.span.rows.div_ceil(CHUNK);
        let (segments, len) = (Segments::of(chunks), state_len(self.shape));
        let (starts, rest) = scratch.split_at_mut(segments.count * len);
        let (states, rest) = rest.split_at_mut(segments.len * len);
        let mut buffers = Buffers::new(self.shape, rest);

        starts[..len.min(segments.count * len)].fill(0.0);
        for segment in 1..segments.count {
            starts.copy_within((segment - 1) * len..segment * len, segment * len);
            let state = &mut starts[segment * len..][..len];
            for chunk in (segment - 1) * segments.len..segment * segments.len {
                self.advance(chunk, state, &mut buffers);
            }
        }
        for (segment, start) in starts.chunks_exact(len).enumerate().rev() {
            let first = segment * segments.len;
            let count = segments.len.min(chunks - first);
            states[..len].copy_from_slice(start);
            for i in 1..count {
                states.copy_within((i - 1) * len..i * len, i * len);
                self.advance(first + i - 1, &mut states[i * len..][..len], &mut buffers);
            }
            for (i, state) in states.chunks_exact(len).enumerate().take(count).rev() {
                self.chunk_gradients(first + i, state, &mut buffers);
            }
        }
    }

    /// Moves the state, `[head_dim, D']`, value channel by key channel, over a whole chunk.
    fn advance(&self, chunk: usize, state: &mut [f32], buffers: &mut Buffers<'_>) {
        let (d, padded) = (self.shape.head_dim, self.shape.padded_dim());
        let decays = self.decays.mask(self.head, CHUNK - 1);
        for (r, decay) in decays.iter().enumerate() {
            let place = r * padded..(r + 1) * padded;
            let (key, value) = (&mut buffers.keys[place.clone()], &mut buffers.values[place]);
            // SAFETY: a padded row holds the channels in whole vectors.
            unsafe {
                silu_on(self.isa, self.input(chunk * CHUNK + r, KEY), key);
                silu_on(self.isa, self.input(chunk * CHUNK + r, VALUE), value);
                scale_on(self.isa, key, *decay);
            }
        }
        let decay = Initial::Scaled(self.decays.powers(self.head)[CHUNK]);
        let (values, keys) = (View::columns(buffers.values, padded), View::rows(buffers.keys, padded));
        product(self.isa, [d, padded, CHUNK], values, keys, ViewMut::rows(state, padded), decay);
    }

    /// Writes the gradients of a chunk, given the state before it and, in the buffers, the gradient of the state
    /// after it, which becomes that of the state before it.
    fn chunk_gradients(&self, chunk: usize, state: &[f32], buffers: &mut Buffers<'_>) {
        let rows = CHUNK.min(self.span.rows - chunk * CHUNK);
        self.load(chunk, rows, buffers);
        self.weigh(rows, buffers);
        self.query_gradients(chunk, rows, state, buffers);
        self.value_gradients(chunk, rows, buffers);
        self.key_gradients(chunk, rows, buffers);
        self.state_gradient(chunk, rows, buffers);
        self.store(chunk, rows, buffers);
    }

    /// Whether nothing comes after the chunk, so that the state after it has no gradient.
    fn is_last(&self, chunk: usize) -> bool {
        (chunk + 1) * CHUNK >= self.span.rows
    }

    /// Query, key or value of a row of the span.
    fn input(&self, row: usize, part: usize) -> &[f32] {
        let d = self.shape.head_dim;
        &self.qkv[(self.span.first + row) * self.stride + (self.head * 3 + part) * d..][..d]
    }

    /// Where the gradient of [`Self::input`] goes.
    #[allow(clippy::mut_from_ref)]
    fn gradient(&self, row: usize, part: usize) -> &mut [f32] {
        let d = self.shape.head_dim;
        // SAFETY: spans do not overlap and a head has columns of its own, so this task alone writes these
        // values; no caller holds two slices at a time.
        unsafe { self.dqkv.slice((self.span.first + row) * self.stride + (self.head * 3 + part) * d, d) }
    }

    /// Fills the inputs, their transposes and `dout`. The derivatives of SiLU wait where the gradients will be.
    fn load(&self, chunk: usize, rows: usize, buffers: &mut Buffers<'_>) {
        let Shape { heads, head_dim: d } = self.shape;
        let padded = self.shape.padded_dim();
        let whole = rows.next_multiple_of(PART);
        for (part, target) in
            [(QUERY, &mut *buffers.queries), (KEY, &mut *buffers.keys), (VALUE, &mut *buffers.values)]
        {
            for (r, target) in target.chunks_exact_mut(padded).enumerate().take(rows) {
                let row = chunk * CHUNK + r;
                // SAFETY: a padded row holds the channels in whole vectors, the derivatives are as many.
                unsafe {
                    silu_gradient_on(self.isa, self.input(row, part), target, self.gradient(row, part));
                }
            }
            target[rows * padded..whole * padded].fill(0.0);
        }
        for (r, target) in buffers.dout.chunks_exact_mut(padded).enumerate().take(rows) {
            let row = self.span.first + chunk * CHUNK + r;
            target[..d].copy_from_slice(&self.dout[(row * heads + self.head) * d..][..d]);
            target[d..].fill(0.0);
        }
        let sizes = [whole, padded];
        transpose(self.isa, sizes, View::rows(buffers.keys, padded), buffers.keys_transposed, CHUNK);
        transpose(self.isa, sizes, View::rows(buffers.values, padded), buffers.values_transposed, CHUNK);
    }

    /// `P` and `dP`, by rows: what lies right of the diagonal's part is not computed.
    fn weigh(&self, rows: usize, buffers: &mut Buffers<'_>) {
        let (d, padded) = (self.shape.head_dim, self.shape.padded_dim());
        for first in (0..rows).step_by(PART) {
            let (count, columns) = (PART.min(rows - first), first + PART);
            for (left, right, out) in [
                (&*buffers.queries, &*buffers.keys_transposed, &mut *buffers.weights),
                (&*buffers.dout, &*buffers.values_transposed, &mut *buffers.dweights),
            ] {
                let (left, right) = (View::rows(&left[first * padded..], padded), View::rows(right, CHUNK));
                let out = &mut out[first * CHUNK..];
                let target = ViewMut::rows(out, CHUNK);
                product(self.isa, [count, columns, d], left, right, target, Initial::Zero);
                for (r, out) in out.chunks_exact_mut(CHUNK).enumerate().take(count) {
                    let mask = &self.decays.mask(self.head, first + r)[..columns];
                    // SAFETY: the kernel is safe code.
                    unsafe { multiply_on(self.isa, &mut out[..columns], mask) };
                }
            }
        }
    }

    fn query_gradients(&self, chunk: usize, rows: usize, state: &[f32], buffers: &mut Buffers<'_>) {
        let (d, padded) = (self.shape.head_dim, self.shape.padded_dim());
        let powers = self.decays.powers(self.head);
        if chunk > 0 {
            let (dout, state) = (View::rows(buffers.dout, padded), View::rows(state, padded));
            let target = ViewMut::rows(buffers.dqueries, padded);
            product(self.isa, [rows, padded, d], dout, state, target, Initial::Zero);
        }
        for first in (0..rows).step_by(PART) {
            let (count, seen) = (PART.min(rows - first), rows.min(first + PART));
            let dweights = View::rows(&buffers.dweights[first * CHUNK..], CHUNK);
            let target = ViewMut::rows(&mut buffers.dqueries[first * padded..], padded);
            let initial = if chunk > 0 { Initial::RowsScaled(&powers[first + 1..]) } else { Initial::Zero };
            let keys = View::rows(buffers.keys, padded);
            product(self.isa, [count, padded, seen], dweights, keys, target, initial);
        }
    }

    fn value_gradients(&self, chunk: usize, rows: usize, buffers: &mut Buffers<'_>) {
        let (d, padded) = (self.shape.head_dim, self.shape.padded_dim());
        let last = self.is_last(chunk);
        if !last {
            let (keys, dstate) = (View::rows(buffers.keys, padded), View::rows(buffers.dstate, padded));
            let target = ViewMut::rows(buffers.dvalues, padded);
            product(self.isa, [rows, padded, d], keys, dstate, target, Initial::Zero);
        }
        for first in (0..rows).step_by(PART) {
            let count = PART.min(rows - first);
            let weights = View::columns(&buffers.weights[first * CHUNK + first..], CHUNK);
            let dout = View::rows(&buffers.dout[first * padded..], padded);
            let target = ViewMut::rows(&mut buffers.dvalues[first * padded..], padded);
            let decays = &self.decays.mask(self.head, CHUNK - 1)[first..];
            let initial = if last { Initial::Zero } else { Initial::RowsScaled(decays) };
            product(self.isa, [count, padded, rows - first], weights, dout, target, initial);
        }
    }

    /// Computes the transpose, for which `dS` and `dP` are read as they lie; decays the transposed values.
    fn key_gradients(&self, chunk: usize, rows: usize, buffers: &mut Buffers<'_>) {
        let (d, padded) = (self.shape.head_dim, self.shape.padded_dim());
        let last = self.is_last(chunk);
        if !last {
            let decays = self.decays.mask(self.head, CHUNK - 1);
            for values in buffers.values_transposed.chunks_exact_mut(CHUNK).take(d) {
                // SAFETY: the kernel is safe code.
                unsafe { multiply_on(self.isa, values, decays) };
            }
            let values = View::rows(buffers.values_transposed, CHUNK);
            let target = ViewMut::rows(buffers.dkeys_transposed, CHUNK);
            let dstate = View::rows(buffers.dstate, padded);
            product(self.isa, [d, CHUNK, d], dstate, values, target, Initial::Zero);
        }
        for first in (0..rows).step_by(PART) {
            let queries = View::columns(&buffers.queries[first * padded..], padded);
            let dweights = View::rows(&buffers.dweights[first * CHUNK + first..], CHUNK);
            let target = ViewMut::rows(&mut buffers.dkeys_transposed[first..], CHUNK);
            let initial = if last { Initial::Zero } else { Initial::Kept };
            product(self.isa, [d, PART, rows - first], queries, dweights, target, initial);
        }
        let (sizes, source) = ([padded, rows.next_multiple_of(PART)], &*buffers.dkeys_transposed);
        transpose(self.isa, sizes, View::rows(source, CHUNK), buffers.values, padded);
    }

    /// Decays `dout`.
    fn state_gradient(&self, chunk: usize, rows: usize, buffers: &mut Buffers<'_>) {
        let (d, padded) = (self.shape.head_dim, self.shape.padded_dim());
        if chunk == 0 {
            return;
        }
        let powers = self.decays.powers(self.head);
        for (dout, power) in buffers.dout.chunks_exact_mut(padded).zip(&powers[1..]).take(rows) {
            // SAFETY: the kernel is safe code.
            unsafe { scale_on(self.isa, dout, *power) };
        }
        let (queries, dout) = (View::columns(buffers.queries, padded), View::rows(buffers.dout, padded));
        let initial = if self.is_last(chunk) { Initial::Zero } else { Initial::Scaled(powers[CHUNK]) };
        let target = ViewMut::rows(buffers.dstate, padded);
        product(self.isa, [d, padded, rows], queries, dout, target, initial);
    }

    /// Multiplies the derivatives of SiLU, which lie in the output, by the gradients of its results.
    fn store(&self, chunk: usize, rows: usize, buffers: &Buffers<'_>) {
        let (d, padded) = (self.shape.head_dim, self.shape.padded_dim());
        let parts = [(QUERY, &*buffers.dqueries), (KEY, &*buffers.values), (VALUE, &*buffers.dvalues)];
        for (part, gradients) in parts {
            for (r, gradient) in gradients.chunks_exact(padded).enumerate().take(rows) {
                // SAFETY: the kernel is safe code.
                unsafe { multiply_on(self.isa, self.gradient(chunk * CHUNK + r, part), &gradient[..d]) };
            }
        }
    }
}
