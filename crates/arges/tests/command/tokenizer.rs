//! Tokenizers for new models.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::arges;

const TEXT: &str = "The cat sat on the mat, and the cat saw 12 hats.\n";

fn path(directory: &Path, name: &str) -> String {
    directory.join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_tokenizer_is_learned_from_files_and_tasks_and_is_the_same_each_time() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| path(directory.path(), name);
    fs::write(at("a.txt"), TEXT.repeat(100)).unwrap();
    let chat = r#"{"messages": [{"role": "user", "content": "Where is the cat?"}]}"#;
    fs::write(at("b.jsonl"), format!("{{\"text\": \"The hats.\"}}\n{chat}\n{chat}\n")).unwrap();
    let train = |out: &str| {
        let (a, b, out) = (at("a.txt"), at("b.jsonl"), at(out));
        let args = ["tokenizer", "train", "--input", &a, &b, "--tasks", "addition", "--count", "20"];
        let ran = arges(args.into_iter().chain(["--vocab-size", "300", "--out", &out]));
        assert!(ran.stderr.contains("300 tokens, learned from 24 texts"), "{}", ran.stderr);
        ran.ok();
        ["tokenizer.json", "tokenizer_config.json"].map(|name| fs::read(Path::new(&out).join(name)).unwrap())
    };
    let files = train("one");
    assert_eq!(train("another"), files);
    let tokenizer: Value = serde_json::from_slice(&files[0]).unwrap();
    assert_eq!(tokenizer["added_tokens"][3]["id"], 299);
    assert!(tokenizer["model"]["vocab"]["\u{120}the"].is_u64(), "{}", tokenizer["model"]["merges"]);
}

#[test]
fn what_is_wrong_with_the_input_is_said_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| path(directory.path(), name);
    fs::write(at("a.txt"), TEXT).unwrap();
    fs::write(at("b.jsonl"), "{\"text\": \"x\"}\n{\"txet\": \"x\"}\n").unwrap();
    let out = at("out");
    let failed = |args: &[&str], code| {
        let command = ["tokenizer", "train", "--out", &out].into_iter();
        let stderr = arges(command.chain(args.iter().copied())).failed(code);
        assert!(!Path::new(&out).exists());
        stderr
    };
    for (args, code, parts) in [
        (vec!["--vocab-size", "300"], 2, ["--input <FILE>", ""]),
        (vec!["--vocab-size", "300", "--input", &at("none")], 1, ["cannot read", "none"]),
        (vec!["--vocab-size", "300", "--input", &at("b.jsonl")], 1, ["b.jsonl, line 2", "`text`"]),
        (vec!["--vocab-size", "259", "--input", &at("a.txt")], 1, ["260 tokens", "not 259"]),
        (vec!["--vocab-size", "9000", "--input", &at("a.txt")], 1, ["not 9000", "give more text"]),
        (vec!["--vocab-size", "300", "--tasks", "no_such"], 2, ["no_such", "addition"]),
    ] {
        let stderr = failed(&args, code);
        assert!(parts.iter().all(|part| stderr.contains(part)), "{stderr}");
    }
}

#[test]
fn a_tokenizer_that_is_there_is_kept_unless_replacing_it_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let (text, out) = (path(directory.path(), "a.txt"), path(directory.path(), ""));
    fs::write(&text, TEXT.repeat(2)).unwrap();
    let args = ["tokenizer", "train", "--input", &text, "--vocab-size", "262", "--out", &out];
    arges(args).ok();
    assert!(arges(args).failed(1).contains("--overwrite"));
    arges(args.into_iter().chain(["--overwrite"])).ok();
}
