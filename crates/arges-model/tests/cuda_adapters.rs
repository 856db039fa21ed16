//! Adapters on a GPU against the CPU. Each test needs one, and says so where there is none.

mod support;

use std::path::Path;
use std::sync::Arc;

use arges_kernels::adamw::{AdamW, adamw};
use arges_kernels::device::cpu::{Cpu, CpuOptions};
use arges_kernels::device::cuda::Cuda;
use arges_kernels::matmul::Compute;
use arges_model::checkpoint::WriteOptions;
use arges_model::synth::SynthShape;
use arges_model::training::cuda::CudaTrainer;
use arges_model::training::{
    LoraOptions, LoraTarget, Parameters, Recompute, Trainer, TrainingBatch, TrainingPlan,
};
use arges_model::{Checkpoint, Config, DType};
use support::training::{cosine, mean_loss, relative_distance, weight};

const PLAN: TrainingPlan = TrainingPlan::new(512, 8);

fn cpu() -> Arc<Cpu> {
    Arc::new(Cpu::new(CpuOptions { threads: Some(2), isa: None }).unwrap())
}

fn all_targets() -> LoraOptions {
    LoraOptions { rank: 4, alpha: 6.0, targets: LoraTarget::ALL.to_vec(), layers: None, experts: None }
}

/// A base of both kinds of attention and its adapters.
struct Case {
    name: &'static str,
    config: Config,
    stored: DType,
    options: LoraOptions,
}

fn cases() -> Vec<Case> {
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
    let config = |shape: &SynthShape, range: f64| {
        let mut config = shape.config().unwrap();
        config.initializer_range = range;
        config
    };
    let shared = config(&SynthShape { shared_intermediate: 32, tie_embeddings: true, ..shape.clone() }, 0.2);
    let mut pre_norm = config(&shape, 0.2);
    pre_norm.postnorm = false;
    pre_norm.mlp.beta = 0.7;
    pre_norm.softmax.alpha = 0.9;
    let plain = config(&SynthShape { experts: 1, experts_per_token: 1, ..shape.clone() }, 0.2);
    let many = config(&SynthShape { experts: 20, ..shape.clone() }, 0.2);
    let wide = SynthShape {
        hidden: 256,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        rotary_dim: 32,
        intermediate: 128,
        ..shape
    };
    let some =
        |rank, targets: &[LoraTarget], layers: Option<&[usize]>, experts: Option<&[usize]>| LoraOptions {
            rank,
            alpha: 6.0,
            targets: targets.to_vec(),
            layers: layers.map(<[_]>::to_vec),
            experts: experts.map(<[_]>::to_vec),
        };
    use LoraTarget::{ExpertDown, ExpertUp, LightningGate, Output, Value};
    let case = |name, config, stored, options| Case { name, config, stored, options };
    vec![
        case("shared MLP, tied head", shared, DType::F32, all_targets()),
        case(
            "pre-norm, two layers",
            pre_norm,
            DType::Bf16,
            LoraOptions { layers: Some(vec![1, 2]), ..all_targets() },
        ),
        case("one expert", plain, DType::F32, LoraOptions { rank: 5, ..all_targets() }),
        case(
            "many experts, of which two",
            many,
            DType::F32,
            some(3, &[ExpertUp, ExpertDown], None, Some(&[1, 19])),
        ),
        case("wide", config(&wide, 0.06), DType::Bf16, LoraOptions { rank: 16, ..all_targets() }),
        case(
            "wide, a few",
            config(&wide, 0.06),
            DType::F32,
            some(8, &[LightningGate, Value, Output], None, None),
        ),
    ]
}

/// Writes the base of a case and opens it.
fn base(case: &Case, directory: &Path) -> Arc<Checkpoint> {
    let options = WriteOptions { overwrite: true, ..WriteOptions::default() };
    Parameters::initialized(&case.config, 7).save(&cpu(), directory, options, case.stored).unwrap();
    Arc::new(Checkpoint::open(directory).unwrap())
}

/// Adapters off their start, where `B` is zero and `A` has no gradient.
fn adapters(case: &Case, base: &Arc<Checkpoint>) -> Parameters {
    let mut parameters = Parameters::lora(Arc::clone(base), &case.options, 3).unwrap();
    for (i, value) in parameters.values_mut().iter_mut().enumerate() {
        *value += ((i * 37 % 101) as f32 / 50.0 - 1.0) * 0.02;
    }
    parameters
}

fn batch() -> TrainingBatch {
    let mut batch = TrainingBatch::default();
    let token = |i: usize| (i * 7 + i * i * 3) as u32 % 50;
    batch.push(&(0..170).map(token).collect::<Vec<_>>());
    batch.push(&[3]);
    batch.push_masked(&(9..140).map(token).collect::<Vec<_>>(), |place| place % 3 != 0);
    batch
}

fn gradients(trainer: &mut CudaTrainer, batch: &TrainingBatch) -> Vec<f32> {
    trainer.zero_gradients();
    trainer.accumulate(batch, &weight(batch.targets.len()), 0.02).unwrap();
    trainer.gradients().unwrap()
}

fn settings(step: u64) -> AdamW {
    AdamW { lr: 2e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step }
}

#[test]
fn gradients_of_adapters_are_those_of_the_cpu_in_every_structure() {
    let Some(cuda) = Cuda::for_test() else { return };
    let (batch, directory) = (batch(), tempfile::tempdir().unwrap());
    for case in cases() {
        let (name, base) = (case.name, base(&case, directory.path()));
        let mut host = Trainer::new(adapters(&case, &base), Compute::F32, cpu(), PLAN).unwrap();
        let mut device = CudaTrainer::new(adapters(&case, &base), Compute::F32, &cuda, PLAN).unwrap();
        let scores = host.evaluate(&batch).unwrap().logprobs.to_vec();
        let distance = relative_distance(device.evaluate(&batch).unwrap().logprobs, &scores);
        assert!(distance < 1e-5, "{name}: log-probabilities differ by {distance:e}");
        host.accumulate(&batch, &weight(batch.targets.len()), 0.02).unwrap();
        let (exact, got) = (host.parameters().gradients(), gradients(&mut device, &batch));
        let (mut largest, mut wrong) = (0.0f64, Vec::new());
        for tensor in host.parameters().tensors() {
            let range = tensor.range.clone();
            let difference = relative_distance(&got[range.clone()], &exact[range]);
            largest = largest.max(difference);
            if difference.is_nan() || difference >= 1e-4 {
                wrong.push(format!("{} {difference:e}", tensor.name));
            }
        }
        assert!(wrong.is_empty(), "{name}: {wrong:#?}");
        let mut rounded = CudaTrainer::new(adapters(&case, &base), Compute::Bf16, &cuda, PLAN).unwrap();
        let cosine = cosine(exact, &gradients(&mut rounded, &batch));
        println!("{name}: f32 gradients differ by up to {largest:.1e}, cosine of bf16 ones {cosine:.5}");
        // Of many experts, tokens choose others where logits of rounded rows are near each other, and few see those that
        // are adapted.
        let least = if case.config.num_experts > 8 { 0.97 } else { 0.999 };
        assert!(cosine > least, "{name}: {cosine}");
    }
}

#[test]
fn gradients_of_adapters_have_the_same_bits_whatever_is_kept_and_was_forgotten() {
    let Some(cuda) = Cuda::for_test() else { return };
    let (batch, directory) = (batch(), tempfile::tempdir().unwrap());
    for case in cases() {
        let (name, base) = (case.name, base(&case, directory.path()));
        for compute in [Compute::F32, Compute::Bf16] {
            let new = |recompute| {
                let plan = TrainingPlan { recompute, ..PLAN };
                CudaTrainer::new(adapters(&case, &base), compute, &cuda, plan).unwrap()
            };
            let once = gradients(&mut new(Recompute::Nothing), &batch);
            assert!(once.iter().all(|x| x.is_finite()) && once.iter().any(|x| *x != 0.0), "{name} {compute}");
            assert!(once == gradients(&mut new(Recompute::Layers), &batch), "{name} {compute}");
            let mut trainer = new(Recompute::Insides);
            trainer.accumulate(&batch, &|_, _| f32::NAN, 0.02).unwrap();
            assert!(trainer.gradients().unwrap().iter().any(|x| x.is_nan()), "{name} {compute}");
            assert!(once == gradients(&mut trainer, &batch), "{name} {compute}: after others");
            let exact = once.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let norm = trainer.gradient_norm().unwrap();
            assert!((norm - exact).abs() <= 2e-6 * exact, "{name} {compute}: a norm of {norm}, not {exact}");
            trainer.accumulate(&batch, &weight(batch.targets.len()), 0.02).unwrap();
            let twice: Vec<f32> = once.iter().map(|x| 2.0 * x).collect();
            assert!(relative_distance(&trainer.gradients().unwrap(), &twice) < 1e-5, "{name} {compute}");
        }
    }
}

#[test]
fn adapters_learn_as_on_the_cpu_and_merge_to_what_was_trained() {
    let Some(cuda) = Cuda::for_test() else { return };
    let (batch, directory) = (batch(), tempfile::tempdir().unwrap());
    let uniform = -1.0 / batch.targets.len() as f32;
    for case in cases() {
        let (name, base) = (case.name, base(&case, directory.path()));
        let start = || Parameters::lora(Arc::clone(&base), &case.options, 3).unwrap();
        let mut host = Trainer::new(start(), Compute::F32, cpu(), PLAN).unwrap();
        let mut exact = CudaTrainer::new(start(), Compute::F32, &cuda, PLAN).unwrap();
        let mut rounded = CudaTrainer::new(start(), Compute::Bf16, &cuda, PLAN).unwrap();
        let len = host.parameters().values().len();
        let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
        let mut moments = [&exact, &rounded].map(|trainer| trainer.moments(&m, &v).unwrap());
        let mut losses = Vec::new();
        for step in 1..=12 {
            host.parameters_mut().zero_gradients();
            let on_host = mean_loss(host.accumulate(&batch, uniform, 0.01).unwrap().logprobs);
            let cpu = host.shared_cpu();
            let (values, gradients) = host.parameters_mut().values_and_gradients_mut();
            adamw(&cpu, settings(step), 1.0, values, gradients, &mut m, &mut v);
            host.publish().unwrap();
            let [f32, bf16] = [(&mut exact, 0), (&mut rounded, 1)].map(|(trainer, which)| {
                trainer.zero_gradients();
                let loss = mean_loss(trainer.accumulate(&batch, uniform, 0.01).unwrap().logprobs);
                trainer.adamw(1.0, &[(0..len, settings(step))], &mut moments[which]).unwrap();
                loss
            });
            losses.push([on_host, f32, bf16]);
        }
        let away = |which: usize| losses.iter().map(|l| (l[which] - l[0]).abs()).fold(0.0, f64::max);
        let (first, last) = (losses[0][0], losses[11][0]);
        println!(
            "{name}: loss {first:.4} to {last:.4}, f32 within {:.1e}, bf16 within {:.1e}",
            away(1),
            away(2)
        );
        assert!(last < first, "{name}: {losses:?}");
        assert!(away(1) < 2e-3 && away(2) < 5e-2, "{name}: {losses:?}");

        // What is saved computes what was trained.
        for (trainer, compute, dtype) in
            [(&mut exact, Compute::F32, DType::F32), (&mut rounded, Compute::Bf16, DType::Bf16)]
        {
            let trained = trainer.evaluate(&batch).unwrap().logprobs.to_vec();
            let merged = tempfile::tempdir().unwrap();
            let options = WriteOptions { overwrite: true, ..WriteOptions::default() };
            trainer.fetch().unwrap().save(&cpu(), merged.path(), options, dtype).unwrap();
            let merged = Parameters::full(&Checkpoint::open(merged.path()).unwrap()).unwrap();
            let mut merged = CudaTrainer::new(merged, compute, &cuda, PLAN).unwrap();
            let merged = merged.evaluate(&batch).unwrap().logprobs.to_vec();
            println!("{name} {compute}: the same bits when saved: {}", merged == trained);
            let most = if compute == Compute::F32 { 1e-5 } else { 2e-2 };
            let away = merged.iter().zip(&trained).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(away < most, "{name} {compute}: {away}");
        }
    }
}

#[test]
fn a_step_brings_all_adapters_into_the_model_whoever_holds_it() {
    let Some(cuda) = Cuda::for_test() else { return };
    let (batch, directory) = (batch(), tempfile::tempdir().unwrap());
    for case in cases() {
        let (name, base) = (case.name, base(&case, directory.path()));
        for compute in [Compute::F32, Compute::Bf16] {
            let new = || CudaTrainer::new(adapters(&case, &base), compute, &cuda, PLAN).unwrap();
            let (mut trainer, mut other) = (new(), new());
            let len = trainer.parameters().values().len();
            let mut moments = trainer.moments(&vec![0.0; len], &vec![0.0; len]).unwrap();
            let mut held = None;
            // From the second step on others hold the model that it begins with, so that two take turns.
            for (step, range) in [(1, 0..len), (2, 0..len), (3, 0..len), (4, len / 3..len / 2)] {
                gradients(&mut trainer, &batch);
                let before = trainer.evaluate(&batch).unwrap().logprobs.to_vec();
                trainer.adamw(0.5, &[(range, settings(step))], &mut moments).unwrap();
                let scores = trainer.evaluate(&batch).unwrap().logprobs.to_vec();
                assert!(scores != before, "{name} {compute}: step {step} changed nothing");
                let is_held = |held: &Arc<_>| Arc::ptr_eq(held, &trainer.shared_model());
                assert!(!held.as_ref().is_some_and(is_held), "{name}: a model that others hold");
                other.set_values(trainer.fetch().unwrap().values()).unwrap();
                other.publish().unwrap();
                let expected = other.evaluate(&batch).unwrap().logprobs;
                assert!(scores == expected, "{name} {compute}: other weights after step {step}");
                held = Some(trainer.shared_model());
            }
            // Moments and values go through the host to another trainer, which goes on with the same bits.
            let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
            moments.fetch(&mut m, &mut v).unwrap();
            let mut others = other.moments(&m, &v).unwrap();
            let after =
                [(&mut trainer, &mut moments), (&mut other, &mut others)].map(|(trainer, moments)| {
                    gradients(trainer, &batch);
                    trainer.adamw(0.5, &[(0..len, settings(5))], moments).unwrap();
                    trainer.fetch().unwrap().values().to_vec()
                });
            assert!(after[0] == after[1], "{name} {compute}: other values after the fifth step");
        }
    }
}
