//! What rounding does to log-probabilities: of arges-nano's own samples, as its sampler told them, and as they come out of
//! models in f32 and bf16 whose heads compute in f32, as ours do, or in bf16, as usual elsewhere.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arges_kernels::device::cpu::{Cpu, CpuOptions};
use arges_kernels::matmul::Compute;
use arges_model::batch::{Batch, LogitRows};
use arges_model::cache::{Cache, CachePlan};
use arges_model::model::Stage;
use arges_model::params::Param;
use arges_model::{Checkpoint, LoadOptions, Model, Workspace, WorkspacePlan};
use arges_train::rl::trajectory::{self, Trajectory};
use arges_train::rl::{RlConfig, RlRun};

const RUN: &str = r#"
run = "DIR/run"
batches = 1
[model]
from = "NANO"
compute = "bf16"
[advantage]
dynamic_sampling = false
[rollout]
prompts = 32
responses = 4
[update]
updates = 1
max_tokens = 2048
[optimizer]
learning_rate = 1e-9
[[window]]
tokens = 300
[[task]]
name = "word_sorting"
difficulty = [5, 7]
[[task]]
name = "game_of_24"
difficulty = [1, 1]
[[task]]
name = "tool_call"
difficulty = [4, 6]
[[task]]
name = "python_function"
difficulty = [4, 5]
"#;

/// Log-probabilities of sampled tokens, `[tokens]`, with the head in f32 and in bf16.
struct Scores {
    f32_head: Vec<f64>,
    bf16_head: Vec<f64>,
}

struct Scorer {
    model: Model,
    cache: Cache,
    workspace: Workspace,
    /// `[vocab, hidden]`.
    head: Vec<f32>,
}

fn bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

fn logprob(logits: &[f32], token: usize) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - most).exp()).sum();
    f64::from(logits[token] - most) - sum.ln()
}

impl Scorer {
    fn new(nano: &Path, compute: Compute, cpu: &Arc<Cpu>) -> Self {
        let checkpoint = Checkpoint::open(nano).unwrap();
        let head = checkpoint.param(Param::Head).unwrap().to_f32();

        let model = Model::load(&checkpoint, LoadOptions { compute }, Arc::clone(cpu), &mut |_| {}).unwrap();
        let cache = Cache::new(&model, CachePlan { max_sequences: 1, max_tokens: 2048 }).unwrap();
        let workspace = Workspace::new(&model, WorkspacePlan { max_tokens: 2048, max_logit_rows: 2048 });
        Self { model, cache, workspace, head }
    }

    fn score(&mut self, trajectory: &Trajectory, scores: &mut Scores) {
        let sequence = self.cache.open().unwrap();
        self.cache.reserve(sequence, trajectory.tokens.len()).unwrap();
        let mut batch = Batch::new();
        batch.push(sequence, &trajectory.tokens, LogitRows::All);
        let mut normed = Vec::new();
        let observe = &mut |stage, values: &[f32]| {
            if matches!(stage, Stage::FinalNorm) {
                normed = values.to_vec();
            }
        };
        let forward = self.model.forward_observed(&batch, &mut self.cache, &mut self.workspace, observe);
        let logits = forward.unwrap().to_vec();
        self.cache.close(sequence);
        let (vocab, hidden) = (self.model.config().vocab_size, self.model.config().hidden_size);
        for place in trajectory.turns.iter().cloned().flatten() {
            let (row, token) = (place - 1, trajectory.tokens[place] as usize);
            scores.f32_head.push(logprob(&logits[row * vocab..][..vocab], token));
            let x: Vec<f32> = normed[row * hidden..][..hidden].iter().copied().map(bf16).collect();
            let dot = |weights: &[f32]| bf16(weights.iter().zip(&x).map(|(w, x)| bf16(*w) * x).sum());
            let rounded: Vec<f32> = self.head.chunks_exact(hidden).map(dot).collect();
            scores.bf16_head.push(logprob(&rounded, token));
        }
    }
}

/// Largest and mean difference of log-probabilities, and 1 less the correlation of probabilities.
fn compare(name: &str, sampler: &[f64], trainer: &[f64]) -> (f64, f64) {
    let n = sampler.len() as f64;
    let distances = || sampler.iter().zip(trainer).map(|(a, b)| (a - b).abs());
    let (largest, mean) = (distances().fold(0.0, f64::max), distances().sum::<f64>() / n);
    let (a, b): (Vec<f64>, Vec<f64>) = sampler.iter().zip(trainer).map(|(a, b)| (a.exp(), b.exp())).unzip();
    let middle = |x: &[f64]| x.iter().sum::<f64>() / n;
    let (ma, mb) = (middle(&a), middle(&b));
    let moment =
        |x: &[f64], mx, y: &[f64], my| x.iter().zip(y).map(|(x, y)| (x - mx) * (y - my)).sum::<f64>();
    let correlation = moment(&a, ma, &b, mb) / (moment(&a, ma, &a, ma) * moment(&b, mb, &b, mb)).sqrt();
    println!("| {name} | {largest:.3} | {mean:.1e} | {:.1e} |", 1.0 - correlation);
    (largest, mean)
}

#[test]
#[ignore = "a measurement of some minutes; CONTRIBUTING.md has the command"]
fn a_head_in_f32_keeps_sampler_and_trainer_closer_than_one_in_bf16() {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    let place = tempfile::tempdir().unwrap();
    let text = RUN.replace("DIR", place.path().to_str().unwrap()).replace("NANO", nano.to_str().unwrap());
    let config = RlConfig::from_toml(&text, Path::new("run.toml")).unwrap();
    let cpu = Arc::new(Cpu::new(CpuOptions { threads: None, isa: None }).unwrap());
    let mut run = RlRun::open(config, Arc::clone(&cpu), false).unwrap();
    run.train(&AtomicBool::new(false), &mut |_| {}).unwrap();
    let trajectories = trajectory::read(&place.path().join("run"), 1).unwrap();
    let sampled: Vec<f64> =
        trajectories.iter().flat_map(|one| one.logprobs.iter().map(|&x| f64::from(x))).collect();
    let [in_f32, in_bf16] = [Compute::F32, Compute::Bf16].map(|compute| {
        let mut scorer = Scorer::new(&nano, compute, &cpu);
        let mut scores = Scores { f32_head: Vec::new(), bf16_head: Vec::new() };
        trajectories.iter().for_each(|one| scorer.score(one, &mut scores));
        scores
    });
    println!(
        "{} tokens\n\n| sampler, trainer | largest | mean | 1 - correlation |\n|---|---|---|---|",
        sampled.len()
    );
    let same = compare("Arges: bf16, f32 head; the same", &sampled, &in_bf16.f32_head);
    let ours = compare("bf16, f32 head; f32, f32 head", &in_bf16.f32_head, &in_f32.f32_head);
    let rounded = compare("bf16, bf16 head; f32, f32 head", &in_bf16.bf16_head, &in_f32.f32_head);
    compare("bf16, bf16 head; f32, bf16 head", &in_bf16.bf16_head, &in_f32.bf16_head);
    compare("bf16, bf16 head; bf16, f32 head", &in_bf16.bf16_head, &in_bf16.f32_head);
    // The scores of this test are those of the sampler, but for the last bits of an f64 logarithm.
    assert!(same.0 < 1e-5, "{same:?}");
    assert!(ours.1 < rounded.1, "{ours:?} {rounded:?}");
}
