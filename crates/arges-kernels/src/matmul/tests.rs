use super::*;
use crate::device::cpu::{Cpu, CpuOptions, Isa};
use crate::testing::{Random, bf16_round, bytes_of, widen};

fn cpus() -> impl Iterator<Item = Cpu> {
    Isa::available().map(|isa| Cpu::new(CpuOptions { isa: Some(isa), threads: Some(2) }).unwrap())
}

fn row_major(data: &[u8], rows: usize, cols: usize) -> RowMajor<'_> {
    RowMajor { stored: Stored::F32, rows, cols, data }
}

fn product(cpu: &Cpu, compute: Compute, x: &[f32], matrix: &PackedMatrix) -> Vec<f32> {
    let k = matrix.inputs();
    let rows = x.len() / k;
    let mut packed = PackedRows::new(cpu, compute, rows, k);
    packed.pack(cpu, x, k, &Segment::all(rows), |row| row);
    let mut out = vec![f32::NAN; rows * matrix.outputs()];
    matmul(cpu, &packed, &Segment::all(rows), std::slice::from_ref(matrix), Output::Rows(&mut out));
    out
}

#[test]
fn products_agree_with_the_reference_over_odd_shapes_on_every_instruction_set() {
    let mut random = Random::new(1);
    for cpu in cpus() {
        for (rows, outputs, k) in
            [(1, 1, 1), (1, 33, 7), (5, 64, 64), (13, 70, 33), (63, 31, 96), (200, 96, 130)]
        {
            let x = random.normal(rows * k);
            let w = random.normal(outputs * k);
            for (compute, element) in
                [(Compute::F32, Element::F32), (Compute::F32, Element::Bf16), (Compute::Bf16, Element::Bf16)]
            {
                let matrix = PackedMatrix::pack(&cpu, row_major(&bytes_of(&w), outputs, k), element);
                let w = if element == Element::Bf16 { bf16_round(&w) } else { w.clone() };
                let x_used = if compute == Compute::Bf16 { bf16_round(&x) } else { x.clone() };
                let expected = reference::matmul(&widen(&x_used), &widen(&w), k);
                let got = product(&cpu, compute, &x, &matrix);
                for (got, expected) in got.iter().zip(&expected) {
                    let error = (f64::from(*got) - expected).abs();
                    assert!(
                        error < 2e-6 * (k as f64 + 10.0),
                        "{} {compute:?} {element:?}: {error:e}",
                        cpu.isa()
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_of_a_product_has_the_same_bits_alone_and_among_others() {
    let mut random = Random::new(2);
    let (rows, outputs, k) = (41, 200, 77);
    let x = random.normal(rows * k);
    let w = bytes_of(&random.normal(outputs * k));
    for cpu in cpus() {
        for (compute, element) in
            [(Compute::F32, Element::F32), (Compute::F32, Element::Bf16), (Compute::Bf16, Element::Bf16)]
        {
            let matrix = PackedMatrix::pack(&cpu, row_major(&w, outputs, k), element);
            let together = product(&cpu, compute, &x, &matrix);
            for (row, expected) in x.chunks(k).zip(together.chunks(outputs)) {
                assert_eq!(product(&cpu, compute, row, &matrix), expected, "{} {compute:?}", cpu.isa());
            }
        }
    }
}

#[test]
fn segments_use_their_own_matrices_and_gate_up_feeds_the_next_product() {
    let mut random = Random::new(3);
    let (hidden, width, experts) = (40, 72, 3);
    let counts = [5, 0, 14];
    let rows: usize = counts.iter().sum();
    let x = random.normal(rows * hidden);
    let weights: Vec<[Vec<f32>; 3]> = (0..experts)
        .map(|_| [width * hidden, width * hidden, hidden * width].map(|len| random.normal(len)))
        .collect();
    for cpu in cpus() {
        let mut first = 0;
        let segments: Vec<Segment> = counts
            .iter()
            .enumerate()
            .map(|(matrix, &rows)| {
                first += rows;
                Segment { first: first - rows, rows, matrix }
            })
            .collect();
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for [gate, up, w2] in &weights {
            let (gate, up, w2) = (bytes_of(gate), bytes_of(up), bytes_of(w2));
            let (gate, up) = (row_major(&gate, width, hidden), row_major(&up, width, hidden));
            gate_up.push(PackedMatrix::pack_gate_up(&cpu, gate, up, Element::F32));
            down.push(PackedMatrix::pack(&cpu, row_major(&w2, hidden, width), Element::F32));
        }
        let mut packed = PackedRows::new(&cpu, Compute::F32, rows, hidden);
        // Packed in reverse, to see that the gather is obeyed.
        packed.pack(&cpu, &x, hidden, &segments, |row| rows - 1 - row);
        let mut inner = PackedRows::new(&cpu, Compute::F32, rows, width);
        matmul(&cpu, &packed, &segments, &gate_up, Output::GateUp(&mut inner, width));
        let mut out = vec![0.0; rows * hidden];
        matmul(&cpu, &inner, &segments, &down, Output::Rows(&mut out));
        for segment in &segments {
            let [gate, up, w2] = weights[segment.matrix].each_ref().map(|w| widen(w));
            for row in segment.first..segment.first + segment.rows {
                let x = widen(&x[(rows - 1 - row) * hidden..][..hidden]);
                let gate = reference::matmul(&x, &gate, hidden);
                let up = reference::matmul(&x, &up, hidden);
                let inner: Vec<f64> =
                    gate.iter().zip(&up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
                let expected = reference::matmul(&inner, &w2, width);
                for (got, expected) in out[row * hidden..].iter().zip(&expected) {
                    let error = (f64::from(*got) - expected).abs();
                    assert!(error < 2e-3, "{}: row {row}, error {error:e}", cpu.isa());
                }
            }
        }
    }
}

#[test]
fn half_precision_files_are_read_as_they_are() {
    let values = [1.0f32, -0.5, 65504.0, 6e-8];
    let f16: Vec<u8> = values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
    let bf16: Vec<u8> = values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
    for (i, value) in values.iter().enumerate() {
        assert_eq!(Stored::F16.read(&f16, i), half::f16::from_f32(*value).to_f32());
        assert_eq!(Stored::Bf16.read(&bf16, i), half::bf16::from_f32(*value).to_f32());
    }
}
