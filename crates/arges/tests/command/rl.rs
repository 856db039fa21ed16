//! Runs of reinforcement learning as a user starts them, and as a machine ends them.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{TinyModel, arges, command};

/// A directory with the description of runs of a random model. It never solves anything: it learns to be brief.
struct Bench {
    directory: tempfile::TempDir,
    model: TinyModel,
}

impl Bench {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), model: TinyModel::new(&[]) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn describe(&self, run: &str, batches: u64) -> String {
        let text = format!(
            "run = {:?}\nbatches = {batches}\n[model]\nfrom = {:?}\n[advantage]\ndynamic_sampling = false\n\
             overlong = {{ buffer = 16 }}\n[rollout]\nprompts = 2\nresponses = 3\nconcurrency = 6\nstep_tokens = 64\n\
             repetition = {{ tokens = 4, probability = 0.0033 }}\n[update]\nupdates = 3\nmax_tokens = 700\n\
             max_sequences = 3\n[optimizer]\nlearning_rate = 1e-2\nwarmup_steps = 0\n[[window]]\ntokens = 16\n\
             [[task]]\nname = \"addition\"\ndifficulty = [1, 1]\n[checkpoint]\nevery = 1\nkeep = 2\n\
             [evaluation]\nevery = 3\nproblems = 1\n",
            self.path(run),
            self.model.path(),
        );
        let file = self.path(&format!("{run}.toml"));
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    }

    fn metrics(&self, run: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn last_state(&self, run: &str, step: u64) -> Vec<u8> {
        let checkpoint = format!("{run}/checkpoints/step-{step:06}");
        fs::read(self.path(&checkpoint).join("training-state.safetensors")).unwrap()
    }
}

#[test]
fn a_run_that_is_killed_at_any_moment_loses_and_doubles_no_step() {
    const BATCHES: u64 = 12;
    let bench = Bench::new();
    arges(["rl", "-c", &bench.describe("whole", BATCHES)]).ok();
    let file = bench.describe("killed", BATCHES);
    let (begin, mut kills) = (Instant::now(), 0u64);
    loop {
        assert!(begin.elapsed() < Duration::from_secs(120), "the run never ends");
        let mut command = command();
        command.args(["rl", "-c", &file, "--resume"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        // Some progress each time, then the end at some moment.
        let (before, patience) = (bench.metrics_lines("killed"), Instant::now());
        while bench.metrics_lines("killed") <= before + 4 && patience.elapsed() < Duration::from_secs(20) {
            sleep(Duration::from_millis(3));
            if child.try_wait().unwrap().is_some() {
                break;
            }
        }
        sleep(Duration::from_millis(1 + 7 * (kills * 5 % 9)));
        if child.try_wait().unwrap().is_some_and(|status| status.success()) {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert!(kills >= 3, "{kills}");
    let steps = |run: &str| -> Vec<u64> {
        bench.metrics(run).iter().map(|line| line["step"].as_u64().unwrap()).collect()
    };
    assert_eq!(steps("killed"), steps("whole"));
    assert!(bench.last_state("killed", 3 * BATCHES) == bench.last_state("whole", 3 * BATCHES));
}

impl Bench {
    /// Lines so far, one that is being written included.
    fn metrics_lines(&self, run: &str) -> usize {
        let bytes = fs::read(self.path(run).join("metrics.jsonl")).unwrap_or_default();
        bytes.iter().filter(|byte| **byte == b'\n').count()
    }
}

#[test]
fn a_run_tells_of_itself_and_can_be_looked_into() {
    let bench = Bench::new();
    let file = bench.describe("run", 1);
    let told = arges(["rl", "-c", &file]);
    assert!(told.stderr.contains("batch 1/1, step 3: reward 0.000"), "{}", told.stderr);
    assert!(told.stderr.contains("mismatch 0.0e0"), "{}", told.stderr);
    assert!(told.ok().is_empty());
    let run = bench.path("run");
    let run = run.to_str().unwrap();
    let overview = arges(["rl", "inspect", run]).ok();
    assert!(overview.starts_with("batch 1 of ") && overview.lines().count() == 7, "{overview}");
    let tokens = arges(["rl", "inspect", run, "--group", "1", "--member", "2", "--json"]).ok();
    let first: Value = serde_json::from_str(tokens.lines().next().unwrap()).unwrap();
    assert!(first["sampled"]["ratio"].is_f64() && first["sampled"]["advantage"].is_f64(), "{first}");
    assert!(arges(["rl", "inspect", run, "--batch", "2"]).failed(1).contains("those from 1 to 1"));
    assert!(arges(["rl", "-c", &file]).failed(1).contains("--resume"));
    assert!(arges(["rl"]).failed(2).contains("--config"));
    arges(["plot", run, "--metric", "length/mean"]).ok();
}
