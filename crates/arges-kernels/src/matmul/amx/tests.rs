//! Most machines that run these tests lack AMX. Here everything but the instructions themselves runs on an
//! emulation of them. Where AMX is, the tests of products (`matmul/tests.rs`) run the instructions.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::emulator::Emulator;
use super::*;
use crate::device::cpu::simd::Plain;
use crate::device::cpu::{Cpu, CpuOptions, Isa};
use crate::matmul::cpu::for_tasks;
use crate::matmul::pack::Format;
use crate::matmul::{Element, Output, PackedMatrix, PackedRows, RowMajor, Segment, Stored, reference};
use crate::testing::{Random, bf16_round, bytes_of, widen};

fn plain_cpu() -> Cpu {
    Cpu::new(CpuOptions { isa: Some(Isa::Plain), threads: Some(2) }).unwrap()
}

fn pack(cpu: &Cpu, x: &[f32], k: usize, segments: &[Segment]) -> PackedRows {
    let mut packed = PackedRows::with_format(Format::Tiles, cpu.isa(), x.len() / k, k);
    packed.pack(cpu, x, k, segments, |row| row);
    packed
}

/// A product on emulated tiles; how often they were configured.
fn emulate(
    cpu: &Cpu,
    rows: &PackedRows,
    segments: &[Segment],
    matrices: &[PackedMatrix],
    output: Output<'_>,
) -> usize {
    let configured = AtomicUsize::new(0);
    for_tasks(cpu, rows, segments, matrices, output, |task| {
        let mut tiles = Emulator::new();
        // SAFETY: emulated tiles and plain vectors need no instruction set; rows are packed as tiles.
        unsafe { run_on::<Plain>(task, &mut tiles) };
        configured.fetch_add(tiles.configured, Ordering::Relaxed);
    });
    configured.into_inner()
}

fn product(cpu: &Cpu, x: &[f32], matrix: &PackedMatrix) -> Vec<f32> {
    let k = matrix.inputs();
    let segments = Segment::all(x.len() / k);
    let rows = pack(cpu, x, k, &segments);
    let mut out = vec![f32::NAN; x.len() / k * matrix.outputs()];
    emulate(cpu, &rows, &segments, std::slice::from_ref(matrix), Output::Rows(&mut out));
    out
}

fn row_major(data: &[u8], rows: usize, cols: usize) -> RowMajor<'_> {
    RowMajor { stored: Stored::F32, rows, cols, data }
}

#[test]
fn the_configuration_lies_in_memory_as_the_manual_says() {
    let configuration = Configuration::for_rows(21);
    // SAFETY: the structure is 64 bytes without padding.
    let bytes = unsafe { std::mem::transmute::<Configuration, [u8; 64]>(configuration) };
    let mut expected = [0; 64];
    expected[0] = 1;
    for tile in 0..8 {
        expected[16 + 2 * tile] = 64;
    }
    expected[48..56].copy_from_slice(&[16, 16, 5, 5, 16, 5, 16, 16]);
    assert_eq!(bytes, expected);
    assert_eq!(align_of::<Configuration>(), 64);
    // One row needs no lower tiles: they have neither rows nor bytes.
    let configuration = Configuration::for_rows(1);
    assert_eq!(configuration.rows[..8], [1, 1, 0, 0, 1, 0, 16, 16]);
    assert_eq!(configuration.row_bytes[..8], [64, 64, 0, 0, 64, 0, 64, 64]);
}

#[test]
fn emulated_products_agree_with_the_reference_over_odd_shapes() {
    let mut random = Random::new(11);
    let cpu = plain_cpu();
    // Rows below, at and above one tile, one block, several blocks and a whole task.
    for (rows, outputs, k) in [
        (1, 1, 1),
        (1, 33, 7),
        (15, 64, 64),
        (16, 70, 33),
        (17, 31, 96),
        (32, 32, 32),
        (33, 65, 100),
        (95, 40, 130),
        (261, 34, 40),
    ] {
        let x = random.normal(rows * k);
        let w = random.normal(outputs * k);
        let matrix = PackedMatrix::pack(&cpu, row_major(&bytes_of(&w), outputs, k), Element::Bf16);
        let expected = reference::matmul(&widen(&bf16_round(&x)), &widen(&bf16_round(&w)), k);
        let got = product(&cpu, &x, &matrix);
        assert_eq!(got.len(), expected.len());
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let error = (f64::from(*got) - expected).abs();
            let (row, column) = (i / outputs, i % outputs);
            assert!(error < 2e-6 * (k as f64 + 10.0), "{rows}x{outputs}x{k} at {row}, {column}: {error:e}");
        }
    }
}

#[test]
fn a_row_of_an_emulated_product_has_the_same_bits_alone_and_among_others() {
    let mut random = Random::new(12);
    let cpu = plain_cpu();
    let (rows, outputs, k) = (53, 70, 77);
    let x = random.normal(rows * k);
    let w = bytes_of(&random.normal(outputs * k));
    let matrix = PackedMatrix::pack(&cpu, row_major(&w, outputs, k), Element::Bf16);
    let together = product(&cpu, &x, &matrix);
    for (row, expected) in x.chunks(k).zip(together.chunks(outputs)) {
        assert_eq!(product(&cpu, row, &matrix), expected);
    }
}

#[test]
fn emulated_segments_use_their_own_matrices_and_gate_up_feeds_the_next_product() {
    let mut random = Random::new(13);
    let cpu = plain_cpu();
    let (hidden, width) = (40, 72);
    let segments = [
        Segment { first: 0, rows: 37, matrix: 0 },
        Segment { first: 37, rows: 0, matrix: 1 },
        Segment { first: 37, rows: 18, matrix: 2 },
    ];
    let x = random.normal(55 * hidden);
    let weights: Vec<[Vec<f32>; 3]> = (0..3)
        .map(|_| [width * hidden, width * hidden, hidden * width].map(|len| bf16_round(&random.normal(len))))
        .collect();
    let (mut gate_up, mut down) = (Vec::new(), Vec::new());
    for [gate, up, w2] in &weights {
        let (gate, up, w2) = (bytes_of(gate), bytes_of(up), bytes_of(w2));
        let (gate, up) = (row_major(&gate, width, hidden), row_major(&up, width, hidden));
        gate_up.push(PackedMatrix::pack_gate_up(&cpu, gate, up, Element::Bf16));
        down.push(PackedMatrix::pack(&cpu, row_major(&w2, hidden, width), Element::Bf16));
    }
    let rows = pack(&cpu, &x, hidden, &segments);
    let mut inner = PackedRows::with_format(Format::Tiles, cpu.isa(), 55, width);
    emulate(&cpu, &rows, &segments, &gate_up, Output::GateUp(&mut inner, width));
    let mut out = vec![f32::NAN; 55 * hidden];
    emulate(&cpu, &inner, &segments, &down, Output::Rows(&mut out));
    for segment in &segments {
        let [gate, up, w2] = weights[segment.matrix].each_ref().map(|w| widen(w));
        for row in segment.first..segment.first + segment.rows {
            let x = widen(&bf16_round(&x[row * hidden..][..hidden]));
            let gate = reference::matmul(&x, &gate, hidden);
            let up = reference::matmul(&x, &up, hidden);
            let inner: Vec<f64> =
                gate.iter().zip(&up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
            // Inner values are rounded to bf16, by at most 2^-9 of each.
            let bound: f64 = 1e-3 + inner.iter().map(|x| x.abs()).sum::<f64>() * 3.5 / 512.0;
            let expected = reference::matmul(&inner, &w2, width);
            for (got, expected) in out[row * hidden..].iter().zip(&expected) {
                let error = (f64::from(*got) - expected).abs();
                assert!(error < bound, "row {row}: error {error:e}, bound {bound:e}");
            }
        }
    }
}

#[test]
fn a_task_of_whole_blocks_configures_its_tiles_once() {
    let cpu = plain_cpu();
    let (rows, outputs, k) = (3 * TILES_BLOCK, 64, 32);
    let matrix = PackedMatrix::zeroed(outputs, k, Element::Bf16);
    let segments = Segment::all(rows);
    let packed = pack(&cpu, &vec![1.0; rows * k], k, &segments);
    let mut out = vec![f32::NAN; rows * outputs];
    let configured = emulate(&cpu, &packed, &segments, std::slice::from_ref(&matrix), Output::Rows(&mut out));
    assert_eq!(configured, 1);
    assert!(out.iter().all(|sum| *sum == 0.0));
}

/// A machine that does not do what tiles should.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// A product has no effect.
    LostProduct,
    /// A tile's contents are gone some time after it was loaded.
    LostContents,
    /// A store reaches beyond the rows of its tile.
    LongStore,
}

struct Faulty {
    tiles: Emulator,
    fault: Fault,
}

impl Tiles for Faulty {
    unsafe fn configure(&mut self, configuration: &Configuration) {
        // SAFETY: the caller's promise, passed on, here and below.
        unsafe { self.tiles.configure(configuration) };
    }

    unsafe fn release(&mut self) {
        // SAFETY: as above.
        unsafe { self.tiles.release() };
    }

    unsafe fn zero<const TILE: usize>(&mut self) {
        // SAFETY: as above.
        unsafe { self.tiles.zero::<TILE>() };
    }

    unsafe fn load<const TILE: usize>(&mut self, first: *const u8, stride: usize) {
        // SAFETY: as above.
        unsafe { self.tiles.load::<TILE>(first, stride) };
        if self.fault == Fault::LostContents && TILE == UPPER_LEFT {
            // SAFETY: as above.
            unsafe { self.tiles.zero::<TILE>() };
        }
    }

    unsafe fn store<const TILE: usize>(&mut self, first: *mut u8, stride: usize) {
        // SAFETY: as above.
        unsafe { self.tiles.store::<TILE>(first, stride) };
        if self.fault == Fault::LongStore {
            // SAFETY: the check stores to a block that has room for whole tiles.
            unsafe { first.add((TILE_ROWS - 1) * stride).write_bytes(0, ROW_BYTES) };
        }
    }

    unsafe fn dot<const SUMS: usize, const ROWS: usize, const WEIGHTS: usize>(&mut self) {
        if self.fault != Fault::LostProduct || SUMS != LOWER_RIGHT {
            // SAFETY: as above.
            unsafe { self.tiles.dot::<SUMS, ROWS, WEIGHTS>() };
        }
    }
}

#[test]
fn the_check_at_start_up_passes_right_tiles_and_refuses_wrong_ones() {
    for fault in [Fault::None, Fault::LostProduct, Fault::LostContents, Fault::LongStore] {
        let mut tiles = Faulty { tiles: Emulator::new(), fault };
        assert_eq!(check::tiles_work(&mut tiles), fault == Fault::None);
    }
}

#[test]
fn asking_whether_amx_is_usable_does_no_harm_on_any_machine() {
    // Were it usable, it would have been chosen: AMX comes with AVX-512.
    assert_eq!(usable(), Isa::detect() == Isa::Amx);
}
