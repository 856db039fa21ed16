use std::sync::Arc;

use super::cuda::*;
use super::*;
use crate::device::cuda::{Activations, Buffer, Cuda};
use crate::matmul::Element;
use crate::testing::{CARDS, Random, assert_close, assert_compiles, bf16_round, gpu, widen};

/// Slopes of the first and the last layer of a model of 80, 4 heads.
const SLOPES: [f64; 4] = [0.25 * 1.00001, 0.0625 * 1.00001, 0.015625 * 1.00001, 0.00390625e-5];

/// Columns after the heads', of which nothing may be read.
const REST: usize = 8;

/// Widths for the tensor cores, for single rows, and for neither.
const F32: [(usize, usize); 6] = [(1, 7), (3, 24), (2, 40), (2, 64), (4, 128), (1, 256)];
const BF16: [(usize, usize); 5] = [(1, 7), (3, 40), (4, 64), (4, 128), (2, 256)];

/// What kernels are compiled for: precision, heads, and whether with Hopper's warpgroup products where that matters.
#[derive(Debug, Clone, Copy)]
struct Kind {
    element: Element,
    shape: Shape,
    wgmma: bool,
}

fn kinds(cuda: &Cuda) -> Vec<Kind> {
    let of = |element, (heads, head_dim), wgmma| Kind { element, shape: Shape { heads, head_dim }, wgmma };
    let wgmma = cuda.facts().architecture.has_wgmma();
    let mut kinds: Vec<Kind> = F32.into_iter().map(|shape| of(Element::F32, shape, wgmma)).collect();
    kinds.extend(BF16.into_iter().map(|shape| of(Element::Bf16, shape, wgmma)));
    if wgmma {
        kinds.extend([(4, 64), (4, 128)].map(|shape| of(Element::Bf16, shape, false)));
    }
    kinds
}

/// How rows are computed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Prefill,
    DecodeWide,
    DecodeNarrow,
}

struct Run {
    cuda: Arc<Cuda>,
    kernels: LightningCuda,
    kind: Kind,
    shape: Shape,
    element: Element,
    decays: Decays,
    on_device: DeviceDecays,
    cache: DeviceCache,
}

impl Run {
    fn new(cuda: &Arc<Cuda>, kind: Kind, slots: usize) -> Self {
        let Kind { element, shape, wgmma } = kind;
        let decays = Decays::new(&SLOPES[..shape.heads]);
        let mut cache = DeviceCache::new(cuda, shape, element, slots).unwrap();
        // Nothing of it may be read before it is written.
        let (states, tails) = cache.parts();
        let (states_len, tails_len) = (states.len(), tails.len());
        states.write(0, &vec![f32::NAN; states_len]).unwrap();
        *tails = Activations::from_f32(cuda, element, &vec![f32::NAN; tails_len]).unwrap();
        Self {
            cuda: Arc::clone(cuda),
            kernels: LightningCuda::with_wgmma(cuda, shape, element, wgmma).unwrap(),
            kind,
            shape,
            element,
            on_device: DeviceDecays::new(cuda, &decays).unwrap(),
            decays,
            cache,
        }
    }

    fn width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    /// Values that the precision can represent, `[tokens, heads, 3, head_dim]`.
    fn random(&self, random: &mut Random, tokens: usize) -> Vec<f32> {
        let values = random.normal(tokens * 3 * self.width());
        if self.element == Element::Bf16 { bf16_round(&values) } else { values }
    }

    /// Outputs of all rows; NaN where no span wrote any.
    fn step(&mut self, way: Way, qkv: &[f32], spans: &[[i32; 4]]) -> Vec<f32> {
        let width = self.width();
        let stride = (3 * width).next_multiple_of(8) + REST;
        let rows: Vec<f32> = qkv
            .chunks(3 * width)
            .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(f32::NAN, stride - 3 * width)))
            .collect();
        let projected = Activations::from_f32(&self.cuda, self.element, &rows).unwrap();
        let nothing = vec![f32::NAN; qkv.len() / 3];
        let mut out = Activations::from_f32(&self.cuda, self.element, &nothing).unwrap();
        // The first span of the buffer is not of the launch.
        let all: Vec<[i32; 4]> = std::iter::once([0, 1, 0, 0]).chain(spans.iter().copied()).collect();
        let spans = Buffer::from_slice(&self.cuda, &all).unwrap();
        let inputs = Inputs {
            decays: &self.on_device,
            projected: &projected,
            stride,
            spans: &spans,
            first_span: 1,
            span_count: all.len() - 1,
        };
        match way {
            Way::Prefill => self.kernels.prefill(&inputs, &mut self.cache, &mut out),
            Way::DecodeWide => self.kernels.decode_in(false, &inputs, &mut self.cache, &mut out),
            Way::DecodeNarrow => self.kernels.decode_in(true, &inputs, &mut self.cache, &mut out),
        }
        .unwrap();
        out.to_f32().unwrap()
    }

    fn assert_output(&self, got: &[f32], expected: &[f64], what: &str) {
        let what = format!("{:?} {what}", self.kind);
        // In bf16 the output and the scores of the chunk are rounded.
        let (each, whole) = if self.element == Element::F32 { (2e-5, 5e-6) } else { (2e-2, 4e-3) };
        let difference: f64 = got.iter().zip(expected).map(|(x, y)| (f64::from(*x) - y).powi(2)).sum();
        let size: f64 = expected.iter().map(|x| x * x).sum();
        let error = (difference / size).sqrt();
        println!("{what}: relative error {error:.2e}");
        assert!(error <= whole, "{what}: relative error {error:e}");
        assert_close(got, expected, each, &what);
    }

    fn assert_state(&self, slot: usize, tokens: usize, expected: &[Vec<f64>]) {
        let d = self.shape.head_dim;
        let state = self.cache.materialize_state(&self.decays, slot, tokens).unwrap();
        for (head, (got, expected)) in state.chunks(d * d).zip(expected).enumerate() {
            let what = format!("{:?}: state of head {head} at {tokens}", self.kind);
            assert_close(got, expected, 5e-5, &what);
        }
    }
}

/// The recurrence in f64: outputs and the states of all heads.
fn expected(shape: Shape, qkv: &[f32]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let Shape { heads, head_dim } = shape;
    let tokens = qkv.len() / (heads * 3 * head_dim);
    let mut out = vec![0.0; tokens * heads * head_dim];
    let mut states = Vec::new();
    for head in 0..heads {
        let part = |part: usize| -> Vec<f64> {
            (0..tokens)
                .flat_map(|t| widen(&qkv[((t * heads + head) * 3 + part) * head_dim..][..head_dim]))
                .collect()
        };
        let mut state = vec![0.0; head_dim * head_dim];
        let o =
            reference::lightning_attention(&part(0), &part(1), &part(2), head_dim, SLOPES[head], &mut state);
        for (t, o) in o.chunks(head_dim).enumerate() {
            out[(t * heads + head) * head_dim..][..head_dim].copy_from_slice(o);
        }
        states.push(state);
    }
    (out, states)
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn sources_compile_for_every_architecture() {
    for (element, head_dim) in
        [(Element::F32, 40), (Element::F32, 128), (Element::Bf16, 64), (Element::Bf16, 128)]
    {
        for (wgmma, cards) in [(false, &CARDS[..]), (true, &CARDS[1..2])] {
            for (source, defines) in cuda::sources(head_dim, element, wgmma) {
                assert_compiles(source, &defines, cards);
            }
        }
    }
}

#[test]
fn prefill_agrees_with_the_recurrence_past_several_chunks_at_unit_scale() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(1);
    for kind in kinds(&cuda) {
        let shape = kind.shape;
        for tokens in [1, 63, 64, 65, 1000] {
            let mut run = Run::new(&cuda, kind, 2);
            let qkv = run.random(&mut random, tokens);
            let got = run.step(Way::Prefill, &qkv, &[[0, tokens as i32, 0, 1]]);
            let (out, states) = expected(shape, &qkv);
            run.assert_output(&got, &out, &format!("prefill of {tokens}"));
            run.assert_state(1, tokens, &states);
        }
    }
}

#[test]
fn any_split_of_a_ragged_batch_gives_the_same_bits() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(2);
    let lengths = [150, 1, 64, 257];
    for kind in kinds(&cuda) {
        let shape = kind.shape;
        let width = 3 * shape.heads * shape.head_dim;
        let maker = Run::new(&cuda, kind, 1);
        let inputs: Vec<Vec<f32>> = lengths.iter().map(|n| maker.random(&mut random, *n)).collect();
        let alone: Vec<Vec<f32>> = inputs
            .iter()
            .map(|qkv| {
                let span = [0, (qkv.len() / width) as i32, 0, 0];
                Run::new(&cuda, kind, 1).step(Way::Prefill, qkv, &[span])
            })
            .collect();
        for piece in [1, 7, 64, 100] {
            let mut run = Run::new(&cuda, kind, lengths.len());
            let mut together = vec![Vec::new(); lengths.len()];
            for start in (0..lengths[3]).step_by(piece) {
                let (mut qkv, mut spans) = (Vec::new(), vec![[0, 1, 0, -1]]);
                for (slot, input) in inputs.iter().enumerate() {
                    let rows = (lengths[slot].max(start) - start).min(piece);
                    let first = qkv.len() / width;
                    spans.push([first as i32, rows as i32, start as i32, slot as i32]);
                    qkv.extend_from_slice(&input[start.min(lengths[slot]) * width..][..rows * width]);
                }
                let out = run.step(Way::Prefill, &qkv, &spans);
                for [first, rows, _, slot] in &spans[1..] {
                    together[*slot as usize]
                        .extend_from_slice(&out[*first as usize * width / 3..][..*rows as usize * width / 3]);
                }
            }
            for (slot, (together, alone)) in together.iter().zip(&alone).enumerate() {
                let same = bits(together) == bits(alone);
                assert!(same, "{kind:?} in pieces of {piece}, sequence {slot}");
            }
        }
    }
}

#[test]
fn decode_agrees_with_the_recurrence_from_the_first_token_on_and_after_prefill() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(3);
    // Tokens that prefill takes: none, and ends in the middle, before the end and at the end of a chunk.
    let prompts = [0, 30, 127, 64, 200];
    const STEPS: usize = 70;
    for kind in kinds(&cuda) {
        let shape = kind.shape;
        let width = 3 * shape.heads * shape.head_dim;
        for way in [Way::DecodeWide, Way::DecodeNarrow] {
            let mut run = Run::new(&cuda, kind, prompts.len());
            let inputs: Vec<Vec<f32>> = prompts.iter().map(|n| run.random(&mut random, n + STEPS)).collect();
            let mut outputs = vec![Vec::new(); prompts.len()];
            for (slot, (input, prompt)) in inputs.iter().zip(prompts).enumerate() {
                if prompt > 0 {
                    let spans = [[0, prompt as i32, 0, slot as i32]];
                    outputs[slot] = run.step(Way::Prefill, &input[..prompt * width], &spans);
                }
            }
            for step in 0..STEPS {
                let mut qkv = vec![0.0; width];
                let mut spans = vec![[0, 1, 5, -1]];
                for (slot, (input, prompt)) in inputs.iter().zip(prompts).enumerate() {
                    let position = prompt + step;
                    spans.push([(qkv.len() / width) as i32, 1, position as i32, slot as i32]);
                    qkv.extend_from_slice(&input[position * width..][..width]);
                }
                let out = run.step(way, &qkv, &spans);
                assert!(out[..width / 3].iter().all(|x| x.is_nan()), "padding was written");
                for (output, row) in outputs.iter_mut().zip(out[width / 3..].chunks(width / 3)) {
                    output.extend_from_slice(row);
                }
            }
            for (slot, (input, output)) in inputs.iter().zip(&outputs).enumerate() {
                let (out, states) = expected(shape, input);
                run.assert_output(output, &out, &format!("{way:?} after {}", prompts[slot]));
                run.assert_state(slot, input.len() / width, &states);
            }
        }
    }
}

#[test]
fn spans_without_rows_or_slot_and_spans_beyond_the_end_touch_nothing() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(4);
    for kind in kinds(&cuda) {
        for way in [Way::Prefill, Way::DecodeWide, Way::DecodeNarrow] {
            let mut run = Run::new(&cuda, kind, 2);
            let qkv = run.random(&mut random, 3);
            let untouched =
                [[0, 1, 0, -1], [1, 0, 0, 1], [3, 1, 0, 1], [-1, 1, 0, 1], [1, 1, 0, 2], [2, 1, -1, 1]];
            let out = run.step(way, &qkv, &untouched);
            assert!(out.iter().all(|x| x.is_nan()), "{kind:?} {way:?}");
            let (states, tails) = run.cache.parts();
            assert!(states.to_vec().unwrap().iter().all(|x| x.is_nan()));
            assert!(tails.to_f32().unwrap().iter().all(|x| x.is_nan()));
        }
    }
}
