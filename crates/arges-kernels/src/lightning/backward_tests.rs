use super::*;
use crate::device::cpu::{Cpu, CpuOptions, Isa, Scratch};
use crate::testing::{Random, assert_close, assert_gradient, widen};

fn cpu(isa: Isa, threads: usize) -> Cpu {
    Cpu::new(CpuOptions { isa: Some(isa), threads: Some(threads) }).unwrap()
}

/// Slopes of the first and the last layer of a model of 80, 4 heads, and a head of a 64-head model, which forgets
/// fastest.
const SLOPES: [f64; 4] = [0.917, 0.0625 * 1.00001, 0.015625 * 1.00001, 0.00390625e-5];

/// One packed batch; rows have two more values than the heads need.
#[derive(Clone)]
struct Case {
    shape: Shape,
    lengths: Vec<usize>,
    qkv: Vec<f32>,
    dout: Vec<f32>,
}

impl Case {
    fn new(random: &mut Random, shape: Shape, lengths: &[usize]) -> Self {
        let rows: usize = lengths.iter().sum();
        let qkv = random.normal(rows * Self::stride(shape));
        let dout = random.normal(rows * shape.heads * shape.head_dim);
        Self { shape, lengths: lengths.to_vec(), qkv, dout }
    }

    fn stride(shape: Shape) -> usize {
        shape.heads * 3 * shape.head_dim + 2
    }

    fn spans(&self) -> Vec<Span> {
        let mut first = 0;
        let span = |rows: &usize| {
            first += rows;
            Span { first: first - rows, rows: *rows, position: 0, slot: 0 }
        };
        self.lengths.iter().map(span).collect()
    }

    /// The batch of one span alone.
    fn alone(&self, span: Span) -> Self {
        let rows = span.first..span.first + span.rows;
        let (stride, width) = (Self::stride(self.shape), self.shape.heads * self.shape.head_dim);
        Self {
            shape: self.shape,
            lengths: vec![span.rows],
            qkv: self.qkv[rows.start * stride..rows.end * stride].to_vec(),
            dout: self.dout[rows.start * width..rows.end * width].to_vec(),
        }
    }

    /// Gradients, from buffers of rubbish.
    fn run(&self, cpu: &Cpu) -> Vec<f32> {
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        let mut scratch = Scratch::new(cpu, backward_scratch_len(self.shape, longest));
        let all = scratch.each() * cpu.pool().threads();
        let shared = scratch.shared();
        // SAFETY: nothing else uses the scratch.
        unsafe { shared.slice(0, all) }.fill(f32::NAN);
        let (decays, stride) = (Decays::new(&SLOPES[..self.shape.heads]), Self::stride(self.shape));
        let (spans, mut dqkv) = (self.spans(), vec![7.0; self.qkv.len()]);
        lightning_attention_backward(
            cpu,
            self.shape,
            &decays,
            &self.qkv,
            stride,
            &spans,
            &self.dout,
            &mut dqkv,
            &mut scratch,
        );
        dqkv
    }

    /// `[rows, 3, head_dim]` of one span and head.
    fn head<T: Copy>(&self, x: &[T], span: Span, head: usize) -> Vec<T> {
        let len = 3 * self.shape.head_dim;
        let row = |row| x[row * Self::stride(self.shape) + head * len..][..len].iter().copied();
        (span.first..span.first + span.rows).flat_map(row).collect()
    }

    fn expected(&self, span: Span, head: usize) -> Vec<f64> {
        let Shape { heads, head_dim: d } = self.shape;
        let x = widen(&self.head(&self.qkv, span, head));
        let part = |part: usize| -> Vec<f64> {
            x.chunks(3 * d).flat_map(|row| &row[part * d..][..d]).map(|x| reference::silu(*x)).collect()
        };
        let rows = span.first..span.first + span.rows;
        let dout: Vec<f64> =
            rows.flat_map(|row| widen(&self.dout[(row * heads + head) * d..][..d])).collect();
        let parts =
            reference::lightning_attention_backward(&part(0), &part(1), &part(2), d, SLOPES[head], &dout);
        let gradients =
            (0..span.rows).flat_map(|row| parts.iter().flat_map(move |part| &part[row * d..][..d]));
        gradients.zip(&x).map(|(gradient, x)| gradient * reference::silu_derivative(*x)).collect()
    }

    fn check(&self) {
        let expected: Vec<(Span, usize, Vec<f64>)> = self
            .spans()
            .into_iter()
            .flat_map(|span| (0..self.shape.heads).map(move |head| (span, head)))
            .map(|(span, head)| (span, head, self.expected(span, head)))
            .collect();
        for isa in Isa::available() {
            let got = self.run(&cpu(isa, 2));
            for (span, head, expected) in &expected {
                let what = format!("{isa} {:?} {span:?} head {head}", self.shape);
                let (got, d) = (self.head(&got, *span, *head), self.shape.head_dim);
                for part in 0..3 {
                    let got: Vec<f32> =
                        got.chunks(3 * d).flat_map(|row| &row[part * d..][..d]).copied().collect();
                    let expected: Vec<f64> =
                        expected.chunks(3 * d).flat_map(|row| &row[part * d..][..d]).copied().collect();
                    assert_close(&got, &expected, 2e-5, &format!("{what} part {part}"));
                }
            }
            for row in got.chunks(Self::stride(self.shape)) {
                assert_eq!(row[row.len() - 2..], [7.0, 7.0], "{isa}: values beside the heads");
            }
        }
    }
}

#[test]
fn the_reference_backward_is_the_derivative_of_the_reference_forward() {
    let mut random = Random::new(1);
    let (tokens, d) = (7, 3);
    let x = widen(&random.normal(3 * tokens * d));
    let dout = widen(&random.normal(tokens * d));
    for slope in SLOPES {
        let attend = |x: &[f64]| {
            let y: Vec<f64> = x.iter().map(|x| reference::silu(*x)).collect();
            let (q, rest) = y.split_at(tokens * d);
            let (k, v) = rest.split_at(tokens * d);
            let out = reference::lightning_attention(q, k, v, d, slope, &mut vec![0.0; d * d]);
            out.iter().zip(&dout).map(|(out, dout)| out * dout).sum::<f64>()
        };
        let y: Vec<f64> = x.iter().map(|x| reference::silu(*x)).collect();
        let parts: Vec<&[f64]> = y.chunks(tokens * d).collect();
        let gradients =
            reference::lightning_attention_backward(parts[0], parts[1], parts[2], d, slope, &dout).concat();
        let gradients: Vec<f64> =
            gradients.iter().zip(&x).map(|(g, x)| g * reference::silu_derivative(*x)).collect();
        assert_gradient(attend, &x, &gradients, &format!("slope {slope}"));
    }
}

#[test]
fn gradients_agree_with_the_reference_over_odd_shapes() {
    let mut random = Random::new(2);
    for (heads, head_dim) in [(1, 16), (3, 20), (2, 24), (4, 32), (2, 64), (2, 128)] {
        for tokens in [1, 63, 64, 65, 130, 200] {
            Case::new(&mut random, Shape { heads, head_dim }, &[tokens]).check();
        }
    }
}

#[test]
fn gradients_of_ragged_and_empty_spans_agree_with_the_reference() {
    let mut random = Random::new(3);
    Case::new(&mut random, Shape { heads: 4, head_dim: 40 }, &[150, 1, 0, 64, 97, 2]).check();
    Case::new(&mut random, Shape { heads: 4, head_dim: 40 }, &[]).check();
}

#[test]
fn gradients_of_a_span_of_several_segments_agree_with_the_reference() {
    let mut random = Random::new(4);
    Case::new(&mut random, Shape { heads: 4, head_dim: 16 }, &[70 * CHUNK + 5, 33 * CHUNK]).check();
}

#[test]
fn a_span_has_the_same_bits_alone_and_packed_on_any_number_of_threads() {
    let mut random = Random::new(5);
    let case = Case::new(&mut random, Shape { heads: 2, head_dim: 40 }, &[97, 150, 1, 64, 33 * CHUNK + 1]);
    for isa in Isa::available() {
        let packed = case.run(&cpu(isa, 1));
        for threads in [2, 3, 5] {
            assert!(case.run(&cpu(isa, threads)) == packed, "{isa} on {threads} threads");
        }
        for span in case.spans() {
            let stride = Case::stride(case.shape);
            let expected = &packed[span.first * stride..][..span.rows * stride];
            assert!(case.alone(span).run(&cpu(isa, 2)) == expected, "{isa} {span:?} alone");
        }
    }
}

#[test]
fn nothing_of_one_span_reaches_another() {
    let mut random = Random::new(6);
    let case = Case::new(&mut random, Shape { heads: 2, head_dim: 24 }, &[97, 70, 64, 5]);
    let stride = Case::stride(case.shape);
    for isa in Isa::available() {
        let clean = case.run(&cpu(isa, 1));
        for spoilt in case.spans() {
            let mut case = case.clone();
            case.qkv[spoilt.first * stride..][..spoilt.rows * stride].fill(f32::NAN);
            let got = case.run(&cpu(isa, 1));
            for span in case.spans().into_iter().filter(|span| *span != spoilt) {
                let rows = span.first * stride..(span.first + span.rows) * stride;
                assert!(got[rows.clone()] == clean[rows], "{isa}: {spoilt:?} reaches {span:?}");
            }
        }
    }
}

#[test]
fn scratch_for_a_longer_span_serves_a_shorter_one_and_grows_with_the_square_root() {
    let shape = Shape { heads: 1, head_dim: 128 };
    let mut before = 0;
    for chunks in 0..3000 {
        let len = backward_scratch_len(shape, chunks * CHUNK);
        assert!(len >= before, "{chunks} chunks");
        before = len;
    }
    let states =
        |tokens| (backward_scratch_len(shape, tokens) - backward_scratch_len(shape, 0)) / (128 * 128);
    assert_eq!([states(1 << 20), states(1 << 22)].map(|states| states / 32), [7, 15]);
}
