use super::*;
use crate::device::cpu::{Cpu, CpuOptions, Isa};
use crate::matmul::{Element, PackedMatrix, RowMajor, Stored};
use crate::sample::RowLogprobs;
use crate::testing::{Random, assert_close, assert_gradient, bf16_round, bytes_of, widen};

struct Case {
    rows: usize,
    hidden: usize,
    vocab: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    targets: Vec<u32>,
}

impl Case {
    fn new(rows: usize, hidden: usize, vocab: usize) -> Self {
        let mut random = Random::new((rows * hidden * vocab) as u64);
        let targets = (0..rows).map(|_| (random.bits() % vocab as u64) as u32).collect();
        let (x, w) = (random.normal(rows * hidden), bf16_round(&random.normal(vocab * hidden)));
        Self { rows, hidden, vocab, x, w, targets }
    }

    fn head(&self, cpu: &Cpu, element: Element) -> PackedMatrix {
        let data = bytes_of(&self.w);
        let source = RowMajor { stored: Stored::F32, rows: self.vocab, cols: self.hidden, data: &data };
        PackedMatrix::pack(cpu, source, element)
    }

    fn logits(&self, row: usize) -> Vec<f64> {
        let x = widen(&self.x[row * self.hidden..][..self.hidden]);
        let product = |w: &[f32]| w.iter().zip(&x).map(|(w, x)| f64::from(*w) * x).sum();
        self.w.chunks_exact(self.hidden).map(product).collect()
    }
}

fn weight(row: usize, logprob: f32) -> f32 {
    if row % 5 == 3 { 0.0 } else { 0.3 * logprob - row as f32 * 0.01 }
}

struct Outcome {
    logprobs: Vec<f32>,
    entropies: Vec<f32>,
    dx: Vec<f32>,
    dhead: Vec<f32>,
}

fn run(cpu: &Cpu, case: &Case, element: Element, max_rows: usize) -> Outcome {
    let (nan, head) = (f32::NAN, case.head(cpu, element));
    let mut outcome = Outcome {
        logprobs: vec![nan; case.rows],
        entropies: vec![nan; case.rows],
        dx: vec![nan; case.x.len()],
        dhead: vec![0.0; case.w.len()],
    };
    let mut loss = HeadLoss::new(cpu, case.hidden, case.vocab, max_rows);
    let gradient = HeadGradient { weight: &weight, dx: &mut outcome.dx, head: Some(&mut outcome.dhead) };
    let (logprobs, entropies) = (&mut outcome.logprobs, &mut outcome.entropies);
    loss.run(cpu, &case.x, &head, &case.targets, logprobs, entropies, Some(gradient));
    outcome
}

#[test]
fn the_reference_gradient_is_the_slope_of_the_reference() {
    let logits = widen(&Random::new(1).normal(9));
    let gradient = reference::score_backward(&logits, 4, 0.7);
    assert_gradient(|logits| 0.7 * reference::score(logits, 4).0, &logits, &gradient, "logits");
}

#[test]
fn scores_and_gradients_agree_with_the_reference_over_odd_shapes() {
    for isa in Isa::available() {
        let cpu = Cpu::new(CpuOptions { isa: Some(isa), threads: Some(3) }).unwrap();
        for (rows, hidden, vocab) in [(1, 3, 2), (5, 16, 33), (65, 24, 1100), (200, 7, 50)] {
            for element in [Element::F32, Element::Bf16] {
                let case = Case::new(rows, hidden, vocab);
                // Several blocks for the largest.
                let got = run(&cpu, &case, element, 70);
                let (mut dx, mut dhead) = (vec![0.0; case.x.len()], vec![0.0; case.w.len()]);
                let (mut logprobs, mut entropies) = (Vec::new(), Vec::new());
                for row in 0..rows {
                    let (logits, target) = (case.logits(row), case.targets[row] as usize);
                    let (logprob, entropy) = reference::score(&logits, target);
                    logprobs.push(logprob);
                    entropies.push(entropy);
                    let slope = f64::from(weight(row, logprob as f32));
                    let dlogits = reference::score_backward(&logits, target, slope);
                    for (v, dlogit) in dlogits.iter().enumerate() {
                        for c in 0..hidden {
                            dx[row * hidden + c] += dlogit * f64::from(case.w[v * hidden + c]);
                            dhead[v * hidden + c] += dlogit * f64::from(case.x[row * hidden + c]);
                        }
                    }
                }
                let what = format!("{rows}x{hidden}x{vocab} on {isa}");
                assert_close(&got.logprobs, &logprobs, 1e-5, &what);
                assert_close(&got.entropies, &entropies, 1e-4, &what);
                assert_close(&got.dx, &dx, 3e-5, &what);
                assert_close(&got.dhead, &dhead, 3e-5, &what);
            }
        }
    }
}

#[test]
fn log_probabilities_are_those_of_sampling_and_gradients_do_not_depend_on_threads() {
    let case = Case::new(130, 40, 300);
    let of = |threads| {
        let cpu = Cpu::new(CpuOptions { threads: Some(threads), isa: None }).unwrap();
        (run(&cpu, &case, Element::F32, 1000), cpu)
    };
    let ((one, cpu), (four, _)) = (of(1), of(4));
    assert!(one.dx == four.dx && one.dhead == four.dhead && one.entropies == four.entropies);
    let head = case.head(&cpu, Element::F32);
    let rows = crate::matmul::Segment::all(1);
    let mut packed = crate::matmul::PackedRows::new(&cpu, crate::matmul::Compute::F32, 1, case.hidden);
    for row in 0..case.rows {
        packed.pack(&cpu, &case.x[row * case.hidden..][..case.hidden], case.hidden, &rows, |row| row);
        let mut logits = vec![0.0; case.vocab];
        let output = crate::matmul::Output::Rows(&mut logits);
        crate::matmul::matmul(&cpu, &packed, &rows, std::slice::from_ref(&head), output);
        let scores = RowLogprobs::new(&logits).unwrap();
        assert_eq!(one.logprobs[row].to_bits(), scores.logprob(case.targets[row]).to_bits());
    }
}

#[test]
fn no_rows_score_nothing_and_a_logit_that_is_no_number_gives_nan() {
    let cpu = Cpu::new(CpuOptions::default()).unwrap();
    let mut case = Case::new(3, 4, 5);
    case.x[5] = f32::NAN;
    let outcome = run(&cpu, &case, Element::F32, 8);
    assert!(outcome.logprobs[1].is_nan() && outcome.entropies[1].is_nan());
    assert!(outcome.logprobs[0].is_finite() && outcome.entropies[2].is_finite());
    let none = Case { rows: 0, x: vec![], targets: vec![], ..Case::new(1, 4, 5) };
    assert!(run(&cpu, &none, Element::F32, 8).dhead.iter().all(|x| *x == 0.0));
}
