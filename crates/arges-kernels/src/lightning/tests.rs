use super::*;
use crate::device::cpu::{Cpu, CpuOptions, Isa, Scratch};
use crate::testing::{Random, assert_close, widen};

fn cpus() -> impl Iterator<Item = Cpu> {
    Isa::available().map(|isa| Cpu::new(CpuOptions { isa: Some(isa), threads: Some(2) }).unwrap())
}

/// Slopes of the first and the last layer of a model of 80, 4 heads.
const SLOPES: [f64; 4] = [0.25 * 1.00001, 0.0625 * 1.00001, 0.015625 * 1.00001, 0.00390625e-5];

struct Run {
    shape: Shape,
    decays: Decays,
    caches: Vec<f32>,
    scratch: Scratch,
}

impl Run {
    fn new(cpu: &Cpu, shape: Shape, slots: usize) -> Self {
        // Caches start as rubbish: position 0 must clear them.
        let caches = vec![7.0; slots * shape.cache_len()];
        let scratch = Scratch::new(cpu, scratch_len(shape));
        Self { shape, decays: Decays::new(&SLOPES[..shape.heads]), caches, scratch }
    }

    fn step(&mut self, cpu: &Cpu, qkv: &[f32], spans: &[Span]) -> Vec<f32> {
        let Shape { heads, head_dim } = self.shape;
        let stride = heads * 3 * head_dim;
        let mut out = vec![f32::NAN; qkv.len() / 3];
        let (caches, scratch) = (&mut self.caches, &mut self.scratch);
        lightning_attention(cpu, self.shape, &self.decays, qkv, stride, spans, caches, &mut out, scratch);
        out
    }
}

fn expected(shape: Shape, qkv: &[f32]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let Shape { heads, head_dim } = shape;
    let tokens = qkv.len() / (heads * 3 * head_dim);
    let mut out = vec![0.0; tokens * heads * head_dim];
    let mut states = Vec::new();
    for head in 0..heads {
        let part = |part: usize| -> Vec<f64> {
            (0..tokens)
                .flat_map(|t| widen(&qkv[((t * heads + head) * 3 + part) * head_dim..][..head_dim]))
                .map(reference::silu)
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

#[test]
fn outputs_and_states_agree_with_the_recurrence_past_several_chunks_at_unit_scale() {
    let mut random = Random::new(1);
    for cpu in cpus() {
        for (heads, head_dim) in [(1, 16), (3, 24), (4, 32), (2, 128)] {
            let shape = Shape { heads, head_dim };
            for tokens in [1, 63, 64, 65, 300] {
                let qkv = random.normal(tokens * heads * 3 * head_dim);
                let mut run = Run::new(&cpu, shape, 1);
                let got = run.step(&cpu, &qkv, &[Span { first: 0, rows: tokens, position: 0, slot: 0 }]);
                let (out, states) = expected(shape, &qkv);
                assert_close(&got, &out, 2e-5, &format!("{} {shape:?} {tokens} tokens", cpu.isa()));
                let state = materialize_state(shape, &run.decays, &run.caches, tokens);
                for (got, expected) in state.chunks(head_dim * head_dim).zip(&states) {
                    assert_close(got, expected, 2e-5, "state");
                }
            }
        }
    }
}

#[test]
fn any_split_of_a_ragged_batch_gives_the_same_bits() {
    let mut random = Random::new(2);
    let shape = Shape { heads: 2, head_dim: 40 };
    let width = shape.heads * 3 * shape.head_dim;
    let lengths = [150, 1, 64, 97];
    let inputs: Vec<Vec<f32>> = lengths.iter().map(|n| random.normal(n * width)).collect();
    for cpu in cpus() {
        let alone: Vec<Vec<f32>> = inputs
            .iter()
            .map(|qkv| {
                let span = Span { first: 0, rows: qkv.len() / width, position: 0, slot: 0 };
                Run::new(&cpu, shape, 1).step(&cpu, qkv, &[span])
            })
            .collect();
        for piece in [1, 7, 64, 100] {
            let mut run = Run::new(&cpu, shape, lengths.len());
            let mut together = vec![Vec::new(); lengths.len()];
            for start in (0..150).step_by(piece) {
                let (mut qkv, mut spans) = (Vec::new(), Vec::new());
                for (slot, input) in inputs.iter().enumerate() {
                    let rows = (lengths[slot].max(start) - start).min(piece);
                    spans.push(Span { first: qkv.len() / width, rows, position: start, slot });
                    qkv.extend_from_slice(&input[start.min(lengths[slot]) * width..][..rows * width]);
                }
                let out = run.step(&cpu, &qkv, &spans);
                for span in spans {
                    together[span.slot]
                        .extend_from_slice(&out[span.first * width / 3..][..span.rows * width / 3]);
                }
            }
            assert!(together == alone, "{} in pieces of {piece}", cpu.isa());
        }
    }
}
