//! The engine over a model on a GPU: it gives what it gives on the CPU, whether tokens are chosen on the device or on the
//! host. Without a GPU nothing is tested, unless `ARGES_REQUIRE_GPU` is set.

mod support;

use std::path::Path;
use std::sync::Arc;

use arges_engine::{Engine, EngineOptions, GenerateRequest, NewWeights, RunningCaches, SamplingParams};
use arges_kernels::device::cpu::{Cpu, CpuOptions};
use arges_kernels::device::cuda::Cuda;
use arges_kernels::matmul::Compute;
use arges_model::model::cuda::CudaModel;
use arges_model::training::cuda::CudaTrainer;
use arges_model::training::{Parameters, TrainingBatch, TrainingPlan};
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

#[test]
fn a_trainer_computes_the_bits_of_every_sampled_tokens_log_probability() {
    let Some(cuda) = Cuda::for_test() else { return };
    let cpu = Arc::new(Cpu::new(CpuOptions { threads: Some(2), isa: None }).unwrap());
    // arges-nano has the shapes for which there are tensor cores.
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    for (checkpoint, compute) in [
        (data().join("fp32"), Compute::F32),
        (data().join("bf16"), Compute::Bf16),
        (nano.clone(), Compute::F32),
        (nano, Compute::Bf16),
    ] {
        let name = format!("{} in {compute}", checkpoint.display());
        let parameters = Parameters::full(&Checkpoint::open(&checkpoint).unwrap()).unwrap();
        let mut trainer = CudaTrainer::new(parameters, compute, &cuda, TrainingPlan::new(900, 8)).unwrap();
        let shared = |trainer: &CudaTrainer| DeviceModel::Cuda(trainer.shared_model(), Arc::clone(&cpu));
        let options = EngineOptions { exact: true, ..options() };
        let engine = Engine::start(shared(&trainer), None, options).unwrap();
        let requests: Vec<GenerateRequest> = (0..20u32)
            .map(|index| {
                let prompt = prompt([1, 63, 64, 65, 100, 17, 90, 5][index as usize % 8], index);
                seeded(prompt, 7 * (1 + index as usize % 9), index.into())
            })
            .collect();
        for version in 0..3 {
            let answers = together(&engine, &requests);
            // Sequences share batches with others than in the engine, and not all of them with as many.
            for several in (0..requests.len()).collect::<Vec<_>>().chunks(3 + version) {
                let mut batch = TrainingBatch::default();
                let mut sampled = Vec::new();
                for &index in several {
                    let (prompt, answer) = (&requests[index].prompt, &answers[index]);
                    batch.push_masked(&[&prompt[..], &answer.ids()[..]].concat(), |place| {
                        place >= prompt.len()
                    });
                    sampled.extend(answer.tokens.iter().map(|token| token.logprob));
                }
                let trained = trainer.evaluate(&batch).unwrap().logprobs;
                assert_eq!(trained.len(), sampled.len());
                let same = trained.iter().zip(&sampled).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{name}, version {version}: {trained:?} and {sampled:?}");
            }
            // Other weights, which the engine gets while it may be at work.
            let values: Vec<f32> =
                trainer.fetch().unwrap().values().iter().map(|value| 0.97 * value).collect();
            trainer.set_values(&values).unwrap();
            trainer.publish().unwrap();
            let weights = NewWeights::Model(shared(&trainer));
            engine.update_weights(weights, version as u64 + 1, RunningCaches::Recompute).unwrap();
        }
    }
}
