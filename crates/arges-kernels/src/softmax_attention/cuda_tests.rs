use std::sync::Arc;

use super::cuda::*;
use super::*;
use crate::device::cpu::{Cpu, CpuOptions};
use crate::device::cuda::{Activations, Buffer, Cuda};
use crate::matmul::Element;
use crate::rope::cuda::{ANGLES, DeviceAngles};
use crate::rope::{Angles, Frequencies, rotate};
use crate::testing::{CARDS, Random, assert_close, assert_compiles, bf16_round, gpu, widen};

const THETA: f64 = 1e7;
const ELEMENTS: [Element; 2] = [Element::F32, Element::Bf16];
/// Of outputs, relative: products of f32 add up to this, and bf16 is rounded twice (weights and outputs).
const TOLERANCES: [f64; 2] = [1e-5, 1.5e-2];

fn shape(heads: usize, kv_heads: usize, head_dim: usize, rotary_dim: usize) -> Shape {
    Shape { heads, kv_heads, head_dim, rotary_dim }
}

/// Whether to use Hopper's own products: no, and where there are any, yes.
fn products(cuda: &Cuda) -> Vec<bool> {
    if cuda.facts().architecture.has_wgmma() { vec![false, true] } else { vec![false] }
}

/// Rows as the device has them.
fn rounded(element: Element, x: Vec<f32>) -> Vec<f32> {
    match element {
        Element::F32 => x,
        Element::Bf16 => bf16_round(&x),
    }
}

/// Sequences with their pages on the device.
struct Run {
    shape: Shape,
    element: Element,
    attention: SoftmaxCuda,
    angles: DeviceAngles,
    pages: DevicePages,
    tables: Buffer<i32>,
    table_stride: usize,
    table: Vec<i32>,
    cuda: Arc<Cuda>,
}

/// Rows of one sequence: (slot, position, rows).
type Part = (i32, usize, usize);

impl Run {
    /// Room for sequences of those lengths, in pages that are full of NaN and in no order.
    fn new(cuda: &Arc<Cuda>, shape: Shape, element: Element, lengths: &[usize]) -> Self {
        Self::with(cuda, shape, element, lengths, cuda.facts().architecture.has_wgmma())
    }

    /// The same, with Hopper's own products where asked.
    fn with(cuda: &Arc<Cuda>, shape: Shape, element: Element, lengths: &[usize], hopper: bool) -> Self {
        let table_stride = lengths.iter().max().unwrap().div_ceil(PAGE);
        let mut table = vec![-1; lengths.len() * table_stride];
        let total: usize = lengths.iter().map(|n| n.div_ceil(PAGE)).sum();
        let mut free: Vec<i32> = (0..total as i32).collect();
        for (slot, length) in lengths.iter().enumerate() {
            for i in 0..length.div_ceil(PAGE) {
                table[slot * table_stride + i] = free.pop().unwrap();
            }
        }
        let mut pages = DevicePages::new(cuda, shape, total, element).unwrap();
        let len = pages.data().len();
        match pages.data_mut() {
            Activations::F32(data) => data.write(0, &vec![f32::NAN; len]).unwrap(),
            Activations::Bf16(data) => data.write(0, &vec![0x7fff; len]).unwrap(),
        }
        Self {
            shape,
            element,
            attention: SoftmaxCuda::with(cuda, shape, element, hopper).unwrap(),
            angles: DeviceAngles::new(cuda, &Frequencies::new(THETA, shape.rotary_dim), 2048).unwrap(),
            pages,
            tables: Buffer::from_slice(cuda, &table).unwrap(),
            table_stride,
            table,
            cuda: Arc::clone(cuda),
        }
    }

    fn width(&self) -> usize {
        (self.shape.heads + 2 * self.shape.kv_heads) * self.shape.head_dim
    }

    /// Runs the rows of several sequences, one after the other in `qkv`; padding (slot -1) has rows too. With
    /// `max_context`, as decoding.
    fn step(&mut self, qkv: &[f32], parts: &[Part], max_context: Option<usize>) -> Vec<f32> {
        let (width, rows) = (self.width(), qkv.len() / self.width());
        let mut first = 0;
        let mut spans: Vec<[i32; 4]> = vec![[0, 1, 0, 0]];
        for &(slot, position, rows) in parts {
            spans.push([first as i32, rows as i32, position as i32, slot]);
            first += rows;
        }
        let spans = Buffer::from_slice(&self.cuda, &spans).unwrap();
        let mut projected = Activations::from_f32(&self.cuda, self.element, qkv).unwrap();
        let out_len = rows * self.shape.heads * self.shape.head_dim;
        let mut out = Activations::from_f32(&self.cuda, self.element, &vec![7.5; out_len]).unwrap();
        let inputs = Inputs {
            rows,
            spans: &spans,
            first_span: 1,
            span_count: parts.len(),
            tables: &self.tables,
            table_stride: self.table_stride,
        };
        self.angles.fill(&spans, 1, parts.len(), rows).unwrap();
        self.attention.append(&mut projected, width, &inputs, &self.angles, &mut self.pages).unwrap();
        match max_context {
            None => self.attention.prefill(&projected, width, &inputs, &self.pages, &mut out).unwrap(),
            Some(max) => {
                self.attention.decode(&projected, width, &inputs, max, &self.pages, &mut out).unwrap();
            }
        }
        out.to_f32().unwrap()
    }
}

/// Queries and keys of a sequence, rotated and rounded as the device stores them, and its values: `[tokens, heads]`.
fn prepared(shape: Shape, element: Element, qkv: &[f32]) -> Vec<f32> {
    let Shape { heads, kv_heads, head_dim, rotary_dim } = shape;
    let width = (heads + 2 * kv_heads) * head_dim;
    let tokens = qkv.len() / width;
    let cpu = Cpu::new(CpuOptions::default()).unwrap();
    let mut angles = Angles::new(tokens, rotary_dim);
    angles.fill(&cpu, &Frequencies::new(THETA, rotary_dim), tokens, |t| t);
    let mut out = qkv.to_vec();
    for (t, row) in out.chunks_mut(width).enumerate() {
        for (head, x) in row.chunks_mut(head_dim).take(heads + kv_heads).enumerate() {
            let from = &qkv[t * width + head * head_dim..][..head_dim];
            rotate(from, angles.row(t), |c, value| x[c] = value);
        }
    }
    rounded(element, out)
}

fn expected(shape: Shape, element: Element, qkv: &[f32]) -> Vec<f64> {
    let Shape { heads, kv_heads, head_dim, .. } = shape;
    let width = (heads + 2 * kv_heads) * head_dim;
    let prepared = prepared(shape, element, qkv);
    let tokens = qkv.len() / width;
    let column = |head: usize| -> Vec<f64> {
        (0..tokens).flat_map(|t| widen(&prepared[t * width + head * head_dim..][..head_dim])).collect()
    };
    let mut out = vec![0.0; tokens * heads * head_dim];
    for head in 0..heads {
        let kv_head = head / (heads / kv_heads);
        let (q, k, v) = (column(head), column(heads + kv_head), column(heads + kv_heads + kv_head));
        for (t, o) in reference::softmax_attention(&q, &k, &v, head_dim).chunks(head_dim).enumerate() {
            out[(t * heads + head) * head_dim..][..head_dim].copy_from_slice(o);
        }
    }
    out
}

/// Rows that see few keys have large outputs, and large errors: each head of a row is held to its own size.
fn assert_heads_close(got: &[f32], expected: &[f64], shape: Shape, tolerance: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.chunks(shape.head_dim).zip(expected.chunks(shape.head_dim)) {
        assert_close(got, expected, tolerance, what);
    }
}

#[test]
fn every_architecture_compiles_the_kernels() {
    let compiles = |source, head_dim, group, bytes, vector| {
        let defines = [
            ("HEAD_DIM", head_dim),
            ("GROUP", group),
            ("ELEMENT_BYTES", bytes),
            ("ROTARY_DIM", head_dim / 2),
            ("VECTOR", vector),
        ];
        assert_compiles(source, &defines, &CARDS);
    };
    compiles(ANGLES, 64, 1, 2, 8);
    compiles(PLAIN, 20, 3, 4, 1);
    for (head_dim, group) in [(64, 1), (128, 8), (128, 16)] {
        for source in [PLAIN, DECODE, HOPPER, TILES] {
            compiles(source, head_dim, group, 2, 8);
        }
    }
}

#[test]
fn outputs_agree_with_the_reference_over_odd_shapes_and_ragged_batches() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(1);
    for shape in [
        shape(1, 1, 16, 16),
        shape(6, 3, 24, 8),
        shape(3, 1, 200, 200),
        shape(4, 4, 64, 64),
        shape(8, 2, 64, 32),
        shape(16, 2, 128, 64),
        shape(16, 1, 128, 0),
        shape(6, 2, 128, 64),
    ] {
        let width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
        for (element, tolerance) in ELEMENTS.into_iter().zip(TOLERANCES) {
            for lengths in [vec![1, 63, 64, 65, 130], vec![1000]] {
                if lengths == [1000] && shape.heads > 8 {
                    continue;
                }
                let sequences: Vec<Vec<f32>> =
                    lengths.iter().map(|n| rounded(element, random.normal(n * width))).collect();
                // Padding between and behind, and a span without rows.
                let mut parts: Vec<Part> = vec![(-1, 0, 3)];
                let mut qkv = vec![f32::NAN; 3 * width];
                for (slot, x) in sequences.iter().enumerate() {
                    parts.push((slot as i32, 0, x.len() / width));
                    parts.push((slot as i32, 0, 0));
                    qkv.extend(x);
                }
                qkv.extend(vec![f32::NAN; 2 * width]);
                let expected: Vec<Vec<f64>> = sequences.iter().map(|x| expected(shape, element, x)).collect();
                let out_width = shape.heads * shape.head_dim;
                for hopper in products(&cuda) {
                    let got = Run::with(&cuda, shape, element, &lengths, hopper).step(&qkv, &parts, None);
                    let what = format!("{shape:?} {element:?} on Hopper's products: {hopper}");
                    let (padding, mut rest) = got.split_at(3 * out_width);
                    assert!(padding.iter().all(|x| *x == 7.5), "{what}: padding was written");
                    for expected in &expected {
                        let (own, others) = rest.split_at(expected.len());
                        rest = others;
                        let what = format!("{what}, {} tokens", expected.len() / out_width);
                        assert_heads_close(own, expected, shape, tolerance, &what);
                    }
                    assert!(rest.iter().all(|x| *x == 7.5), "{what}: rows of no span were written");
                }
            }
        }
    }
}

#[test]
fn any_split_of_a_ragged_batch_gives_the_same_bits() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(2);
    for shape in [shape(6, 2, 40, 10), shape(4, 4, 64, 64), shape(16, 2, 128, 64), shape(6, 2, 128, 64)] {
        let width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
        let out_width = shape.heads * shape.head_dim;
        let lengths = [300, 1, 64, 129];
        for (element, hopper) in [(Element::F32, false), (Element::Bf16, false), (Element::Bf16, true)] {
            if hopper && !products(&cuda).contains(&true) {
                continue;
            }
            let inputs: Vec<Vec<f32>> = lengths.iter().map(|n| random.normal(n * width)).collect();
            let alone: Vec<Vec<f32>> = inputs
                .iter()
                .map(|x| {
                    let tokens = x.len() / width;
                    Run::with(&cuda, shape, element, &[tokens], hopper).step(x, &[(0, 0, tokens)], None)
                })
                .collect();
            for piece in [1, 7, 64, 100] {
                let mut run = Run::with(&cuda, shape, element, &lengths, hopper);
                let mut together = vec![Vec::new(); lengths.len()];
                for start in (0..300).step_by(piece) {
                    let (mut qkv, mut parts) = (Vec::new(), Vec::new());
                    for (slot, input) in inputs.iter().enumerate() {
                        let rows = (lengths[slot].max(start) - start).min(piece);
                        if rows > 0 {
                            parts.push((slot as i32, start, rows));
                            qkv.extend_from_slice(&input[start * width..][..rows * width]);
                        }
                    }
                    let mut out = run.step(&qkv, &parts, None);
                    for (slot, _, rows) in parts {
                        let rest = out.split_off(rows * out_width);
                        together[slot as usize].extend(out);
                        out = rest;
                    }
                }
                assert!(together == alone, "{shape:?} {element:?} in pieces of {piece}");
            }
        }
    }
}

#[test]
fn decoding_agrees_with_the_reference_however_keys_are_split() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(3);
    for shape in [shape(6, 2, 40, 10), shape(4, 4, 64, 64), shape(16, 2, 128, 64), shape(16, 1, 128, 64)] {
        let width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
        let out_width = shape.heads * shape.head_dim;
        let lengths = [1, 64, 65, 320];
        for (element, tolerance) in ELEMENTS.into_iter().zip(TOLERANCES) {
            let mut run = Run::new(&cuda, shape, element, &lengths);
            let inputs: Vec<Vec<f32>> =
                lengths.iter().map(|n| rounded(element, random.normal(n * width))).collect();
            let (mut before, mut last, mut expected_last) = (Vec::new(), Vec::new(), Vec::new());
            let (mut before_parts, mut last_parts) = (Vec::new(), Vec::new());
            for (slot, x) in inputs.iter().enumerate() {
                let tokens = x.len() / width;
                before.extend_from_slice(&x[..(tokens - 1) * width]);
                before_parts.push((slot as i32, 0, tokens - 1));
                last.extend_from_slice(&x[(tokens - 1) * width..]);
                last_parts.push((slot as i32, tokens - 1, 1));
                let all = expected(shape, element, x);
                expected_last.extend_from_slice(&all[all.len() - out_width..]);
            }
            last.extend(vec![f32::NAN; width]);
            last_parts.insert(2, (-1, 100, 0));
            run.step(&before, &before_parts, None);
            for max_context in [1, 320, 1000, 100_000] {
                let first = run.step(&last, &last_parts, Some(max_context));
                let (own, padding) = first.split_at(expected_last.len());
                let what = format!("{shape:?} {element:?} for contexts up to {max_context}");
                assert_heads_close(own, &expected_last, shape, tolerance, &what);
                assert!(padding.iter().all(|x| *x == 7.5), "{what}: rows of no span were written");
                assert_eq!(first, run.step(&last, &last_parts, Some(max_context)), "{what}, again");
            }
        }
    }
}

#[test]
fn a_captured_decoding_step_follows_its_growing_sequence() {
    let Some(cuda) = gpu() else { return };
    let (shape, element) = (shape(16, 2, 128, 64), Element::Bf16);
    let tokens = 200;
    let mut random = Random::new(4);
    let mut run = Run::new(&cuda, shape, element, &[tokens]);
    let (width, out_width) = (run.width(), shape.heads * shape.head_dim);
    let qkv = rounded(element, random.normal(tokens * width));
    let mut spans = Buffer::from_slice(&cuda, &[[0, 1, 0, 0]]).unwrap();
    let mut projected = Activations::from_f32(&cuda, element, &qkv[..width]).unwrap();
    let mut out = Activations::zeroed(&cuda, element, out_width).unwrap();
    let mut graph = cuda
        .capture(|| {
            let inputs = Inputs {
                rows: 1,
                spans: &spans,
                first_span: 0,
                span_count: 1,
                tables: &run.tables,
                table_stride: run.table_stride,
            };
            run.angles.fill(&spans, 0, 1, 1)?;
            run.attention.append(&mut projected, width, &inputs, &run.angles, &mut run.pages)?;
            run.attention.decode(&projected, width, &inputs, tokens, &run.pages, &mut out)
        })
        .unwrap();
    let mut got = Vec::new();
    for (t, row) in qkv.chunks(width).enumerate() {
        spans.write(0, &[[0, 1, t as i32, 0]]).unwrap();
        let bits: Vec<u16> = row.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
        let Activations::Bf16(buffer) = &mut projected else { unreachable!("made as bf16") };
        buffer.write(0, &bits).unwrap();
        graph.replay().unwrap();
        got.extend(out.to_f32().unwrap());
    }
    assert_heads_close(&got, &expected(shape, element, &qkv), shape, TOLERANCES[1], "200 replays");
}

#[test]
fn keys_and_values_are_stored_rotated_where_the_table_says() {
    let Some(cuda) = gpu() else { return };
    for shape in [shape(6, 3, 24, 8), shape(16, 2, 128, 64)] {
        for element in ELEMENTS {
            let tokens = 130;
            let mut run = Run::new(&cuda, shape, element, &[tokens]);
            let qkv = rounded(element, Random::new(5).normal(tokens * run.width()));
            run.step(&qkv, &[(0, 0, tokens)], None);
            let prepared = prepared(shape, element, &qkv);
            for t in [0, 1, 63, 64, 129] {
                let page = run.table[t / PAGE] as usize;
                let stored =
                    [run.pages.key(page, t % PAGE).unwrap(), run.pages.value(page, t % PAGE).unwrap()];
                let len = shape.kv_heads * shape.head_dim;
                let row = &prepared[(t + 1) * run.width() - 2 * len..][..2 * len];
                let tolerance = if element == Element::F32 { 1e-6 } else { 8e-3 };
                assert_close(
                    &stored.concat(),
                    &widen(row),
                    tolerance,
                    &format!("{shape:?} {element:?} token {t}"),
                );
            }
        }
    }
}

#[test]
fn angles_are_those_of_the_cpu_at_ten_million_tokens() {
    let Some(cuda) = gpu() else { return };
    let frequencies = Frequencies::new(THETA, 64);
    let positions = [0, 1, 999, 1_000_003, 9_999_999];
    let spans: Vec<[i32; 4]> = (0..5).map(|i| [i, 1, positions[i as usize], i]).collect();
    let spans = Buffer::from_slice(&cuda, &spans).unwrap();
    let mut on_device = DeviceAngles::new(&cuda, &frequencies, 5).unwrap();
    on_device.fill(&spans, 0, 5, 5).unwrap();
    let mut on_host = Angles::new(5, 64);
    on_host.fill(&Cpu::new(CpuOptions::default()).unwrap(), &frequencies, 5, |row| positions[row] as usize);
    let got = on_device.table().to_vec().unwrap();
    for (row, got) in got.chunks(64).enumerate() {
        for (got, expected) in got.iter().zip(on_host.row(row)) {
            assert!((got - expected).abs() <= f32::EPSILON / 2.0, "row {row}: {got}, not {expected}");
        }
    }
}
