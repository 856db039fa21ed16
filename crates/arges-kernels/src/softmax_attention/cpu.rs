//! Softmax attention on the CPU: a task is one key-value head over some tokens of one sequence.

use super::{PAGE, Shape};
use crate::device::cpu::simd::{Simd, bf16_to_f32, exp, f32_to_bf16, largest, simd_dispatch, sum};
use crate::device::cpu::{AlignedBuffer, Cpu, Scratch, SharedMut};
use crate::matmul::Element;
use crate::matmul::small::{Block, Operand, Start, small_product};
use crate::rope::{Angles, rotate};

/// Query rows (tokens times query heads of a key-value head) that a task takes together.
const TASK_ROWS: usize = 64;

/// The pages of one layer.
pub struct Pages {
    data: PageData,
}

enum PageData {
    F32(AlignedBuffer<f32>),
    Bf16(AlignedBuffer<u16>),
}

impl Pages {
    /// `pages` pages of zeros.
    pub fn new(shape: Shape, pages: usize, element: Element) -> Self {
        let len = pages * shape.page_len();
        let data = match element {
            Element::F32 => PageData::F32(AlignedBuffer::zeroed(len)),
            Element::Bf16 => PageData::Bf16(AlignedBuffer::zeroed(len)),
        };
        Self { data }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match &self.data {
            PageData::F32(data) => data.bytes(),
            PageData::Bf16(data) => data.bytes(),
        }
    }

    /// Rotated keys of the token at place `place` of `page`, `[kv_heads, head_dim]`.
    pub fn key(&self, shape: Shape, page: usize, place: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(shape.kv_heads * shape.head_dim);
        for head in 0..shape.kv_heads {
            for c in 0..shape.head_dim {
                let at = page * shape.page_len() + head * shape.head_page_len() + c * PAGE + place;
                out.push(match &self.data {
                    PageData::F32(data) => data[at],
                    PageData::Bf16(data) => bf16_to_f32(data[at]),
                });
            }
        }
        out
    }
}

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span<'a> {
    /// First row.
    pub first: usize,
    /// Number of rows.
    pub rows: usize,
    /// Position of the first row in its sequence.
    pub position: usize,
    /// The sequence's pages, in order, enough for `position + rows` tokens.
    pub pages: &'a [u32],
}

/// f32 values of scratch that a thread needs.
pub fn scratch_len(shape: Shape) -> usize {
    let rows = TASK_ROWS.max(shape.heads / shape.kv_heads);
    rows * (shape.head_dim + PAGE + shape.padded_dim() + 3)
}

/// Stores every span's keys and values, then attends.
///
/// `qkv` holds rows of `[heads + 2 * kv_heads, head_dim]`: queries, keys, values, before rotation by `angles`
/// (one set a row). `out` is `[rows, heads * head_dim]`. Where asked, `lse [rows, heads]` gets the logarithm of
/// the sum of `e^score` over the keys that a query sees, which the backward pass needs. Spans are of different
/// sequences.
///
/// # Panics
/// When a size does not agree, or a page is out of range.
#[allow(clippy::too_many_arguments)]
pub fn softmax_attention<'a>(
    cpu: &Cpu,
    shape: Shape,
    qkv: &[f32],
    angles: &Angles,
    spans: impl ExactSizeIterator<Item = Span<'a>> + Clone + Sync,
    pages: &mut Pages,
    out: &mut [f32],
    lse: Option<&mut [f32]>,
    scratch: &mut Scratch,
) {
    match &mut pages.data {
        PageData::F32(data) => run(cpu, shape, qkv, angles, spans, data, out, lse, scratch),
        PageData::Bf16(data) => run(cpu, shape, qkv, angles, spans, data, out, lse, scratch),
    }
}

/// An element of a page.
trait PageElement: Operand + bytemuck::Pod + Send + Sync {
    fn store(x: f32) -> Self;
    /// Runs `attend` for this element type.
    ///
    /// # Safety
    /// As for `attend`.
    unsafe fn attend_on(cpu: &Cpu, task: &Attend<'_, Self>, scratch: &mut [f32]);
}

impl PageElement for f32 {
    #[inline(always)]
    fn store(x: f32) -> f32 {
        x
    }

    unsafe fn attend_on(cpu: &Cpu, task: &Attend<'_, f32>, scratch: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { attend_f32(cpu.isa(), task, scratch) }
    }
}

impl PageElement for u16 {
    #[inline(always)]
    fn store(x: f32) -> u16 {
        f32_to_bf16(x)
    }

    unsafe fn attend_on(cpu: &Cpu, task: &Attend<'_, u16>, scratch: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { attend_bf16(cpu.isa(), task, scratch) }
    }
}

#[allow(clippy::too_many_arguments)]
fn run<'a, E: PageElement>(
    cpu: &Cpu,
    shape: Shape,
    qkv: &[f32],
    angles: &Angles,
    spans: impl ExactSizeIterator<Item = Span<'a>> + Clone + Sync,
    data: &mut [E],
    out: &mut [f32],
    lse: Option<&mut [f32]>,
    scratch: &mut Scratch,
) {
    let Shape { heads, kv_heads, head_dim, .. } = shape;
    let width = (heads + 2 * kv_heads) * head_dim;
    let total_pages = data.len() / shape.page_len();
    for span in spans.clone() {
        let end = span.first + span.rows;
        assert!(end * width <= qkv.len() && end * heads * head_dim <= out.len(), "rows of the span");
        assert!(lse.as_ref().is_none_or(|lse| end * heads <= lse.len()), "rows of the sums");
        let needed = (span.position + span.rows).div_ceil(PAGE);
        assert!(span.pages.len() >= needed, "{needed} pages needed, {} given", span.pages.len());
        assert!(span.pages[..needed].iter().all(|page| (*page as usize) < total_pages), "page out of range");
    }
    store_keys_values(cpu, shape, qkv, angles, spans.clone(), data);

    let group = heads / kv_heads;
    let task_tokens = (TASK_ROWS / group).max(1);
    let tasks = spans.clone().map(|span| span.rows.div_ceil(task_tokens)).sum::<usize>() * kv_heads;
    let each = scratch.each();
    assert!(each >= scratch_len(shape));
    let (out, lse, scratch, data) = (SharedMut::new(out), lse.map(SharedMut::new), scratch.shared(), &*data);
    cpu.pool().run(tasks, |task, thread| {
        // Late tokens have the most keys: they go first, so that the threads end together.
        let (kv_head, mut tile) = (task % kv_heads, (tasks - 1 - task) / kv_heads);
        let span = spans
            .clone()
            .find(|span| {
                let tiles = span.rows.div_ceil(task_tokens);
                let found = tile < tiles;
                tile -= if found { 0 } else { tiles };
                found
            })
            .expect("the task count is the sum over spans");
        let start = tile * task_tokens;
        let task = Attend {
            shape,
            qkv,
            angles,
            span,
            kv_head,
            tokens: start..(start + task_tokens).min(span.rows),
            data,
            out: &out,
            lse: lse.as_ref(),
        };
        // SAFETY: sizes were checked above; tasks write different heads or rows; one scratch for each thread.
        unsafe { E::attend_on(cpu, &task, scratch.slice(thread * each, each)) };
    });
}

fn store_keys_values<'a, E: PageElement>(
    cpu: &Cpu,
    shape: Shape,
    qkv: &[f32],
    angles: &Angles,
    spans: impl ExactSizeIterator<Item = Span<'a>> + Clone + Sync,
    data: &mut [E],
) {
    let Shape { heads, kv_heads, head_dim, .. } = shape;
    let width = (heads + 2 * kv_heads) * head_dim;
    let data = SharedMut::new(data);
    cpu.pool().run(spans.len() * kv_heads, |task, _| {
        let span = spans.clone().nth(task / kv_heads).expect("a task is within the spans");
        let kv_head = task % kv_heads;
        for r in 0..span.rows {
            let position = span.position + r;
            let at =
                span.pages[position / PAGE] as usize * shape.page_len() + kv_head * shape.head_page_len();
            // SAFETY: a sequence's pages are its own while it is written, and a task has a head of its own.
            let page = unsafe { data.slice(at, shape.head_page_len()) };
            let (keys, values) = page.split_at_mut(head_dim * PAGE);
            let row = &qkv[(span.first + r) * width..][..width];
            let key = &row[(heads + kv_head) * head_dim..][..head_dim];
            let value = &row[(heads + kv_heads + kv_head) * head_dim..][..head_dim];
            rotate(key, angles.row(span.first + r), |c, x| keys[c * PAGE + position % PAGE] = E::store(x));
            let target = &mut values[position % PAGE * shape.padded_dim()..][..head_dim];
            for (target, x) in target.iter_mut().zip(value) {
                *target = E::store(*x);
            }
        }
    });
}

struct Attend<'a, E> {
    shape: Shape,
    qkv: &'a [f32],
    angles: &'a Angles,
    span: Span<'a>,
    kv_head: usize,
    /// Tokens of the span.
    tokens: std::ops::Range<usize>,
    data: &'a [E],
    out: &'a SharedMut<'a, f32>,
    lse: Option<&'a SharedMut<'a, f32>>,
}

simd_dispatch!(fn attend_f32(task: &Attend<'_, f32>, scratch: &mut [f32]) => attend_f32_kernel);
simd_dispatch!(fn attend_bf16(task: &Attend<'_, u16>, scratch: &mut [f32]) => attend_bf16_kernel);

#[inline(always)]
unsafe fn attend_f32_kernel<S: Simd>(task: &Attend<'_, f32>, scratch: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { attend::<S, f32>(task, scratch) }
}

#[inline(always)]
unsafe fn attend_bf16_kernel<S: Simd>(task: &Attend<'_, u16>, scratch: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { attend::<S, u16>(task, scratch) }
}

/// Rows are ordered by token, then by query head.
#[inline(always)]
unsafe fn attend<S: Simd, E: PageElement>(task: &Attend<'_, E>, scratch: &mut [f32]) {
    let Shape { heads, kv_heads, head_dim: d, .. } = task.shape;
    let padded = task.shape.padded_dim();
    let group = heads / kv_heads;
    let width = (heads + 2 * kv_heads) * d;
    let rows = task.tokens.len() * group;
    let (queries, rest) = scratch.split_at_mut(rows * d);
    let (weights, rest) = rest.split_at_mut(rows * PAGE);
    let (sums, rest) = rest.split_at_mut(rows * padded);
    let (maxima, rest) = rest.split_at_mut(rows);
    let (totals, rest) = rest.split_at_mut(rows);
    let corrections = &mut rest[..rows];

    let scale = (d as f64).powf(-0.5) as f32;
    for (r, query) in queries.chunks_exact_mut(d).enumerate() {
        let row = task.span.first + task.tokens.start + r / group;
        let source = &task.qkv[row * width + (task.kv_head * group + r % group) * d..][..d];
        rotate(source, task.angles.row(row), |c, x| query[c] = x * scale);
    }
    sums.fill(0.0);
    maxima.fill(f32::NEG_INFINITY);
    totals.fill(0.0);

    let first = task.span.position + task.tokens.start;
    let last = task.span.position + task.tokens.end - 1;
    for (page, &index) in task.span.pages[..=last / PAGE].iter().enumerate() {
        let at = index as usize * task.shape.page_len() + task.kv_head * task.shape.head_page_len();
        let (keys, values) = task.data[at..][..task.shape.head_page_len()].split_at(d * PAGE);
        let seen = (last + 1 - page * PAGE).min(PAGE);
        // SAFETY: blocks have the sizes of the slices above, and S is the instruction set we run on.
        unsafe {
            let p = Block { start: weights.as_mut_ptr(), stride: PAGE };
            let q = Block { start: queries.as_ptr(), stride: d };
            let k = Block { start: keys.as_ptr(), stride: PAGE };
            small_product::<S, E>([rows, seen.next_multiple_of(16), d], q, k, p, Start::Zero);
            for r in 0..rows {
                let position = first + r / group;
                let visible = (position + 1).saturating_sub(page * PAGE).min(PAGE);
                corrections[r] = soften::<S>(
                    &mut weights[r * PAGE..][..seen.next_multiple_of(16)],
                    visible,
                    &mut maxima[r],
                    &mut totals[r],
                );
            }
            let p = Block { start: weights.as_ptr(), stride: PAGE };
            let v = Block { start: values.as_ptr(), stride: padded };
            let o = Block { start: sums.as_mut_ptr(), stride: padded };
            let scaled = Start::Scaled { scales: corrections.as_ptr(), stride: 1 };
            small_product::<S, E>([rows, padded, seen], p, v, o, scaled);
        }
    }
    for r in 0..rows {
        let row = task.span.first + task.tokens.start + r / group;
        let head = task.kv_head * group + r % group;
        // SAFETY: this task alone writes this head of this row.
        let target = unsafe { task.out.slice((row * heads + head) * d, d) };
        for (target, sum) in target.iter_mut().zip(&sums[r * padded..]) {
            *target = sum / totals[r];
        }
        if let Some(lse) = task.lse {
            // SAFETY: as above.
            let target = unsafe { lse.slice(row * heads + head, 1) };
            target[0] = (f64::from(maxima[r]) + f64::from(totals[r]).ln()) as f32;
        }
    }
}

/// Turns the scores of one page into weights relative to the row's running maximum, of which scores from
/// `visible` on have none. Returns by how much what was summed before shrinks.
#[inline(always)]
unsafe fn soften<S: Simd>(scores: &mut [f32], visible: usize, max: &mut f32, total: &mut f32) -> f32 {
    if visible == 0 {
        scores.fill(0.0);
        return 1.0;
    }
    if let Some(hidden) = scores.get_mut(visible..) {
        hidden.fill(f32::NEG_INFINITY);
    }
    // SAFETY: chunks hold LANES values, and S is the instruction set we run on.
    unsafe {
        let mut page_max = S::splat(f32::NEG_INFINITY);
        for score in scores.chunks_exact(S::LANES) {
            page_max = S::max(page_max, S::load(score.as_ptr()));
        }
        let new_max = max.max(largest::<S>(page_max));
        let mut page_total = S::splat(0.0);
        for score in scores.chunks_exact_mut(S::LANES) {
            let weight = exp::<S>(S::sub(S::load(score.as_ptr()), S::splat(new_max)));
            page_total = S::add(page_total, weight);
            S::store(score.as_mut_ptr(), weight);
        }
        let mut correction = [0.0f32; 16];
        S::store(correction.as_mut_ptr(), exp::<S>(S::splat(*max - new_max)));
        *max = new_max;
        *total = *total * correction[0] + sum::<S>(page_total);
        correction[0]
    }
}
