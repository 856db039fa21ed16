use super::*;
use crate::device::cpu::{Cpu, CpuOptions, Isa};
use crate::testing::{Random, assert_close, assert_gradient, widen};

const SHAPES: [(usize, usize); 7] = [(1, 2), (3, 17), (63, 32), (64, 33), (65, 48), (200, 70), (9, 1030)];

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn reference_gradients_are_those_of_the_reference() {
    let mut random = Random::new(1);
    for n in [1, 2, 7, 20] {
        let [x, weight, gate, dy] = [(); 4].map(|()| widen(&random.normal(n)));
        let eps = 1e-3;
        let (dx, dweight) = reference::rms_norm_backward(&x, &weight, eps, &dy);
        assert_gradient(|x| dot(&reference::rms_norm(x, &weight, eps), &dy), &x, &dx, "norm by x");
        let by_weight = |weight: &[f64]| dot(&reference::rms_norm(&x, weight, eps), &dy);
        assert_gradient(by_weight, &weight, &dweight, "norm by weight");
        let (dx, dgate, dweight) = reference::gated_rms_norm_backward(&x, &gate, &weight, eps, &dy);
        let f = |x: &[f64], gate: &[f64], weight: &[f64]| {
            dot(&reference::gated_rms_norm(x, gate, weight, eps), &dy)
        };
        assert_gradient(|x| f(x, &gate, &weight), &x, &dx, "gated norm by x");
        assert_gradient(|gate| f(&x, gate, &weight), &gate, &dgate, "gated norm by gate");
        assert_gradient(|weight| f(&x, &gate, weight), &weight, &dweight, "gated norm by weight");
    }
}

/// Inputs and gradients of both norms; gates in rows of `stride`.
struct Case {
    n: usize,
    stride: usize,
    x: Vec<f32>,
    weight: Vec<f32>,
    gate: Vec<f32>,
    dy: Vec<f32>,
    /// What the gradients by the weight are added to.
    before: Vec<f32>,
}

#[derive(PartialEq, Debug)]
struct Gradients {
    plain: [Vec<f32>; 2],
    gated: [Vec<f32>; 3],
}

impl Case {
    fn new(rows: usize, n: usize) -> Self {
        let mut random = Random::new((rows * n) as u64);
        let stride = n + 5;
        Self {
            n,
            stride,
            x: random.normal(rows * n),
            weight: random.normal(n),
            // As in a projection: the last row ends where its gates end.
            gate: random.normal(rows * stride - 5),
            dy: random.normal(rows * n),
            before: random.normal(n),
        }
    }

    fn run(&self, isa: Isa, threads: usize) -> Gradients {
        let cpu = Cpu::new(CpuOptions { isa: Some(isa), threads: Some(threads) }).unwrap();
        let Self { x, weight, gate, dy, .. } = self;
        // What is overwritten starts as NaN, which would stay visible in a sum.
        let dx = || vec![f32::NAN; x.len()];
        let mut plain = [dx(), self.before.clone()];
        let [dx_plain, dweight] = &mut plain;
        rms_norm_backward(&cpu, x, weight, 1e-5, dy, dx_plain, dweight);
        let mut gated = [dx(), vec![7.0; gate.len()], self.before.clone()];
        let [dx_gated, dgate, dweight] = &mut gated;
        gated_rms_norm_backward(&cpu, x, gate, self.stride, weight, 1e-6, dy, dx_gated, dgate, dweight);
        Gradients { plain, gated }
    }

    fn expected(&self) -> ([Vec<f64>; 2], [Vec<f64>; 3]) {
        let (n, weight) = (self.n, widen(&self.weight));
        let mut plain = [vec![], widen(&self.before)];
        let mut gated = [vec![], vec![7.0; self.gate.len()], widen(&self.before)];
        let add =
            |total: &mut [f64], row: &[f64]| total.iter_mut().zip(row).for_each(|(total, x)| *total += x);
        for (row, (x, dy)) in self.x.chunks(n).zip(self.dy.chunks(n)).enumerate() {
            let (x, dy) = (widen(x), widen(dy));
            let (dx, dweight) = reference::rms_norm_backward(&x, &weight, 1e-5, &dy);
            plain[0].extend(dx);
            add(&mut plain[1], &dweight);
            let gates = row * self.stride..row * self.stride + n;
            let gate = widen(&self.gate[gates.clone()]);
            let (dx, dgate, dweight) = reference::gated_rms_norm_backward(&x, &gate, &weight, 1e-6, &dy);
            gated[0].extend(dx);
            gated[1][gates].copy_from_slice(&dgate);
            add(&mut gated[2], &dweight);
        }
        (plain, gated)
    }
}

#[test]
fn gradients_agree_with_the_reference_on_every_instruction_set() {
    for (rows, n) in SHAPES {
        let case = Case::new(rows, n);
        let (plain, gated) = case.expected();
        for isa in Isa::available() {
            let got = case.run(isa, 2);
            for (got, (expected, of)) in got.plain.iter().zip(plain.iter().zip(["x", "weight"])) {
                assert_close(got, expected, 3e-6, &format!("{isa}, {rows} rows of {n}, norm by {of}"));
            }
            for (got, (expected, of)) in got.gated.iter().zip(gated.iter().zip(["x", "gate", "weight"])) {
                assert_close(got, expected, 3e-6, &format!("{isa}, {rows} rows of {n}, gated norm by {of}"));
            }
        }
    }
}

#[test]
fn gradients_do_not_depend_on_the_number_of_threads() {
    let case = Case::new(200, 70);
    for isa in Isa::available() {
        let alone = case.run(isa, 1);
        for threads in [2, 5] {
            assert_eq!(case.run(isa, threads), alone, "{isa}, {threads} threads");
        }
    }
}

#[test]
fn no_rows_have_no_gradient() {
    let cpu = Cpu::new(CpuOptions::default()).unwrap();
    let mut dweight = [3.0; 4];
    rms_norm_backward(&cpu, &[], &[1.0; 4], 1e-5, &[], &mut [], &mut dweight);
    gated_rms_norm_backward(&cpu, &[], &[], 4, &[1.0; 4], 1e-5, &[], &mut [], &mut [], &mut dweight);
    assert_eq!(dweight, [3.0; 4]);
}

#[test]
fn both_sides_of_a_residual_get_its_gradient_times_their_factor() {
    let mut random = Random::new(3);
    for isa in Isa::available() {
        let cpu = Cpu::new(CpuOptions { isa: Some(isa), threads: Some(2) }).unwrap();
        let x = random.normal(40_001);
        let mut out = vec![f32::NAN; x.len()];
        scaled(&cpu, &x, 3.5, &mut out);
        assert!(out.iter().zip(&x).all(|(out, x)| *out == 3.5 * x), "{isa}");
    }
}
