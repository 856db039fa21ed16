//! Whole runs of reinforcement learning of a small model: agreement of sampler and trainer, bits that repeat, staleness,
//! interruption and resumption.
//!
//! A random model never solves anything, so what it learns from here is the length of its responses, which end by chance.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arges_kernels::device::cpu::{Cpu, CpuOptions};
use arges_kernels::device::cuda::Cuda;
use arges_model::training::TrainingDevice;
use arges_train::rl::run::{Event, Outcome};
use arges_train::rl::trajectory::{self, Trajectory};
use arges_train::rl::{RlConfig, RlRun, inspect};
use arges_train::{Learn, Run, TrainConfig, metrics};

const MODEL: &str = r#"
run = "DIR/start"
steps = 1
seed = 5
[model.new]
tokenizer = "DIR/tokenizer"
hidden_size = 32
num_layers = 3
softmax_every = 3
num_heads = 2
num_kv_heads = 1
head_dim = 16
num_experts = 4
intermediate_size = 32
[optimizer]
learning_rate = 1e-3
[batch]
max_tokens = 512
[[data]]
kind = "tasks"
tasks = ["addition"]
difficulty = [1, 1]
"#;

const RUN: &str = r#"
run = "DIR/NAME"
batches = 4
seed = 3
[model]
from = "DIR/start/checkpoints/step-000001"
[objective]
[advantage]
dynamic_sampling = false
overlong = { buffer = 20 }
[rollout]
prompts = 2
responses = 3
concurrency = 4
step_tokens = 64
agreement = "all"
repetition = { tokens = 5, probability = 0.0033 }
[update]
updates = 2
max_tokens = 700
max_sequences = 4
[optimizer]
learning_rate = 1e-2
warmup_steps = 0
[[window]]
tokens = 20
[[task]]
name = "addition"
difficulty = [1, 2]
[[task]]
name = "dyck_completion"
difficulty = [1, 1]
[checkpoint]
every = 1
keep = 0
[evaluation]
every = 2
problems = 2
"#;

struct Place(tempfile::TempDir);

impl Place {
    /// A directory with the model to start from.
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let tokenizer = place.path().join("tokenizer");
        std::fs::create_dir(&tokenizer).unwrap();
        arges_text::synthetic::write_tokenizer(&tokenizer, 300).unwrap();
        let config = TrainConfig::from_toml(&place.text(MODEL, ""), Path::new("start.toml")).unwrap();
        let mut run = Run::open(config, Learn::Answers, cpu(2), false).unwrap();
        run.train(&AtomicBool::new(false), &mut |_| {}).unwrap();
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn text(&self, text: &str, name: &str) -> String {
        text.replace("DIR", self.path().to_str().unwrap()).replace("NAME", name)
    }

    /// The description of a run, with some lines changed.
    fn config(&self, name: &str, changes: &[(&str, &str)]) -> RlConfig {
        let mut text = self.text(RUN, name);
        for (then, now) in changes {
            assert!(text.contains(then), "{then}");
            text = text.replace(then, now);
        }
        RlConfig::from_toml(&text, Path::new("run.toml")).unwrap()
    }
}

fn cpu(threads: usize) -> Arc<Cpu> {
    Arc::new(Cpu::new(CpuOptions { threads: Some(threads), isa: None }).unwrap())
}

/// Trains until `on` says to stop.
fn train(run: &mut RlRun, on: &mut dyn FnMut(&Event) -> ControlFlow<()>) -> Outcome {
    let stop = AtomicBool::new(false);
    let mut tell = |event| {
        stop.fetch_or(on(&event).is_break(), Ordering::Relaxed);
    };
    run.train(&stop, &mut tell).unwrap()
}

fn whole(config: RlConfig, threads: usize) -> PathBuf {
    whole_on(config, cpu(threads).into())
}

fn whole_on(config: RlConfig, device: TrainingDevice) -> PathBuf {
    let directory = config.run.clone();
    let mut run = RlRun::open(config, device, false).unwrap();
    assert_eq!(train(&mut run, &mut |_| ControlFlow::Continue(())), Outcome::Finished);
    directory
}

fn file(run: &Path, step: u64, name: &str) -> Vec<u8> {
    std::fs::read(run.join(format!("checkpoints/step-{step:06}")).join(name)).unwrap()
}

/// A metric of every line that has it.
fn metric(run: &Path, tag: &str) -> Vec<f64> {
    let lines = metrics::read(run).unwrap();
    lines.iter().flat_map(|line| &line.values).filter(|value| value.0 == tag).map(|value| value.1).collect()
}

/// What a run has written that does not depend on time.
fn told(run: &Path) -> Vec<(u64, Vec<(String, f64)>)> {
    let timed = |name: &str| name.starts_with("time/") || name.starts_with("perf/");
    let lines = metrics::read(run).unwrap().into_iter();
    lines
        .map(|line| (line.step, line.values.into_iter().filter(|value| !timed(&value.0)).collect()))
        .collect()
}

fn trajectories(run: &Path) -> Vec<Trajectory> {
    let batches = trajectory::batches(run).unwrap();
    batches.into_iter().flat_map(|batch| trajectory::read(run, batch).unwrap()).collect()
}

#[test]
fn every_log_probability_of_a_whole_run_has_the_bits_that_it_was_sampled_with() {
    let place = Place::new();
    for (name, changes) in [
        ("f32", vec![]),
        ("bf16", vec![("[objective]", "compute = \"bf16\"\n[objective]\nanchor = \"old\"")]),
    ] {
        let run = whole(place.config(name, &changes), 2);
        assert_eq!(metric(&run, "train_infer_logprob_maxdiff"), [0.0; 4]);
        let all = trajectories(&run);
        let sampled: usize = all.iter().map(Trajectory::sampled).sum();
        assert_eq!(metric(&run, "train_infer_tokens").iter().sum::<f64>(), sampled as f64);
        // A first update begins with the weights that sampled, so its ratios are 1; the second does not.
        let ratios = metric(&run, "train/log_ratio_max");
        assert_eq!(ratios.len(), 8);
        assert!(ratios.iter().step_by(2).all(|ratio| *ratio == 0.0), "{ratios:?}");
        assert!(ratios.iter().skip(1).step_by(2).all(|ratio| *ratio > 0.0), "{ratios:?}");
        assert!(metric(&run, "train/gradient_norm").iter().all(|norm| *norm > 0.0));
        assert!(metric(&run, "staleness/max").iter().all(|age| *age == 0.0));
        // Weights did change from batch to batch.
        assert_ne!(file(&run, 2, "training-state.safetensors"), file(&run, 8, "training-state.safetensors"));
    }
}

#[test]
fn replayed_experts_change_no_bit_of_what_the_weights_in_force_have_sampled() {
    let place = Place::new();
    let replay = ("agreement", "replay_experts = true\nagreement");
    let one_update = ("updates = 2", "updates = 1");
    let plain = whole(place.config("plain", &[one_update]), 2);
    let replayed = whole(place.config("replayed", &[one_update, replay]), 2);
    assert!(
        file(&plain, 4, "training-state.safetensors") == file(&replayed, 4, "training-state.safetensors")
    );
    assert_eq!(metric(&replayed, "train_infer_logprob_maxdiff"), [0.0; 4]);
    let all = trajectories(&replayed);
    // Three layers, in each two of four experts.
    assert!(all.iter().all(|t| t.experts.len() == (t.tokens.len() - 1) * 6));
    assert!(all.iter().flat_map(|t| &t.experts).all(|expert| *expert < 4));
    assert!(trajectories(&plain).iter().all(|t| t.experts.is_empty()));
    // A second update has other weights. What their router would choose is then not what is learned.
    let [plain, replayed] =
        [("off", vec![]), ("on", vec![replay])].map(|(name, changes)| whole(place.config(name, &changes), 2));
    let ratios = |run: &Path| metric(run, "train/log_ratio_mean");
    assert_eq!(ratios(&plain)[0], ratios(&replayed)[0]);
    assert_ne!(ratios(&plain)[1], ratios(&replayed)[1]);
}

#[test]
fn a_run_repeats_bit_for_bit_whatever_the_threads_and_the_responses_at_once() {
    let place = Place::new();
    let one = whole(place.config("one", &[]), 2);
    let changes = [("concurrency = 4", "concurrency = 7"), ("step_tokens = 64", "step_tokens = 33")];
    let two = whole(place.config("two", &changes), 3);
    for step in [2, 8] {
        let bytes = |run: &Path| file(run, step, "training-state.safetensors");
        assert!(bytes(&one) == bytes(&two), "step {step}");
    }
    assert_eq!(told(&one), told(&two));
    assert_eq!(trajectories(&one), trajectories(&two));
    // Every member of a group answers the same problem with samples of its own.
    let all = trajectories(&one);
    assert_eq!(all.len(), 24);
    let distinct: std::collections::HashSet<&[u32]> = all.iter().map(|t| &*t.tokens).collect();
    assert!(distinct.len() > 20);
}

#[test]
fn a_run_that_is_stopped_at_any_batch_and_resumed_comes_to_the_same_bits() {
    let place = Place::new();
    let undisturbed = whole(place.config("undisturbed", &[]), 2);
    let config = place.config("stopped", &[]);
    let mut opened = 0;
    loop {
        let mut run = RlRun::open(config.clone(), cpu(2), opened > 0).unwrap();
        opened += 1;
        // In the middle of sampling: part of a group has ended.
        let outcome = train(&mut run, &mut |event| match event {
            Event::Sampling { batch, ended, .. } if *batch == opened && *ended > 1 => ControlFlow::Break(()),
            Event::Step { batch, .. } if *batch == opened => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        if outcome == Outcome::Finished {
            break;
        }
        // What was learned after the checkpoint is no part of the run.
        assert!(opened < 20);
    }
    assert!(opened > 3, "{opened}");
    let bytes = |run: &Path| file(run, 8, "training-state.safetensors");
    assert!(bytes(&undisturbed) == bytes(&config.run));
    assert_eq!(told(&undisturbed), told(&config.run));
    assert_eq!(trajectories(&undisturbed), trajectories(&config.run));
    let error =
        RlRun::open(place.config("stopped", &[("seed = 3", "seed = 4")]), cpu(2), true).err().unwrap();
    assert!(error.to_string().ends_with("`seed` is 4 now and was 3"), "{error}");
    assert!(
        RlRun::open(config, cpu(2), false)
            .err()
            .unwrap()
            .to_string()
            .contains("holds a run of 8 steps already")
    );
}

#[test]
fn rollouts_that_run_ahead_keep_to_the_bound_and_still_agree_bit_for_bit() {
    let place = Place::new();
    let changes = [("concurrency = 4", "concurrency = 4\nmax_staleness = 2"), ("batches = 4", "batches = 8")];
    let run = whole(place.config("ahead", &changes), 2);
    let ages = metric(&run, "staleness/max");
    assert_eq!(ages.len(), 8);
    assert!(ages.iter().all(|age| *age <= 2.0) && ages.contains(&2.0), "{ages:?}");
    // Tokens of the weights in force agree even where others of the same response are older: caches were computed anew.
    assert!(metric(&run, "train_infer_logprob_maxdiff").iter().all(|difference| *difference == 0.0));
    assert!(metric(&run, "train_infer_tokens").iter().sum::<f64>() > 0.0);
    // The bound is on every token of every trajectory, by its own version.
    for batch in trajectory::batches(&run).unwrap() {
        for trajectory in trajectory::read(&run, batch).unwrap() {
            assert!(trajectory.oldest_version().unwrap() + 2 >= batch - 1);
        }
    }
}

/// The first GPU, if there is one; see [`Cuda::for_test`].
fn gpu() -> Option<TrainingDevice> {
    Some(TrainingDevice { cpu: cpu(2), cuda: Some(Cuda::for_test()?) })
}

#[test]
fn on_a_gpu_too_every_log_probability_has_the_bits_that_it_was_sampled_with() {
    let Some(gpu) = gpu() else { return };
    let place = Place::new();
    // arges-nano has the shapes for which there are tensor cores.
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    let nano = format!("from = {nano:?}\ncompute = \"bf16\"");
    let start = place.text("from = \"DIR/start/checkpoints/step-000001\"", "");
    let bf16 = format!("{start}\ncompute = \"bf16\"");
    let adapters = |model: &str| {
        let targets = "[\"lightning_qkv\", \"query\", \"expert_gate\", \"expert_down\"]";
        format!("{model}\n[lora]\nrank = 8\nalpha = 16.0\ntargets = {targets}")
    };
    let ahead = "concurrency = 4\nmax_staleness = 2";
    for (name, model, concurrency) in [
        ("f32", &start, "concurrency = 4"),
        ("bf16", &bf16, "concurrency = 3"),
        ("nano", &nano, "concurrency = 6"),
        ("ahead", &bf16, ahead),
        ("nano-ahead", &nano, ahead),
        ("adapters", &adapters(&bf16), "concurrency = 3"),
        ("nano-adapters-ahead", &adapters(&nano), ahead),
    ] {
        let mut changes = vec![
            (&*start, &**model),
            ("concurrency = 4", concurrency),
            ("[objective]", "[objective]\nanchor = \"old\""),
        ];
        if name.starts_with("nano") {
            // What it does by halves, with groups that are not all alike: there is a gradient in every step.
            changes.push(("learning_rate = 1e-2", "learning_rate = 1e-4"));
            changes.push(("dynamic_sampling = false", "dynamic_sampling = true"));
            changes.push(("name = \"addition\"", "name = \"game_of_24\""));
            changes.push(("[[window]]\ntokens = 20", "[[window]]\ntokens = 200"));
            changes.push(("repetition = { tokens = 5, probability = 0.0033 }", ""));
        } else {
            changes.push(("learning_rate = 1e-2", "learning_rate = 1e-3"));
        }
        let run = whole_on(place.config(name, &changes), gpu.clone());
        assert_eq!(metric(&run, "train_infer_logprob_maxdiff"), [0.0; 4], "{name}");
        // Of tokens that were sampled ahead, those of weights that have changed since are not compared.
        let least = if name.ends_with("ahead") { 0.0 } else { 100.0 };
        let compared = metric(&run, "train_infer_tokens").iter().sum::<f64>();
        assert!(compared > least, "{name}: {compared} tokens");
        let norms = metric(&run, "train/gradient_norm");
        assert!(norms.iter().all(|norm| *norm > 0.0), "{name}: {norms:?}");
        let ratios = metric(&run, "train/log_ratio_max");
        assert!(ratios.iter().skip(1).step_by(2).any(|ratio| *ratio > 0.0), "{name}: {ratios:?}");
    }
}

#[test]
fn a_run_that_is_stopped_on_a_gpu_and_resumed_comes_to_the_same_bits() {
    let Some(gpu) = gpu() else { return };
    let place = Place::new();
    let undisturbed = whole_on(place.config("undisturbed", &[]), gpu.clone());
    let config = place.config("stopped", &[]);
    for last in [1, 3, 4] {
        let mut run = RlRun::open(config.clone(), gpu.clone(), last > 1).unwrap();
        train(&mut run, &mut |event| match event {
            Event::Step { batch, .. } if *batch == last => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
    }
    let bytes = |run: &Path| file(run, 8, "training-state.safetensors");
    assert!(bytes(&undisturbed) == bytes(&config.run));
    assert_eq!(told(&undisturbed), told(&config.run));
    assert_eq!(trajectories(&undisturbed), trajectories(&config.run));
}

#[test]
fn a_run_moves_from_the_cpu_to_a_gpu_and_back() {
    let Some(gpu) = gpu() else { return };
    let place = Place::new();
    let whole = whole(place.config("whole", &[]), 2);
    let config = place.config("moved", &[]);
    for (last, device) in [(1, cpu(2).into()), (3, gpu), (4, cpu(2).into())] {
        let mut run = RlRun::open(config.clone(), device, last > 1).unwrap();
        train(&mut run, &mut |event| match event {
            Event::Step { batch, .. } if *batch == last => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        assert_eq!(run.batch(), last);
    }
    let (whole_told, moved_told) = (told(&whole), told(&config.run));
    let steps = |told: &[(u64, _)]| told.iter().map(|line| line.0).collect::<Vec<_>>();
    assert_eq!(steps(&whole_told), steps(&moved_told));
    assert_eq!(metric(&config.run, "train_infer_logprob_maxdiff"), [0.0; 4]);
    // The second batch is sampled and first learned from with the weights that the CPU left.
    let of = |run: &Path| trajectory::read(run, 2).unwrap();
    let ids = |run: &Path| of(run).into_iter().map(|one| one.tokens).collect::<Vec<_>>();
    assert_eq!(ids(&whole), ids(&config.run));
    for tag in ["train/gradient_norm", "train/entropy"] {
        let (on_cpu, moved) = (metric(&whole, tag)[2], metric(&config.run, tag)[2]);
        assert!((on_cpu / moved - 1.0).abs() < 1e-3, "{tag}: {on_cpu} and {moved}");
    }
}

#[test]
fn a_runs_trajectories_can_be_looked_into() {
    let place = Place::new();
    let run = whole(place.config("looked-into", &[("batches = 4", "batches = 1")]), 2);
    let (batch, all) = inspect::batch(&run, None).unwrap();
    assert_eq!((batch, all.len()), (1, 6));
    let rows = inspect::tokens(&all[0], &inspect::tokenizer(&run).unwrap());
    let sampled: Vec<_> = rows.iter().filter_map(|row| row.sampled.as_ref()).collect();
    assert_eq!(sampled.len(), all[0].sampled());
    assert!(
        sampled.iter().all(|token| token.ratio.is_some() && token.advantage.is_some() && token.version == 0)
    );
}

/// A judge that prefers the longer of two answers, unless it refuses everything; its base address.
fn judge(refuses: bool) -> String {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(&stream);
            let (mut length, mut line) = (0, String::new());
            while reader.read_line(&mut line).unwrap() > 2 {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let told: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let told = told["messages"][0]["content"].as_str().unwrap();
            let length = |name: &str| {
                let (_, rest) = told.split_once(&format!("[answer {name}]\n")).unwrap();
                rest.split("\n[end of answer").next().unwrap().len()
            };
            let (status, verdict) = match length("A").cmp(&length("B")) {
                _ if refuses => (500, "none"),
                std::cmp::Ordering::Less => (200, "Verdict: B"),
                std::cmp::Ordering::Equal => (200, "Verdict: tie"),
                std::cmp::Ordering::Greater => (200, "Verdict: A"),
            };
            let body = serde_json::json!({ "choices": [{ "message": { "content": verdict } }] }).to_string();
            let head =
                format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            // A client may have gone.
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    url
}

impl Place {
    /// A run with a file of questions beside its tasks.
    fn judged(&self, name: &str, url: &str, more: &str) -> RlConfig {
        let prompts = self.path().join("prompts.jsonl");
        let reference = |n: usize| "a ".repeat(6 * n);
        let line = |n| format!("{{\"prompt\": \"Question {n}\", \"reference\": \"{}b\"}}\n", reference(n));
        std::fs::write(&prompts, (0..5).map(line).collect::<String>()).unwrap();
        let text = format!(
            "{}[[task]]\nname = \"general\"\nweight = 6.0\nprompts = {prompts:?}\n[reward_model]\nurl = \"{url}\"\nmodel = \"j\"\n\
             retries = 0\npause = 0\n{more}",
            self.text(RUN, name)
        );
        RlConfig::from_toml(&text, Path::new("run.toml")).unwrap()
    }
}

#[test]
fn answers_to_questions_are_learned_by_what_a_reward_model_says() {
    let place = Place::new();
    let run = whole(place.judged("judged", &judge(false), ""), 2);
    let general: Vec<Trajectory> =
        trajectories(&run).into_iter().filter(|trajectory| trajectory.task == "general").collect();
    assert!(!general.is_empty() && general.iter().all(|trajectory| trajectory.reward.abs() <= 1.0));
    assert!(general.iter().any(|trajectory| trajectory.reward > 0.0));
    let shares = ["better", "equal", "worse"].map(|name| metric(&run, &format!("reward_model/{name}")));
    for line in 0..shares[0].len() {
        assert!((shares.iter().map(|share| share[line]).sum::<f64>() - 1.0).abs() < 1e-12);
    }
    // Longer answers win here, and that is seen.
    assert!(*metric(&run, "reward_model/length_correlation").last().unwrap() > 0.2);
    assert_eq!(metric(&run, "reward_model/unjudged"), [0.0; 4]);
    assert_eq!(metric(&run, "train_infer_logprob_maxdiff"), [0.0; 4]);
    // Only what has a verifier is evaluated.
    assert!(metric(&run, "eval/general/pass@1").is_empty() && metric(&run, "eval/pass@1").len() == 3);
}

#[test]
fn a_reward_model_that_fails_costs_its_groups_and_nothing_else() {
    let place = Place::new();
    let run = whole(place.judged("unjudged", &judge(true), ""), 2);
    assert!(metric(&run, "reward_model/unjudged").iter().sum::<f64>() > 0.0);
    let all = trajectories(&run);
    assert!(all.len() == 24 && all.iter().all(|trajectory| trajectory.task != "general"));
    // With nothing else to ask it is the end.
    let mut config = place.judged("alone", &judge(true), "");
    config.evaluation = None;
    config.task.retain(|task| task.prompts.is_some());
    let mut run = RlRun::open(config, cpu(2), false).unwrap();
    let error = run.train(&AtomicBool::new(false), &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("could not be judged") && error.contains("status 500"), "{error}");
}

#[test]
fn a_run_whose_rewards_follow_lengths_stops_if_asked_to_and_can_be_resumed() {
    let place = Place::new();
    let watch = "length_bias = { window = 4, threshold = 0.1, action = \"stop\" }\n";
    let config = place.judged("biased", &judge(false), watch);
    let mut run = RlRun::open(config.clone(), cpu(2), false).unwrap();
    let mut told = Vec::new();
    let error = run.train(&AtomicBool::new(false), &mut |event| told.push(event)).unwrap_err().to_string();
    assert!(error.contains("follow the lengths of answers: their correlation is 0."), "{error}");
    assert!(told.iter().any(|event| matches!(event, Event::Biased { correlation } if *correlation > 0.1)));
    let (batch, step) = (run.batch(), run.step());
    drop(run);
    // With another judge, or another watch, it goes on.
    let config = place.judged("biased", &judge(false), "");
    let mut run = RlRun::open(config, cpu(2), true).unwrap();
    assert_eq!((run.batch(), run.step()), (batch, step));
    assert_eq!(train(&mut run, &mut |_| ControlFlow::Continue(())), Outcome::Finished);
}
