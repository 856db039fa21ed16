//! From a random model to answers.

use std::process::Stdio;

use serde_json::Value;

use crate::support::{TinyModel, arges, arges_with_stdin, command, ids};

#[test]
fn a_synthetic_model_is_inspected_generated_from_scored_and_talked_to() {
    let model = TinyModel::new(&[]);

    let text = arges(["inspect", model.dir()]).ok();
    assert!(text.contains("1 weight file, sound"), "{text}");
    let report = arges(["inspect", model.dir(), "--json", "--context", "100", "--batch", "3"]).json();
    assert_eq!(report["layers"]["lightning"], 1);
    assert_eq!(report["layers"]["softmax"], 1);
    assert_eq!((&report["context"], &report["batch"]), (&100.into(), &3.into()));
    assert_eq!(report["weight_dtype"], "bf16");
    // 1 layer, keys and values of 1 head of 16 channels in bf16, 3 sequences of 100 tokens.
    assert_eq!(report["memory"]["kv"], 2 * 16 * 2 * 3 * 100);
    assert_eq!(report["files"]["bytes"], report["memory"]["weights"]);

    let generate = ["generate", "--model", model.dir(), "--ids", "1,2,3", "--max-tokens", "12", "--json"];
    let answer = arges(generate).json();
    let tokens = ids(&answer["ids"]);
    assert_eq!(tokens.len(), 12);
    assert!(answer["text"].is_string());
    assert_eq!(
        ids(&arges(generate).json()["ids"]),
        tokens,
        "greedy is the default and gives the same tokens"
    );

    // What was generated greedily is what scoring says is most likely, and continues as before.
    let all: Vec<String> = [1, 2, 3].iter().chain(&tokens).map(u32::to_string).collect();
    let scored = arges(["score", "--model", model.dir(), "--ids", &all.join(","), "--json"]).json();
    let logprobs = scored["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 15);
    assert!(logprobs[0].is_null());
    assert!(logprobs[1..].iter().all(|logprob| logprob.as_f64().unwrap() < 0.0));
    let mean = logprobs[1..].iter().map(|logprob| logprob.as_f64().unwrap()).sum::<f64>() / 14.0;
    assert!((scored["perplexity"].as_f64().unwrap().ln() + mean).abs() < 1e-6, "{scored}");

    let chat = ["chat", "--model", model.dir(), "--max-tokens", "8", "--temperature", "0", "Hello"];
    let ran = arges(chat);
    assert!(ran.stderr.contains("memory: weights"), "{}", ran.stderr);
    let answer = ran.ok();
    assert!(!answer.trim().is_empty());
    assert_eq!(arges(chat).ok(), answer);
}

#[test]
fn a_prompt_is_the_same_from_the_command_line_and_from_standard_input() {
    let model = TinyModel::new(&[]);
    let generate = ["generate", "--model", model.dir(), "--max-tokens", "6", "--json"];
    let with = |extra: &[&str]| -> Vec<String> {
        generate.iter().chain(extra).map(|arg| (*arg).to_owned()).collect()
    };
    let of_text = arges(with(&["once upon"]).iter().map(String::as_str)).json();
    assert_eq!(arges_with_stdin(&generate, "once upon\n").json(), of_text);
    let dash = with(&["-"]);
    let dash: Vec<&str> = dash.iter().map(String::as_str).collect();
    assert_eq!(arges_with_stdin(&dash, "once upon").json(), of_text);

    let chat = ["chat", "--model", model.dir(), "--max-tokens", "6", "--temperature", "0"];
    let of_argument = arges(chat.iter().copied().chain(["hello"])).ok();
    assert_eq!(arges_with_stdin(&chat, "hello\n").ok(), of_argument);
}

#[test]
fn the_same_seed_gives_the_same_sample_and_another_one_another() {
    let model = TinyModel::new(&[]);
    let sample = |seed: &str| -> Value {
        let args = ["generate", "--model", model.dir(), "--ids", "5,6,7", "-n", "24", "--json"];
        arges(args.into_iter().chain(["--temperature", "1", "--top-p", "1", "--seed", seed])).json()
    };
    assert_eq!(sample("1"), sample("1"));
    assert_ne!(sample("1"), sample("2"));
}

#[test]
fn a_stop_token_ends_the_answer() {
    let model = TinyModel::new(&[]);
    let generate =
        ["generate", "--model", model.dir(), "--ids", "1,2,3", "--ignore-eos", "--json", "-n", "20"];
    let tokens = ids(&arges(generate).json()["ids"]);
    let stop = tokens[5].to_string();
    let first = tokens.iter().position(|id| *id == tokens[5]).unwrap();
    let stopped = arges(generate.into_iter().chain(["--stop-token", &stop])).json();
    assert_eq!(ids(&stopped["ids"]), tokens[..=first]);
    let penalised =
        arges(generate.into_iter().chain(["--logit-bias", &format!("{}=-100", tokens[0])])).json();
    assert!(!ids(&penalised["ids"]).contains(&tokens[0]));
}

#[test]
fn a_model_without_a_tokenizer_takes_and_gives_ids() {
    let model = TinyModel::new(&["--no-tokenizer"]);
    assert!(!model.file("tokenizer.json").exists());
    let generate = ["generate", "--model", model.dir(), "--ids", "1,2,3", "-n", "5"];
    let answer = arges(generate.into_iter().chain(["--json"])).json();
    assert!(answer["text"].is_null());
    let tokens = ids(&answer["ids"]);
    assert_eq!(tokens.len(), 5);
    let plain: Vec<String> = tokens.iter().map(u32::to_string).collect();
    assert_eq!(arges(generate).ok(), plain.join(",") + "\n");
}

#[test]
fn synth_writes_the_same_bytes_for_the_same_seed_and_the_ids_of_its_tokenizer() {
    let (one, same, other) = (
        TinyModel::new(&["--seed", "3"]),
        TinyModel::new(&["--seed", "3"]),
        TinyModel::new(&["--seed", "4"]),
    );
    let weights = |model: &TinyModel| std::fs::read(model.file("model.safetensors")).unwrap();
    assert_eq!(weights(&one), weights(&same));
    assert_ne!(weights(&one), weights(&other));
    let read =
        |name: &str| -> Value { serde_json::from_slice(&std::fs::read(one.file(name)).unwrap()).unwrap() };
    let added = read("tokenizer.json")["added_tokens"].as_array().unwrap().clone();
    let eos = added.iter().find(|token| token["content"] == "<end_of_sentence>").unwrap();
    assert_eq!(read("config.json")["eos_token_id"], eos["id"]);

    // From its own configuration the same model comes out.
    let again = one.path().join("../again");
    let config = one.file("config.json");
    let args = ["synth", again.to_str().unwrap(), "--seed", "3", "--config", config.to_str().unwrap()];
    arges(args).ok();
    assert_eq!(std::fs::read(again.join("model.safetensors")).unwrap(), weights(&one));
    assert_eq!(std::fs::read(again.join("config.json")).unwrap(), std::fs::read(config).unwrap());
}

#[test]
fn synth_splits_weights_into_files_of_the_size_asked_for() {
    let model = TinyModel::new(&["--shard-bytes", "100000", "--dtype", "f32"]);
    let report = arges(["inspect", model.dir(), "--json"]).json();
    assert!(report["files"]["count"].as_u64().unwrap() > 2, "{report}");
    assert_eq!(report["weight_dtype"], "f32");
    arges(["generate", "--model", model.dir(), "--ids", "1", "-n", "2", "--dtype", "bf16"]).ok();
}

#[test]
fn every_instruction_set_and_thread_count_generates_the_same_length() {
    let model = TinyModel::new(&[]);
    for flags in [
        ["--isa", "plain"],
        ["--threads", "1"],
        ["--dtype", "f32"],
        ["--context", "9"],
        ["--step-tokens", "1"],
    ] {
        let args =
            ["generate", "--model", model.dir(), "--ids", "1,2,3", "-n", "4", "--ignore-eos", "--json"];
        assert_eq!(ids(&arges(args.into_iter().chain(flags)).json()["ids"]).len(), 4, "{flags:?}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let model = TinyModel::new(&[]);
    let mut command = command();
    command.args(["generate", "--model", model.dir(), "--ids", "1", "--ignore-eos", "-n", "1000"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(!stderr.contains("error") && !stderr.contains("panicked"), "{stderr}");
}

#[test]
fn m1s_configuration_gives_the_published_sizes() {
    let config = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/m1/config.json");
    if !config.exists() {
        println!("skipped: {} is not there", config.display());
        return;
    }
    let text = arges(["inspect", config.to_str().unwrap()]).ok();
    assert!(text.contains("456 B parameters, 45.9 B active per token"), "{text}");
    let report = arges(["inspect", config.to_str().unwrap(), "--json"]).json();
    assert_eq!(report["layers"]["total"], 80);
    assert!(report["files"].is_null());
}

#[test]
fn every_subcommand_explains_itself() {
    for command in ["chat", "serve", "generate", "score", "inspect", "synth"] {
        let help = arges([command, "--help"]).ok();
        assert!(help.contains("Usage: arges") && help.contains("Examples:"), "{help}");
    }
    assert_eq!(arges(["--version"]).ok(), format!("arges {}\n", env!("CARGO_PKG_VERSION")));
}
