use std::ops::Range;
use std::sync::Arc;

use super::cuda::*;
use super::reference;
use crate::device::cuda::{Activations, Buffer, Cuda};
use crate::matmul::cuda::{DeviceMatrix, DeviceRows, GATE_GROUP, ProductGradients, Products, Rows};
use crate::matmul::{Element, RowMajor, Stored};
use crate::testing::{CARDS, Random, assert_close, assert_compiles, bf16_round, bytes_of, gpu, widen};

const ELEMENTS: [Element; 2] = [Element::F32, Element::Bf16];
const SCALE: f32 = 0.75;

/// A matrix, the rows of each expert's that have adapters, and the rows of activations of each expert.
struct Case {
    outputs: usize,
    k: usize,
    gated: bool,
    rank: usize,
    adapters: Vec<(usize, Range<usize>)>,
    counts: Vec<usize>,
}

fn cases() -> Vec<Case> {
    let case =
        |[outputs, k, rank]: [usize; 3], gated, adapters: &[(usize, Range<usize>)], counts: &[usize]| Case {
            outputs,
            k,
            gated,
            rank,
            adapters: adapters.to_vec(),
            counts: counts.to_vec(),
        };
    vec![
        case([96, 40, 4], false, &[(0, 0..72), (0, 72..96)], &[65]),
        case([33, 20, 3], false, &[(0, 5..33)], &[7]),
        case([48, 72, 3], true, &[(0, 0..24), (0, 24..48), (2, 24..48)], &[9, 0, 130]),
        case([33, 21, 17], false, &[(0, 0..33), (1, 0..33)], &[0, 3]),
        case([272, 264, 16], false, &[(0, 130..272)], &[300]),
        case([256, 136, 40], true, &[(0, 0..128), (1, 0..128), (1, 128..256)], &[70, 200]),
        case([72, 144, 200], false, &[(0, 0..72)], &[64]),
    ]
}

impl Case {
    fn experts(&self) -> usize {
        self.counts.len()
    }

    fn describe(&self, element: Element) -> String {
        let Self { outputs, k, rank, adapters, .. } = self;
        format!("[{outputs}, {k}] of rank {rank}, {adapters:?}, {element:?}")
    }

    /// Where row `n` of the gradient, or of the base, stands in the matrix.
    fn place_of(&self, n: usize) -> usize {
        let half = self.outputs / 2;
        let (i, up) = (n % half, n / half);
        if self.gated { i / GATE_GROUP * 2 * GATE_GROUP + up * GATE_GROUP + i % GATE_GROUP } else { n }
    }

    /// Places of every adapter's `A` and `B`, some values apart, and how many values there are.
    fn places(&self) -> (Vec<[usize; 2]>, usize) {
        let mut end = 3;
        let mut take = |count: usize| {
            let at = end;
            end += count + 1;
            at
        };
        let places =
            self.adapters.iter().map(|(_, rows)| [take(self.rank * self.k), take(rows.len() * self.rank)]);
        (places.collect(), end)
    }

    fn adapters(&self, cuda: &Arc<Cuda>, element: Element, base: Element) -> AdaptersCuda {
        let adapter = |((expert, rows), [a, b]): (&(usize, Range<usize>), &[usize; 2])| Adapter {
            expert: *expert,
            rows: rows.clone(),
            a: *a,
            b: *b,
            base,
        };
        let (places, _) = self.places();
        let matrix = AdaptedMatrix {
            experts: self.experts(),
            outputs: self.outputs,
            k: self.k,
            gated: self.gated,
            most_rows: self.counts.iter().sum::<usize>() + 5,
            adapters: self.adapters.iter().zip(&places).map(adapter).collect(),
        };
        AdaptersCuda::new(cuda, element, self.rank, SCALE, &[matrix]).unwrap()
    }
}

#[test]
fn merged_rows_are_the_bases_with_their_adapters_and_others_stay() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(71);
    for case in cases() {
        let Case { outputs, k, rank, .. } = case;
        for (element, base_element) in ELEMENTS.into_iter().flat_map(|e| ELEMENTS.map(|base| (e, base))) {
            let what = format!("{}, base {base_element:?}", case.describe(element));
            let before = bf16_round(&random.normal(case.experts() * outputs * k));
            let mut matrix = DeviceMatrix::zeroed(&cuda, case.experts(), outputs, k, element).unwrap();
            write(matrix.data_mut(), &before);
            let mut adapters = case.adapters(&cuda, element, base_element);
            let (places, len) = case.places();
            let values = random.normal(len);
            let mut expected = widen(&before);
            for (i, ((expert, rows), [a, b])) in case.adapters.iter().zip(&places).enumerate() {
                let base = bf16_round(&random.normal(rows.len() * k));
                let bytes = match base_element {
                    Element::F32 => bytes_of(&base),
                    Element::Bf16 => {
                        base.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()
                    }
                };
                let stored = if base_element == Element::F32 { Stored::F32 } else { Stored::Bf16 };
                let base_rows = RowMajor { stored, rows: rows.len(), cols: k, data: &bytes };
                adapters.write_base(0, i, base_rows).unwrap();
                let (a, b) = (widen(&values[*a..][..rank * k]), widen(&values[*b..][..rows.len() * rank]));
                let merged = reference::merged(&widen(&base), &a, &b, rank, f64::from(SCALE));
                for (row, merged) in rows.clone().zip(merged.chunks_exact(k)) {
                    let at = (expert * outputs + case.place_of(row)) * k;
                    expected[at..][..k].copy_from_slice(merged);
                }
            }
            let values = Buffer::from_slice(&cuda, &values).unwrap();
            adapters.merge(&values, &mut [&mut matrix]).unwrap();
            let got = matrix.data().to_f32().unwrap();
            let tolerance = if element == Element::F32 { 1e-6 } else { 4e-3 };
            assert_close(&got, &expected, tolerance, &what);
            // Again, into another matrix.
            let mut other = DeviceMatrix::zeroed(&cuda, case.experts(), outputs, k, element).unwrap();
            write(other.data_mut(), &before);
            adapters.merge(&values, &mut [&mut other]).unwrap();
            assert!(other.data().to_f32().unwrap() == got, "{what}: other bits in another matrix");
        }
    }
}

#[test]
fn gradients_are_those_of_the_merged_weights_projected() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(72);
    let products = Products::new(&cuda).unwrap();
    for case in cases() {
        let Case { outputs, k, rank, gated, .. } = case;
        for element in ELEMENTS {
            let what = case.describe(element);
            let mut offsets = vec![0i32];
            case.counts.iter().for_each(|count| offsets.push(offsets[offsets.len() - 1] + *count as i32));
            let rows = offsets[case.experts()] as usize;
            let (places, len) = case.places();
            let mut operand = |width: usize| {
                let values = random.normal((rows + 5) * width);
                let values = if element == Element::Bf16 { bf16_round(&values) } else { values };
                let mut rows = DeviceRows::zeroed(&cuda, rows + 5, width, element).unwrap();
                write(rows.data_mut(), &values);
                (values, rows)
            };
            let ((dy, device_dy), (x, device_x)) = (operand(outputs), operand(k));
            let (values, before) = (random.normal(len), random.normal(len));
            let mut expected = widen(&before);
            for ((expert, of), [a, b]) in case.adapters.iter().zip(&places) {
                let mut dw = vec![0.0; of.len() * k];
                for row in offsets[*expert] as usize..offsets[expert + 1] as usize {
                    for (n, dw) in of.clone().zip(dw.chunks_exact_mut(k)) {
                        let dy = f64::from(dy[row * outputs + case.place_of(n)]);
                        dw.iter_mut().zip(&x[row * k..]).for_each(|(dw, x)| *dw += dy * f64::from(*x));
                    }
                }
                let (of_a, of_b) = (*a..a + rank * k, *b..b + of.len() * rank);
                let (a, b) = (widen(&values[of_a.clone()]), widen(&values[of_b.clone()]));
                let [da, db] = reference::projected(&dw, &a, &b, rank, f64::from(SCALE));
                expected[of_a].iter_mut().zip(da).for_each(|(sum, da)| *sum += da);
                expected[of_b].iter_mut().zip(db).for_each(|(sum, db)| *sum += db);
            }
            let mut adapters = case.adapters(&cuda, element, Element::F32);
            let mut matrix = DeviceMatrix::zeroed(&cuda, case.experts(), outputs, k, element).unwrap();
            let values = Buffer::from_slice(&cuda, &values).unwrap();
            adapters.merge(&values, &mut [&mut matrix]).unwrap();
            let offsets = Buffer::from_slice(&cuda, &offsets).unwrap();
            let grouped = case.experts() > 1;
            let rows =
                if grouped { Rows::Grouped { offsets: &offsets, most: rows } } else { Rows::All(rows) };
            let mut gradients = ProductGradients::new(&cuda, case.experts()).unwrap();
            let mut run = |sums: &[f32], fresh| {
                let mut sums = Buffer::from_slice(&cuda, sums).unwrap();
                let step = Step { dy: &device_dy, x: &device_x, rows };
                adapters.accumulate(0, &step, &products, &mut gradients, &mut sums, fresh).unwrap();
                sums.to_vec().unwrap()
            };
            let got = run(&before, false);
            // Rounded to bf16 are A and B and what went through them.
            let tolerance = if element == Element::F32 { 2e-6 * (rank * k) as f64 } else { 2e-2 };
            let tolerance = tolerance.clamp(2e-5, 2e-2);
            assert_close(&got, &expected, tolerance, &format!("{what} {gated}"));
            assert!(run(&before, false) == got, "{what}: other bits the second time");
            let (fresh, added) = (run(&vec![f32::NAN; len], true), run(&vec![0.0; len], false));
            for (i, (fresh, added)) in fresh.iter().zip(&added).enumerate() {
                let is_gradient = case.adapters.iter().zip(&places).any(|((_, rows), [a, b])| {
                    (*a..a + rank * k).contains(&i) || (*b..b + rows.len() * rank).contains(&i)
                });
                match is_gradient {
                    true => assert_eq!(fresh, added, "{what}: value {i}"),
                    false => assert!(fresh.is_nan() && *added == 0.0, "{what}: value {i} was written"),
                }
            }
        }
    }
}

fn write(to: &mut Activations, values: &[f32]) {
    match to {
        Activations::F32(buffer) => buffer.write(0, values).unwrap(),
        Activations::Bf16(buffer) => {
            let bits: Vec<u16> = values.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
            buffer.write(0, &bits).unwrap();
        }
    }
}

#[test]
fn kernels_compile_for_every_card() {
    assert_compiles(SOURCE, &[], &CARDS);
}
