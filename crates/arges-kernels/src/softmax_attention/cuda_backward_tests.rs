use std::sync::Arc;

use super::cuda::*;
use super::*;
use crate::device::cuda::{Activations, Buffer, Cuda};
use crate::matmul::Element;
use crate::rope::cuda::DeviceAngles;
use crate::rope::{self, Frequencies};
use crate::testing::{CARDS, Random, assert_close, assert_compiles, bf16_round, gpu, widen};

const THETA: f64 = 1e4;
/// Values behind the heads' in each row, which stay as they are.
const REST: usize = 8;
const UNTOUCHED: f32 = 7.0;

fn shape(heads: usize, kv_heads: usize, head_dim: usize, rotary_dim: usize) -> Shape {
    Shape { heads, kv_heads, head_dim, rotary_dim }
}

/// What kernels are compiled for: heads, number format, and whether with Hopper's own products where that matters.
#[derive(Debug, Clone, Copy)]
struct Kind {
    shape: Shape,
    element: Element,
    wgmma: bool,
}

fn kinds(cuda: &Cuda) -> Vec<Kind> {
    let wgmma = cuda.facts().architecture.has_wgmma();
    let of = |element, shape, wgmma| Kind { shape, element, wgmma };
    let mut kinds: Vec<Kind> =
        [shape(3, 1, 20, 8), shape(2, 2, 64, 0), shape(4, 1, 128, 64), shape(2, 1, 256, 256)]
            .map(|shape| of(Element::F32, shape, wgmma))
            .to_vec();
    kinds.push(of(Element::Bf16, shape(3, 1, 40, 10), wgmma));
    for shape in [
        shape(8, 1, 128, 64),
        shape(4, 2, 64, 32),
        shape(2, 2, 128, 128),
        shape(6, 2, 64, 0),
        shape(6, 1, 128, 32),
        shape(16, 1, 64, 16),
    ] {
        kinds.push(of(Element::Bf16, shape, false));
        if wgmma {
            kinds.push(of(Element::Bf16, shape, true));
        }
    }
    kinds
}

/// A packed batch.
struct Case {
    cuda: Arc<Cuda>,
    kind: Kind,
    lengths: Vec<usize>,
    /// How many blocks share the work at most, where it is shared.
    blocks: usize,
    /// `[rows, stride]`.
    projected: Vec<f32>,
    /// `[rows, heads * head_dim]`.
    dout: Vec<f32>,
}

struct Outcome {
    lse: Vec<f32>,
    gradients: Vec<f32>,
}

impl Case {
    fn new(cuda: &Arc<Cuda>, random: &mut Random, kind: Kind, lengths: &[usize]) -> Self {
        let rows: usize = lengths.iter().sum();
        let mut values = |len: usize| {
            let values = random.normal(len);
            if kind.element == Element::Bf16 { bf16_round(&values) } else { values }
        };
        Self {
            cuda: Arc::clone(cuda),
            kind,
            lengths: lengths.to_vec(),
            blocks: usize::MAX,
            projected: values(rows * Self::stride(kind.shape)),
            dout: values(rows * kind.shape.heads * kind.shape.head_dim),
        }
    }

    fn stride(shape: Shape) -> usize {
        ((shape.heads + 2 * shape.kv_heads) * shape.head_dim).next_multiple_of(8) + REST
    }

    fn rows(&self) -> usize {
        self.lengths.iter().sum()
    }

    fn spans(&self) -> Vec<[i32; 4]> {
        let mut first = 0;
        let span = |(slot, rows): (usize, &usize)| {
            first += rows;
            [(first - rows) as i32, *rows as i32, 0, slot as i32]
        };
        self.lengths.iter().enumerate().map(span).collect()
    }

    fn activations(&self, values: &[f32]) -> Activations {
        Activations::from_f32(&self.cuda, self.kind.element, values).unwrap()
    }

    /// Forward of all spans and backward of those, over pages of NaN and into rubbish.
    fn run(&self, spans: &[[i32; 4]]) -> Outcome {
        let Kind { shape, element, wgmma } = self.kind;
        let (cuda, rows, stride) = (&self.cuda, self.rows(), Self::stride(shape));
        let table_stride = self.lengths.iter().map(|n| n.div_ceil(PAGE)).max().unwrap().max(1);
        let page_count = self.lengths.len() * table_stride;
        let tables: Vec<i32> = (0..page_count as i32).rev().collect();
        let tables = Buffer::from_slice(cuda, &tables).unwrap();
        let mut pages = DevicePages::new(cuda, shape, page_count, element).unwrap();
        let len = pages.data().len();
        *pages.data_mut() = Activations::from_f32(cuda, element, &vec![f32::NAN; len]).unwrap();
        // The first span of the buffer is not of the launch.
        let prepare = |spans: &[[i32; 4]]| {
            let all: Vec<[i32; 4]> = std::iter::once([0, 1, 0, 0]).chain(spans.iter().copied()).collect();
            Buffer::from_slice(cuda, &all).unwrap()
        };
        let all = prepare(&self.spans());
        let inputs = Inputs {
            rows,
            spans: &all,
            first_span: 1,
            span_count: self.lengths.len(),
            tables: &tables,
            table_stride,
        };
        let forward = SoftmaxCuda::with(cuda, shape, element, wgmma).unwrap();
        let mut angles = DeviceAngles::new(cuda, &Frequencies::new(THETA, shape.rotary_dim), rows).unwrap();
        angles.fill(&all, 1, inputs.span_count, rows).unwrap();
        let mut projected = self.activations(&self.projected);
        let mut out = self.activations(&vec![f32::NAN; self.dout.len()]);
        let mut lse = Buffer::from_slice(cuda, &vec![f32::NAN; rows * shape.heads]).unwrap();
        forward.append(&mut projected, stride, &inputs, &angles, &mut pages).unwrap();
        forward.prefill_for_training(&projected, stride, &inputs, &pages, &mut out, &mut lse).unwrap();

        let mut backward = SoftmaxBackwardCuda::with(cuda, shape, element, rows, wgmma).unwrap();
        backward.limit_blocks(self.blocks);
        let mut dprojected = self.activations(&vec![UNTOUCHED; self.projected.len()]);
        let spans_of_backward = prepare(spans);
        let x = BackwardInputs {
            projected: &projected,
            stride,
            inputs: Inputs { spans: &spans_of_backward, span_count: spans.len(), ..inputs },
            angles: &angles,
            pages: &pages,
            out: &out,
            lse: &lse,
            dout: &self.activations(&self.dout),
        };
        backward.gradients(&x, &mut dprojected).unwrap();
        Outcome { lse: lse.to_vec().unwrap(), gradients: dprojected.to_f32().unwrap() }
    }

    /// A head of the rows of a span, heads counted through queries, keys and values; rotated and rounded as on the
    /// device.
    fn head(&self, span: [i32; 4], head: usize) -> Vec<f64> {
        let Shape { heads, kv_heads, head_dim: d, rotary_dim } = self.kind.shape;
        let row = |row: usize| {
            let x =
                &self.projected[(span[0] as usize + row) * Self::stride(self.kind.shape) + head * d..][..d];
            if head >= heads + kv_heads {
                return widen(x);
            }
            let x = rope::reference::rotate(&widen(x), row, THETA, rotary_dim);
            match self.kind.element {
                Element::F32 => x,
                Element::Bf16 => widen(&bf16_round(&x.iter().map(|x| *x as f32).collect::<Vec<_>>())),
            }
        };
        (0..span[1] as usize).flat_map(row).collect()
    }

    /// Gradients of a span, `[rows, heads + 2 kv_heads, head_dim]`, and its logarithms.
    fn expected(&self, span: [i32; 4]) -> (Vec<f64>, Vec<f64>) {
        let Shape { heads, kv_heads, head_dim: d, rotary_dim } = self.kind.shape;
        let (rows, width) = (span[1] as usize, (heads + 2 * kv_heads) * d);
        let mut gradients = vec![0.0; rows * width];
        let mut sums = vec![0.0; rows * heads];
        let mut add = |head: usize, x: &[f64], rotated: bool| {
            for (row, x) in x.chunks(d).enumerate() {
                let back = if rotated {
                    rope::reference::rotate_back(x, row, THETA, rotary_dim)
                } else {
                    x.to_vec()
                };
                let target = &mut gradients[row * width + head * d..][..d];
                target.iter_mut().zip(back).for_each(|(target, x)| *target += x);
            }
        };
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            let (q, k) = (self.head(span, head), self.head(span, heads + kv_head));
            let v = self.head(span, heads + kv_heads + kv_head);
            let at = |row| ((span[0] as usize + row) * heads + head) * d;
            let dout: Vec<f64> = (0..rows).flat_map(|row| widen(&self.dout[at(row)..][..d])).collect();
            let [dq, dk, dv] = reference::softmax_attention_backward(&q, &k, &v, d, &dout);
            add(head, &dq, true);
            add(heads + kv_head, &dk, true);
            add(heads + kv_heads + kv_head, &dv, false);
            for (row, sum) in reference::log_sum_exp(&q, &k, d).into_iter().enumerate() {
                sums[row * heads + head] = sum;
            }
        }
        (gradients, sums)
    }

    fn check(&self) {
        let Shape { heads, kv_heads, head_dim: d, .. } = self.kind.shape;
        let bf16 = self.kind.element == Element::Bf16;
        let got = self.run(&self.spans());
        let (stride, width) = (Self::stride(self.kind.shape), (heads + 2 * kv_heads) * d);
        for span in self.spans().into_iter().filter(|span| span[1] > 0) {
            let what = format!("{:?} {span:?}", self.kind);
            let rows = span[0] as usize..(span[0] + span[1]) as usize;
            let (gradients, sums) = self.expected(span);
            // A rotated query that lies between two bf16 values may round to the other one on the device.
            let tolerance = if bf16 { 2e-3 } else { 3e-5 };
            let lse = &got.lse[rows.start * heads..rows.end * heads];
            assert_close(lse, &sums, tolerance, &format!("{what}: logarithms"));
            for (name, part) in [
                ("queries", 0..heads * d),
                ("keys", heads * d..(heads + kv_heads) * d),
                ("values", (heads + kv_heads) * d..width),
            ] {
                let expected: Vec<f64> =
                    gradients.chunks(width).flat_map(|row| &row[part.clone()]).copied().collect();
                let got: Vec<f32> = rows
                    .clone()
                    .flat_map(|row| &got.gradients[row * stride..][part.clone()])
                    .copied()
                    .collect();
                let what = format!("{what}: {name}");
                assert_size(&got, &expected, if bf16 { 1e-2 } else { 3e-5 }, &what);
                // Of a query's one key, weights have no gradient but what rounding left; and of few keys, that the
                // output was rounded shows in the gradients of the weights.
                if span[1] > 1 || name == "values" {
                    assert_close(&got, &expected, if bf16 { 8e-2 } else { 2e-4 }, &what);
                }
            }
        }
        for row in got.gradients.chunks(stride) {
            assert!(row[width..].iter().all(|x| *x == UNTOUCHED), "{:?}: values beside the heads", self.kind);
        }
    }
}

/// Asserts that the difference is small beside the whole, or beside gradients of unit size.
fn assert_size(got: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    let difference: f64 = got.iter().zip(expected).map(|(x, y)| (f64::from(*x) - y).powi(2)).sum();
    let size = expected.iter().map(|x| x * x).sum::<f64>();
    let error = (difference / size.max(0.1 * expected.len() as f64)).sqrt();
    println!("{what}: relative error {error:.2e}");
    assert!(error <= tolerance, "{what}: relative error {error:e}");
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn sources_of_gradients_compile_for_every_architecture() {
    for (shape, element) in [
        (shape(3, 1, 20, 8), Element::F32),
        (shape(16, 2, 128, 64), Element::Bf16),
        (shape(3, 1, 64, 0), Element::Bf16),
        (shape(65, 1, 64, 16), Element::Bf16),
    ] {
        for (wgmma, cards) in [(false, &CARDS[..]), (true, &CARDS[1..2])] {
            for (source, defines) in cuda::sources(shape, element, wgmma) {
                assert_compiles(source, &defines, cards);
            }
        }
    }
}

#[test]
fn gradients_agree_with_the_reference_over_odd_shapes() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(1);
    for kind in kinds(&cuda) {
        for tokens in [1, 2, 63, 64, 65, 200, 331] {
            Case::new(&cuda, &mut random, kind, &[tokens]).check();
        }
    }
}

#[test]
fn gradients_of_a_ragged_batch_agree_and_have_the_same_bits_again_and_alone() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(2);
    for kind in kinds(&cuda) {
        let mut case = Case::new(&cuda, &mut random, kind, &[150, 1, 0, 64, 257, 2]);
        case.check();
        let stride = Case::stride(kind.shape);
        let packed = case.run(&case.spans()).gradients;
        assert!(bits(&packed) == bits(&case.run(&case.spans()).gradients), "{kind:?}: not the same twice");
        for span in case.spans() {
            let alone = case.run(&[span]).gradients;
            let rows = span[0] as usize * stride..(span[0] + span[1]) as usize * stride;
            assert!(bits(&alone[rows.clone()]) == bits(&packed[rows.clone()]), "{kind:?} {span:?} alone");
            let outside = alone[..rows.start].iter().chain(&alone[rows.end..]);
            assert!(outside.into_iter().all(|x| *x == UNTOUCHED), "{kind:?} {span:?} wrote beside it");
        }
        for blocks in [1, 3] {
            case.blocks = blocks;
            assert!(bits(&packed) == bits(&case.run(&case.spans()).gradients), "{kind:?}: {blocks} blocks");
        }
    }
}

#[test]
fn gradients_of_more_spans_than_a_warp_looks_at_agree() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(5);
    let lengths: Vec<usize> = (0..70).map(|i| i * 7 % 11).collect();
    for kind in kinds(&cuda) {
        let mut case = Case::new(&cuda, &mut random, kind, &lengths);
        case.blocks = 8;
        case.check();
    }
}

#[test]
fn heads_too_many_for_a_tile_have_gradients() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(6);
    let kind = Kind {
        shape: shape(65, 1, 64, 16),
        element: Element::Bf16,
        wgmma: cuda.facts().architecture.has_wgmma(),
    };
    Case::new(&cuda, &mut random, kind, &[20, 3]).check();
}

#[test]
fn nothing_of_one_span_reaches_another() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(3);
    for kind in kinds(&cuda) {
        let mut case = Case::new(&cuda, &mut random, kind, &[97, 70, 64]);
        let stride = Case::stride(kind.shape);
        let clean = case.run(&case.spans()).gradients;
        case.projected[97 * stride..167 * stride].fill(f32::NAN);
        let got = case.run(&case.spans()).gradients;
        for rows in [0..97 * stride, 167 * stride..231 * stride] {
            assert!(bits(&got[rows.clone()]) == bits(&clean[rows]), "{kind:?}");
        }
    }
}

#[test]
fn spans_that_are_no_whole_sequences_or_reach_beyond_the_rows_are_left_out() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(4);
    for kind in kinds(&cuda) {
        let case = Case::new(&cuda, &mut random, kind, &[3]);
        let untouched =
            [[0, 1, 0, -1], [1, 0, 0, 0], [3, 1, 0, 0], [-1, 1, 0, 0], [2, 1, 5, 0], [1, 1, 0, 1]];
        assert!(case.run(&untouched).gradients.iter().all(|x| *x == UNTOUCHED), "{kind:?}");
    }
}
