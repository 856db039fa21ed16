//! Training on a GPU against what the official code's loss gives, and against the CPU. Each test needs one, and says so
//! where there is none.

mod support;

use std::sync::Arc;

use arges_kernels::adamw::{AdamW, adamw};
use arges_kernels::device::cpu::{Cpu, CpuOptions};
use arges_kernels::device::cuda::{Buffer, Cuda};
use arges_kernels::matmul::Compute;
use arges_model::synth::SynthShape;
use arges_model::training::cuda::CudaTrainer;
use arges_model::training::{
    DeviceTrainer, Parameters, Recompute, TargetWeights, Trainer, TrainingBatch, TrainingDevice, TrainingPlan,
};
use arges_model::{Checkpoint, Config};
use support::training::{cosine, mean_loss, relative_distance, weight};
use support::{Golden, data};

const MODELS: [&str; 3] = ["tiny-m1", "tiny-text01", "tiny-minimax-hf"];
const PLAN: TrainingPlan = TrainingPlan::new(512, 8);

fn cpu() -> Arc<Cpu> {
    Arc::new(Cpu::new(CpuOptions { threads: Some(2), isa: None }).unwrap())
}

fn golden_parameters(name: &str) -> Parameters {
    Parameters::full(&Checkpoint::open(&data(name).join("fp32")).unwrap()).unwrap()
}

fn golden_batch(name: &str) -> TrainingBatch {
    let tokens = Golden::open(name, "inputs").tokens("train_batch");
    let mut batch = TrainingBatch::default();
    tokens.chunks_exact(96).for_each(|sequence| batch.push(sequence));
    batch
}

fn golden_loss(name: &str, key: &str) -> f64 {
    let text = std::fs::read_to_string(data(name).join("loss_2x96.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()[key].as_f64().unwrap()
}

fn gradients(trainer: &mut CudaTrainer, batch: &TrainingBatch, balance: f32) -> Vec<f32> {
    trainer.zero_gradients();
    trainer.accumulate(batch, &weight(batch.targets.len()), balance).unwrap();
    trainer.gradients().unwrap()
}

#[test]
fn gradients_of_every_parameter_equal_the_f64_ones() {
    let Some(cuda) = Cuda::for_test() else { return };
    for name in MODELS {
        let (batch, golden) = (golden_batch(name), Golden::open(name, "grads_2x96_ref64"));
        let mut trainer = CudaTrainer::new(golden_parameters(name), Compute::F32, &cuda, PLAN).unwrap();
        let uniform = -1.0 / batch.targets.len() as f32;
        let output = trainer.accumulate(&batch, &|_, _| uniform, 0.0).unwrap();
        let (loss, balance) = (mean_loss(output.logprobs), output.balance_loss);
        assert!((loss - golden_loss(name, "loss")).abs() < 1e-5, "{name}: {loss}");
        assert!((balance - golden_loss(name, "aux_loss")).abs() < 1e-5, "{name}: balance {balance}");
        let got = trainer.gradients().unwrap();
        let (mut largest, mut wrong) = (0.0f64, Vec::new());
        for tensor in trainer.parameters().tensors() {
            let difference = relative_distance(&got[tensor.range.clone()], &golden.f32(&tensor.name));
            largest = largest.max(difference);
            if difference.is_nan() || difference >= 5e-5 {
                wrong.push(format!("{} {difference:e}", tensor.name));
            }
        }
        assert!(wrong.is_empty(), "{name}: {wrong:#?}");
        println!("{name}: gradients differ by up to {largest:.1e} (relative L2)");
    }
}

/// Every structure that the golden models lack: a shared MLP, pre-norm, tied embeddings, one expert, many, and widths
/// that tensor cores take.
fn odd_configs() -> Vec<(&'static str, Config)> {
    let shape = SynthShape {
        hidden: 72,
        layers: 3,
        heads: 3,
        kv_heads: 1,
        head_dim: 16,
        rotary_dim: 8,
        softmax_every: 3,
        experts: 2,
        experts_per_token: 2,
        intermediate: 24,
        vocab: 56,
        ..SynthShape::default()
    };
    let config = |shape: &SynthShape| {
        let mut config = shape.config().unwrap();
        config.initializer_range = 0.2;
        config
    };
    let shared = config(&SynthShape { shared_intermediate: 32, ..shape.clone() });
    let mut pre_norm = config(&shape);
    pre_norm.postnorm = false;
    pre_norm.mlp.beta = 0.7;
    pre_norm.softmax.alpha = 0.9;
    let tied = config(&SynthShape { tie_embeddings: true, ..shape.clone() });
    let many = config(&SynthShape { experts: 20, ..shape.clone() });
    let plain = config(&SynthShape { experts: 1, experts_per_token: 1, ..shape.clone() });
    let mut wide = config(&SynthShape {
        hidden: 256,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        rotary_dim: 32,
        intermediate: 128,
        ..shape
    });
    // So that wider sums do not drive attention to a choice of one key, which every rounding changes.
    wide.initializer_range = 0.06;
    vec![
        ("shared MLP", shared),
        ("pre-norm", pre_norm),
        ("tied", tied),
        ("one expert", plain),
        ("wide", wide),
        ("many experts", many),
    ]
}

fn odd_batch() -> TrainingBatch {
    let mut batch = TrainingBatch::default();
    let token = |i: usize| (i * 7 + i * i * 3) as u32 % 50;
    batch.push(&(0..170).map(token).collect::<Vec<_>>());
    batch.push(&[3]);
    batch.push_masked(&(9..140).map(token).collect::<Vec<_>>(), |place| place % 3 != 0);
    batch
}

#[test]
fn gradients_are_those_of_the_cpu_in_every_structure() {
    let Some(cuda) = Cuda::for_test() else { return };
    let batch = odd_batch();
    for (name, config) in odd_configs() {
        let parameters = || Parameters::initialized(&config, 7);
        let mut host = Trainer::new(parameters(), Compute::F32, cpu(), PLAN).unwrap();
        let mut device = CudaTrainer::new(parameters(), Compute::F32, &cuda, PLAN).unwrap();
        host.accumulate(&batch, &weight(batch.targets.len()), 0.02).unwrap();
        let exact = host.parameters().gradients().to_vec();
        let got = gradients(&mut device, &batch, 0.02);
        let mut wrong = Vec::new();
        for tensor in host.parameters().tensors() {
            let range = tensor.range.clone();
            let difference = relative_distance(&got[range.clone()], &exact[range]);
            if difference.is_nan() || difference >= 1e-4 {
                wrong.push(format!("{} {difference:e}", tensor.name));
            }
        }
        assert!(wrong.is_empty(), "{name}: {wrong:#?}");
        let mut rounded = CudaTrainer::new(parameters(), Compute::Bf16, &cuda, PLAN).unwrap();
        let cosine = cosine(&exact, &gradients(&mut rounded, &batch, 0.02));
        println!("{name}: cosine of bf16 gradients with the f32 ones {cosine:.5}");
        // Of many experts, tokens choose others where logits of rounded rows are near each other.
        let least = if config.num_experts > 8 { 0.99 } else { 0.999 };
        assert!(cosine > least, "{name}: {cosine}");
    }
}

#[test]
fn a_head_of_rounded_rows_is_near_that_of_f32_rows() {
    let Some(cuda) = Cuda::for_test() else { return };
    let (batch, config) = (odd_batch(), odd_configs().remove(4).1);
    let run = |rounded_head| {
        let plan = TrainingPlan { rounded_head, ..PLAN };
        let parameters = Parameters::initialized(&config, 7);
        let mut trainer = CudaTrainer::new(parameters, Compute::Bf16, &cuda, plan).unwrap();
        let gradients = gradients(&mut trainer, &batch, 0.01);
        (trainer.evaluate(&batch).unwrap().logprobs.to_vec(), gradients)
    };
    let ((exact, exact_gradients), (rounded, gradients)) = (run(false), run(true));
    assert!(exact != rounded, "nothing was rounded");
    let away = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(away < 0.02, "log-probabilities differ by up to {away}");
    let cosine = cosine(&exact_gradients, &gradients);
    assert!(cosine > 0.9999, "{cosine}");
    let device = TrainingDevice { cpu: cpu(), cuda: None };
    let plan = TrainingPlan { rounded_head: true, ..PLAN };
    let refused = DeviceTrainer::new(Parameters::initialized(&config, 7), Compute::Bf16, device, plan);
    assert!(refused.err().unwrap().to_string().contains("on a GPU only"));
}

#[test]
fn gradients_have_the_same_bits_every_time_and_add_up() {
    let Some(cuda) = Cuda::for_test() else { return };
    let (batch, config) = (odd_batch(), odd_configs().remove(4).1);
    for compute in [Compute::F32, Compute::Bf16] {
        let new = |recompute| {
            let plan = TrainingPlan { recompute, ..PLAN };
            CudaTrainer::new(Parameters::initialized(&config, 7), compute, &cuda, plan).unwrap()
        };
        let mut trainer = new(Recompute::Insides);
        let once = gradients(&mut trainer, &batch, 0.01);
        assert!(once.iter().all(|x| x.is_finite()));
        assert!(once == gradients(&mut trainer, &batch, 0.01), "{compute}: other bits the second time");
        assert!(once == gradients(&mut new(Recompute::Insides), &batch, 0.01), "{compute}: another trainer");
        trainer.accumulate(&batch, &weight(batch.targets.len()), 0.01).unwrap();
        let twice: Vec<f32> = once.iter().map(|x| 2.0 * x).collect();
        assert!(relative_distance(&trainer.gradients().unwrap(), &twice) < 1e-5, "{compute}");
    }
}

#[test]
fn equal_weights_of_targets_give_the_bits_of_weights_that_are_asked_for() {
    let Some(cuda) = Cuda::for_test() else { return };
    // Once with logits of all targets at a time, once of some after the others.
    let many = Config { vocab_size: 300_000, ..odd_configs().remove(4).1 };
    let tokens: Vec<u32> = (0..2_000).map(|i| i * 149 % 300_000).collect();
    let mut long = TrainingBatch::default();
    tokens.chunks(500).for_each(|tokens| long.push(tokens));
    let halves = [0, 2].map(|first| {
        let mut half = TrainingBatch::default();
        tokens.chunks(500).skip(first).take(2).for_each(|tokens| half.push(tokens));
        half
    });
    for (config, batch, halves) in
        [(odd_configs().remove(4).1, odd_batch(), &[][..]), (many, long, &halves[..])]
    {
        let plan = TrainingPlan::new(2_000, 8);
        for compute in [Compute::F32, Compute::Bf16] {
            let parameters = Parameters::initialized(&config, 7);
            let mut trainer = CudaTrainer::new(parameters, compute, &cuda, plan).unwrap();
            let mut parts = Vec::new();
            for half in halves {
                parts.extend_from_slice(trainer.accumulate(half, -0.01, 0.0).unwrap().logprobs);
            }
            let apart = trainer.gradients().unwrap();
            let mut of = |weights: TargetWeights<'_>| {
                trainer.zero_gradients();
                let output = trainer.accumulate(&batch, weights, 0.0).unwrap();
                let scores = [output.logprobs, output.entropies].map(<[f32]>::to_vec);
                (scores, trainer.gradients().unwrap())
            };
            let at_once = of((-0.01).into());
            assert!(at_once == of((&|_, _| -0.01).into()), "{compute}: other bits");
            if !halves.is_empty() {
                assert!(at_once.0[0] == parts, "{compute}: other log-probabilities of a half alone");
                assert!(relative_distance(&at_once.1, &apart) < 0.01, "{compute}");
            }
        }
    }
}

#[test]
fn gradients_after_others_were_forgotten_are_those_of_a_new_trainer() {
    let Some(cuda) = Cuda::for_test() else { return };
    let tokens = |tokens: &[u32]| {
        let mut batch = TrainingBatch::default();
        batch.push(tokens);
        batch
    };
    let mut without_targets = TrainingBatch::default();
    without_targets.push_masked(&[5, 4, 3, 2], |_| false);
    assert!(without_targets.targets.is_empty());
    // Few tokens, which leave experts without rows and most of the embedding without gradients.
    let batches = [odd_batch(), tokens(&[51, 50]), without_targets];
    for (name, config) in odd_configs() {
        for compute in [Compute::F32, Compute::Bf16] {
            let new = || CudaTrainer::new(Parameters::initialized(&config, 7), compute, &cuda, PLAN).unwrap();
            let bits = |gradients: Vec<f32>| gradients.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let mut trainer = new();
            let len = trainer.parameters().values().len();
            for (which, batch) in batches.iter().enumerate() {
                let what = format!("{name} {compute} batch {which}");
                // Weights that are no numbers leave gradients that are none, wherever gradients are.
                trainer.accumulate(&odd_batch(), &|_, _| f32::NAN, 0.02).unwrap();
                let poisoned = trainer.gradients().unwrap().iter().filter(|x| x.is_nan()).count();
                assert!(poisoned > len / 2, "{what}: {poisoned} of {len} gradients are no numbers");
                trainer.zero_gradients();
                assert!(trainer.gradients().unwrap().iter().all(|x| *x == 0.0), "{what}");
                assert_eq!(trainer.gradient_norm().unwrap(), 0.0, "{what}");
                let mut other = new();
                for _ in 0..2 {
                    for trainer in [&mut trainer, &mut other] {
                        trainer.accumulate(batch, &weight(batch.targets.len()), 0.02).unwrap();
                    }
                    let expected = other.gradients().unwrap();
                    let exact = expected.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                    assert!(bits(trainer.gradients().unwrap()) == bits(expected), "{what}: other bits");
                    let norm = trainer.gradient_norm().unwrap();
                    assert!((norm - exact).abs() <= 2e-6 * exact, "{what}: a norm of {norm}, not {exact}");
                    assert_eq!(norm.to_bits(), other.gradient_norm().unwrap().to_bits(), "{what}");
                }
            }
            // AdamW sees zeros too: without decay no value moves.
            trainer.accumulate(&odd_batch(), &|_, _| f32::NAN, 0.02).unwrap();
            trainer.zero_gradients();
            let mut moments = trainer.moments(&vec![0.0; len], &vec![0.0; len]).unwrap();
            let settings = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0, step: 1 };
            trainer.adamw(1.0, &[(0..len, settings)], &mut moments).unwrap();
            let before = Parameters::initialized(&config, 7);
            assert!(trainer.fetch().unwrap().values() == before.values(), "{name} {compute}: values moved");
        }
    }
}

#[test]
fn gradients_and_scores_have_the_same_bits_whatever_is_kept() {
    let Some(cuda) = Cuda::for_test() else { return };
    let batch = odd_batch();
    for (name, config) in odd_configs() {
        for compute in [Compute::F32, Compute::Bf16] {
            let results = [Recompute::Layers, Recompute::Insides, Recompute::Nothing].map(|recompute| {
                let plan = TrainingPlan { recompute, ..PLAN };
                let parameters = Parameters::initialized(&config, 7);
                let mut trainer = CudaTrainer::new(parameters, compute, &cuda, plan).unwrap();
                assert_eq!(trainer.recompute(), recompute);
                let first = gradients(&mut trainer, &batch, 0.02);
                // What is kept of one batch is nothing to the next, and an evaluation keeps nothing.
                let scores = trainer.evaluate(&batch).unwrap().logprobs.to_vec();
                assert!(first == gradients(&mut trainer, &batch, 0.02), "{name} {compute} {recompute:?}");
                (first, scores)
            });
            assert!(results[0].0.iter().any(|x| *x != 0.0), "{name}: no gradients");
            assert!(results[0] == results[1], "{name} {compute}: whole layers or insides");
            assert!(results[1] == results[2], "{name} {compute}: insides or nothing");
        }
    }
}

#[test]
fn as_much_is_kept_as_memory_allows() {
    let Some(cuda) = Cuda::for_test() else { return };
    let new = |plan| {
        let config = &odd_configs()[4].1;
        CudaTrainer::new(Parameters::initialized(config, 7), Compute::Bf16, &cuda, plan)
    };
    let plan = TrainingPlan { recompute: Recompute::Auto, ..PLAN };
    assert_eq!(new(plan).unwrap().recompute(), Recompute::Nothing);
    let bytes = |recompute| new(TrainingPlan { recompute, ..PLAN }).unwrap().bytes();
    let [layers, insides, nothing] = [Recompute::Layers, Recompute::Insides, Recompute::Nothing].map(bytes);
    assert!(layers < insides && insides < nothing, "{layers}, {insides} and {nothing} bytes");
    // Takes nearly all memory, so that a sixteenth of the card is no longer free.
    let taken = cuda.free_memory().unwrap() - cuda.facts().memory / 20;
    let taken = Buffer::<u8>::zeroed(&cuda, taken).unwrap();
    assert_eq!(new(plan).unwrap().recompute(), Recompute::Layers);
    drop(taken);
}

#[test]
fn a_model_learns_as_on_the_cpu() {
    let Some(cuda) = Cuda::for_test() else { return };
    let name = "tiny-m1";
    let batch = golden_batch(name);
    let uniform = -1.0 / batch.targets.len() as f32;
    let mut host = Trainer::new(golden_parameters(name), Compute::F32, cpu(), PLAN).unwrap();
    let mut device = CudaTrainer::new(golden_parameters(name), Compute::F32, &cuda, PLAN).unwrap();
    let len = host.parameters().values().len();
    let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
    let mut moments = device.moments(&m, &v).unwrap();
    let (mut first, mut last) = (0.0, 0.0);
    // Later a token changes its experts on one device before it does on the other.
    for step in 1..=7 {
        let settings = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step };
        host.parameters_mut().zero_gradients();
        let on_host = mean_loss(host.accumulate(&batch, &|_, _| uniform, 0.01).unwrap().logprobs);
        let cpu = host.shared_cpu();
        let (values, gradients) = host.parameters_mut().values_and_gradients_mut();
        let norm = gradients.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        adamw(&cpu, settings, 0.5, values, gradients, &mut m, &mut v);
        host.publish().unwrap();
        device.zero_gradients();
        let on_device = mean_loss(device.accumulate(&batch, &|_, _| uniform, 0.01).unwrap().logprobs);
        let ratio = device.gradient_norm().unwrap() / norm;
        assert!((ratio - 1.0).abs() < 1e-3, "step {step}: norms differ by a factor of {ratio}");
        device.adamw(0.5, &[(0..len, settings)], &mut moments).unwrap();
        device.publish().unwrap();
        assert!((on_host - on_device).abs() < 2e-3, "step {step}: {on_host} and {on_device}");
        if step == 1 {
            first = on_device;
        }
        last = on_device;
    }
    assert!(last < first - 0.5, "{first} to {last}");
    let values = host.parameters().values();
    let distance = relative_distance(device.fetch().unwrap().values(), values);
    println!(
        "after 7 steps losses are {first:.4} and {last:.4}, values differ by {distance:.1e} (relative L2)"
    );
    assert!(distance < 5e-2, "{distance}");
}

#[test]
fn a_step_brings_the_bits_of_all_values_into_the_model() {
    let Some(cuda) = Cuda::for_test() else { return };
    let batch = odd_batch();
    for (name, config) in odd_configs() {
        for compute in [Compute::F32, Compute::Bf16] {
            let new = || CudaTrainer::new(Parameters::initialized(&config, 7), compute, &cuda, PLAN).unwrap();
            let (mut trainer, mut other) = (new(), new());
            let len = trainer.parameters().values().len();
            let mut moments = trainer.moments(&vec![0.0; len], &vec![0.0; len]).unwrap();
            let mut held = None;
            // From the second step on others hold the model that it begins with, so that two take turns. The last one
            // writes the model of two steps before, and few values learn.
            for (step, range) in [(1, 0..len), (2, 0..len), (3, 0..len), (4, len / 3..len / 2)] {
                let settings =
                    AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step };
                gradients(&mut trainer, &batch, 0.02);
                trainer.adamw(0.5, &[(range, settings)], &mut moments).unwrap();
                let scores = trainer.evaluate(&batch).unwrap().logprobs.to_vec();
                let is_held = |held: &Arc<_>| Arc::ptr_eq(held, &trainer.shared_model());
                assert!(!held.as_ref().is_some_and(is_held), "{name}: a model that others hold");
                other.set_values(trainer.fetch().unwrap().values()).unwrap();
                other.publish().unwrap();
                let expected = other.evaluate(&batch).unwrap().logprobs;
                assert!(scores == expected, "{name} {compute}: other weights after step {step}");
                held = Some(trainer.shared_model());
                trainer.publish().unwrap();
                assert!(held.as_ref().is_some_and(|held| Arc::ptr_eq(held, &trainer.shared_model())));
            }
        }
    }
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let Some(cuda) = Cuda::for_test() else { return };
    let device = TrainingDevice { cpu: cpu(), cuda: Some(cuda) };
    let mut trainer = DeviceTrainer::new(golden_parameters("tiny-m1"), Compute::F32, device, PLAN).unwrap();
    let mut batch = TrainingBatch::default();
    batch.push(&[1, 2, 512]);
    let error = trainer.accumulate(&batch, &|_, _| -1.0, 0.0).err().unwrap().to_string();
    assert!(error.contains("token 512"), "{error}");
    let mut batch = TrainingBatch::default();
    batch.push(&[1; 600]);
    let error = trainer.accumulate(&batch, &|_, _| -1.0, 0.0).err().unwrap().to_string();
    assert!(error.contains("600 tokens"), "{error}");
}
