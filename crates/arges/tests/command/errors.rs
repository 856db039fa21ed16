//! What goes wrong is said, with what to do.

use std::fs::OpenOptions;

use serde_json::json;

use crate::support::{TINY, TinyModel, arges, arges_with_stdin};

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
}

#[test]
fn a_missing_directory_is_named_with_what_to_give() {
    for model in ["/no/such/directory", "nowhere"] {
        for command in
            [["generate", "--model", model, "--ids", "1"], ["score", "--ids", "1", "--model", model]]
        {
            assert_says(
                &arges(command).failed(1),
                &["error: there is no", model, "config.json", "Hugging Face id"],
            );
        }
        assert_says(&arges(["inspect", model]).failed(1), &["error: there is no", model]);
    }
}

#[test]
fn a_directory_without_a_model_is_named() {
    let empty = tempfile::tempdir().unwrap();
    let dir = empty.path().to_str().unwrap();
    let stderr = arges(["generate", "--model", dir, "--ids", "1"]).failed(1);
    assert_says(&stderr, &["cannot load", "config.json", "help: a model is a directory with config.json"]);
}

#[test]
fn a_truncated_weight_file_is_named() {
    let model = TinyModel::new(&[]);
    let shard = model.file("model.safetensors");
    let file = OpenOptions::new().write(true).open(&shard).unwrap();
    file.set_len(file.metadata().unwrap().len() - 100).unwrap();
    for command in [
        vec!["generate", "--model", model.dir(), "--ids", "1"],
        vec!["inspect", model.dir()],
        vec!["serve", "--port", "0", "--model", model.dir()],
    ] {
        let stderr = arges(command).failed(1);
        assert_says(&stderr, &["model.safetensors", "help: the file is damaged or incomplete"]);
        assert_eq!(stderr.lines().count(), 2, "{stderr}");
    }
}

#[test]
fn heads_that_kv_heads_do_not_divide_are_named() {
    let model = TinyModel::new(&[]);
    model.set_config("num_key_value_heads", json!(3));
    let parts = ["num_key_value_heads", "is 3", "num_attention_heads", "4"];
    assert_says(&arges(["chat", "--model", model.dir(), "hi"]).failed(1), &parts);
    assert_says(&arges(["inspect", model.dir()]).failed(1), &parts);
    let out = model.path().join("../out");
    let args = ["synth", out.to_str().unwrap(), "--heads", "4", "--kv-heads", "3"];
    assert_says(&arges(args).failed(1), &parts);
    assert!(!out.exists());
}

#[test]
fn flags_that_cannot_be_meant_are_usage_errors() {
    for (flags, part) in [
        (["--dtype", "int8"], "possible values: auto, f32, bf16"),
        (["--isa", "sse"], "unknown instruction set"),
        (["--threads", "0"], "must be at least 1"),
        (["--temperature", "-1"], "--temperature"),
        (["--top-p", "1.5"], "--top-p must be above 0 and at most 1, not 1.5"),
        (["--min-p", "2"], "--min-p must be between 0 and 1, not 2"),
        (["--logit-bias", "5"], "expected a token id and a number"),
        (["--stop", ""], "must not be empty"),
        (["--tempreature", "1"], "--temperature"),
    ] {
        // None of this looks at the model.
        let args = ["generate", "--model", "nowhere", "--ids", "1"].into_iter().chain(flags);
        assert_says(&arges(args).failed(2), &[part]);
    }
    assert_says(&arges(["serve", "--model", "nowhere", "--api-key", ""]).failed(2), &["--api-key"]);
    assert_says(&arges(["paint"]).failed(2), &["unrecognized subcommand 'paint'"]);
    let both = ["synth", "out", "--config", "config.json", "--hidden", "64"];
    assert_says(&arges(both).failed(2), &["--config", "--hidden"]);
}

#[test]
fn an_empty_prompt_is_refused() {
    let model = TinyModel::new(&[]);
    for args in [["generate", ""], ["generate", "--ids="], ["score", ""], ["chat", "  "]] {
        let args = args.into_iter().chain(["--model", model.dir()]);
        assert_says(&arges(args).failed(2), &["error: the prompt is empty"]);
    }
    for command in ["generate", "chat"] {
        assert_says(
            &arges_with_stdin(&[command, "--model", model.dir()], "").failed(2),
            &["the prompt is empty"],
        );
    }
}

#[test]
fn a_prompt_that_is_too_long_is_refused_before_the_weights_are_read() {
    let model = TinyModel::new(&[]);
    let long = vec!["1"; 2001].join(",");
    let with = |flags: &[&str]| {
        let args = ["generate", "--model", model.dir(), "--ids", &long];
        arges(args.into_iter().chain(flags.iter().copied())).failed(1)
    };
    let parts = ["the prompt has 2001 tokens", "context of 2000", "shorten it"];
    assert_says(&with(&[]), &parts);
    let stderr = with(&["--context", "50"]);
    assert_says(&stderr, &["context of 50", "raise --context or --kv-tokens (this model allows up to 2000)"]);
    assert!(!stderr.contains("loaded"), "{stderr}");
    let args = ["generate", "--model", model.dir(), "--ids", "1", "--context", "3000"];
    assert_says(&arges(args).failed(2), &["--context 3000 is more than the 2000 tokens"]);
    let args = ["chat", "--model", model.dir(), "--context", "20", "a conversation that does not fit at all"];
    assert_says(&arges(args).failed(1), &["the prompt has", "tokens; at most 19 fit", "raise --context"]);
}

#[test]
fn ids_that_are_none_are_named() {
    let model = TinyModel::new(&[]);
    let generate = |ids: &str| arges(["generate", "--model", model.dir(), "--ids", ids]);
    assert_says(&generate("1,x").failed(2), &["`x` is not a token id"]);
    assert_says(&generate("1,300").failed(2), &["token id 300", "from 0 to 299"]);
    assert_says(&generate("@/no/such/file").failed(1), &["cannot read token ids from /no/such/file"]);
}

#[test]
fn text_for_a_model_without_a_tokenizer_is_refused_with_the_way_out() {
    let model = TinyModel::new(&["--no-tokenizer"]);
    for args in [vec!["generate", "hello"], vec!["chat", "hello"], vec!["serve", "--port", "0"]] {
        let args = args.into_iter().chain(["--model", model.dir()]);
        assert_says(&arges(args).failed(1), &["neither tokenizer.json nor vocab.json", "--ids"]);
    }
}

#[test]
fn synth_does_not_touch_a_directory_that_is_not_empty_unless_told_to() {
    let model = TinyModel::new(&[]);
    let before = std::fs::read(model.file("model.safetensors")).unwrap();
    let synth = || ["synth", model.dir(), "--seed", "9"].into_iter().chain(TINY);
    assert_says(&arges(synth()).failed(1), &["is not empty", "--overwrite"]);
    assert_eq!(std::fs::read(model.file("model.safetensors")).unwrap(), before);
    arges(synth().chain(["--overwrite"])).ok();
    assert_ne!(std::fs::read(model.file("model.safetensors")).unwrap(), before);
}

#[test]
fn a_port_in_use_is_said_before_the_model_is_read() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let stderr = arges(["serve", "--model", "nowhere", "--port", &port]).failed(1);
    assert_says(&stderr, &["cannot listen on 127.0.0.1 port", &port]);
}
