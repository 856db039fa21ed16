//! Blocks of queries, keys and values as the backward pass reads them.

use super::{PAGE, Shape, Step, TokenBlock};
use crate::device::cpu::simd::{Simd, bf16_to_f32, f32_to_bf16, simd_dispatch, sum};
use crate::device::cpu::{Cpu, SharedMut};
use crate::matmul::Element;
use crate::matmul::blocks::{View, transpose};
use crate::rope::rotate;

/// The packed queries of one head and block.
pub(super) struct Queries<'a> {
    /// Rotated and divided by the root of the head's width, `[PAGE, head_dim']`.
    pub(super) queries: &'a [f32],
    /// Gradients of the output, `[PAGE, head_dim']`.
    pub(super) dout: &'a [f32],
    pub(super) lse: &'a [f32],
    pub(super) delta: &'a [f32],
}

impl<'a> Queries<'a> {
    pub(super) fn len(shape: Shape) -> usize {
        2 * PAGE * shape.padded_dim() + 2 * PAGE
    }

    fn new(shape: Shape, packed: &'a [f32]) -> Self {
        let (queries, rest) = packed.split_at(PAGE * shape.padded_dim());
        let (dout, rest) = rest.split_at(PAGE * shape.padded_dim());
        let (lse, delta) = rest.split_at(PAGE);
        Self { queries, dout, lse, delta }
    }
}

/// The packed keys and values of one key-value head and block.
pub(super) struct Keys<'a> {
    /// Rotated, `[PAGE, head_dim']`.
    pub(super) keys: &'a [f32],
    /// `[head_dim', PAGE]`.
    pub(super) keys_transposed: &'a [f32],
    pub(super) values_transposed: &'a [f32],
}

impl<'a> Keys<'a> {
    pub(super) fn len(shape: Shape) -> usize {
        3 * PAGE * shape.padded_dim()
    }

    fn new(shape: Shape, packed: &'a [f32]) -> Self {
        let (keys, rest) = packed.split_at(PAGE * shape.padded_dim());
        let (keys_transposed, values_transposed) = rest.split_at(PAGE * shape.padded_dim());
        Self { keys, keys_transposed, values_transposed }
    }
}

/// All packed blocks.
pub(super) struct Packed<'a> {
    pub(super) shape: Shape,
    pub(super) queries: &'a [f32],
    pub(super) keys: &'a [f32],
}

impl Packed<'_> {
    pub(super) fn queries(&self, block: usize, head: usize) -> Queries<'_> {
        let len = Queries::len(self.shape);
        Queries::new(self.shape, &self.queries[(block * self.shape.heads + head) * len..][..len])
    }

    pub(super) fn keys(&self, block: usize, kv_head: usize) -> Keys<'_> {
        let len = Keys::len(self.shape);
        Keys::new(self.shape, &self.keys[(block * self.shape.kv_heads + kv_head) * len..][..len])
    }
}

impl Step<'_> {
    /// Fills the packed blocks; a thread has `each` values of `threads`.
    pub(super) fn pack(
        &self,
        cpu: &Cpu,
        queries: &mut [f32],
        keys: &mut [f32],
        threads: &SharedMut<'_, f32>,
        each: usize,
    ) {
        let Shape { heads, kv_heads, .. } = self.shape;
        let (queries, keys) = (SharedMut::new(queries), SharedMut::new(keys));
        cpu.pool().run(self.blocks.len() * (heads + kv_heads), |task, thread| {
            let (block, head) = (task / (heads + kv_heads), task % (heads + kv_heads));
            if head < heads {
                let len = Queries::len(self.shape);
                // SAFETY: every block and head has a place of its own.
                let packed = unsafe { queries.slice((block * heads + head) * len, len) };
                self.pack_queries(self.blocks[block], head, packed);
            } else {
                let (kv_head, len) = (head - heads, Keys::len(self.shape));
                // SAFETY: as above.
                let packed = unsafe { keys.slice((block * kv_heads + kv_head) * len, len) };
                // SAFETY: one scratch for each thread.
                let scratch = unsafe { threads.slice(thread * each, each) };
                self.pack_keys(self.blocks[block], kv_head, packed, scratch);
            }
        });
    }

    /// Heads are counted through queries, keys and values.
    fn input(&self, row: usize, head: usize) -> &[f32] {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        &self.forward.qkv[(row * (heads + 2 * kv_heads) + head) * head_dim..][..head_dim]
    }

    fn pack_queries(&self, block: TokenBlock, head: usize, packed: &mut [f32]) {
        let Shape { heads, head_dim: d, .. } = self.shape;
        let padded = self.shape.padded_dim();
        let (queries, rest) = packed.split_at_mut(PAGE * padded);
        let (douts, rest) = rest.split_at_mut(PAGE * padded);
        let (lse, delta) = rest.split_at_mut(PAGE);
        let scale = self.scale();
        for r in 0..block.rows {
            let row = block.row + r;
            let query = &mut queries[r * padded..][..d];
            rotate(self.input(row, head), self.forward.angles.row(row), |c, x| query[c] = x * scale);
            let place = (row * heads + head) * d..(row * heads + head + 1) * d;
            let dout = &self.dout[place.clone()];
            douts[r * padded..][..d].copy_from_slice(dout);
            lse[r] = self.forward.lse[row * heads + head];
            // SAFETY: both slices are one head's channels.
            unsafe { dot_on(self.isa, dout, &self.forward.out[place], &mut delta[r]) };
        }
    }

    fn pack_keys(&self, block: TokenBlock, kv_head: usize, packed: &mut [f32], scratch: &mut [f32]) {
        let Shape { heads, kv_heads, head_dim: d, .. } = self.shape;
        let padded = self.shape.padded_dim();
        let (keys, rest) = packed.split_at_mut(PAGE * padded);
        let (keys_transposed, values_transposed) = rest.split_at_mut(PAGE * padded);
        let values = &mut scratch[..PAGE * padded];
        let stored = |x: f32| match self.forward.element {
            Element::F32 => x,
            Element::Bf16 => bf16_to_f32(f32_to_bf16(x)),
        };
        for r in 0..block.rows {
            let row = block.row + r;
            let key = &mut keys[r * padded..][..d];
            let source = self.input(row, heads + kv_head);
            rotate(source, self.forward.angles.row(row), |c, x| key[c] = stored(x));
            let value = &mut values[r * padded..][..d];
            let source = self.input(row, heads + kv_heads + kv_head);
            value.iter_mut().zip(source).for_each(|(value, x)| *value = stored(*x));
        }
        let sizes = [block.rows.next_multiple_of(16), padded];
        transpose(self.isa, sizes, View::rows(keys, padded), keys_transposed, PAGE);
        transpose(self.isa, sizes, View::rows(values, padded), values_transposed, PAGE);
    }
}

simd_dispatch!(fn dot_on(a: &[f32], b: &[f32], out: &mut f32) => dot);

/// `out = a·b`, the products of each lane in ascending order, then the lanes, then what is left over.
#[inline(always)]
unsafe fn dot<S: Simd>(a: &[f32], b: &[f32], out: &mut f32) {
    // SAFETY: chunks hold LANES values.
    unsafe {
        let mut total = S::splat(0.0);
        let (a, b) = (a.chunks_exact(S::LANES), b.chunks_exact(S::LANES));
        let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
        for (a, b) in a.zip(b) {
            total = S::fma(S::load(a.as_ptr()), S::load(b.as_ptr()), total);
        }
        *out = sum::<S>(total) + rest;
    }
}
