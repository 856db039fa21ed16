use super::*;
use crate::device::cpu::{Cpu, CpuOptions, Isa, Scratch};
use crate::matmul::Element;
use crate::rope::{self, Angles, Frequencies};
use crate::testing::{Random, widen};

fn cpus() -> impl Iterator<Item = Cpu> {
    Isa::available().map(|isa| Cpu::new(CpuOptions { isa: Some(isa), threads: Some(2) }).unwrap())
}

struct Run {
    shape: Shape,
    pages: Pages,
    tables: Vec<Vec<u32>>,
    scratch: Scratch,
}

impl Run {
    fn new(cpu: &Cpu, shape: Shape, element: Element, lengths: &[usize]) -> Self {
        let counts: Vec<usize> = lengths.iter().map(|n| n.div_ceil(PAGE)).collect();
        let total: usize = counts.iter().sum();
        // Pages in reverse order, to see that the tables are obeyed.
        let mut free: Vec<u32> = (0..total as u32).collect();
        let tables = counts.iter().map(|n| (0..*n).map(|_| free.pop().unwrap()).collect()).collect();
        let scratch = Scratch::new(cpu, scratch_len(shape));
        Self { shape, pages: Pages::new(shape, total, element), tables, scratch }
    }

    /// Runs rows of several sequences: (sequence, position, rows).
    fn step(&mut self, cpu: &Cpu, qkv: &[f32], parts: &[(usize, usize, usize)]) -> Vec<f32> {
        let width = (self.shape.heads + 2 * self.shape.kv_heads) * self.shape.head_dim;
        let rows = qkv.len() / width;
        let mut angles = Angles::new(rows, self.shape.rotary_dim);
        let positions: Vec<usize> =
            parts.iter().flat_map(|(_, position, rows)| *position..position + rows).collect();
        angles.fill(cpu, &Frequencies::new(1e4, self.shape.rotary_dim), rows, |row| positions[row]);
        let mut first = 0;
        let spans: Vec<Span<'_>> = parts
            .iter()
            .map(|&(sequence, position, rows)| {
                first += rows;
                Span { first: first - rows, rows, position, pages: &self.tables[sequence] }
            })
            .collect();
        let mut out = vec![f32::NAN; rows * self.shape.heads * self.shape.head_dim];
        let spans = spans.iter().copied();
        softmax_attention(
            cpu,
            self.shape,
            qkv,
            &angles,
            spans,
            &mut self.pages,
            &mut out,
            None,
            &mut self.scratch,
        );
        out
    }
}

fn expected(shape: Shape, qkv: &[f32]) -> Vec<f64> {
    let Shape { heads, kv_heads, head_dim, rotary_dim } = shape;
    let width = (heads + 2 * kv_heads) * head_dim;
    let tokens = qkv.len() / width;
    let column = |head: usize, rotated: bool| -> Vec<f64> {
        (0..tokens)
            .flat_map(|t| {
                let x = widen(&qkv[t * width + head * head_dim..][..head_dim]);
                if rotated { rope::reference::rotate(&x, t, 1e4, rotary_dim) } else { x }
            })
            .collect()
    };
    let mut out = vec![0.0; tokens * heads * head_dim];
    for head in 0..heads {
        let kv_head = head / (heads / kv_heads);
        let (q, k) = (column(head, true), column(heads + kv_head, true));
        let v = column(heads + kv_heads + kv_head, false);
        let o = reference::softmax_attention(&q, &k, &v, head_dim);
        for (t, o) in o.chunks(head_dim).enumerate() {
            out[(t * heads + head) * head_dim..][..head_dim].copy_from_slice(o);
        }
    }
    out
}

#[test]
fn outputs_agree_with_the_reference_over_odd_shapes() {
    let mut random = Random::new(1);
    for cpu in cpus() {
        for (heads, kv_heads, head_dim, rotary_dim) in
            [(1, 1, 16, 16), (6, 3, 24, 8), (8, 1, 32, 16), (16, 2, 128, 64)]
        {
            let shape = Shape { heads, kv_heads, head_dim, rotary_dim };
            for tokens in [1, 63, 64, 65, 200] {
                let qkv = random.normal(tokens * (heads + 2 * kv_heads) * head_dim);
                let expected = expected(shape, &qkv);
                for (element, tolerance) in [(Element::F32, 5e-6), (Element::Bf16, 3e-2)] {
                    let mut run = Run::new(&cpu, shape, element, &[tokens]);
                    let got = run.step(&cpu, &qkv, &[(0, 0, tokens)]);
                    for (got, expected) in got.iter().zip(&expected) {
                        let error = (f64::from(*got) - expected).abs();
                        assert!(error < tolerance, "{} {shape:?} {element:?}: {error:e}", cpu.isa());
                    }
                }
            }
        }
    }
}

#[test]
fn any_split_of_a_ragged_batch_gives_the_same_bits() {
    let mut random = Random::new(2);
    let shape = Shape { heads: 6, kv_heads: 2, head_dim: 40, rotary_dim: 10 };
    let width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
    let out_width = shape.heads * shape.head_dim;
    let lengths = [150, 1, 64, 97];
    let inputs: Vec<Vec<f32>> = lengths.iter().map(|n| random.normal(n * width)).collect();
    for cpu in cpus() {
        for element in [Element::F32, Element::Bf16] {
            let alone: Vec<Vec<f32>> = inputs
                .iter()
                .map(|qkv| {
                    let tokens = qkv.len() / width;
                    Run::new(&cpu, shape, element, &[tokens]).step(&cpu, qkv, &[(0, 0, tokens)])
                })
                .collect();
            for piece in [1, 7, 64, 100] {
                let mut run = Run::new(&cpu, shape, element, &lengths);
                let mut together = vec![Vec::new(); lengths.len()];
                for start in (0..150).step_by(piece) {
                    let (mut qkv, mut parts) = (Vec::new(), Vec::new());
                    for (sequence, input) in inputs.iter().enumerate() {
                        let rows = (lengths[sequence].max(start) - start).min(piece);
                        if rows > 0 {
                            parts.push((sequence, start, rows));
                            qkv.extend_from_slice(&input[start * width..][..rows * width]);
                        }
                    }
                    let mut out = run.step(&cpu, &qkv, &parts);
                    for (sequence, _, rows) in parts {
                        let rest = out.split_off(rows * out_width);
                        together[sequence].extend(out);
                        out = rest;
                    }
                }
                assert!(together == alone, "{} {element:?} in pieces of {piece}", cpu.isa());
            }
        }
    }
}
