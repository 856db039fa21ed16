//! Times at MiniMax-M1's width, 64 heads of 128 over 8 key-value heads in bf16:
//! `cargo test --release -p arges-kernels softmax_attention::cuda_timing -- --ignored --nocapture`.

use std::sync::Arc;

use super::*;
use crate::device::cuda::{Activations, Buffer, Cuda, CudaError, Timer};
use crate::matmul::Element;
use crate::rope::{DeviceAngles, Frequencies};
use crate::testing::{Random, gpu};

const SHAPE: Shape = Shape { heads: 64, kv_heads: 8, head_dim: 128, rotary_dim: 64 };
const WIDTH: usize = (64 + 2 * 8) * 128;

/// Random values, the same ones again and again.
fn fill(values: &mut Activations) {
    let Activations::Bf16(buffer) = values else { unreachable!("made as bf16") };
    let block: Vec<u16> =
        Random::new(1).normal(1 << 20).into_iter().map(|x| half::bf16::from_f32(x).to_bits()).collect();
    for start in (0..buffer.len()).step_by(block.len()) {
        buffer.write(start, &block[..block.len().min(buffer.len() - start)]).unwrap();
    }
}

/// Median seconds of `[append, attention, both in one graph]` for `sequences` spans of `rows` rows, each behind
/// `position` earlier tokens.
fn seconds(cuda: &Arc<Cuda>, sequences: usize, position: usize, rows: usize, repeats: usize) -> [f64; 3] {
    let (all, context) = (sequences * rows, position + rows);
    let table_stride = context.div_ceil(PAGE);
    let count = sequences * table_stride;
    // Pages in no order: a prime walks over all of them.
    let table: Vec<i32> = (0..count).map(|i| (i * 1_000_003 % count) as i32).collect();
    let spans: Vec<[i32; 4]> =
        (0..sequences).map(|i| [(i * rows) as i32, rows as i32, position as i32, i as i32]).collect();
    let mut attention = SoftmaxCuda::new(cuda, SHAPE, Element::Bf16).unwrap();
    let mut angles = DeviceAngles::new(cuda, &Frequencies::new(1e7, 64), all).unwrap();
    let mut pages = DevicePages::new(cuda, SHAPE, count, Element::Bf16).unwrap();
    let (tables, spans) =
        (Buffer::from_slice(cuda, &table).unwrap(), Buffer::from_slice(cuda, &spans).unwrap());
    let mut projected = Activations::zeroed(cuda, Element::Bf16, all * WIDTH).unwrap();
    let mut out = Activations::zeroed(cuda, Element::Bf16, all * SHAPE.heads * SHAPE.head_dim).unwrap();
    fill(&mut projected);
    fill(pages.data_mut());
    angles.fill(&spans, 0, sequences, all).unwrap();
    let inputs = Inputs {
        rows: all,
        spans: &spans,
        first_span: 0,
        span_count: sequences,
        tables: &tables,
        table_stride,
    };
    let timer = Timer::new(cuda).unwrap();
    let mut step = |append: bool, attend: bool| -> Result<(), CudaError> {
        if append {
            attention.append(&mut projected, WIDTH, &inputs, &angles, &mut pages)?;
        }
        match (attend, rows) {
            (false, _) => Ok(()),
            (true, 1) => attention.decode(&projected, WIDTH, &inputs, context, &pages, &mut out),
            (true, _) => attention.prefill(&projected, WIDTH, &inputs, &pages, &mut out),
        }
    };
    [(true, false), (false, true), (true, true)].map(|(append, attend)| {
        let launches = if rows == 1 { 10 } else { 1 };
        let mut graph = cuda.capture(|| (0..launches).try_for_each(|_| step(append, attend))).unwrap();
        graph.replay().unwrap();
        let mut times: Vec<f64> = (0..repeats)
            .map(|_| {
                timer.start().unwrap();
                graph.replay().unwrap();
                timer.stop().unwrap() / launches as f64
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

#[test]
#[ignore = "takes time, and tells it"]
fn prefill_and_decode() {
    let Some(cuda) = gpu() else { return };
    println!("{}", cuda.facts().name);
    for (sequences, position, rows) in [
        (1, 0, 512),
        (1, 0, 2048),
        (1, 0, 8192),
        (1, 0, 32_768),
        (1, 0, 131_072),
        (32, 0, 1024),
        (1, 100_000, 8192),
    ] {
        let [append, attend, both] = seconds(&cuda, sequences, position, rows, 5);
        let pairs = (position * rows + rows * (rows + 1) / 2) as f64;
        let rate = sequences as f64 * pairs * (4 * SHAPE.heads * SHAPE.head_dim) as f64 / attend / 1e12;
        println!(
            "prefill {sequences:3} x {rows:6} at {position:6}: append {:.3} ms, attention {:.3} ms ({rate:.0} TFLOP/s), both {:.3} ms",
            append * 1e3,
            attend * 1e3,
            both * 1e3,
        );
    }
    for (sequences, context) in
        [(1, 1024), (1, 65_536), (8, 1024), (8, 16_384), (32, 4096), (128, 1024), (256, 1024)]
    {
        let [append, attend, both] = seconds(&cuda, sequences, context - 1, 1, 9);
        let bytes = (sequences * context * 2 * SHAPE.kv_heads * SHAPE.head_dim * 2) as f64;
        println!(
            "decode {sequences:3} at {context:5}: append {:.1} us, attention {:.1} us ({:.2} TB/s), both {:.1} us",
            append * 1e6,
            attend * 1e6,
            bytes / attend / 1e12,
            both * 1e6,
        );
    }
}
