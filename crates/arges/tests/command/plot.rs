//! Charts of runs.

use std::fs;

use crate::support::arges;

#[test]
fn charts_are_written_and_their_paths_printed() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    fs::create_dir(&run).unwrap();
    let line = |step| {
        format!("{{\"step\": {step}, \"time\": {step}, \"train/loss\": 2.5, \"train/tokens\": 512}}\n")
    };
    fs::write(run.join("metrics.jsonl"), (1..5).map(line).collect::<String>()).unwrap();
    let run = run.to_str().unwrap();
    let stdout = arges(["plot", run, "--metric", "train/loss", "--x", "tokens", "--log-scale"]).ok();
    assert_eq!(stdout, format!("{run}/plots/train-loss.svg\n{run}/plots/train-loss.png\n"));
    assert!(fs::read(format!("{run}/plots/train-loss.png")).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn what_cannot_be_drawn_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().to_str().unwrap();
    let stderr = arges(["plot", run]).failed(1);
    assert!(stderr.contains(&format!("cannot read {run}/metrics.jsonl")), "{stderr}");
    fs::write(directory.path().join("metrics.jsonl"), "{\"step\": 1, \"time\": 1, \"train/loss\": 2.5}\n")
        .unwrap();
    let stderr = arges(["plot", run, "--metric", "train/los"]).failed(1);
    assert!(stderr.contains("no metric `train/los`; there are train/loss"), "{stderr}");
}
