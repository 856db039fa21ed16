//! Gradients of softmax attention on the CPU, block of [`PAGE`] tokens by block; no more scores than those of one
//! block of queries with one block of keys are ever held.
//!
//! With the scores `S_ij = q_i·k_j / sqrt(head_dim)` of rotated queries and keys, the forward pass's `lse_i`, and
//! `delta_i = do_i·o_i`:
//! ```text
//! P_ij = e^(S_ij - lse_i)         dS_ij = P_ij (do_i·v_j - delta_i)
//! dq_i = sum_j dS_ij k_j / sqrt(head_dim)
//! dk_j = sum_i dS_ij q_i / sqrt(head_dim)         dv_j = sum_i P_ij do_i
//! ```
//! (Dao et al., FlashAttention, appendix B.4.) First every block is packed: queries and output gradients, keys
//! and transposed keys and values. Then a task takes the queries of a block and one head over all blocks of keys
//! before, and another the keys of a block and one key-value head over the queries of all its heads after. `P` and
//! `dS` are computed in both; so no two tasks add to the same sum, and its order is fixed.

mod packed;

use std::ops::Range;

use self::packed::{Keys, Packed, Queries};
use super::{PAGE, Shape};
use crate::device::cpu::simd::{Simd, exp, simd_dispatch};
use crate::device::cpu::{AlignedBuffer, Cpu, Isa, Scratch, SharedMut};
use crate::matmul::Element;
use crate::matmul::blocks::{Initial, View, ViewMut, product};
use crate::rope::{Angles, rotate_back};

/// What the forward pass read and wrote.
#[derive(Clone, Copy)]
pub struct Forward<'a> {
    /// Its input, rows of `[heads + 2 * kv_heads, head_dim]` before rotation.
    pub qkv: &'a [f32],
    /// The angles of the rows.
    pub angles: &'a Angles,
    /// Element of the pages, to which keys and values were rounded.
    pub element: Element,
    /// Its output, `[rows, heads * head_dim]`.
    pub out: &'a [f32],
    /// Logarithms of the sums of `e^score`, `[rows, heads]`.
    pub lse: &'a [f32],
}

/// Working memory of [`softmax_attention_backward`].
pub struct BackwardScratch {
    /// The blocks that the spans fall into.
    blocks: Vec<TokenBlock>,
    /// Packed queries, `[blocks, heads]`.
    queries: AlignedBuffer<f32>,
    /// Packed keys and values, `[blocks, kv_heads]`.
    keys: AlignedBuffer<f32>,
    threads: Scratch,
    shape: Shape,
}

impl BackwardScratch {
    /// Memory for up to `max_rows` rows in up to `max_spans` spans: about
    /// `2 * heads + 3 * kv_heads` times `head_dim` values a row, and the blocks of each thread.
    pub fn new(cpu: &Cpu, shape: Shape, max_rows: usize, max_spans: usize) -> Self {
        // A span fills all its blocks but the last.
        let blocks = max_rows / PAGE + max_spans.min(max_rows);
        Self {
            blocks: Vec::with_capacity(blocks),
            queries: AlignedBuffer::zeroed(blocks * shape.heads * Queries::len(shape)),
            keys: AlignedBuffer::zeroed(blocks * shape.kv_heads * Keys::len(shape)),
            threads: Scratch::new(cpu, 2 * PAGE * PAGE + 2 * PAGE * shape.padded_dim()),
            shape,
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let blocks = self.blocks.capacity() * size_of::<TokenBlock>();
        blocks + self.queries.bytes() + self.keys.bytes() + self.threads.bytes()
    }

    fn set_spans(&mut self, spans: impl Iterator<Item = Range<usize>>) {
        let max_blocks = self.blocks.capacity();
        self.blocks.clear();
        for span in spans {
            let first = self.blocks.len();
            let end = first + span.len().div_ceil(PAGE);
            assert!(end <= max_blocks, "more rows or spans than the scratch is for");
            self.blocks.extend(span.clone().step_by(PAGE).map(|row| TokenBlock {
                row,
                rows: PAGE.min(span.end - row),
                span: (first, end),
            }));
        }
    }
}

/// Up to [`PAGE`] consecutive tokens of a span, from a multiple of [`PAGE`] on.
#[derive(Clone, Copy)]
struct TokenBlock {
    /// First row.
    row: usize,
    rows: usize,
    /// Blocks of its span: the first, and the one after the last.
    span: (usize, usize),
}

/// Gradients of [`softmax_attention`](super::softmax_attention) over whole sequences.
///
/// `spans` are the rows of each sequence, from its position 0 on; they do not overlap. `dout` is
/// `[rows, heads * head_dim]`. Rows of spans in `dqkv`, laid out as `qkv`, are overwritten, others left alone. The
/// rounding of keys and values is passed through as if it were none. A span's gradients depend on nothing but the
/// span, whatever it is packed with.
///
/// # Panics
/// When a size does not agree, or there are more rows or spans than the scratch is for.
pub fn softmax_attention_backward(
    cpu: &Cpu,
    shape: Shape,
    forward: Forward<'_>,
    spans: impl Iterator<Item = Range<usize>>,
    dout: &[f32],
    dqkv: &mut [f32],
    scratch: &mut BackwardScratch,
) {
    let Shape { heads, kv_heads, head_dim, .. } = shape;
    assert_eq!(shape, scratch.shape, "the scratch is for another shape");
    scratch.set_spans(spans);
    let BackwardScratch { blocks, queries, keys, threads, .. } = scratch;
    let rows = blocks.iter().map(|block| block.row + block.rows).max().unwrap_or(0);
    let width = (heads + 2 * kv_heads) * head_dim;
    assert!(rows * width <= forward.qkv.len() && rows * width <= dqkv.len(), "rows of the input");
    assert!(rows * heads * head_dim <= forward.out.len().min(dout.len()), "rows of the output");
    assert!(rows * heads <= forward.lse.len(), "rows of the sums");

    let step = Step { isa: cpu.isa(), shape, forward, dout, blocks };
    let (each, threads) = (threads.each(), threads.shared());
    step.pack(cpu, queries, keys, &threads, each);
    let (packed, dqkv) = (Packed { shape, queries, keys }, SharedMut::new(dqkv));
    let count = blocks.len();
    cpu.pool().run(count * heads, |task, thread| {
        // Late queries have the most keys: they go first, so that the threads end together.
        let (block, head) = (count - 1 - task / heads, task % heads);
        // SAFETY: one scratch for each thread.
        let scratch = unsafe { threads.slice(thread * each, each) };
        step.query_gradients(&packed, block, head, &dqkv, scratch);
    });
    cpu.pool().run(count * kv_heads, |task, thread| {
        // SAFETY: as above.
        let scratch = unsafe { threads.slice(thread * each, each) };
        step.key_value_gradients(&packed, task / kv_heads, task % kv_heads, &dqkv, scratch);
    });
}

/// One backward pass.
struct Step<'a> {
    isa: Isa,
    shape: Shape,
    forward: Forward<'a>,
    dout: &'a [f32],
    blocks: &'a [TokenBlock],
}

impl Step<'_> {
    fn scale(&self) -> f32 {
        (self.shape.head_dim as f64).powf(-0.5) as f32
    }

    /// `P` and `dS` of one block of queries with one of keys, `[PAGE, PAGE]`, where `columns`, the number of keys
    /// in whole vectors, are valid. On the diagonal, both are 0 for keys after the query.
    fn weigh(
        &self,
        (queries, rows): (&Queries<'_>, usize),
        (keys, columns): (&Keys<'_>, usize),
        diagonal: bool,
        weights: &mut [f32],
        dscores: &mut [f32],
    ) {
        let (d, padded) = (self.shape.head_dim, self.shape.padded_dim());
        for (left, right, out) in [
            (queries.queries, keys.keys_transposed, &mut *weights),
            (queries.dout, keys.values_transposed, &mut *dscores),
        ] {
            let (left, right, out) =
                (View::rows(left, padded), View::rows(right, PAGE), ViewMut::rows(out, PAGE));
            product(self.isa, [rows, columns, d], left, right, out, Initial::Zero);
        }
        for r in 0..rows {
            let weights = &mut weights[r * PAGE..][..columns];
            let dscores = &mut dscores[r * PAGE..][..columns];
            // SAFETY: whole vectors, as many in both.
            unsafe { weigh_on(self.isa, weights, dscores, queries.lse[r], queries.delta[r]) };
            if diagonal {
                weights[r + 1..].fill(0.0);
                dscores[r + 1..].fill(0.0);
            }
        }
    }

    /// The queries of one block and head, over all keys they see.
    fn query_gradients(
        &self,
        packed: &Packed<'_>,
        block: usize,
        head: usize,
        dqkv: &SharedMut<'_, f32>,
        scratch: &mut [f32],
    ) {
        let Shape { heads, kv_heads, head_dim: d, .. } = self.shape;
        let padded = self.shape.padded_dim();
        let TokenBlock { row, rows, span } = self.blocks[block];
        let (weights, rest) = scratch.split_at_mut(PAGE * PAGE);
        let (dscores, rest) = rest.split_at_mut(PAGE * PAGE);
        let gradients = &mut rest[..PAGE * padded];
        let queries = packed.queries(block, head);
        for key_block in span.0..=block {
            let keys = packed.keys(key_block, head / (heads / kv_heads));
            let count = self.blocks[key_block].rows;
            let columns = count.next_multiple_of(16);
            self.weigh((&queries, rows), (&keys, columns), key_block == block, weights, dscores);
            let initial = if key_block == span.0 { Initial::Zero } else { Initial::Kept };
            let (left, right) = (View::rows(dscores, PAGE), View::rows(keys.keys, padded));
            let target = ViewMut::rows(gradients, padded);
            product(self.isa, [rows, padded, count], left, right, target, initial);
        }
        let scale = self.scale();
        for (r, gradient) in gradients.chunks_exact(padded).enumerate().take(rows) {
            let row = row + r;
            // SAFETY: this task alone writes this head of this row.
            let target = unsafe { dqkv.slice((row * (heads + 2 * kv_heads) + head) * d, d) };
            rotate_back(&gradient[..d], self.forward.angles.row(row), |c, x| target[c] = x * scale);
        }
    }

    /// The keys and values of one block and key-value head, over all queries that see them, head after head.
    fn key_value_gradients(
        &self,
        packed: &Packed<'_>,
        block: usize,
        kv_head: usize,
        dqkv: &SharedMut<'_, f32>,
        scratch: &mut [f32],
    ) {
        let Shape { heads, kv_heads, head_dim: d, .. } = self.shape;
        let padded = self.shape.padded_dim();
        let TokenBlock { row, rows: count, span } = self.blocks[block];
        let (weights, rest) = scratch.split_at_mut(PAGE * PAGE);
        let (dscores, rest) = rest.split_at_mut(PAGE * PAGE);
        let (dkeys, rest) = rest.split_at_mut(PAGE * padded);
        let dvalues = &mut rest[..PAGE * padded];
        let keys = packed.keys(block, kv_head);
        let group = heads / kv_heads;
        let mut initial = Initial::Zero;
        for head in kv_head * group..(kv_head + 1) * group {
            for query_block in block..span.1 {
                let queries = packed.queries(query_block, head);
                let rows = self.blocks[query_block].rows;
                let columns = count.next_multiple_of(16);
                self.weigh((&queries, rows), (&keys, columns), query_block == block, weights, dscores);
                for (left, right, out) in
                    [(&*dscores, queries.queries, &mut *dkeys), (&*weights, queries.dout, &mut *dvalues)]
                {
                    let (left, right) = (View::columns(left, PAGE), View::rows(right, padded));
                    let out = ViewMut::rows(out, padded);
                    product(self.isa, [count, padded, rows], left, right, out, initial);
                }
                initial = Initial::Kept;
            }
        }
        for r in 0..count {
            let row = row + r;
            let at = (row * (heads + 2 * kv_heads) + heads + kv_head) * d;
            // SAFETY: this task alone writes the key and the value of this head and row, which are kv_heads apart.
            let (dkey, dvalue) = unsafe { (dqkv.slice(at, d), dqkv.slice(at + kv_heads * d, d)) };
            let angles = self.forward.angles.row(row);
            rotate_back(&dkeys[r * padded..][..d], angles, |c, x| dkey[c] = x);
            dvalue.copy_from_slice(&dvalues[r * padded..][..d]);
        }
    }
}

simd_dispatch!(fn weigh_on(scores: &mut [f32], gradients: &mut [f32], lse: f32, delta: f32) => weigh_row);

/// From scores to `P` and from `dP` to `dS`.
#[inline(always)]
unsafe fn weigh_row<S: Simd>(scores: &mut [f32], gradients: &mut [f32], lse: f32, delta: f32) {
    // SAFETY: chunks hold LANES values.
    unsafe {
        let (lse, delta) = (S::splat(lse), S::splat(delta));
        for (score, gradient) in scores.chunks_exact_mut(S::LANES).zip(gradients.chunks_exact_mut(S::LANES)) {
            let weight = exp::<S>(S::sub(S::load(score.as_ptr()), lse));
            S::store(score.as_mut_ptr(), weight);
            let centred = S::sub(S::load(gradient.as_ptr()), delta);
            S::store(gradient.as_mut_ptr(), S::mul(weight, centred));
        }
    }
}
