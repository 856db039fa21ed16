use std::sync::Arc;

use super::cuda::*;
use super::{Element, reference};
use crate::device::cuda::{Activations, Buffer, Cuda};
use crate::testing::{CARDS, Random, assert_close, assert_compiles, bf16_round, gpu, widen};

struct Case {
    cuda: Arc<Cuda>,
    products: Products,
    random: Random,
}

impl Case {
    fn new() -> Option<Self> {
        let cuda = gpu()?;
        let products = Products::new(&cuda).unwrap();
        Some(Self { cuda, products, random: Random::new(7) })
    }

    /// With the products of this card, and with those of cards without Hopper's tensor cores.
    fn both() -> impl Iterator<Item = Self> {
        let narrow = Self::new().map(|case| Self { products: Products::narrow(&case.cuda).unwrap(), ..case });
        Self::new().into_iter().chain(narrow)
    }

    /// Values as the device keeps them in `element`.
    fn values(&mut self, len: usize, element: Element) -> Vec<f32> {
        let values = self.random.normal(len);
        if element == Element::Bf16 { bf16_round(&values) } else { values }
    }

    fn matrix(
        &self,
        experts: usize,
        outputs: usize,
        k: usize,
        values: &[f32],
        element: Element,
    ) -> DeviceMatrix {
        let mut matrix = DeviceMatrix::zeroed(&self.cuda, experts, outputs, k, element).unwrap();
        let bytes: Vec<u8> = match element {
            Element::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Element::Bf16 => {
                values.iter().flat_map(|x| half::bf16::from_f32(*x).to_bits().to_le_bytes()).collect()
            }
        };
        let mut pinned = crate::device::cuda::Pinned::zeroed(&self.cuda, bytes.len()).unwrap();
        pinned.as_mut_slice().copy_from_slice(&bytes);
        matrix.write_outputs(0, experts * outputs, 1, 0, &pinned).unwrap();
        matrix
    }

    fn rows(&self, rows: usize, k: usize, values: &[f32], element: Element) -> DeviceRows {
        let mut x = DeviceRows::zeroed(&self.cuda, rows, k, element).unwrap();
        match x.data_mut() {
            Activations::F32(buffer) => buffer.write(0, values).unwrap(),
            Activations::Bf16(buffer) => {
                let bits: Vec<u16> = values.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
                buffer.write(0, &bits).unwrap();
            }
        }
        x
    }
}

/// `(rows, outputs, k)` that fill tiles and that do not.
const SHAPES: [(usize, usize, usize); 11] = [
    (1, 1, 8),
    (1, 64, 64),
    (3, 33, 72),
    (8, 300, 1544),
    (9, 128, 128),
    (31, 70, 200),
    (63, 65, 256),
    (64, 513, 96),
    (65, 192, 320),
    (129, 260, 640),
    (1000, 136, 128),
];

#[test]
fn products_agree_with_the_reference_over_odd_shapes() {
    for mut case in Case::both() {
        for (rows, outputs, k) in SHAPES {
            for (x_element, w_element) in
                [(Element::F32, Element::F32), (Element::F32, Element::Bf16), (Element::Bf16, Element::Bf16)]
            {
                let (x, w) = (case.values(rows * k, x_element), case.values(outputs * k, w_element));
                let matrix = case.matrix(1, outputs, k, &w, w_element);
                let operand = case.rows(rows, k, &x, x_element);
                let mut out = Buffer::from_slice(&case.cuda, &vec![f32::NAN; rows * outputs]).unwrap();
                case.products.run(&matrix, &operand, Rows::All(rows), Output::F32(&mut out)).unwrap();
                let expected = reference::matmul(&widen(&x), &widen(&w), k);
                let what = format!("{rows} {outputs} {k} {x_element:?} {w_element:?}");
                assert_close(&out.to_vec().unwrap(), &expected, 1e-6 * (k as f64).sqrt(), &what);
            }
        }
    }
}

#[test]
fn epilogues_agree_with_the_reference() {
    for mut case in Case::both() {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for element in [Element::F32, Element::Bf16] {
            for (rows, outputs, k) in
                [(1, 48, 64), (13, 160, 72), (70, 96, 128), (300, 272, 64), (4200, 1040, 64)]
            {
                let (x, w) = (case.values(rows * k, element), case.values(outputs * k, element));
                let w: Vec<f32> = w.iter().map(|w| w * 0.25).collect();
                let matrix = case.matrix(1, outputs, k, &w, element);
                let operand = case.rows(rows, k, &x, element);
                let plain = reference::matmul(&widen(&x), &widen(&w), k);
                let tolerance = if element == Element::F32 { 1e-5 } else { 4e-3 };
                let zeroed = |len| Activations::zeroed(&case.cuda, element, len).unwrap();

                let mut out = zeroed(rows * outputs);
                case.products.run(&matrix, &operand, Rows::All(rows), Output::Rounded(&mut out)).unwrap();
                let rounded = out.to_f32().unwrap();
                assert_close(&rounded, &plain, tolerance, "rounded");

                let silu = outputs / 2;
                let activated: Vec<f64> = (0..rows * outputs)
                    .map(
                        |i| if i % outputs < silu { plain[i] * sigmoid(plain[i]) } else { sigmoid(plain[i]) },
                    )
                    .collect();
                let mut out = zeroed(rows * outputs);
                let output = Output::Activated { out: &mut out, silu, before: None };
                case.products.run(&matrix, &operand, Rows::All(rows), output).unwrap();
                assert_close(&out.to_f32().unwrap(), &activated, tolerance, "activated");
                let (mut again, mut before) = (zeroed(rows * outputs), zeroed(rows * outputs));
                let output = Output::Activated { out: &mut again, silu, before: Some(&mut before) };
                case.products.run(&matrix, &operand, Rows::All(rows), output).unwrap();
                assert!(again.to_f32().unwrap() == out.to_f32().unwrap(), "activated, with the product");
                let of_silu = |values: &[f32]| -> Vec<f32> {
                    values.chunks(outputs).flat_map(|row| row[..silu].to_vec()).collect()
                };
                let before = of_silu(&before.to_f32().unwrap());
                assert!(before == of_silu(&rounded), "the product before it is activated");

                let gated: Vec<f64> = (0..rows * outputs / 2)
                    .map(|i| {
                        let (row, inner) = (i / (outputs / 2), i % (outputs / 2));
                        let gate = row * outputs + inner / GATE_GROUP * 2 * GATE_GROUP + inner % GATE_GROUP;
                        plain[gate] * sigmoid(plain[gate]) * plain[gate + GATE_GROUP]
                    })
                    .collect();
                let mut out = zeroed(rows * outputs / 2);
                let output = Output::Gated { out: &mut out, before: None };
                case.products.run(&matrix, &operand, Rows::All(rows), output).unwrap();
                assert_close(&out.to_f32().unwrap(), &gated, tolerance, "gated");
                let (mut again, mut before) = (zeroed(rows * outputs / 2), zeroed(rows * outputs));
                let output = Output::Gated { out: &mut again, before: Some(&mut before) };
                case.products.run(&matrix, &operand, Rows::All(rows), output).unwrap();
                assert!(again.to_f32().unwrap() == out.to_f32().unwrap(), "gated, with the product");
                assert!(before.to_f32().unwrap() == rounded, "the product before it is gated");
            }
        }
    }
}

#[test]
fn every_expert_multiplies_its_own_rows_and_no_others() {
    for mut case in Case::both() {
        for element in [Element::F32, Element::Bf16] {
            for counts in [
                vec![0, 1, 0, 2, 0],
                vec![9, 0, 130, 33, 1],
                vec![0, 0, 0, 0, 0, 400, 700, 3],
                vec![0, 300, 1, 731],
            ] {
                let (experts, outputs, k) = (counts.len(), 200, 72);
                let rows: usize = counts.iter().sum();
                let (x, w) = (case.values(rows * k, element), case.values(experts * outputs * k, element));
                let matrix = case.matrix(experts, outputs, k, &w, element);
                let operand = case.rows(rows, k, &x, element);
                let mut offsets = vec![0i32];
                counts.iter().for_each(|count| offsets.push(offsets[offsets.len() - 1] + *count as i32));
                let device_offsets = Buffer::from_slice(&case.cuda, &offsets).unwrap();
                let mut out = Buffer::from_slice(&case.cuda, &vec![f32::NAN; rows * outputs]).unwrap();
                let grouped = Rows::Grouped { offsets: &device_offsets, most: rows };
                case.products.run(&matrix, &operand, grouped, Output::F32(&mut out)).unwrap();
                let expected: Vec<f64> = (0..experts)
                    .flat_map(|e| {
                        let (begin, end) = (offsets[e] as usize, offsets[e + 1] as usize);
                        let w = &w[e * outputs * k..(e + 1) * outputs * k];
                        reference::matmul(&widen(&x[begin * k..end * k]), &widen(w), k)
                    })
                    .collect();
                assert_close(&out.to_vec().unwrap(), &expected, 1e-5, &format!("{counts:?} {element:?}"));
            }
        }
    }
}

#[test]
fn a_row_of_a_product_has_the_same_bits_alone_and_among_others() {
    for mut case in Case::both() {
        let f32_rows = (400, 320, 1544, Element::F32, Element::Bf16);
        // More tiles than two a multiprocessor, of some steps each.
        let many = (9001, 1100, 328, Element::Bf16, Element::Bf16);
        let long_sums = (2100, 2200, 4104, Element::Bf16, Element::Bf16);
        for (rows, outputs, k, x_element, w_element) in
            [f32_rows, (400, 320, 1544, Element::Bf16, Element::Bf16), many, long_sums]
        {
            let (x, w) = (case.values(rows * k, x_element), case.values(outputs * k, w_element));
            let matrix = case.matrix(1, outputs, k, &w, w_element);
            let product = |first: usize, count: usize| {
                let operand = case.rows(count, k, &x[first * k..(first + count) * k], x_element);
                let mut out = Buffer::zeroed(&case.cuda, count * outputs).unwrap();
                case.products.run(&matrix, &operand, Rows::All(count), Output::F32(&mut out)).unwrap();
                out.to_vec().unwrap()
            };
            let together = product(0, rows);
            for (first, count) in
                [(0, 1), (5, 8), (7, 15), (rows - 1, 1), (100, 30), (13, 60), (200, 128), (rows - 250, 250)]
            {
                let expected = &together[first * outputs..(first + count) * outputs];
                assert!(product(first, count) == expected, "rows {first} to {} {x_element:?}", first + count);
            }
        }
    }
}

#[test]
fn rows_in_parts_give_the_product_of_f32_rows() {
    let Some(mut case) = Case::new() else { return };
    if !case.cuda.facts().architecture.has_wgmma() {
        println!("skipped: no tensor cores of Hopper");
        return;
    }
    for (rows, outputs, k) in
        [(1, 40, 64), (8, 200, 72), (9, 33, 128), (17, 64, 1544), (61, 130, 256), (300, 72, 64)]
    {
        let (x, w) = (case.values(rows * k, Element::F32), case.values(outputs * k, Element::Bf16));
        let matrix = case.matrix(1, outputs, k, &w, Element::Bf16);
        let mut parts = vec![0.0; rows.next_multiple_of(8) * PARTS * k];
        for row in 0..rows {
            for column in 0..k {
                let mut rest = x[row * k + column];
                for part in 0..PARTS {
                    let value = half::bf16::from_f32(rest).to_f32();
                    parts[(row / 8 * 8 * PARTS + part * 8 + row % 8) * k + column] = value;
                    rest -= value;
                }
                assert!(rest.abs() <= x[row * k + column].abs() / 65536.0, "two parts hold 16 bits");
            }
        }
        let operand = case.rows(parts.len() / k, k, &parts, Element::Bf16);
        let mut out = Buffer::from_slice(&case.cuda, &vec![f32::NAN; rows * outputs]).unwrap();
        case.products.run_parts(&matrix, &operand, rows, &mut out).unwrap();
        let expected = reference::matmul(&widen(&x), &widen(&w), k);
        assert_close(&out.to_vec().unwrap(), &expected, 1e-5, &format!("{rows} {outputs} {k}"));
    }
}

#[test]
fn kernels_compile_for_every_architecture() {
    assert_compiles(PORTABLE, &[("ROWS_BF16", 0), ("WEIGHTS_BF16", 1)], &CARDS);
    assert_compiles(PORTABLE, &[("ROWS_BF16", 1), ("WEIGHTS_BF16", 1)], &CARDS);
    for defines in warp_tiling_defines() {
        assert_compiles(MMA, &defines, &CARDS);
    }
    for defines in tiling_defines() {
        assert_compiles(HOPPER, &defines, &CARDS);
    }
}
