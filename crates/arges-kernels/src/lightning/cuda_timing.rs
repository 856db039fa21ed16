use std::sync::Arc;

use super::*;
use crate::device::cuda::{Activations, Argument, Buffer, Cuda, LaunchShape, Source, Timer};
use crate::matmul::Element;
use crate::testing::gpu;

const SOURCE: Source = Source {
    name: "timing.cu",
    text: r#"
__device__ __forceinline__ float noise(u64 i) {
    u64 z = (i + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (float)(int)(z >> 33) * (3.0f / 2147483648.0f) - 1.5f;
}
extern "C" __global__ void fill16(bf16* x, i64 n) {
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) x[i] = from_float<bf16>(noise(i));
}
extern "C" __global__ void fill32(float* x, i64 n) {
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) x[i] = noise(i);
}
extern "C" __global__ void copy(const int4* a, int4* b, i64 n) {
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) b[i] = a[i];
}
"#,
};

fn fill(cuda: &Arc<Cuda>, address: u64, n: usize, name: &str) {
    let module = cuda.module(SOURCE, &[]).unwrap();
    let kernel = module.kernel(name).unwrap();
    unsafe {
        cuda.launch(
            &kernel,
            LaunchShape::new(2048, 256),
            &[Argument::Pointer(address), Argument::I64(n as i64)],
        )
    }
    .unwrap();
    cuda.synchronize().unwrap();
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// Seconds of one of the launches in `body`.
fn time(cuda: &Arc<Cuda>, launches: usize, repeats: usize, body: impl FnOnce()) -> f64 {
    let mut graph = cuda
        .capture(|| {
            body();
            Ok(())
        })
        .unwrap();
    let timer = Timer::new(cuda).unwrap();
    for _ in 0..2 {
        graph.replay().unwrap();
    }
    let times = (0..repeats)
        .map(|_| {
            timer.start().unwrap();
            graph.replay().unwrap();
            timer.stop().unwrap() / launches as f64
        })
        .collect();
    median(times)
}

#[test]
#[ignore]
fn timing() {
    let cuda = gpu().unwrap();
    println!("{:?}", cuda.facts());
    let shape = Shape { heads: 64, head_dim: 128 };
    let slopes: Vec<f64> = (0..64).map(|h| (-8.0 * (h + 1) as f64 / 64.0).exp2()).collect();
    let decays = DeviceDecays::new(&cuda, &Decays::new(&slopes)).unwrap();
    let full = std::env::var_os("LONG").is_some();
    let rows: usize = if full { 131072 } else { 32768 };
    let stride = 32768;
    let projected = Activations::zeroed(&cuda, Element::Bf16, rows * stride).unwrap();
    fill(&cuda, projected.address(0), projected.len(), "fill16");
    let mut out = Activations::zeroed(&cuda, Element::Bf16, rows * 8192).unwrap();
    // Copy bandwidth.
    let module = cuda.module(SOURCE, &[]).unwrap();
    let copy = module.kernel("copy").unwrap();
    let n = rows * 8192 / 8;
    let seconds = time(&cuda, 4, 7, || {
        for _ in 0..4 {
            let arguments = [
                Argument::Pointer(projected.address(0)),
                Argument::Pointer(out.address(0)),
                Argument::I64(n as i64),
            ];
            unsafe { cuda.launch(&copy, LaunchShape::new(132 * 16, 512), &arguments) }.unwrap();
        }
    });
    let bandwidth = 2.0 * n as f64 * 16.0 / seconds;
    println!("copy {:.2} TB/s", bandwidth / 1e12);

    let kernels = LightningCuda::new(&cuda, shape, Element::Bf16).unwrap();
    println!("registers, spills: {:?}", kernels.registers());
    let mut cache = DeviceCache::new(&cuda, shape, Element::Bf16, 257).unwrap();
    println!("cache of 257 slots {} bytes", cache.bytes());
    let (states, tails) = cache.parts();
    fill(&cuda, states.address(0), states.len(), "fill32");
    fill(&cuda, tails.address(0), tails.len(), "fill16");

    let cases: Vec<(String, Vec<[i32; 4]>)> = [2048usize, 8192, 32768, 131072]
        .iter()
        .filter(|t| **t <= rows)
        .map(|t| (format!("1 x {t}"), vec![[0, *t as i32, 0, 0]]))
        .chain([(32, 1024usize), (8, 4096), (256, 64), (256, 1)].iter().map(|(s, t)| {
            (format!("{s} x {t}"), (0..*s).map(|i| [(i * t) as i32, *t as i32, 0, i as i32]).collect())
        }))
        .chain([(format!("mid-chunk 256 x 1"), (0..256).map(|i| [i, 1, 100 + i, i]).collect())])
        .collect();
    for (name, list) in cases {
        let tokens: i64 = list.iter().map(|s| i64::from(s[1])).sum();
        let spans = Buffer::from_slice(&cuda, &list).unwrap();
        let inputs = Inputs {
            decays: &decays,
            projected: &projected,
            stride,
            spans: &spans,
            first_span: 0,
            span_count: list.len(),
        };
        let launches = if tokens > 20000 { 2 } else { 10 };
        let seconds = time(&cuda, launches, 9, || {
            for _ in 0..launches {
                kernels.prefill(&inputs, &mut cache, &mut out).unwrap()
            }
        });
        let bytes = tokens as f64 * 65536.0;
        println!(
            "prefill {name}: {:.4} ms, {:.2} TB/s of q k v o, {:.1}% of copy",
            seconds * 1e3,
            bytes / seconds / 1e12,
            100.0 * bytes / seconds / bandwidth
        );
    }

    for (heads, wgmma) in [(2usize, true), (64, true), (2, false), (64, false)] {
        let shape = Shape { heads, head_dim: 128 };
        let kernels = LightningCuda::with_wgmma(&cuda, shape, Element::Bf16, wgmma).unwrap();
        let decays = DeviceDecays::new(&cuda, &Decays::new(&slopes[..heads])).unwrap();
        let mut cache = DeviceCache::new(&cuda, shape, Element::Bf16, 2).unwrap();
        let spans = Buffer::from_slice(&cuda, &[[0, 8192, 0, 0], [0, 64, 64, 1]]).unwrap();
        for (first, chunks) in [(0, 128.0), (1, 1.0)] {
            let inputs = Inputs {
                decays: &decays,
                projected: &projected,
                stride,
                spans: &spans,
                first_span: first,
                span_count: 1,
            };
            let seconds = time(&cuda, 4, 9, || {
                for _ in 0..4 {
                    kernels.prefill(&inputs, &mut cache, &mut out).unwrap()
                }
            });
            println!(
                "chain: wgmma {wgmma}, {heads} heads, {chunks} chunks: {:.3} us a chunk",
                seconds * 1e6 / chunks
            );
        }
    }
    for heads in [8usize, 16, 64] {
        let shape = Shape { heads, head_dim: 128 };
        let kernels = LightningCuda::new(&cuda, shape, Element::Bf16).unwrap();
        let decays = DeviceDecays::new(&cuda, &Decays::new(&slopes[..heads])).unwrap();
        let mut cache = DeviceCache::new(&cuda, shape, Element::Bf16, 256).unwrap();
        for (batch, position) in [(1usize, 100), (2, 100), (4, 100), (8, 100), (16, 100), (1, 127), (8, 127), (64, 127)] {
            for narrow in [false, true] {
                let list: Vec<[i32; 4]> = (0..256).map(|i| [i, 1, position, i]).collect();
                let spans = Buffer::from_slice(&cuda, &list).unwrap();
                let rounds = 256 / batch;
                let launches = rounds.max(8);
                let seconds = time(&cuda, launches, 9, || {
                    for i in 0..launches {
                        let inputs = Inputs { decays: &decays, projected: &projected, stride, spans: &spans, first_span: i % rounds * batch, span_count: batch };
                        kernels.decode_in(narrow, &inputs, &mut cache, &mut out).unwrap();
                    }
                });
                println!("cold: {heads} heads, batch {batch}, at {position}, narrow {narrow}: {:.2} us", seconds * 1e6);
            }
        }
    }
    let mut random = crate::testing::Random::new(5);
    for batch in [1usize, 2, 4, 8, 16, 32, 64, 128, 256] {
        let list: Vec<[i32; 4]> =
            (0..256).map(|i| [i as i32, 1, 64 + (random.bits() % 4096) as i32, i as i32]).collect();
        let spans = Buffer::from_slice(&cuda, &list).unwrap();
        // Slots in turn, so that the cache does not hold them.
        let launches = (1024 / batch).clamp(4, 256);
        let per_round = 256 / batch;
        let mut bytes = 0.0;
        for i in 0..launches {
            let first = i % per_round * batch;
            for s in &list[first..first + batch] {
                let place = f64::from(s[2] % 64);
                bytes += 64.0
                    * (65536.0 * if place == 63.0 { 2.0 } else { 1.0 }
                        + 512.0 * place
                        + 512.0
                        + 768.0
                        + 256.0)
                    / launches as f64;
            }
        }
        for narrow in [false, true] {
            let seconds = time(&cuda, launches, 9, || {
                for i in 0..launches {
                    let inputs = Inputs {
                        decays: &decays,
                        projected: &projected,
                        stride,
                        spans: &spans,
                        first_span: i % per_round * batch,
                        span_count: batch,
                    };
                    kernels.decode_in(narrow, &inputs, &mut cache, &mut out).unwrap()
                }
            });
            println!(
                "decode batch {batch} narrow {narrow}: {:.2} us, {:.2} TB/s, {:.1}% of copy; bytes {:.3} of read+write",
                seconds * 1e6,
                bytes / seconds / 1e12,
                100.0 * bytes / seconds / bandwidth,
                bytes / (batch as f64 * 64.0 * 131072.0)
            );
        }
    }
    for position in [100, 126, 62, 63, 127] {
        let list: Vec<[i32; 4]> = (0..256).map(|i| [i, 1, position, i]).collect();
        let spans = Buffer::from_slice(&cuda, &list).unwrap();
        for batch in [1, 256] {
            let inputs = Inputs {
                decays: &decays,
                projected: &projected,
                stride,
                spans: &spans,
                first_span: 0,
                span_count: batch,
            };
            let seconds = time(&cuda, 8, 9, || {
                for _ in 0..8 {
                    kernels.decode(&inputs, &mut cache, &mut out).unwrap()
                }
            });
            println!("decode batch {batch}, all at {position}: {:.2} us", seconds * 1e6);
        }
    }
    drop(projected);
    if full {
        return;
    }
    for (element, shape) in [
        (Element::F32, Shape { heads: 64, head_dim: 128 }),
        (Element::F32, Shape { heads: 8, head_dim: 64 }),
        (Element::Bf16, Shape { heads: 8, head_dim: 64 }),
    ] {
        let kernels = LightningCuda::new(&cuda, shape, element).unwrap();
        let decays = DeviceDecays::new(&cuda, &Decays::new(&slopes[..shape.heads])).unwrap();
        let width = shape.heads * shape.head_dim;
        let projected = Activations::zeroed(&cuda, element, 8192 * 3 * width).unwrap();
        let (name, bytes) = if element == Element::F32 { ("fill32", 4) } else { ("fill16", 2) };
        fill(&cuda, projected.address(0), projected.len(), name);
        let mut out = Activations::zeroed(&cuda, element, 8192 * width).unwrap();
        let mut cache = DeviceCache::new(&cuda, shape, element, 64).unwrap();
        for (spans, rows) in [(1usize, 8192usize), (8, 1024), (64, 1), (1, 1)] {
            let list: Vec<[i32; 4]> = (0..spans)
                .map(|i| {
                    [(i * rows) as i32, rows as i32, if rows == 1 { 100 + i as i32 } else { 0 }, i as i32]
                })
                .collect();
            let list = Buffer::from_slice(&cuda, &list).unwrap();
            let inputs = Inputs {
                decays: &decays,
                projected: &projected,
                stride: 3 * width,
                spans: &list,
                first_span: 0,
                span_count: spans,
            };
            let seconds = time(&cuda, 4, 7, || {
                for _ in 0..4 {
                    kernels.prefill(&inputs, &mut cache, &mut out).unwrap()
                }
            });
            println!(
                "{element:?} {shape:?} prefill {spans} x {rows}: {:.4} ms, {:.2} TB/s",
                seconds * 1e3,
                (spans * rows * width * 4 * bytes) as f64 / seconds / 1e12
            );
            if rows == 1 {
                let seconds = time(&cuda, 4, 7, || {
                    for _ in 0..4 {
                        kernels.decode(&inputs, &mut cache, &mut out).unwrap()
                    }
                });
                println!("{element:?} {shape:?} decode {spans}: {:.2} us", seconds * 1e6);
            }
        }
    }
}
