//! Training against what the official code's loss gives: gradients of every parameter, the loss, and that
//! neither packing, threads nor adapters change what they should not.

mod support;

use std::sync::Arc;

use arges_kernels::device::cpu::{Cpu, CpuOptions, Isa};
use arges_kernels::matmul::Compute;
use arges_model::checkpoint::WriteOptions;
use arges_model::synth::SynthShape;
use arges_model::training::{
    LoraOptions, LoraTarget, OWN_CHOICE, Parameters, Recompute, Trainer, TrainingBatch, TrainingError,
    TrainingPlan,
};
use arges_model::{Batch, Cache, CachePlan, Checkpoint, Config, DType, LogitRows, Workspace, WorkspacePlan};
use support::training::{cosine, mean_loss, relative_distance};
use support::{Golden, Runner, data};

const MODELS: [&str; 3] = ["tiny-m1", "tiny-text01", "tiny-minimax-hf"];
const PLAN: TrainingPlan = TrainingPlan::new(512, 8);

fn cpu(threads: usize, isa: Option<Isa>) -> Arc<Cpu> {
    Arc::new(Cpu::new(CpuOptions { threads: Some(threads), isa }).unwrap())
}

fn golden_trainer(name: &str, compute: Compute, cpu: Arc<Cpu>) -> Trainer {
    let checkpoint = Checkpoint::open(&data(name).join("fp32")).unwrap();
    Trainer::new(Parameters::full(&checkpoint).unwrap(), compute, cpu, PLAN).unwrap()
}

fn golden_batch(name: &str) -> TrainingBatch {
    let tokens = Golden::open(name, "inputs").tokens("train_batch");
    let mut batch = TrainingBatch::default();
    for sequence in tokens.chunks_exact(96) {
        batch.push(sequence);
    }
    batch
}

fn golden_loss(name: &str, key: &str) -> f64 {
    let text = std::fs::read_to_string(data(name).join("loss_2x96.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&text).unwrap()[key].as_f64().unwrap()
}

/// Gradients of the mean loss, plus `balance` times the load-balancing loss.
fn gradients(trainer: &mut Trainer, batch: &TrainingBatch, balance: f32) -> Vec<f32> {
    trainer.parameters_mut().zero_gradients();
    let weight = -1.0 / batch.targets.len() as f32;
    trainer.accumulate(batch, &|_, _| weight, balance).unwrap();
    trainer.parameters().gradients().to_vec()
}

#[test]
fn gradients_of_every_parameter_equal_the_f64_ones_on_every_instruction_set() {
    for name in MODELS {
        let (batch, golden) = (golden_batch(name), Golden::open(name, "grads_2x96_ref64"));
        for isa in Isa::available() {
            let mut trainer = golden_trainer(name, Compute::F32, cpu(2, Some(isa)));
            let got = gradients(&mut trainer, &batch, 0.0);
            let mut largest: f64 = 0.0;
            for tensor in trainer.parameters().tensors() {
                let difference = relative_distance(&got[tensor.range.clone()], &golden.f32(&tensor.name));
                assert!(difference < 5e-5, "{name} {} on {isa}: {difference:e}", tensor.name);
                largest = largest.max(difference);
            }
            assert_eq!(golden.len(), trainer.parameters().tensors().len());
            println!("{name} on {isa}: gradients differ by up to {largest:.1e} (relative L2)");
        }
    }
}

#[test]
fn losses_equal_the_f64_ones() {
    for name in MODELS {
        let batch = golden_batch(name);
        let mut trainer = golden_trainer(name, Compute::F32, cpu(2, None));
        let output = trainer.evaluate(&batch).unwrap();
        let (loss, balance) = (mean_loss(output.logprobs), output.balance_loss);
        assert!((loss - golden_loss(name, "loss")).abs() < 1e-5, "{name}: {loss}");
        assert!((balance - golden_loss(name, "aux_loss")).abs() < 1e-5, "{name}: balance {balance}");
    }
}

#[test]
fn the_gradient_of_the_balance_loss_is_the_slope_of_that_loss() {
    let name = "tiny-m1";
    let batch = golden_batch(name);
    let mut trainer = golden_trainer(name, Compute::F32, cpu(2, None));
    let without = gradients(&mut trainer, &batch, 0.0);
    let with = gradients(&mut trainer, &batch, 1.0);
    let direction: Vec<f32> = with.iter().zip(&without).map(|(a, b)| a - b).collect();
    let norm = direction.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    let mut balance_at = |step: f64| {
        let base: Vec<f32> = trainer.parameters().values().to_vec();
        let moved = base.iter().zip(&direction).map(|(x, d)| x + (step * f64::from(*d)) as f32);
        let moved: Vec<f32> = moved.collect();
        trainer.parameters_mut().values_mut().copy_from_slice(&moved);
        trainer.publish().unwrap();
        let loss = trainer.evaluate(&batch).unwrap().balance_loss;
        trainer.parameters_mut().values_mut().copy_from_slice(&base);
        loss
    };
    // So small that no token changes its experts.
    let step = 3e-5;
    let slope = (balance_at(step) - balance_at(-step)) / (2.0 * step);
    assert!((slope / norm - 1.0).abs() < 0.05, "slope {slope}, squared gradient {norm}");
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    let name = "tiny-m1";
    let tokens = Golden::open(name, "inputs").tokens("len257");
    let parts = [&tokens[..100], &tokens[100..101], &tokens[101..166], &tokens[166..257]];
    let mut packed = TrainingBatch::default();
    parts.iter().for_each(|part| packed.push(part));
    let mut trainer = golden_trainer(name, Compute::F32, cpu(2, None));
    let together = trainer.evaluate(&packed).unwrap().logprobs.to_vec();
    let (mut alone, mut sum) = (Vec::new(), vec![0.0; trainer.parameters().values().len()]);
    for part in parts {
        let mut batch = TrainingBatch::default();
        batch.push(part);
        trainer.parameters_mut().zero_gradients();
        alone.extend_from_slice(trainer.accumulate(&batch, &|_, _| -1.0, 0.0).unwrap().logprobs);
        for (sum, gradient) in sum.iter_mut().zip(trainer.parameters().gradients()) {
            *sum += gradient;
        }
    }
    assert_eq!(together, alone, "log-probabilities of packed sequences are those of each alone");
    trainer.parameters_mut().zero_gradients();
    trainer.accumulate(&packed, &|_, _| -1.0, 0.0).unwrap();
    let difference = relative_distance(trainer.parameters().gradients(), &sum);
    assert!(difference < 1e-5, "{difference:e}");
}

#[test]
fn gradients_have_the_same_bits_whatever_is_computed_once_more() {
    for name in MODELS {
        for compute in [Compute::F32, Compute::Bf16] {
            let gradients = [Recompute::Layers, Recompute::Insides].map(|recompute| {
                let checkpoint = Checkpoint::open(&data(name).join("fp32")).unwrap();
                let parameters = Parameters::full(&checkpoint).unwrap();
                let plan = TrainingPlan { recompute, ..PLAN };
                let mut trainer = Trainer::new(parameters, compute, cpu(2, None), plan).unwrap();
                let batch = golden_batch(name);
                // Twice, as what was kept of one batch must not be taken for another's.
                let mut short = TrainingBatch::default();
                short.push(&batch.tokens[..70]);
                trainer.accumulate(&short, &|_, _| -0.5, 0.01).unwrap();
                trainer.accumulate(&batch, &|_, _| -1.0, 0.01).unwrap();
                trainer.parameters().gradients().to_vec()
            });
            assert!(gradients[0].iter().any(|gradient| *gradient != 0.0));
            assert!(gradients[0] == gradients[1], "{name} {compute}");
        }
    }
}

#[test]
fn log_probabilities_in_training_are_those_of_inference_bit_for_bit() {
    for compute in [Compute::F32, Compute::Bf16] {
        let tokens = Golden::open("tiny-m1", "inputs").tokens("len257");
        let mut batch = TrainingBatch::default();
        batch.push(&tokens);
        let mut trainer = golden_trainer("tiny-m1", compute, cpu(2, None));
        let trained = trainer.evaluate(&batch).unwrap().logprobs.to_vec();
        let mut runner = Runner::new(&data("tiny-m1").join("fp32"), compute, None);
        let logits = runner.logits(&tokens);
        let vocab = logits.len() / tokens.len();
        for (i, row) in logits.chunks_exact(vocab).take(256).enumerate() {
            let row = arges_kernels::sample::RowLogprobs::new(row).unwrap();
            assert_eq!(trained[i], row.logprob(tokens[i + 1]), "{compute}, token {i}");
        }
    }
}

#[test]
fn gradients_do_not_depend_on_the_number_of_threads() {
    let batch = golden_batch("tiny-m1");
    for compute in [Compute::F32, Compute::Bf16] {
        let of = |threads| {
            let mut trainer = golden_trainer("tiny-m1", compute, cpu(threads, None));
            gradients(&mut trainer, &batch, 0.01)
        };
        let one = of(1);
        assert!(one == of(2) && one == of(5), "{compute}");
    }
}

#[test]
fn bf16_gradients_point_where_the_f32_ones_do() {
    for (name, config) in odd_configs() {
        let batch = odd_batch();
        let of = |compute| {
            let parameters = Parameters::initialized(&config, 7);
            let mut trainer = Trainer::new(parameters, compute, cpu(2, None), PLAN).unwrap();
            gradients(&mut trainer, &batch, 0.0)
        };
        let (exact, rounded) = (of(Compute::F32), of(Compute::Bf16));
        let cosine = cosine(&exact, &rounded);
        println!("{name}: cosine of bf16 gradients with the f32 ones {cosine:.5}");
        assert!(cosine > 0.995, "{name}: {cosine}");
    }
}

/// Every structure that the golden models lack: a shared MLP, pre-norm, tied embeddings, one expert. Every expert
/// serves every token, so that no small change makes another choice of experts.
fn odd_configs() -> Vec<(&'static str, Config)> {
    let shape = SynthShape {
        hidden: 24,
        layers: 3,
        heads: 3,
        kv_heads: 1,
        head_dim: 16,
        rotary_dim: 8,
        softmax_every: 3,
        experts: 2,
        experts_per_token: 2,
        intermediate: 20,
        vocab: 50,
        ..SynthShape::default()
    };
    let config = |shape: &SynthShape| {
        let mut config = shape.config().unwrap();
        config.initializer_range = 0.3;
        config
    };
    let shared = config(&SynthShape { shared_intermediate: 28, ..shape.clone() });
    let mut pre_norm = config(&shape);
    pre_norm.postnorm = false;
    pre_norm.mlp.beta = 0.7;
    pre_norm.softmax.alpha = 0.9;
    let tied = config(&SynthShape { tie_embeddings: true, ..shape.clone() });
    let plain = config(&SynthShape { experts: 1, experts_per_token: 1, ..shape });
    vec![("shared MLP", shared), ("pre-norm", pre_norm), ("tied", tied), ("one expert", plain)]
}

fn odd_batch() -> TrainingBatch {
    let mut batch = TrainingBatch::default();
    let token = |i: usize| (i * 7 + i * i * 3) as u32 % 50;
    batch.push(&(0..70).map(token).collect::<Vec<_>>());
    batch.push_masked(&(9..40).map(token).collect::<Vec<_>>(), |place| place % 3 != 0);
    batch
}

#[test]
fn gradients_are_the_slopes_of_the_loss_in_every_structure() {
    for (name, config) in odd_configs() {
        let batch = odd_batch();
        let mut trainer =
            Trainer::new(Parameters::initialized(&config, 7), Compute::F32, cpu(2, None), PLAN).unwrap();
        assert_slopes(&mut trainer, &batch, name);
    }
}

/// Holds the gradient of each tensor to the slope of the mean loss along it.
fn assert_slopes(trainer: &mut Trainer, batch: &TrainingBatch, name: &str) {
    let gradient = gradients(trainer, batch, 0.0);
    let base = trainer.parameters().values().to_vec();
    for tensor in trainer.parameters().tensors().to_vec() {
        let of = |i: usize| if tensor.range.contains(&i) { f64::from(gradient[i]) } else { 0.0 };
        let norm = tensor.range.clone().map(|i| of(i).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 0.0, "{name}: {} has no gradient", tensor.name);
        let mut loss_at = |step: f64| {
            let moved: Vec<f32> =
                (0..base.len()).map(|i| (f64::from(base[i]) + step * of(i) / norm) as f32).collect();
            trainer.parameters_mut().values_mut().copy_from_slice(&moved);
            trainer.publish().unwrap();
            mean_loss(trainer.evaluate(batch).unwrap().logprobs)
        };
        let step = 4e-3;
        let slope = (loss_at(step) - loss_at(-step)) / (2.0 * step);
        let error = (slope - norm).abs() / norm.max(2e-3);
        assert!(error < 0.03, "{name}: {}: slope {slope:e}, gradient {norm:e}", tensor.name);
    }
}

/// A mixture of which tokens use two of four experts, layer by layer.
fn mixture() -> Config {
    let (_, mut config) = odd_configs().swap_remove(0);
    config.num_experts = 4;
    config
}

/// Experts of a batch's tokens, `[tokens, layers, k]`, as the model chooses them in inference.
fn own_choices(trainer: &Trainer, batch: &TrainingBatch) -> Vec<u16> {
    let model = trainer.model();
    let mut cache = Cache::new(model, CachePlan { max_sequences: 8, max_tokens: 1024 }).unwrap();
    let mut workspace = Workspace::new(model, WorkspacePlan { max_tokens: 512, max_logit_rows: 1 });
    workspace.note_experts(true);
    let (mut step, mut first) = (Batch::new(), 0);
    for &length in &batch.lengths {
        let sequence = cache.open().unwrap();
        cache.reserve(sequence, length).unwrap();
        step.push(sequence, &batch.tokens[first..first + length], LogitRows::None);
        first += length;
    }
    model.forward(&step, &mut cache, &mut workspace).unwrap();
    workspace.noted_experts().iter().map(|expert| u16::from(*expert)).collect()
}

#[test]
fn a_models_own_choices_given_to_it_change_no_bit() {
    for compute in [Compute::F32, Compute::Bf16] {
        let parameters = Parameters::initialized(&mixture(), 7);
        let mut trainer = Trainer::new(parameters, compute, cpu(2, None), PLAN).unwrap();
        let mut batch = odd_batch();
        let of = |trainer: &mut Trainer, batch: &TrainingBatch| {
            let logprobs = trainer.evaluate(batch).unwrap().logprobs.to_vec();
            (logprobs, gradients(trainer, batch, 0.01))
        };
        let free = of(&mut trainer, &batch);
        batch.experts = own_choices(&trainer, &batch);
        assert_eq!(batch.experts.len(), batch.tokens.len() * 3 * 2);
        assert!(of(&mut trainer, &batch) == free, "{compute}");
        // Some tokens given, some not: the same again.
        batch.experts.chunks_exact_mut(6).step_by(3).for_each(|token| token.fill(OWN_CHOICE));
        assert!(of(&mut trainer, &batch) == free, "{compute}");
        // Others are something else.
        batch
            .experts
            .iter_mut()
            .filter(|expert| **expert != OWN_CHOICE)
            .for_each(|expert| *expert = 3 - *expert);
        assert_ne!(of(&mut trainer, &batch).0, free.0, "{compute}");
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss_with_experts_that_stay_whatever_the_router_says() {
    let parameters = Parameters::initialized(&mixture(), 7);
    let mut trainer = Trainer::new(parameters, Compute::F32, cpu(2, None), PLAN).unwrap();
    let mut batch = odd_batch();
    // Choices of other weights: those that were in force when tokens were sampled.
    let sampler = Trainer::new(Parameters::initialized(&mixture(), 8), Compute::F32, cpu(2, None), PLAN);
    batch.experts = own_choices(&sampler.unwrap(), &batch);
    assert_ne!(batch.experts, own_choices(&trainer, &batch));
    assert_slopes(&mut trainer, &batch, "given experts");
}

#[test]
fn experts_that_there_are_not_are_refused() {
    let parameters = Parameters::initialized(&mixture(), 7);
    let mut trainer = Trainer::new(parameters, Compute::F32, cpu(1, None), PLAN).unwrap();
    let batch = odd_batch();
    let whole = own_choices(&trainer, &batch);
    for (change, reason) in [
        ((|experts| experts.truncate(7)) as fn(&mut Vec<u16>), "there are 7 of them, not 606"),
        (|experts| experts[3] = 4, "4 is none of 4"),
        (|experts| experts[3] = experts[2], "has one twice"),
    ] {
        let mut experts = whole.clone();
        change(&mut experts);
        let error = trainer.evaluate(&TrainingBatch { experts, ..batch.clone() }).err().unwrap();
        assert!(
            matches!(error, TrainingError::Experts { .. }) && error.to_string().contains(reason),
            "{error}"
        );
    }
}

fn lora_options() -> LoraOptions {
    use LoraTarget::{ExpertDown, ExpertGate, LightningGate, LightningQkv, Output, Query};
    LoraOptions {
        rank: 4,
        alpha: 8.0,
        targets: vec![LightningQkv, LightningGate, Query, Output, ExpertGate, ExpertDown],
        layers: None,
        experts: Some(vec![0, 2]),
    }
}

#[test]
fn adapters_alone_learn_and_merge_to_the_same_logits() {
    let name = "tiny-m1";
    let checkpoint = Arc::new(Checkpoint::open(&data(name).join("fp32")).unwrap());
    let batch = golden_batch(name);
    for compute in [Compute::F32, Compute::Bf16] {
        let cpu = cpu(2, None);
        let parameters = Parameters::lora(Arc::clone(&checkpoint), &lora_options(), 3).unwrap();
        let learning = parameters.values().len();
        assert!(parameters.tensors().iter().all(|tensor| tensor.name.contains(".lora_")));
        let mut trainer = Trainer::new(parameters, compute, Arc::clone(&cpu), PLAN).unwrap();
        let before = mean_loss(trainer.evaluate(&batch).unwrap().logprobs);
        let base =
            mean_loss(golden_trainer(name, compute, Arc::clone(&cpu)).evaluate(&batch).unwrap().logprobs);
        assert_eq!(before, base, "an adapter begins as nothing");
        for _ in 0..5 {
            let gradient = gradients(&mut trainer, &batch, 0.0);
            assert_eq!(gradient.len(), learning);
            let norm = gradient.iter().map(|x| x * x).sum::<f32>().sqrt();
            for (value, gradient) in trainer.parameters_mut().values_mut().iter_mut().zip(&gradient) {
                *value -= 0.05 / norm * gradient;
            }
            trainer.publish().unwrap();
        }
        let trained = trainer.evaluate(&batch).unwrap().logprobs.to_vec();
        assert!(mean_loss(&trained) < before - 0.01, "{} to {}", before, mean_loss(&trained));
        let dtype = if compute == Compute::F32 { DType::F32 } else { DType::Bf16 };
        let directory = tempfile::tempdir().unwrap();
        let options = WriteOptions { overwrite: true, ..WriteOptions::default() };
        trainer.parameters().save(&cpu, directory.path(), options, dtype).unwrap();
        let merged = Parameters::full(&Checkpoint::open(directory.path()).unwrap()).unwrap();
        let mut merged = Trainer::new(merged, compute, cpu, PLAN).unwrap();
        assert_eq!(trained, merged.evaluate(&batch).unwrap().logprobs, "{compute}");
    }
}

#[test]
fn gradients_of_adapters_are_the_slopes_of_the_loss() {
    let directory = tempfile::tempdir().unwrap();
    let options = WriteOptions { overwrite: true, ..WriteOptions::default() };
    let base = Parameters::initialized(&odd_configs()[0].1, 7);
    // In another format than the products.
    base.save(&cpu(1, None), directory.path(), options, DType::Bf16).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(directory.path()).unwrap());
    let options = LoraOptions { experts: Some(vec![1]), ..lora_options() };
    let parameters = Parameters::lora(checkpoint, &options, 3).unwrap();
    let batch = odd_batch();
    let mut trainer = Trainer::new(parameters, Compute::F32, cpu(2, None), PLAN).unwrap();
    // Off the start, where B is zero and A has no gradient.
    for (i, value) in trainer.parameters_mut().values_mut().iter_mut().enumerate() {
        *value += ((i * 37 % 101) as f32 / 50.0 - 1.0) * 0.02;
    }
    trainer.publish().unwrap();
    let gradient = gradients(&mut trainer, &batch, 0.0);
    let base = trainer.parameters().values().to_vec();
    for letter in ["lora_A", "lora_B"] {
        let chosen: Vec<bool> = {
            let mut chosen = vec![false; base.len()];
            for tensor in trainer.parameters().tensors().iter().filter(|t| t.name.contains(letter)) {
                chosen[tensor.range.clone()].fill(true);
            }
            chosen
        };
        let of = |i: usize| if chosen[i] { f64::from(gradient[i]) } else { 0.0 };
        let norm = (0..base.len()).map(|i| of(i).powi(2)).sum::<f64>().sqrt();
        let mut loss_at = |step: f64| {
            let moved: Vec<f32> =
                (0..base.len()).map(|i| (f64::from(base[i]) + step * of(i) / norm) as f32).collect();
            trainer.parameters_mut().values_mut().copy_from_slice(&moved);
            trainer.publish().unwrap();
            mean_loss(trainer.evaluate(&batch).unwrap().logprobs)
        };
        let step = 5e-3;
        let slope = (loss_at(step) - loss_at(-step)) / (2.0 * step);
        assert!((slope / norm - 1.0).abs() < 0.02, "{letter}: slope {slope:e}, gradient {norm:e}");
    }
}

#[test]
fn batches_that_do_not_fit_are_refused_and_change_nothing() {
    let mut trainer = golden_trainer("tiny-m1", Compute::F32, cpu(2, None));
    let mut good = TrainingBatch::default();
    good.push(&[1, 2, 3]);
    let refused = |trainer: &mut Trainer, change: &dyn Fn(&mut TrainingBatch), part: &str| {
        let mut batch = good.clone();
        change(&mut batch);
        let error = trainer.accumulate(&batch, &|_, _| -1.0, 0.0).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(&mut trainer, &|batch| batch.lengths[0] = 2, "do not make up a batch of 3");
    refused(&mut trainer, &|batch| batch.lengths.push(0), "or one is empty");
    refused(&mut trainer, &|batch| batch.targets[1].row = 0, "target 1 (row 0");
    refused(&mut trainer, &|batch| batch.targets[1].row = 3, "target 1 (row 3");
    refused(&mut trainer, &|batch| batch.targets[0].token = 512, "token 512");
    refused(&mut trainer, &|batch| batch.tokens[0] = 512, "token 512 is not in the vocabulary");
    refused(&mut trainer, &|batch| (0..8).for_each(|_| batch.push(&[1])), "9 sequences");
    refused(&mut trainer, &|batch| batch.push(&[1; 600]), "603 tokens");
    assert!(trainer.parameters().gradients().iter().all(|gradient| *gradient == 0.0));
    trainer.accumulate(&good, &|_, _| -1.0, 0.0).unwrap();
}
