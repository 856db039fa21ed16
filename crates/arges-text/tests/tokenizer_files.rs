//! Tokenizer files that are wrong are errors that say what and where; nothing panics.

mod common;

use std::path::Path;

use arges_text::{TextError, Tokenizer};
use common::synthetic;
use serde_json::{Value, json};

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

/// The error of a `tokenizer.json` after a change to a good one.
fn error_after(change: impl FnOnce(&mut Value)) -> String {
    let dir = tempfile::tempdir().unwrap();
    arges_text::synthetic::write_tokenizer(dir.path(), 300).unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut tokenizer);
    write(dir.path(), "tokenizer.json", &tokenizer.to_string());
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
    error
}

/// Splits a synthetic tokenizer into the older pair of files.
fn write_vocab_and_merges(dir: &Path, specials_in_vocab: bool) {
    let from = tempfile::tempdir().unwrap();
    arges_text::synthetic::write_tokenizer(from.path(), 512).unwrap();
    let text = std::fs::read_to_string(from.path().join("tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    let merges = tokenizer["model"]["merges"].as_array().unwrap().iter();
    let lines: Vec<String> =
        merges.map(|pair| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())).collect();
    if specials_in_vocab {
        for token in tokenizer["added_tokens"].as_array().unwrap().clone() {
            tokenizer["model"]["vocab"][token["content"].as_str().unwrap()] = token["id"].clone();
        }
    }
    write(dir, "vocab.json", &tokenizer["model"]["vocab"].to_string());
    write(dir, "merges.txt", &format!("#version: 0.2\n{}\n", lines.join("\n")));
}

#[test]
fn a_directory_without_a_tokenizer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap_err();
    assert!(matches!(error, TextError::NoTokenizer { .. }));
    assert!(error.to_string().contains(&dir.path().display().to_string()));
}

#[test]
fn broken_json_is_reported_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "tokenizer.json", "{\"version\": \"1.0\",\n oops}");
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("line 2"), "{error}");
}

#[test]
fn a_tokenizer_json_that_contradicts_itself_is_refused_with_the_reason() {
    let error = error_after(|t| t["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true}));
    assert!(error.contains("byte-level"), "{error}");
    let error = error_after(|t| t["decoder"] = Value::Null);
    assert!(error.contains("byte-level"), "{error}");
    let error = error_after(|t| t["added_tokens"][0]["id"] = json!(7));
    assert!(error.contains("<beginning_of_sentence>") && error.contains('7'), "{error}");
    let error = error_after(|t| t["model"]["vocab"]["Ġa"] = json!(4_000_000_000u32));
    assert!(error.contains("4000000000"), "{error}");
    let error = error_after(|t| {
        let vocab = t["model"]["vocab"].as_object_mut().unwrap();
        vocab.shift_remove("Ā");
        vocab.insert("ĀĀ".to_owned(), json!(0));
    });
    assert!(error.contains("0x00"), "{error}");
    let error = error_after(|t| t["model"]["merges"][0] = json!(["q", "nowhere"]));
    assert!(error.contains("nowhere"), "{error}");
    let error = error_after(|t| t["model"]["vocab"] = json!({}));
    assert!(!error.is_empty());
}

#[test]
fn truncation_and_padding_of_a_tokenizer_json_do_not_touch_prompts() {
    let dir = tempfile::tempdir().unwrap();
    arges_text::synthetic::write_tokenizer(dir.path(), 300).unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    tokenizer["truncation"] =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    tokenizer["padding"] = json!({
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "Ā",
    });
    write(dir.path(), "tokenizer.json", &tokenizer.to_string());
    let ids = Tokenizer::from_dir(dir.path()).unwrap().encode("0123456789").unwrap();
    assert_eq!(ids, (48..58).collect::<Vec<u32>>());
}

#[test]
fn vocab_json_and_merges_txt_give_the_same_ids_as_tokenizer_json() {
    let whole = synthetic(512);
    for specials_in_vocab in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        write_vocab_and_merges(dir.path(), specials_in_vocab);
        let named =
            json!({"bos_token": {"content": "<beginning_of_sentence>"}, "eos_token": "<end_of_sentence>"});
        let listed = json!({"added_tokens_decoder": {
            "508": {"content": "<beginning_of_sentence>", "special": true},
            "509": {"content": "<end_of_sentence>", "special": true},
        }, "eos_token": "<end_of_sentence>"});
        let config = if specials_in_vocab { named } else { listed };
        write(dir.path(), "tokenizer_config.json", &config.to_string());
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let text = "<beginning_of_sentence>user say\nzebra 日本 😀<end_of_sentence>";
        assert_eq!(tokenizer.encode(text).unwrap(), whole.encode(text).unwrap());
        assert!(tokenizer.is_special(509));
    }
}

#[test]
fn a_named_token_without_an_id_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    write_vocab_and_merges(dir.path(), false);
    write(dir.path(), "tokenizer_config.json", r#"{"eos_token": "<end_of_sentence>"}"#);
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("eos_token") && error.contains("<end_of_sentence>"), "{error}");
}

#[test]
fn a_merge_that_is_not_two_tokens_is_reported_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    write_vocab_and_merges(dir.path(), true);
    write(dir.path(), "merges.txt", "#version: 0.2\na a\nlonely\n");
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("merges.txt") && error.contains("line 3"), "{error}");
}
