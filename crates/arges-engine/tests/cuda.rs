//! The engine over a model on a GPU: it gives what it gives on the CPU, whether tokens are chosen on the device or on the
//! host. Without a GPU nothing is tested, unless `ARGES_REQUIRE_GPU` is set.

mod support;

use std::sync::Arc;

use arges_engine::{Engine, EngineOptions, GenerateRequest, SamplingParams};
use arges_kernels::device::cpu::{Cpu, CpuOptions};
use arges_kernels::device::cuda::Cuda;
use arges_kernels::matmul::Compute;
use arges_model::model::cuda::CudaModel;
use arges_model::{Checkpoint, DeviceModel, LoadOptions};
use support::*;

/// An engine over the small model in f32 on a GPU.
fn on_gpu(options: EngineOptions) -> Option<Engine> {
    let cuda = Cuda::for_test()?;
    let checkpoint = Checkpoint::open(&data().join("fp32")).unwrap();
    let load = LoadOptions { compute: Compute::F32 };
    let model = CudaModel::load(&checkpoint, load, &cuda, &mut |_| {}).unwrap();
    let cpu = Arc::new(Cpu::new(CpuOptions { threads: Some(2), isa: None }).unwrap());
    let model = DeviceModel::Cuda(Arc::new(model), cpu);
    Some(Engine::start(model, Some(TOKENIZER.clone()), options).unwrap())
}

/// Requests of every way to choose a token that a GPU has.
fn requests() -> Vec<GenerateRequest> {
    let sampling = |seed, top_k, top_p, min_p| SamplingParams {
        seed: Some(seed),
        temperature: 1.1,
        top_k,
        top_p,
        min_p,
        ..SamplingParams::default()
    };
    (0..12u32)
        .map(|index| {
            let prompt = prompt([1, 63, 64, 65, 150, 17, 200, 5][index as usize % 8], index);
            let request = greedy(prompt, 20 + index as usize);
            match index % 4 {
                0 => request,
                1 => GenerateRequest { sampling: sampling(index.into(), 0, 1.0, 0.0), ..request },
                2 => GenerateRequest { sampling: sampling(index.into(), 0, 0.9, 0.0), ..request },
                _ => GenerateRequest { sampling: sampling(index.into(), 30, 0.95, 0.02), ..request },
            }
        })
        .collect()
}

#[test]
fn answers_are_those_of_the_cpu_wherever_their_tokens_are_chosen() {
    let Some(gpu) = on_gpu(options()) else { return };
    let cpu = engine(options());
    let by_device = requests();
    // The host chooses where the most likely tokens are asked for.
    let by_host: Vec<_> =
        by_device.iter().map(|request| GenerateRequest { logprobs: Some(2), ..request.clone() }).collect();
    let expected: Vec<_> = together(&cpu, &by_device).iter().map(Answer::ids).collect();
    for requests in [&by_device, &by_host] {
        let answers = together(&gpu, requests);
        for (index, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
            assert_eq!(answer.ids(), *expected, "request {index}");
            assert!(answer.tokens.iter().all(|token| token.logprob <= 0.0));
        }
    }
    wait_for(&gpu, nothing_held);
}

#[test]
fn scores_and_log_probabilities_are_those_of_the_cpu() {
    let Some(gpu) = on_gpu(options()) else { return };
    let request = GenerateRequest { prompt_logprobs: Some(0), ..greedy(prompt(100, 3), 20) };
    let [on_cpu, on_gpu] =
        [&engine(options()), &gpu].map(|engine| together(engine, std::slice::from_ref(&request)).remove(0));
    let logprobs = |answer: &Answer| -> Vec<f32> {
        let prompt = answer.prompt.iter().flatten().flatten().map(|token| token.logprob);
        prompt.chain(answer.tokens.iter().map(|token| token.logprob)).collect()
    };
    let (expected, got) = (logprobs(&on_cpu), logprobs(&on_gpu));
    assert_eq!(expected.len(), 99 + 20);
    for (expected, got) in expected.iter().zip(&got) {
        assert!((expected - got).abs() < 1e-4, "{got} instead of {expected}");
    }
}

#[test]
fn in_exact_mode_no_bit_depends_on_what_runs_beside() {
    let Some(gpu) = on_gpu(EngineOptions { exact: true, ..options() }) else { return };
    let requests = requests();
    let answers = together(&gpu, &requests);
    for (request, answer) in requests.iter().zip(answers) {
        // The second time, the prompt's beginning comes from the cache.
        assert_eq!(together(&gpu, std::slice::from_ref(request)).remove(0).tokens, answer.tokens);
    }
}
