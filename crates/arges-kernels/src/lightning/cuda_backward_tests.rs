use std::sync::Arc;

use super::cuda::*;
use super::*;
use crate::device::cuda::{Activations, Buffer, Cuda};
use crate::matmul::Element;
use crate::testing::{Random, assert_close, bf16_round, gpu, widen};

/// Slopes of the first and the last layer of a model of 80, 4 heads, and a head of a 64-head model, which forgets
/// fastest.
const SLOPES: [f64; 4] = [0.917, 0.0625 * 1.00001, 0.015625 * 1.00001, 0.00390625e-5];

/// Columns after the heads', which stay as they are.
const REST: usize = 8;
const UNTOUCHED: f32 = 7.0;

/// What kernels are compiled for: precision, heads, and whether with Hopper's warpgroup products where that matters.
#[derive(Debug, Clone, Copy)]
struct Kind {
    element: Element,
    shape: Shape,
    wgmma: bool,
}

/// Widths for the tensor cores and for neither.
fn kinds(cuda: &Cuda) -> Vec<Kind> {
    let of = |element, (heads, head_dim), wgmma| Kind { element, shape: Shape { heads, head_dim }, wgmma };
    let wgmma = cuda.facts().architecture.has_wgmma();
    let f32_shapes = [(1, 7), (3, 24), (2, 40), (2, 64), (4, 128), (1, 256)];
    let mut kinds: Vec<Kind> = f32_shapes.into_iter().map(|shape| of(Element::F32, shape, wgmma)).collect();
    let shapes = [(3, 40), (4, 64), (4, 128), (1, 256)];
    kinds.extend(shapes.into_iter().map(|shape| of(Element::Bf16, shape, wgmma)));
    if wgmma {
        kinds.extend([(4, 64), (4, 128)].map(|shape| of(Element::Bf16, shape, false)));
    }
    kinds
}

/// A packed batch.
struct Case {
    cuda: Arc<Cuda>,
    kernels: LightningBackwardCuda,
    kind: Kind,
    lengths: Vec<usize>,
    /// Before SiLU, `[rows, stride]`.
    before: Vec<f32>,
    /// `[rows, heads * head_dim]`.
    dout: Vec<f32>,
}

impl Case {
    fn new(cuda: &Arc<Cuda>, random: &mut Random, kind: Kind, lengths: &[usize]) -> Self {
        let Kind { element, shape, wgmma } = kind;
        let rows: usize = lengths.iter().sum();
        let mut values = |len: usize| {
            let values = random.normal(len);
            if element == Element::Bf16 { bf16_round(&values) } else { values }
        };
        Self {
            cuda: Arc::clone(cuda),
            kernels: LightningBackwardCuda::with_wgmma(cuda, shape, element, wgmma).unwrap(),
            kind,
            lengths: lengths.to_vec(),
            before: values(rows * Self::stride(shape)),
            dout: values(rows * shape.heads * shape.head_dim),
        }
    }

    fn stride(shape: Shape) -> usize {
        (3 * shape.heads * shape.head_dim).next_multiple_of(8) + REST
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

    /// The activated rows, and the gradients by them or by the rows before SiLU, over rubbish.
    fn run(&self, spans: &[[i32; 4]], through_silu: bool) -> [Vec<f32>; 2] {
        self.run_in(usize::MAX, spans, through_silu)
    }

    /// The same in so many blocks at most.
    fn run_in(&self, blocks: usize, spans: &[[i32; 4]], through_silu: bool) -> [Vec<f32>; 2] {
        let shape = self.kind.shape;
        let (stride, rows) = (Self::stride(shape), self.lengths.iter().sum());
        let before = self.activations(&self.before);
        let mut projected = self.activations(&vec![f32::NAN; self.before.len()]);
        self.kernels.activate(&before, stride, rows, &mut projected).unwrap();
        let mut dprojected = self.activations(&vec![UNTOUCHED; self.before.len()]);
        let decays = DeviceDecays::new(&self.cuda, &Decays::new(&SLOPES[..shape.heads])).unwrap();
        // The first span of the buffer is not of the launch.
        let all: Vec<[i32; 4]> = std::iter::once([0, 1, 0, 0]).chain(spans.iter().copied()).collect();
        let inputs = BackwardInputs {
            decays: &decays,
            projected: &projected,
            before_silu: through_silu.then_some(&before),
            stride,
            spans: &Buffer::from_slice(&self.cuda, &all).unwrap(),
            first_span: 1,
            span_count: spans.len(),
            dout: &self.activations(&self.dout),
        };
        self.kernels.gradients_in(blocks, &inputs, &mut dprojected).unwrap();
        [projected.to_f32().unwrap(), dprojected.to_f32().unwrap()]
    }

    /// `part` of a head in the rows of a span.
    fn head(&self, x: &[f32], span: [i32; 4], head: usize, part: usize) -> Vec<f32> {
        let (d, stride) = (self.kind.shape.head_dim, Self::stride(self.kind.shape));
        let rows = span[0] as usize..(span[0] + span[1]) as usize;
        rows.flat_map(|row| &x[row * stride + (head * 3 + part) * d..][..d]).copied().collect()
    }

    fn check(&self) {
        let Shape { heads, head_dim: d } = self.kind.shape;
        let bf16 = self.kind.element == Element::Bf16;
        let [projected, gradients] = self.run(&self.spans(), false);
        let [_, through_silu] = self.run(&self.spans(), true);
        for span in self.spans().into_iter().filter(|span| span[1] > 0) {
            for (head, slope) in SLOPES.into_iter().enumerate().take(heads) {
                let part = |part| widen(&self.head(&projected, span, head, part));
                let rows = span[0] as usize..(span[0] + span[1]) as usize;
                let dout: Vec<f64> =
                    rows.flat_map(|row| widen(&self.dout[(row * heads + head) * d..][..d])).collect();
                let [q, k, v] = [0, 1, 2].map(part);
                let expected = reference::lightning_attention_backward(&q, &k, &v, d, slope, &dout);
                for (part, expected) in expected.iter().enumerate() {
                    let what = format!("{:?} {span:?} head {head} part {part}", self.kind);
                    // Of few rows all sums may be small beside their terms.
                    let few = span[1] < 16;
                    let tolerance = if bf16 { 2e-2 } else { 2e-5 } * if few { 10.0 } else { 1.0 };
                    let got = self.head(&gradients, span, head, part);
                    assert_close(&got, expected, tolerance, &what);
                    assert_size(
                        &got,
                        expected,
                        if bf16 { 6e-3 } else { 5e-6 } * if few { 10.0 } else { 1.0 },
                        &what,
                    );
                    let before = widen(&self.head(&self.before, span, head, part));
                    let expected: Vec<f64> = expected
                        .iter()
                        .zip(&before)
                        .map(|(gradient, x)| gradient * reference::silu_derivative(*x))
                        .collect();
                    let got = self.head(&through_silu, span, head, part);
                    assert_close(&got, &expected, 1.5 * tolerance, &format!("{what} through SiLU"));
                }
            }
        }
        for rows in [&projected, &gradients, &through_silu] {
            for row in rows.chunks(Self::stride(self.kind.shape)) {
                let rest = &row[3 * heads * d..];
                assert!(rest.iter().all(|x| x.is_nan() || *x == UNTOUCHED), "values beside the heads");
            }
        }
    }
}

/// Asserts that the difference is small beside the whole.
fn assert_size(got: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    let difference: f64 = got.iter().zip(expected).map(|(x, y)| (f64::from(*x) - y).powi(2)).sum();
    let error = (difference / expected.iter().map(|x| x * x).sum::<f64>()).sqrt();
    println!("{what}: relative error {error:.2e}");
    assert!(error <= tolerance, "{what}: relative error {error:e}");
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn gradients_agree_with_the_reference_over_odd_shapes() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(1);
    for kind in kinds(&cuda) {
        for tokens in [1, 63, 64, 65, 700] {
            Case::new(&cuda, &mut random, kind, &[tokens]).check();
        }
    }
}

#[test]
fn gradients_of_a_ragged_batch_agree_and_have_the_same_bits_again_and_alone() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(2);
    for kind in kinds(&cuda) {
        let case = Case::new(&cuda, &mut random, kind, &[150, 1, 0, 64, 257, 2]);
        case.check();
        let stride = Case::stride(kind.shape);
        let [_, packed] = case.run(&case.spans(), true);
        assert!(bits(&packed) == bits(&case.run(&case.spans(), true)[1]), "{kind:?}: not the same twice");
        for span in case.spans() {
            let [_, alone] = case.run(&[span], false);
            let [_, all] = case.run(&case.spans(), false);
            let rows = span[0] as usize * stride..(span[0] + span[1]) as usize * stride;
            assert!(bits(&alone[rows.clone()]) == bits(&all[rows.clone()]), "{kind:?} {span:?} alone");
            let outside = alone[..rows.start].iter().chain(&alone[rows.end..]);
            assert!(outside.into_iter().all(|x| *x == UNTOUCHED), "{kind:?} {span:?} wrote beside it");
        }
    }
}

#[test]
fn gradients_have_the_same_bits_in_any_number_of_blocks() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(5);
    for kind in kinds(&cuda).into_iter().filter(|kind| kind.element == Element::Bf16) {
        // Cut at many places.
        let case = Case::new(&cuda, &mut random, kind, &[[700, 130].as_slice(), &[3; 40]].concat());
        let [_, whole] = case.run_in(1, &case.spans(), true);
        for blocks in [7, 13, 30, 50, 100, 131, usize::MAX] {
            for _ in 0..2 {
                let [_, got] = case.run_in(blocks, &case.spans(), true);
                assert!(bits(&got) == bits(&whole), "{kind:?}: {blocks} blocks");
            }
        }
        // One span and much padding, for which there are blocks too: they hand on the state after each chunk.
        let long = [&case.spans()[..1], &[[0, 1, 0, -1]; 60]].concat();
        let [_, whole] = case.run_in(1, &long, false);
        for blocks in [40, usize::MAX] {
            let [_, got] = case.run_in(blocks, &long, false);
            assert!(bits(&got) == bits(&whole), "{kind:?}: {blocks} blocks for one span");
        }
    }
}

#[test]
fn nothing_of_one_span_reaches_another() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(3);
    for kind in kinds(&cuda) {
        let mut case = Case::new(&cuda, &mut random, kind, &[97, 70, 64]);
        let stride = Case::stride(kind.shape);
        let [_, clean] = case.run(&case.spans(), false);
        case.before[97 * stride..167 * stride].fill(f32::NAN);
        let [_, got] = case.run(&case.spans(), false);
        let (before, after) = (0..97 * stride, 167 * stride..231 * stride);
        assert!(bits(&got[before.clone()]) == bits(&clean[before]), "{kind:?}: the span before");
        assert!(bits(&got[after.clone()]) == bits(&clean[after]), "{kind:?}: the span after");
    }
}

#[test]
fn spans_that_are_no_whole_sequences_or_reach_beyond_the_rows_are_left_out() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(4);
    for kind in kinds(&cuda) {
        let case = Case::new(&cuda, &mut random, kind, &[3]);
        let untouched =
            [[0, 1, 0, -1], [1, 0, 0, 1], [3, 1, 0, 1], [-1, 1, 0, 1], [2, 1, 5, 1], [1, 3, 0, 0]];
        let [_, got] = case.run(&untouched, false);
        assert!(got.iter().all(|x| *x == UNTOUCHED), "{kind:?}");
    }
}
