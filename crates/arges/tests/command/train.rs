//! Training runs as a user starts them, and as a machine ends them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::{Ran, arges, command, ran};

/// A directory with a tokenizer and the description of a run of `steps` steps.
struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { directory: tempfile::tempdir().unwrap() };
        let out = bench.path("tokenizer");
        let args =
            ["tokenizer", "train", "--tasks", "addition", "--count", "20", "--vocab-size", "280", "-o"];
        arges(args.into_iter().chain([out.to_str().unwrap()])).ok();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn describe(&self, run: &str, steps: u64, every: u64) -> String {
        let text = format!(
            "run = {:?}\nsteps = {steps}\n[model.new]\ntokenizer = {:?}\nhidden_size = 32\nnum_layers = 2\n\
             softmax_every = 2\nnum_heads = 2\nnum_kv_heads = 1\nhead_dim = 16\nintermediate_size = 64\n\
             [schedule]\nkind = \"constant\"\n[batch]\nmax_tokens = 512\n[checkpoint]\nevery = {every}\nkeep = 3\n\
             [[data]]\nkind = \"tasks\"\ntasks = [\"addition\"]\ndifficulty = [1, 1]\n",
            self.path(run),
            self.path("tokenizer")
        );
        let file = self.path(&format!("{run}.toml"));
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    }

    fn steps(&self, run: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path(run).join("checkpoints")).into_iter().flatten();
        let paths = entries.map(|entry| entry.unwrap().path());
        let mut steps: Vec<_> =
            paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("step-")).collect();
        steps.sort();
        steps
    }
}

fn sft(file: &str) -> Ran {
    arges(["train", "sft", "-c", file, "--resume"])
}

fn spawn(file: &str) -> Child {
    let mut command = command();
    command
        .args(["train", "sft", "-c", file, "--resume"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn same_result(a: &Path, b: &Path) {
    for name in ["model.safetensors", "training-state.safetensors", "training-state.json"] {
        assert!(fs::read(a.join(name)).unwrap() == fs::read(b.join(name)).unwrap(), "{name} differs");
    }
}

/// Whether every checkpoint can be used.
fn all_whole(steps: &[PathBuf]) {
    for step in steps {
        arges(["inspect", step.to_str().unwrap()]).ok();
    }
}

#[test]
fn a_trained_model_answers() {
    let bench = Bench::new();
    let told = sft(&bench.describe("run", 3, 2));
    assert!(told.stderr.contains("step 3/3: loss"), "{}", told.stderr);
    told.ok();
    let names: Vec<_> = bench.steps("run").iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["step-000002", "step-000003"]);
    let model = bench.path("run/checkpoints/step-000003");
    arges(["chat", "--model", model.to_str().unwrap(), "--max-tokens", "4", "What is 1 + 1?"]).ok();
    assert!(
        arges(["train", "sft", "-c", bench.path("run.toml").to_str().unwrap()])
            .failed(1)
            .contains("--resume")
    );
}

#[test]
fn a_run_that_is_killed_at_any_moment_goes_on_to_the_same_weights() {
    const STEPS: u64 = 60;
    let bench = Bench::new();
    sft(&bench.describe("whole", STEPS, 20)).ok();
    let file = bench.describe("killed", STEPS, 1);
    let begin = Instant::now();
    let mut kills = 0;
    // A checkpoint a step, so that many kills hit one that is being written or removed.
    for round in 0u64.. {
        assert!(begin.elapsed() < Duration::from_secs(120), "the run never ends");
        let mut child = spawn(&file);
        let before = bench.steps("killed").len();
        let patience = Instant::now();
        while bench.steps("killed").len() <= before.min(2) && patience.elapsed() < Duration::from_secs(20) {
            sleep(Duration::from_millis(5));
        }
        sleep(Duration::from_millis(7 + 23 * (round * 5 % 7)));
        if child.try_wait().unwrap().is_some_and(|status| status.success()) {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        all_whole(&bench.steps("killed"));
        if kills == 5 {
            sft(&file).ok();
            break;
        }
    }
    assert!(kills > 0, "the run was over before it could be killed");
    let name = format!("checkpoints/step-{STEPS:06}");
    same_result(&bench.path("whole").join(&name), &bench.path("killed").join(&name));
}

#[cfg(unix)]
#[test]
fn a_disk_that_takes_no_more_leaves_the_last_checkpoint_whole() {
    let bench = Bench::new();
    sft(&bench.describe("whole", 6, 3)).ok();
    sft(&bench.describe("full", 3, 3)).ok();
    let file = bench.describe("full", 6, 3);
    // The limit lets metrics through, but no file as large as weights. A shell's unit is 512 or 1,024 bytes.
    let limited = format!(
        "trap '' XFSZ; ulimit -f 16; exec {:?} train sft --resume -c {file:?}",
        env!("CARGO_BIN_EXE_arges")
    );
    let stderr = ran(std::process::Command::new("sh").args(["-c", &limited])).failed(1);
    assert!(stderr.contains("cannot write") && stderr.contains("step-000006"), "{stderr}");
    let steps = bench.steps("full");
    assert_eq!(steps, [bench.path("full/checkpoints/step-000003")]);
    assert_eq!(
        fs::read_dir(bench.path("full/checkpoints")).unwrap().count(),
        1,
        "nothing half-written is left"
    );
    all_whole(&steps);
    sft(&file).ok();
    let name = "checkpoints/step-000006";
    same_result(&bench.path("whole").join(name), &bench.path("full").join(name));
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_saves_its_state_and_goes_on() {
    let bench = Bench::new();
    sft(&bench.describe("whole", 300, 300)).ok();
    let file = bench.describe("stopped", 300, 300);
    let mut child = spawn(&file);
    let metrics = bench.path("stopped/metrics.jsonl");
    while fs::metadata(&metrics).map_or(0, |file| file.len()) == 0 {
        sleep(Duration::from_millis(2));
    }
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    let [saved] = &bench.steps("stopped")[..] else { panic!("{:?}", bench.steps("stopped")) };
    assert_ne!(saved, &bench.path("stopped/checkpoints/step-000300"), "it was stopped before its end");
    sft(&file).ok();
    let name = "checkpoints/step-000300";
    same_result(&bench.path("whole").join(name), &bench.path("stopped").join(name));
}

#[test]
fn what_is_wrong_with_a_description_is_said_by_field() {
    let bench = Bench::new();
    let file = bench.describe("run", 3, 2);
    let text = fs::read_to_string(&file).unwrap();
    for (from, to, parts) in [
        ("steps = 3", "stepz = 3", ["unknown field", "stepz"]),
        ("steps = 3", "steps = 0", ["`steps`", "at least 1"]),
        ("\"addition\"", "\"additoin\"", ["data[0].tasks", "additoin"]),
        ("head_dim = 16", "head_dim = 0", ["model.new", "head_dim"]),
        ("hidden_size = 32", "hidden_size = 32\nvocab_size = 10", ["model.new.vocab_size", "280"]),
        ("max_tokens = 512", "max_tokens = 8", ["\"addition\"", "longer than"]),
    ] {
        fs::write(&file, text.replace(from, to)).unwrap();
        let stderr = sft(&file).failed(1);
        assert!(parts.iter().all(|part| stderr.contains(part)), "{stderr}");
        assert!(!bench.path("run").exists(), "{to}: nothing is left behind");
    }
}
