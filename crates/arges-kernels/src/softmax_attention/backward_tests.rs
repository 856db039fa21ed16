use super::*;
use crate::device::cpu::{Cpu, CpuOptions, Isa, Scratch};
use crate::matmul::Element;
use crate::rope::{self, Angles, Frequencies};
use crate::testing::{Random, assert_close, assert_gradient, bf16_round, widen};
use std::ops::Range;

const THETA: f64 = 1e4;

fn cpu(isa: Isa, threads: usize) -> Cpu {
    Cpu::new(CpuOptions { isa: Some(isa), threads: Some(threads) }).unwrap()
}

/// One packed batch.
#[derive(Clone)]
struct Case {
    shape: Shape,
    element: Element,
    lengths: Vec<usize>,
    qkv: Vec<f32>,
    dout: Vec<f32>,
}

struct Outcome {
    lse: Vec<f32>,
    dqkv: Vec<f32>,
}

impl Case {
    fn new(random: &mut Random, shape: Shape, element: Element, lengths: &[usize]) -> Self {
        let rows: usize = lengths.iter().sum();
        let qkv = random.normal(rows * Self::width(shape));
        let dout = random.normal(rows * shape.heads * shape.head_dim);
        Self { shape, element, lengths: lengths.to_vec(), qkv, dout }
    }

    fn width(shape: Shape) -> usize {
        (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    }

    fn spans(&self) -> Vec<Range<usize>> {
        let mut end = 0;
        let span = |rows: &usize| {
            end += rows;
            end - rows..end
        };
        self.lengths.iter().map(span).collect()
    }

    /// The batch of one span alone.
    fn alone(&self, span: &Range<usize>) -> Self {
        let (width, out_width) = (Self::width(self.shape), self.shape.heads * self.shape.head_dim);
        Self {
            lengths: vec![span.len()],
            qkv: self.qkv[span.start * width..span.end * width].to_vec(),
            dout: self.dout[span.start * out_width..span.end * out_width].to_vec(),
            ..*self
        }
    }

    fn angles(&self, cpu: &Cpu) -> Angles {
        let rows = self.lengths.iter().sum();
        let mut angles = Angles::new(rows, self.shape.rotary_dim);
        let positions: Vec<usize> = self.lengths.iter().flat_map(|rows| 0..*rows).collect();
        let frequencies = Frequencies::new(THETA, self.shape.rotary_dim);
        angles.fill(cpu, &frequencies, rows, |row| positions[row]);
        angles
    }

    /// The forward pass, then the backward pass into rubbish.
    fn run(&self, cpu: &Cpu) -> Outcome {
        let (shape, rows) = (self.shape, self.lengths.iter().sum::<usize>());
        let angles = self.angles(cpu);
        let count: usize = self.lengths.iter().map(|rows| rows.div_ceil(PAGE)).sum();
        let indices: Vec<u32> = (0..count as u32).collect();
        let mut free = &indices[..];
        let spans: Vec<Span<'_>> = self
            .spans()
            .into_iter()
            .map(|span| {
                let pages = free.split_off(..span.len().div_ceil(PAGE)).unwrap();
                Span { first: span.start, rows: span.len(), position: 0, pages }
            })
            .collect();
        let mut pages = Pages::new(shape, count, self.element);
        let mut out = vec![f32::NAN; rows * shape.heads * shape.head_dim];
        let mut lse = vec![f32::NAN; rows * shape.heads];
        let mut scratch = Scratch::new(cpu, scratch_len(shape));
        let spans = spans.iter().copied();
        let sums = Some(&mut lse[..]);
        softmax_attention(cpu, shape, &self.qkv, &angles, spans, &mut pages, &mut out, sums, &mut scratch);

        let mut dqkv = vec![f32::NAN; self.qkv.len()];
        let forward =
            Forward { qkv: &self.qkv, angles: &angles, element: self.element, out: &out, lse: &lse };
        let mut scratch = BackwardScratch::new(cpu, shape, rows, self.lengths.len());
        let spans = self.spans().into_iter();
        softmax_attention_backward(cpu, shape, forward, spans, &self.dout, &mut dqkv, &mut scratch);
        Outcome { lse, dqkv }
    }

    /// Rotated (where asked) and rounded channels of one head of a span, heads counted through queries, keys and
    /// values.
    fn head(&self, span: &Range<usize>, head: usize) -> Vec<f64> {
        let Shape { heads, kv_heads, head_dim: d, rotary_dim } = self.shape;
        let rounds = head >= heads && self.element == Element::Bf16;
        let cpu = cpu(Isa::Plain, 1);
        let mut angles = Angles::new(span.len(), rotary_dim);
        angles.fill(&cpu, &Frequencies::new(THETA, rotary_dim), span.len(), |row| row);
        let row = |row: usize| {
            let x = &self.qkv[(span.start + row) * Self::width(self.shape) + head * d..][..d];
            let mut x = x.to_vec();
            if head < heads + kv_heads && rounds {
                // Rounding sees the f32 rotation.
                rope::rotate(&x.clone(), angles.row(row), |c, value| x[c] = value);
            }
            let x = if rounds { widen(&bf16_round(&x)) } else { widen(&x) };
            if head < heads + kv_heads && !rounds {
                rope::reference::rotate(&x, row, THETA, rotary_dim)
            } else {
                x
            }
        };
        (0..span.len()).flat_map(row).collect()
    }

    /// Gradients of a span, laid out as its rows, and the logarithms of its sums.
    fn expected(&self, span: &Range<usize>) -> (Vec<f64>, Vec<f64>) {
        let Shape { heads, kv_heads, head_dim: d, rotary_dim } = self.shape;
        let mut gradients = vec![0.0; span.len() * Self::width(self.shape)];
        let mut sums = vec![0.0; span.len() * heads];
        let mut add = |head: usize, x: &[f64], rotated: bool| {
            for (row, x) in x.chunks(d).enumerate() {
                let back = if rotated {
                    rope::reference::rotate_back(x, row, THETA, rotary_dim)
                } else {
                    x.to_vec()
                };
                let target = &mut gradients[row * Self::width(self.shape) + head * d..][..d];
                target.iter_mut().zip(back).for_each(|(target, x)| *target += x);
            }
        };
        for head in 0..heads {
            let key = heads + head / (heads / kv_heads);
            let dout: Vec<f64> =
                span.clone().flat_map(|row| widen(&self.dout[(row * heads + head) * d..][..d])).collect();
            let (q, k, v) = (self.head(span, head), self.head(span, key), self.head(span, key + kv_heads));
            let [dq, dk, dv] = reference::softmax_attention_backward(&q, &k, &v, d, &dout);
            add(head, &dq, true);
            add(key, &dk, true);
            add(key + kv_heads, &dv, false);
            for (row, sum) in reference::log_sum_exp(&q, &k, d).into_iter().enumerate() {
                sums[row * heads + head] = sum;
            }
        }
        (gradients, sums)
    }

    /// Angles are f32 in the kernel alone, so that scores differ by some units in the 6th place.
    fn check(&self, tolerance: f64) {
        let expected: Vec<_> = self.spans().into_iter().map(|span| (self.expected(&span), span)).collect();
        let (width, heads) = (Self::width(self.shape), self.shape.heads);
        for isa in Isa::available() {
            let got = self.run(&cpu(isa, 2));
            for ((gradients, sums), span) in &expected {
                let what = format!("{isa} {:?} {:?} {span:?}", self.shape, self.element);
                let sum_rows = span.start * heads..span.end * heads;
                assert_close(&got.lse[sum_rows], sums, 2e-6, &format!("{what}: sums"));
                // All parts together: the first query's gradient is 0 but for the rounding of the value's.
                let rows = span.start * width..span.end * width;
                assert_close(&got.dqkv[rows], gradients, tolerance, &format!("{what}: gradients"));
            }
        }
    }
}

#[test]
fn the_reference_backward_is_the_derivative_of_the_reference_forward() {
    let mut random = Random::new(1);
    let (tokens, d, rotary_dim) = (6, 6, 4);
    let x = widen(&random.normal(3 * tokens * d));
    let dout = widen(&random.normal(tokens * d));
    let rotated = |x: &[f64]| -> Vec<f64> {
        let rows = x.chunks(d).enumerate();
        rows.flat_map(|(row, x)| match row / tokens {
            2 => x.to_vec(),
            _ => rope::reference::rotate(x, row % tokens, THETA, rotary_dim),
        })
        .collect()
    };
    let attend = |x: &[f64]| {
        let x = rotated(x);
        let parts: Vec<&[f64]> = x.chunks(tokens * d).collect();
        let out = reference::softmax_attention(parts[0], parts[1], parts[2], d);
        out.iter().zip(&dout).map(|(out, dout)| out * dout).sum::<f64>()
    };
    let y = rotated(&x);
    let parts: Vec<&[f64]> = y.chunks(tokens * d).collect();
    let gradients = reference::softmax_attention_backward(parts[0], parts[1], parts[2], d, &dout).concat();
    let gradients: Vec<f64> = gradients
        .chunks(d)
        .enumerate()
        .flat_map(|(row, x)| match row / tokens {
            2 => x.to_vec(),
            _ => rope::reference::rotate_back(x, row % tokens, THETA, rotary_dim),
        })
        .collect();
    assert_gradient(attend, &x, &gradients, "softmax attention");
}

/// One, two and four query heads to a key-value head; rotations of all channels and of some.
const SHAPES: [(usize, usize, usize, usize); 6] =
    [(1, 1, 16, 16), (4, 2, 20, 8), (6, 3, 24, 24), (4, 1, 32, 16), (2, 2, 64, 64), (4, 1, 128, 64)];

fn shape((heads, kv_heads, head_dim, rotary_dim): (usize, usize, usize, usize)) -> Shape {
    Shape { heads, kv_heads, head_dim, rotary_dim }
}

#[test]
fn sums_and_gradients_agree_with_the_reference_over_odd_shapes() {
    let mut random = Random::new(2);
    for dims in SHAPES {
        for tokens in [1, 63, 64, 65, 130, 200] {
            Case::new(&mut random, shape(dims), Element::F32, &[tokens]).check(2e-5);
        }
    }
}

#[test]
fn gradients_through_bf16_pages_are_those_of_the_rounded_keys_and_values() {
    let mut random = Random::new(3);
    for dims in SHAPES {
        Case::new(&mut random, shape(dims), Element::Bf16, &[130]).check(2e-5);
    }
}

#[test]
fn gradients_of_ragged_and_empty_spans_agree_with_the_reference() {
    let mut random = Random::new(4);
    Case::new(&mut random, shape((6, 2, 40, 10)), Element::F32, &[150, 1, 0, 64, 97, 2]).check(2e-5);
    Case::new(&mut random, shape((6, 2, 40, 10)), Element::F32, &[]).check(2e-5);
}

#[test]
fn gradients_at_large_scores_agree_with_the_reference() {
    let mut random = Random::new(5);
    let mut case = Case::new(&mut random, shape((2, 1, 32, 32)), Element::F32, &[100]);
    let queries = case.shape.heads * case.shape.head_dim;
    for row in case.qkv.chunks_mut(Case::width(case.shape)) {
        row[..queries].iter_mut().for_each(|x| *x *= 10.0);
    }
    case.check(1e-4);
}

#[test]
fn a_span_has_the_same_bits_alone_and_packed_on_any_number_of_threads() {
    let mut random = Random::new(6);
    let case = Case::new(&mut random, shape((4, 2, 40, 20)), Element::Bf16, &[97, 150, 1, 64, 200]);
    let (width, heads) = (Case::width(case.shape), case.shape.heads);
    for isa in Isa::available() {
        let packed = case.run(&cpu(isa, 1));
        for threads in [2, 3, 5] {
            let got = case.run(&cpu(isa, threads));
            assert!(got.dqkv == packed.dqkv && got.lse == packed.lse, "{isa} on {threads} threads");
        }
        for span in case.spans() {
            let alone = case.alone(&span).run(&cpu(isa, 2));
            assert!(alone.dqkv == packed.dqkv[span.start * width..span.end * width], "{isa} {span:?} alone");
            assert!(alone.lse == packed.lse[span.start * heads..span.end * heads], "{isa} {span:?} alone");
        }
    }
}

#[test]
fn nothing_of_one_span_reaches_another() {
    let mut random = Random::new(7);
    let case = Case::new(&mut random, shape((4, 2, 24, 8)), Element::F32, &[97, 70, 64, 5]);
    let width = Case::width(case.shape);
    for isa in Isa::available() {
        let clean = case.run(&cpu(isa, 1));
        for spoilt in case.spans() {
            let mut case = case.clone();
            case.qkv[spoilt.start * width..spoilt.end * width].fill(f32::NAN);
            let got = case.run(&cpu(isa, 1));
            for span in case.spans().into_iter().filter(|span| *span != spoilt) {
                let values = span.start * width..span.end * width;
                assert!(got.dqkv[values.clone()] == clean.dqkv[values], "{isa}: {spoilt:?} reaches {span:?}");
            }
        }
    }
}

#[test]
fn scratch_used_before_gives_the_same_bits_as_fresh_scratch() {
    let mut random = Random::new(8);
    let cpu = cpu(Isa::detect(), 2);
    let shape = shape((4, 2, 24, 8));
    let mut scratch = BackwardScratch::new(&cpu, shape, 200, 2);
    for (lengths, poison) in [(vec![130, 70], true), (vec![5], false), (vec![65, 3], false)] {
        let mut case = Case::new(&mut random, shape, Element::F32, &lengths);
        if poison {
            case.qkv.fill(f32::NAN);
        }
        let rows = lengths.iter().sum::<usize>();
        let angles = case.angles(&cpu);
        let [out, lse] = [shape.head_dim, 1].map(|each| random.normal(rows * shape.heads * each));
        let forward =
            Forward { qkv: &case.qkv, angles: &angles, element: Element::F32, out: &out, lse: &lse };
        let mut fresh = BackwardScratch::new(&cpu, shape, rows, lengths.len());
        let [used, fresh] = [&mut scratch, &mut fresh].map(|scratch| {
            let mut dqkv = vec![0.0; case.qkv.len()];
            let spans = case.spans().into_iter();
            softmax_attention_backward(&cpu, shape, forward, spans, &case.dout, &mut dqkv, scratch);
            dqkv
        });
        assert!(poison || used == fresh, "{lengths:?}");
        assert_eq!(poison, fresh.iter().any(|x| x.is_nan()), "{lengths:?}");
    }
}
