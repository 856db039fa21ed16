use std::sync::Arc;

use super::cuda::*;
use super::{Element, reference};
use crate::adamw::cuda::AdamWCuda;
use crate::device::cuda::{Activations, Buffer, Cuda};
use crate::testing::{CARDS, Random, assert_close, assert_compiles, bf16_round, gpu, widen};

const ELEMENTS: [Element; 2] = [Element::F32, Element::Bf16];

fn values(random: &mut Random, len: usize, element: Element) -> Vec<f32> {
    let values = random.normal(len);
    if element == Element::Bf16 { bf16_round(&values) } else { values }
}

fn on_device(cuda: &Arc<Cuda>, values: &[f32], element: Element) -> Activations {
    Activations::from_f32(cuda, element, values).unwrap()
}

/// `dy^T x` of rows `begin..end` added to `sum`, where output `n` is column `column(n)` of `dy`.
fn add_gradient(
    sum: &mut [f64],
    dy: (&[f32], usize),
    x: (&[f32], usize),
    k: usize,
    rows: std::ops::Range<usize>,
    column: impl Fn(usize) -> usize,
) {
    for row in rows {
        for (i, sum) in sum.iter_mut().enumerate() {
            *sum += f64::from(dy.0[row * dy.1 + column(i / k)]) * f64::from(x.0[row * x.1 + i % k]);
        }
    }
}

fn zeroed_and_poisoned(cuda: &Arc<Cuda>, len: usize) -> [Buffer<f32>; 2] {
    [0.0, f32::NAN].map(|x| Buffer::from_slice(cuda, &vec![x; len]).unwrap())
}

/// Asserts that what a fresh gradient has overwritten has the bits of one that was added to zeros, and that the rest was
/// left as it was.
fn assert_overwritten(
    fresh: &Buffer<f32>,
    added: &Buffer<f32>,
    is_gradient: impl Fn(usize) -> bool,
    what: &str,
) {
    let (fresh, added) = (fresh.to_vec().unwrap(), added.to_vec().unwrap());
    for (i, (fresh, added)) in fresh.iter().zip(&added).enumerate() {
        match is_gradient(i) {
            true => assert_eq!(fresh.to_bits(), added.to_bits(), "{what}: value {i} is {fresh}, not {added}"),
            false => assert!(fresh.is_nan(), "{what}: value {i} was written"),
        }
    }
}

#[test]
fn gradients_by_weights_add_up_over_all_rows_in_every_shape() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(11);
    let mut gradients = ProductGradients::new(&cuda, 1).unwrap();
    for element in ELEMENTS {
        for (rows, n, k, stride) in [
            (1, 1, 8, 8),
            (3, 33, 40, 48),
            (63, 64, 72, 64),
            (64, 130, 136, 136),
            (65, 192, 320, 192),
            (1000, 72, 264, 80),
            (2100, 8, 16, 8),
            (9000, 10, 1032, 11),
            (130, 2048, 1032, 2048),
            // Rows that do not begin at multiples of 16 bytes are copied first.
            (65, 33, 72, 35),
            (300, 130, 136, 131),
        ] {
            let (dy, x) =
                (values(&mut random, rows * stride, element), values(&mut random, rows * k, element));
            let before = random.normal(n * k + 5);
            let mut sums = Buffer::from_slice(&cuda, &before).unwrap();
            let (d, a) = (on_device(&cuda, &dy, element), on_device(&cuda, &x, element));
            let dy_columns = Columns { data: (&d).into(), stride, width: n };
            let mut run = |sums: &mut Buffer<f32>| {
                let place = GradientPlace { gradients: sums, at: 5, stride: 0, fresh: false };
                gradients.weights(dy_columns, Columns::all(&a, k), Rows::All(rows), false, place).unwrap();
            };
            run(&mut sums);
            let got = sums.to_vec().unwrap();
            let mut expected = widen(&before[5..]);
            add_gradient(&mut expected, (&dy, stride), (&x, k), k, 0..rows, |n| n);
            let what = format!("{rows} {n} {k} {element:?}");
            assert_close(&got[5..], &expected, 2e-6 * (rows as f64).sqrt(), &what);
            assert_eq!(got[..5], before[..5], "{what}");
            let mut again = Buffer::from_slice(&cuda, &before).unwrap();
            run(&mut again);
            assert!(again.to_vec().unwrap() == got, "{what}: other bits the second time");
            let [mut added, mut fresh] = zeroed_and_poisoned(&cuda, n * k + 5);
            run(&mut added);
            let place = GradientPlace { gradients: &mut fresh, at: 5, stride: 0, fresh: true };
            gradients.weights(dy_columns, Columns::all(&a, k), Rows::All(rows), false, place).unwrap();
            assert_overwritten(&fresh, &added, |i| i >= 5, &what);
            let place = GradientPlace { gradients: &mut sums, at: 5, stride: 0, fresh: true };
            gradients.weights(dy_columns, Columns::all(&a, k), Rows::All(0), false, place).unwrap();
            let left = sums.to_vec().unwrap();
            assert_eq!(left[..5], before[..5], "{what}");
            assert!(left[5..].iter().all(|x| *x == 0.0), "{what}: no rows give zeros");
        }
    }
}

#[test]
fn gradients_of_two_matrices_at_once_are_those_of_each() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(16);
    let mut gradients = ProductGradients::new(&cuda, 1).unwrap();
    for element in ELEMENTS {
        for (rows, [n, k], [other_n, other_k]) in [
            (1, [8, 16], [16, 8]),
            (130, [136, 72], [2048, 1032]),
            (300, [2048, 1032], [72, 264]),
            // Copied first: one, and the other.
            (65, [33, 72], [64, 64]),
            (65, [64, 64], [33, 72]),
        ] {
            let mut operand = |width: usize| {
                let values = values(&mut random, rows * width, element);
                (on_device(&cuda, &values, element), width)
            };
            let operands = [operand(n), operand(k), operand(other_n), operand(other_k)];
            let of = |dy: usize, x: usize, at: usize| {
                let [dy, x] = [dy, x].map(|i| Columns::all(&operands[i].0, operands[i].1));
                WeightGradient { dy, x, at }
            };
            let both = [of(0, 1, 3), of(2, 3, 3 + n * k)];
            let before = random.normal(3 + n * k + other_n * other_k);
            let [mut apart, mut at_once] = [0; 2].map(|_| Buffer::from_slice(&cuda, &before).unwrap());
            for WeightGradient { dy, x, at } in both {
                let place = GradientPlace { gradients: &mut apart, at, stride: 0, fresh: false };
                gradients.weights(dy, x, Rows::All(rows), false, place).unwrap();
            }
            gradients.weights_of_two(both, rows, &mut at_once, false).unwrap();
            let [mut added, mut fresh] = zeroed_and_poisoned(&cuda, before.len());
            gradients.weights_of_two(both, rows, &mut added, false).unwrap();
            gradients.weights_of_two(both, rows, &mut fresh, true).unwrap();
            assert_overwritten(&fresh, &added, |i| i >= 3, "two matrices");
            gradients.weights_of_two(both, 0, &mut fresh, true).unwrap();
            assert!(fresh.to_vec().unwrap()[3..].iter().all(|x| *x == 0.0), "no rows give zeros");
            let (apart, at_once) = (apart.to_vec().unwrap(), at_once.to_vec().unwrap());
            assert_eq!(at_once[..3], before[..3]);
            assert!(at_once[3..] != before[3..], "nothing was added");
            let expected: Vec<f64> = widen(&apart);
            assert_close(
                &at_once,
                &expected,
                1e-5,
                &format!("{rows} {n} {k} {other_n} {other_k} {element:?}"),
            );
        }
    }
}

#[test]
fn every_experts_gradient_is_that_of_its_own_rows() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(12);
    for element in ELEMENTS {
        for (counts, n, k, gated) in [
            (vec![0, 1, 0, 2, 0], 16, 24, true),
            (vec![9, 0, 130, 33, 1], 80, 264, false),
            (vec![64, 63, 65, 0], 144, 72, true),
            (vec![700, 300], 272, 136, true),
            (vec![9, 0, 130, 33, 1], 33, 264, false),
            (vec![70, 0, 3], 48, 20, true),
            // Many tiles.
            (vec![70, 0, 3], 1040, 1032, true),
        ] {
            let experts = counts.len();
            let mut offsets = vec![0];
            counts.iter().for_each(|count| offsets.push(offsets[offsets.len() - 1] + count));
            let rows = offsets[experts] as usize;
            let most = rows + 7;
            let (dy, x) = (values(&mut random, most * n, element), values(&mut random, most * k, element));
            let stride = n * k + 3;
            let before = random.normal(experts * stride);
            let mut sums = Buffer::from_slice(&cuda, &before).unwrap();
            let device_offsets = Buffer::from_slice(&cuda, &offsets).unwrap();
            let (d, a) = (on_device(&cuda, &dy, element), on_device(&cuda, &x, element));
            let mut gradients = ProductGradients::new(&cuda, experts).unwrap();
            let mut run = |sums: &mut Buffer<f32>, most, fresh| {
                let place = GradientPlace { gradients: sums, at: 0, stride, fresh };
                let grouped = Rows::Grouped { offsets: &device_offsets, most };
                gradients.weights(Columns::all(&d, n), Columns::all(&a, k), grouped, gated, place).unwrap();
            };
            run(&mut sums, most, false);
            let [mut added, mut fresh] = zeroed_and_poisoned(&cuda, experts * stride);
            run(&mut added, most, false);
            run(&mut fresh, most, true);
            let is_gradient = |i: usize| i % stride < n * k;
            assert_overwritten(&fresh, &added, is_gradient, &format!("{counts:?} {element:?}"));
            run(&mut fresh, 0, true);
            let left = fresh.to_vec().unwrap();
            assert!((0..left.len()).all(|i| if is_gradient(i) { left[i] == 0.0 } else { left[i].is_nan() }));
            let mut expected = widen(&before);
            for expert in 0..experts {
                let column = |i: usize| match gated {
                    false => i,
                    true => {
                        i % (n / 2) / GATE_GROUP * 2 * GATE_GROUP
                            + i / (n / 2) * GATE_GROUP
                            + i % (n / 2) % GATE_GROUP
                    }
                };
                let of_expert = offsets[expert] as usize..offsets[expert + 1] as usize;
                let sum = &mut expected[expert * stride..][..n * k];
                add_gradient(sum, (&dy, n), (&x, k), k, of_expert, column);
            }
            assert_close(&sums.to_vec().unwrap(), &expected, 1e-4, &format!("{counts:?} {element:?}"));
        }
    }
}

#[test]
fn squares_are_those_of_the_gradients_that_were_written_last() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(17);
    let (n, k, rows, stride) = (144, 264, 200, 144 * 264 + 5);
    let offsets = Buffer::from_slice(&cuda, &[0, 0, 70, 70, 200]).unwrap();
    let mut sums = AdamWCuda::new(&cuda).unwrap();
    for element in ELEMENTS {
        // So small that their plain squares are no normal numbers.
        let mut operand = |width: usize, size: f32| {
            let values: Vec<f32> = random.normal(rows * width).iter().map(|x| x * size).collect();
            on_device(&cuda, &values, element)
        };
        let (dy, x, other) = (operand(n, 1e-20), operand(k, 1.0), operand(33, 1e-20));
        let (dy, x, other) = (Columns::all(&dy, n), Columns::all(&x, k), Columns::all(&other, 33));
        let before: Vec<f32> = random.normal(4 * stride + n * k).iter().map(|x| x * 1e-20).collect();
        let mut gradients = Buffer::from_slice(&cuda, &before).unwrap();
        let [mut one, mut four] = [1, 4].map(|experts| ProductGradients::new(&cuda, experts).unwrap());
        // Of experts, some of which have no rows; of one matrix behind them, and of another one and a narrow one there;
        // fresh, and added to.
        let mut check = |what: &str, gradients: &Buffer<f32>, of: [&ProductGradients; 2]| {
            let written = of.map(ProductGradients::squares);
            let got = sums.sum_of_squares(gradients, &written).unwrap();
            let mut values = gradients.to_vec().unwrap();
            let expected: f64 = widen(&values).iter().map(|x| x * x).sum();
            let what = format!("{what}, {element:?}");
            assert!((got / expected - 1.0).abs() < 1e-6, "{what}: {got:e}, not {expected:e}");
            // Those are not read that are known.
            for range in written.iter().flat_map(|written| written.values()) {
                values[range].fill(f32::NAN);
            }
            let poisoned = Buffer::from_slice(&cuda, &values).unwrap();
            assert_eq!(sums.sum_of_squares(&poisoned, &written).unwrap(), got, "{what}");
        };
        for fresh in [false, true, false] {
            let place = GradientPlace { gradients: &mut gradients, at: 0, stride, fresh };
            let grouped = Rows::Grouped { offsets: &offsets, most: rows };
            four.weights(dy, x, grouped, true, place).unwrap();
            check("experts", &gradients, [&one, &four]);
            let place = GradientPlace { gradients: &mut gradients, at: 4 * stride, stride: 0, fresh };
            one.weights(dy, x, Rows::All(rows), false, place).unwrap();
            check("one matrix", &gradients, [&one, &four]);
        }
        let tensor_cores = cuda.facts().architecture.has_wgmma() && element == Element::Bf16;
        let known: usize =
            one.squares().values().chain(four.squares().values()).map(|range| range.len()).sum();
        assert_eq!(known, if tensor_cores { 5 * n * k } else { 0 });
        let place = GradientPlace { gradients: &mut gradients, at: 4 * stride, stride: 0, fresh: true };
        one.weights(other, x, Rows::All(rows), false, place).unwrap();
        check("a narrow matrix", &gradients, [&one, &four]);
        let two = [WeightGradient { dy, x, at: stride }, WeightGradient { dy: x, x: dy, at: 4 * stride }];
        four.squares_mut().forget(&(stride..2 * stride)).unwrap();
        assert_eq!(four.squares().values().count(), 0);
        one.weights_of_two(two, rows, &mut gradients, true).unwrap();
        check("two matrices", &gradients, [&one, &four]);
        let place = GradientPlace { gradients: &mut gradients, at: stride, stride: 0, fresh: true };
        one.weights(dy, x, Rows::All(0), false, place).unwrap();
        check("no rows", &gradients, [&one, &four]);
        assert_eq!(one.squares().values().count(), 0);
    }
}

#[test]
fn gradients_by_inputs_are_products_with_transposed_weights() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(13);
    let products = Products::new(&cuda).unwrap();
    for element in ELEMENTS {
        let gradients = ProductGradients::new(&cuda, 1).unwrap();
        let mut scratch = DeviceMatrix::zeroed(&cuda, 1, 520, 136, element).unwrap();
        for (rows, n, k) in [(1, 8, 16), (5, 33, 72), (70, 136, 520), (65, 520, 136), (4200, 40, 1032)] {
            let (dy, w) = (values(&mut random, rows * n, element), values(&mut random, n * k, element));
            let mut matrix = DeviceMatrix::zeroed(&cuda, 1, n, k, element).unwrap();
            fill(matrix.data_mut(), &w);
            let mut x = DeviceRows::zeroed(&cuda, rows, n, element).unwrap();
            fill(x.data_mut(), &dy);
            let mut out = Buffer::from_slice(&cuda, &vec![f32::NAN; rows * k]).unwrap();
            let output = Output::F32(&mut out);
            gradients.inputs(&products, &matrix, &x, Rows::All(rows), output, &mut scratch).unwrap();
            let expected = reference::matmul(&widen(&dy), &turned(&w, n, k), n);
            assert_close(&out.to_vec().unwrap(), &expected, 2e-5, &format!("{rows} {n} {k} {element:?}"));
        }
    }
}

#[test]
fn gradients_by_experts_inputs_come_from_each_ones_own_transpose() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(15);
    let products = Products::new(&cuda).unwrap();
    for element in ELEMENTS {
        for (counts, n, k) in
            [(vec![0, 3, 70, 1], 40, 72), (vec![300, 0, 129], 136, 264), (vec![5, 1], 9, 17)]
        {
            let experts = counts.len();
            let mut offsets = vec![0];
            counts.iter().for_each(|count| offsets.push(offsets[offsets.len() - 1] + count));
            let rows = offsets[experts] as usize;
            let gradients = ProductGradients::new(&cuda, experts).unwrap();
            let (dy, w) =
                (values(&mut random, rows * n, element), values(&mut random, experts * n * k, element));
            let mut matrix = DeviceMatrix::zeroed(&cuda, experts, n, k, element).unwrap();
            fill(matrix.data_mut(), &w);
            let mut x = DeviceRows::zeroed(&cuda, rows, n, element).unwrap();
            fill(x.data_mut(), &dy);
            let device_offsets = Buffer::from_slice(&cuda, &offsets).unwrap();
            let mut scratch = DeviceMatrix::zeroed(&cuda, experts, k, n, element).unwrap();
            let mut out = Buffer::from_slice(&cuda, &vec![f32::NAN; rows * k]).unwrap();
            let grouped = Rows::Grouped { offsets: &device_offsets, most: rows };
            let output = Output::F32(&mut out);
            gradients.inputs(&products, &matrix, &x, grouped, output, &mut scratch).unwrap();
            let expected: Vec<f64> = (0..experts)
                .flat_map(|e| {
                    let of_expert = offsets[e] as usize * n..offsets[e + 1] as usize * n;
                    reference::matmul(&widen(&dy[of_expert]), &turned(&w[e * n * k..][..n * k], n, k), n)
                })
                .collect();
            assert_close(&out.to_vec().unwrap(), &expected, 2e-5, &format!("{counts:?} {n} {k} {element:?}"));
        }
    }
}

#[test]
fn gradients_by_inputs_of_many_rows_have_the_bits_of_few() {
    let Some(cuda) = gpu() else { return };
    let mut random = Random::new(17);
    let (products, gradients) = (Products::new(&cuda).unwrap(), ProductGradients::new(&cuda, 1).unwrap());
    // In large tiles, and in those for long sums.
    for (rows, n, k) in [(9001, 328, 1100), (2100, 4104, 2200)] {
        let (dy, w) =
            (values(&mut random, rows * n, Element::Bf16), values(&mut random, n * k, Element::Bf16));
        let mut matrix = DeviceMatrix::zeroed(&cuda, 1, n, k, Element::Bf16).unwrap();
        fill(matrix.data_mut(), &w);
        let mut scratch = DeviceMatrix::zeroed(&cuda, 1, k, n, Element::Bf16).unwrap();
        let mut product = |first: usize, count: usize| {
            let mut x = DeviceRows::zeroed(&cuda, count, n, Element::Bf16).unwrap();
            fill(x.data_mut(), &dy[first * n..(first + count) * n]);
            let mut out = Buffer::from_slice(&cuda, &vec![f32::NAN; count * k]).unwrap();
            let output = Output::F32(&mut out);
            gradients.inputs(&products, &matrix, &x, Rows::All(count), output, &mut scratch).unwrap();
            out.to_vec().unwrap()
        };
        let together = product(0, rows);
        for (first, count) in [(0, 1), (13, 60), (rows - 250, 250)] {
            let expected = &together[first * k..(first + count) * k];
            assert!(product(first, count) == expected, "rows {first} to {} of {rows}", first + count);
        }
    }
}

/// The transpose of a matrix `[n, k]`.
fn turned(w: &[f32], n: usize, k: usize) -> Vec<f64> {
    (0..n * k).map(|i| f64::from(w[i % n * k + i / n])).collect()
}

fn fill(to: &mut Activations, values: &[f32]) {
    match to {
        Activations::F32(buffer) => buffer.write(0, values).unwrap(),
        Activations::Bf16(buffer) => {
            let bits: Vec<u16> = values.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
            buffer.write(0, &bits).unwrap();
        }
    }
}

#[test]
fn gradient_kernels_compile_for_every_architecture() {
    assert_compiles(GRADIENTS, &[], &CARDS);
    for defines in gradient_defines() {
        assert_compiles(HOPPER_GRADIENT, &defines, &CARDS);
    }
    for defines in all_turned_defines() {
        assert_compiles(HOPPER, &defines, &CARDS);
    }
}
