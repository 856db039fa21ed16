//! Whole runs of a small model: learning, interruption, resumption, adapters.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arges_kernels::device::cpu::{Cpu, CpuOptions};
use arges_kernels::device::cuda::Cuda;
use arges_kernels::matmul::Compute;
use arges_model::Checkpoint;
use arges_model::training::{Parameters, Trainer, TrainingBatch, TrainingDevice, TrainingPlan};
use arges_train::run::{Event, Outcome, StepReport};
use arges_train::{Learn, Run, TrainConfig, TrainError, metrics};

const MODEL: &str = r#"
[model.new]
tokenizer = "TOKENIZER"
hidden_size = 32
num_layers = 3
softmax_every = 3
num_heads = 2
num_kv_heads = 1
head_dim = 16
num_experts = 4
intermediate_size = 32
"#;

/// A description of 12 steps on sums, in a directory that holds the tokenizer too.
fn description(directory: &Path, run: &str, model: &str) -> TrainConfig {
    let tokenizer = directory.join("tokenizer");
    if !tokenizer.exists() {
        std::fs::create_dir(&tokenizer).unwrap();
        arges_text::synthetic::write_tokenizer(&tokenizer, 300).unwrap();
    }
    let text = format!(
        r#"
run = {:?}
steps = 12
seed = 5
balance_loss = 0.01
{model}
[optimizer]
learning_rate = 1e-2
[schedule]
kind = "cosine"
warmup_steps = 3
[batch]
max_tokens = 256
accumulation = 2
[checkpoint]
every = 4
[evaluation]
every = 6
documents = 4
[[evaluation.data]]
kind = "tasks"
tasks = ["addition"]
difficulty = [1, 1]
[[data]]
kind = "tasks"
tasks = ["addition"]
difficulty = [1, 1]
weight = 2
[[data]]
kind = "tasks"
tasks = ["dyck_completion"]
difficulty = [1, 1]
thinking = 0.5
"#,
        directory.join(run)
    );
    TrainConfig::from_toml(&text.replace("TOKENIZER", tokenizer.to_str().unwrap()), Path::new("test.toml"))
        .unwrap()
}

fn cpu(threads: usize) -> Arc<Cpu> {
    Arc::new(Cpu::new(CpuOptions { threads: Some(threads), isa: None }).unwrap())
}

/// Takes steps until `on` says to stop.
fn train(run: &mut Run, on: &mut dyn FnMut(&Event) -> ControlFlow<()>) -> Outcome {
    let stop = AtomicBool::new(false);
    // Once it is asked to stop, what else happens in that step does not change it.
    let mut tell = |event: Event| {
        if on(&event).is_break() {
            stop.store(true, Ordering::Relaxed);
        }
    };
    run.train(&stop, &mut tell).unwrap()
}

fn whole(config: TrainConfig, threads: usize) -> (Run, Vec<StepReport>) {
    whole_on(config, cpu(threads).into())
}

fn whole_on(config: TrainConfig, device: TrainingDevice) -> (Run, Vec<StepReport>) {
    let mut run = Run::open(config, Learn::Answers, device, false).unwrap();
    let mut reports = Vec::new();
    let outcome = train(&mut run, &mut |event| {
        if let Event::Step(report) = event {
            reports.push(report.clone());
        }
        ControlFlow::Continue(())
    });
    assert_eq!(outcome, Outcome::Finished);
    (run, reports)
}

fn file(run: &TrainConfig, step: u64, name: &str) -> Vec<u8> {
    std::fs::read(run.run.join(format!("checkpoints/step-{step:06}")).join(name)).unwrap()
}

/// What a run has written that depends on its arithmetic.
fn losses(run: &TrainConfig) -> Vec<(u64, Vec<(String, f64)>)> {
    let timed = |name: &str| name == "train/tokens_per_second";
    let lines = metrics::read(&run.run).unwrap().into_iter();
    lines
        .map(|line| (line.step, line.values.into_iter().filter(|value| !timed(&value.0)).collect()))
        .collect()
}

fn evaluation_losses(run: &TrainConfig) -> Vec<f64> {
    let lines = metrics::read(&run.run).unwrap();
    let values = lines.iter().flat_map(|line| &line.values);
    values.filter(|value| value.0 == "eval/loss").map(|value| value.1).collect()
}

#[test]
fn a_model_learns_from_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let config = TrainConfig { steps: 40, ..description(directory.path(), "run", MODEL) };
    let (_, reports) = whole(config.clone(), 2);
    let mean =
        |reports: &[StepReport]| reports.iter().map(|step| step.loss).sum::<f64>() / reports.len() as f64;
    let (first, last) = (mean(&reports[..4]), mean(&reports[36..]));
    assert!((first - 300f64.ln()).abs() < 1.0, "{first}");
    assert!(last < 0.6 * first, "{first} {last}");
    let evaluated = evaluation_losses(&config);
    assert_eq!(evaluated.len(), 7, "every 6 steps and after the last");
    assert!(evaluated[6] < evaluated[0]);
}

#[test]
fn a_run_that_was_stopped_and_resumed_gives_the_bytes_of_one_that_was_not() {
    let directory = tempfile::tempdir().unwrap();
    let config = description(directory.path(), "whole", MODEL);
    whole(config.clone(), 2);
    let parts = TrainConfig { run: directory.path().join("parts"), ..config.clone() };
    for last in [1, 5, 6, 11] {
        let mut run = Run::open(parts.clone(), Learn::Answers, cpu(1), true).unwrap();
        let outcome = train(&mut run, &mut |event| match event {
            Event::Step(report) if report.step == last => ControlFlow::Break(()),
            Event::Step(_) => ControlFlow::Continue(()),
            _ if matches!(event, Event::Evaluated { step, .. } | Event::Saved { step, .. } if *step == last) => {
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        });
        assert_eq!((outcome, run.step()), (Outcome::Stopped, last));
    }
    let mut run = Run::open(parts.clone(), Learn::Answers, cpu(2), true).unwrap();
    assert_eq!(train(&mut run, &mut |_| ControlFlow::Continue(())), Outcome::Finished);
    for name in [
        "model.safetensors",
        "training-state.safetensors",
        "training-state.json",
        "config.json",
        "tokenizer.json",
    ] {
        assert!(file(&config, 12, name) == file(&parts, 12, name), "{name} differs");
    }
    assert_eq!(losses(&config), losses(&parts));
}

#[test]
fn resuming_after_a_checkpoint_was_lost_goes_on_from_the_one_before() {
    let directory = tempfile::tempdir().unwrap();
    let config = description(directory.path(), "run", MODEL);
    whole(config.clone(), 2);
    let (last, all) = (file(&config, 12, "training-state.safetensors"), losses(&config));
    std::fs::remove_dir_all(config.run.join("checkpoints/step-000012")).unwrap();
    let mut run = Run::open(config.clone(), Learn::Answers, cpu(2), true).unwrap();
    assert_eq!(run.step(), 8);
    train(&mut run, &mut |_| ControlFlow::Continue(()));
    assert!(file(&config, 12, "training-state.safetensors") == last);
    assert_eq!(losses(&config), all, "steps that are taken again are told once");
}

#[test]
fn only_the_newest_checkpoints_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = description(directory.path(), "run", MODEL);
    config.checkpoint.keep = 2;
    whole(config.clone(), 2);
    let entries = std::fs::read_dir(config.run.join("checkpoints")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["step-000008", "step-000012"]);
}

#[test]
fn a_run_is_neither_overwritten_nor_resumed_as_another_nor_trained_twice_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let config = TrainConfig { steps: 1, ..description(directory.path(), "run", MODEL) };
    let (run, _) = whole(config.clone(), 1);
    let open = |config: TrainConfig, learn, resume| match Run::open(config, learn, cpu(1), resume) {
        Ok(_) => panic!("it must not open"),
        Err(error) => error,
    };
    assert!(matches!(open(config.clone(), Learn::Answers, true), TrainError::InUse { .. }));
    drop(run);
    assert!(matches!(open(config.clone(), Learn::Answers, false), TrainError::Exists { step: 1, .. }));
    let mut other = config.clone();
    other.optimizer.beta2 = 0.999;
    let error = open(other, Learn::Answers, true).to_string();
    assert!(error.ends_with("cannot be resumed: `optimizer.beta2` is 0.999 now and was 0.95"), "{error}");
    let error = open(config, Learn::Everything, true).to_string();
    assert!(error.ends_with("cannot be resumed: it is a run of `arges train sft`"), "{error}");
}

#[test]
fn a_gradient_that_is_not_finite_ends_the_run_and_says_at_which_step() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = description(directory.path(), "run", MODEL);
    (config.optimizer.learning_rate, config.optimizer.weight_decay) = (1e30, 1e10);
    let mut run = Run::open(config, Learn::Answers, cpu(1), false).unwrap();
    let error = run.train(&AtomicBool::new(false), &mut |_| ()).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { step: 2.., .. }), "{error}");
}

#[test]
fn adapters_are_all_that_learns_and_merge_to_the_same_log_probabilities() {
    let directory = tempfile::tempdir().unwrap();
    whole(description(directory.path(), "base", MODEL), 2);
    let base = directory.path().join("base/checkpoints/step-000012");
    let lora = format!(
        "[model]\nfrom = {base:?}\n[lora]\nrank = 4\nalpha = 8.0\ntargets = [\"lightning_qkv\", \"query\", \"expert_down\"]\n"
    );
    let mut config = TrainConfig { steps: 30, ..description(directory.path(), "lora", &lora) };
    config.optimizer.learning_rate = 0.05;
    let (run, _) = whole(config.clone(), 2);
    let tensors = run.trainer().parameters().tensors().to_vec();
    let values = run.trainer().parameters().values().len();
    // Rank 4: two layers of lightning's qkv, 32 to 96; one query, 32 to 32; three layers of four experts, 32 to 32.
    assert_eq!(values, 4 * (2 * (32 + 96) + (32 + 32) + 12 * (32 + 32)));
    let state =
        safetensors::SafeTensors::read_metadata(&file(&config, 30, "training-state.safetensors")).unwrap().1;
    assert_eq!(
        state.tensors().len(),
        3 * tensors.len(),
        "values and two moments of the adapters, and nothing else"
    );
    let evaluated = evaluation_losses(&config);
    assert!(evaluated[4] < evaluated[0], "{evaluated:?}");

    let mut batch = TrainingBatch::default();
    batch.push(&(0..50).map(|i| (i * 37) % 256).collect::<Vec<u32>>());
    let mut trained = run.into_trainer();
    let trained = trained.evaluate(&batch).unwrap().logprobs;
    let merged = Checkpoint::open(&config.run.join("checkpoints/step-000030")).unwrap();
    let plan = TrainingPlan::new(64, 1);
    let mut merged = Trainer::new(Parameters::full(&merged).unwrap(), Compute::F32, cpu(1), plan).unwrap();
    assert_eq!(merged.evaluate(&batch).unwrap().logprobs, trained);
    let base = Checkpoint::open(&base).unwrap();
    let mut base = Trainer::new(Parameters::full(&base).unwrap(), Compute::F32, cpu(1), plan).unwrap();
    assert_ne!(base.evaluate(&batch).unwrap().logprobs, trained, "the adapters do something");
}

/// The first GPU, or `None` with a line that says so. Where `ARGES_REQUIRE_GPU` is set there must be one.
fn gpu() -> Option<TrainingDevice> {
    Some(TrainingDevice { cpu: cpu(2), cuda: Some(Cuda::for_test()?) })
}

#[test]
fn a_run_moves_from_the_cpu_to_a_gpu_and_back() {
    let Some(gpu) = gpu() else { return };
    let directory = tempfile::tempdir().unwrap();
    let config = description(directory.path(), "whole", MODEL);
    whole(config.clone(), 2);
    let parts = TrainConfig { run: directory.path().join("parts"), ..config.clone() };
    for (last, device) in [(4, cpu(1).into()), (8, gpu.clone()), (10, gpu), (12, cpu(2).into())] {
        let mut run = Run::open(parts.clone(), Learn::Answers, device, true).unwrap();
        train(&mut run, &mut |event| match event {
            Event::Step(report) if report.step == last => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        assert_eq!(run.step(), last);
    }
    assert_told_alike(&losses(&config), &losses(&parts));
}

/// Asserts that what was told of two runs is nearly the same.
fn assert_told_alike(whole: &[(u64, Vec<(String, f64)>)], parts: &[(u64, Vec<(String, f64)>)]) {
    assert_eq!(whole.len(), parts.len());
    for ((step, whole), (_, parts)) in whole.iter().zip(parts) {
        for ((name, on_cpu), (_, moved)) in whole.iter().zip(parts) {
            let far = (on_cpu - moved).abs() > 2e-3 * on_cpu.abs().max(1.0);
            assert!(!far, "step {step}: {name} is {on_cpu} on the CPU and {moved} on both");
        }
    }
}

#[test]
fn a_run_of_adapters_moves_from_the_cpu_to_a_gpu_and_back() {
    let Some(gpu) = gpu() else { return };
    let directory = tempfile::tempdir().unwrap();
    whole(description(directory.path(), "base", MODEL), 2);
    let base = directory.path().join("base/checkpoints/step-000012");
    let lora = format!(
        "[model]\nfrom = {base:?}\n[lora]\nrank = 4\nalpha = 8.0\ntargets = [\"lightning_qkv\", \"value\", \"expert_up\", \"expert_down\"]\n"
    );
    let config = description(directory.path(), "whole", &lora);
    whole(config.clone(), 2);
    let parts = TrainConfig { run: directory.path().join("parts"), ..config.clone() };
    for (last, device) in [(4, cpu(1).into()), (8, gpu.clone()), (10, gpu.clone()), (12, cpu(2).into())] {
        let mut run = Run::open(parts.clone(), Learn::Answers, device, true).unwrap();
        train(&mut run, &mut |event| match event {
            Event::Step(report) if report.step == last => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        assert_eq!(run.step(), last);
    }
    assert_told_alike(&losses(&config), &losses(&parts));

    // All of it on the GPU: what is saved computes what was trained.
    let on_gpu = TrainConfig { run: directory.path().join("gpu"), ..config.clone() };
    let (run, _) = whole_on(on_gpu.clone(), gpu);
    assert_told_alike(&losses(&config), &losses(&on_gpu));
    let mut batch = TrainingBatch::default();
    batch.push(&(0..50).map(|i| (i * 37) % 256).collect::<Vec<u32>>());
    let mut trained = run.into_trainer();
    let trained = trained.evaluate(&batch).unwrap().logprobs;
    let merged = Checkpoint::open(&on_gpu.run.join("checkpoints/step-000012")).unwrap();
    let plan = TrainingPlan::new(64, 1);
    let mut merged = Trainer::new(Parameters::full(&merged).unwrap(), Compute::F32, cpu(1), plan).unwrap();
    for (merged, trained) in merged.evaluate(&batch).unwrap().logprobs.iter().zip(trained) {
        assert!((merged - trained).abs() < 1e-4, "{merged} and {trained}");
    }
}

#[test]
fn the_loss_on_a_gpu_lies_on_that_of_the_cpu_for_200_steps() {
    let Some(gpu) = gpu() else { return };
    let directory = tempfile::tempdir().unwrap();
    let of = |name: &str, compute: &str, device: TrainingDevice| -> Vec<f64> {
        let model = format!("[model]\ncompute = \"{compute}\"\n{MODEL}");
        let mut config = TrainConfig { steps: 200, ..description(directory.path(), name, &model) };
        config.optimizer.learning_rate = 3e-3;
        whole_on(config, device).1.iter().map(|report| report.loss).collect()
    };
    let (exact, f32, bf16) =
        (of("cpu", "f32", cpu(2).into()), of("f32", "f32", gpu.clone()), of("bf16", "bf16", gpu));
    let differences =
        |other: &[f64]| -> Vec<f64> { exact.iter().zip(other).map(|(a, b)| (a - b).abs()).collect() };
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (of_f32, of_bf16) = (differences(&f32), differences(&bf16));
    let largest = of_f32.iter().copied().fold(0.0, f64::max);
    println!(
        "loss from {:.4} to {:.4}; f32 differs by {:.1e} on average and {largest:.1e} at most, bf16 by {:.1e}",
        exact[0],
        exact[199],
        mean(&of_f32),
        mean(&of_bf16)
    );
    assert!(mean(&of_f32[..50]) < 1e-3 && mean(&of_f32) < 1e-2, "{of_f32:?}");
    assert!(mean(&of_bf16) < 5e-2, "{of_bf16:?}");
}
