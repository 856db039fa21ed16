use super::*;
use crate::testing::{CARDS, Random, assert_compiles, gpu};

const SOURCE: Source = Source {
    name: "device/cuda/tests.rs",
    text: r#"
extern "C" __global__ void scale(float* x, float factor, int count, long long offset) {
    wait_for_previous();
    let_next_start();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) x[offset + i] = x[offset + i] * factor + SHIFT;
}

extern "C" __global__ void round_values(const float* x, bf16* y, int count) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] = from_float<bf16>(x[i]);
}
"#,
};

#[test]
fn every_architecture_compiles_the_prelude() {
    assert_compiles(SOURCE, &[("SHIFT", 1)], &CARDS);
}

#[test]
fn a_source_that_does_not_compile_is_named_with_the_compilers_log() {
    let source = Source { name: "broken.cu", text: "extern \"C\" __global__ void k() { nonsense; }" };
    match compile(source, &[], Architecture { major: 9, minor: 0 }) {
        Err(error @ CudaError::NoCompiler) => println!("skipped: {error}"),
        Err(CudaError::Compile { source_name, log, .. }) => {
            assert_eq!(source_name, "broken.cu");
            assert!(log.contains("broken.cu(1)") && log.contains("nonsense"), "{log}");
        }
        other => panic!("{:?}", other.map(|image| image.len())),
    }
}

#[test]
fn kernels_run_in_order_and_again_from_a_graph() {
    let Some(cuda) = gpu() else { return };
    let module = cuda.module(SOURCE, &[("SHIFT", 1)]);
    let kernel = module.kernel("scale").unwrap();
    let buffer = Buffer::from_slice(&cuda, &[1.0f32, 2.0, 3.0, 4.0]).unwrap();
    let launch = |shape: LaunchShape| {
        let arguments =
            [Argument::Pointer(buffer.address(0)), Argument::F32(2.0), Argument::I32(2), Argument::I64(1)];
        // SAFETY: the kernel's four arguments; it touches values 1 and 2 of 4.
        unsafe { cuda.launch(&kernel, shape, &arguments) }
    };
    let shape = LaunchShape::new(1, 32);
    launch(shape).unwrap();
    launch(shape.overlap()).unwrap();
    assert_eq!(buffer.to_vec().unwrap(), [1.0, 11.0, 15.0, 4.0]);
    let mut graph = cuda
        .capture(|| {
            launch(shape.overlap())?;
            launch(shape.overlap())
        })
        .unwrap();
    assert_eq!(buffer.to_vec().unwrap(), [1.0, 11.0, 15.0, 4.0], "capturing runs nothing");
    graph.replay().unwrap();
    graph.replay().unwrap();
    assert_eq!(buffer.to_vec().unwrap(), [1.0, 191.0, 255.0, 4.0]);
    assert!(module.kernel("nothing").is_err());

    let times = cuda.profile::<CudaError>(|| (0..3).try_for_each(|_| launch(shape.overlap()))).unwrap();
    let [time] = &times[..] else { panic!("{times:?}") };
    assert_eq!((time.name.as_str(), time.calls), ("device/cuda/tests.rs scale", 3));
    assert!(time.seconds > 0.0 && time.seconds < 0.1, "{}", time.seconds);
}

#[test]
fn memory_is_counted_and_values_come_back() {
    let Some(cuda) = gpu() else { return };
    let (before, _) = cuda.allocated();
    let values = Random::new(3).normal(1000);
    let buffer = Buffer::from_slice(&cuda, &values).unwrap();
    assert_eq!(buffer.to_vec().unwrap(), values);
    let mut pinned = Pinned::<u8>::zeroed(&cuda, 48).unwrap();
    pinned.as_mut_slice().copy_from_slice(bytemuck::cast_slice(&values[..12]));
    let mut rows = Activations::zeroed(&cuda, crate::matmul::Element::F32, 20).unwrap();
    rows.write_rows(8, 24, &pinned, 3, 16).unwrap();
    let got = rows.to_f32().unwrap();
    assert_eq!((&got[..2], &got[2..6]), (&[0.0; 2][..], &values[..4]));
    assert_eq!((&got[6..8], &got[8..12], &got[14..18]), (&[0.0; 2][..], &values[4..8], &values[8..12]));
    assert_eq!(cuda.allocated().0 - before, 4 * (1000 + 20));
    drop((buffer, rows));
    assert_eq!(cuda.allocated().0, before);
    assert!(cuda.allocated().1 >= 4 * 1020);
    let error = Buffer::<f32>::zeroed(&cuda, 1 << 45).map(|_| ()).unwrap_err();
    assert!(matches!(error, CudaError::OutOfMemory { .. }), "{error}");
}

#[test]
fn filled_values_are_normal_and_depend_on_seed_and_place() {
    let Some(cuda) = gpu() else { return };
    let fill = Fill::new(&cuda).unwrap();
    for element in [crate::matmul::Element::F32, crate::matmul::Element::Bf16] {
        let filled = |seed, len| {
            let mut values = Activations::zeroed(&cuda, element, len).unwrap();
            fill.normal(&mut values, seed, 0.5).unwrap();
            values.to_f32().unwrap()
        };
        let values = filled(1, 100_000);
        assert_eq!(values[..100], filled(1, 100));
        assert_ne!(values[..100], filled(2, 100));
        let moment = |power| values.iter().map(|x| f64::from(*x).powi(power)).sum::<f64>() / 100_000.0;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 0.25).abs() < 0.005, "{} {}", moment(1), moment(2));
        assert!((moment(4) - 3.0 / 16.0).abs() < 0.01, "{}", moment(4));
    }
}

#[test]
fn rounding_on_the_device_is_that_of_the_host() {
    let Some(cuda) = gpu() else { return };
    let kernel = cuda.module(SOURCE, &[("SHIFT", 0)]).kernel("round_values").unwrap();
    let values = Random::new(5).normal(4096);
    let from = Buffer::from_slice(&cuda, &values).unwrap();
    let to = Activations::zeroed(&cuda, crate::matmul::Element::Bf16, values.len()).unwrap();
    let arguments =
        [Argument::Pointer(from.address(0)), Argument::Pointer(to.address(0)), Argument::I32(4096)];
    // SAFETY: the kernel's three arguments; both buffers have 4096 values.
    unsafe { cuda.launch(&kernel, LaunchShape::new(16, 256), &arguments) }.unwrap();
    assert_eq!(to.to_f32().unwrap(), crate::testing::bf16_round(&values));
}
