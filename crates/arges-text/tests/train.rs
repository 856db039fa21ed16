//! Tokenizers learned from text.

use std::path::Path;

use arges_text::train::{TokenizerTraining, train_tokenizer};
use arges_text::{ChatTemplate, MIN_VOCAB_SIZE, TextError, Tokenizer};
use proptest::prelude::*;
use serde_json::json;

/// Conversations with thinking, tool calls and numbers, as a small model is taught with.
fn texts() -> Vec<String> {
    const SYLLABLES: [&str; 8] = ["ba", "kel", "lim", "mor", "nü", "po", "ros", "ti"];
    let syllable = |n: usize| SYLLABLES[n % SYLLABLES.len()];
    let template = ChatTemplate::default_m1();
    let conversation = |n: usize| {
        let name = format!("{}{}{}", syllable(n), syllable(n / 8), syllable(3 * n));
        let (a, b) = (n * 37 % 101, n * 53 % 97);
        let call = json!({"function": {"name": "add", "arguments": {"a": a, "b": b}}});
        let messages = [
            json!({"role": "user", "content": format!("What is {a} + {b}? It's for {name}.")}),
            json!({"role": "assistant", "content": format!("The sum is {}.", a + b),
                   "reasoning_content": format!("{a} + {b} = {}", a + b), "tool_calls": [call]}),
        ];
        template.render(&messages, None, false).unwrap()
    };
    (0..200).map(conversation).collect()
}

fn trained_in(dir: &Path, training: TokenizerTraining) -> Tokenizer {
    train_tokenizer(texts().into_iter(), &training).unwrap().write(dir).unwrap();
    Tokenizer::from_dir(dir).unwrap()
}

fn trained(training: TokenizerTraining) -> Tokenizer {
    trained_in(tempfile::tempdir().unwrap().path(), training)
}

fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode(text).unwrap().into_iter().map(|id| tokenizer.decode(&[id])).collect()
}

#[test]
fn the_layout_is_that_of_m1_bytes_then_merges_then_markers() {
    let dir = tempfile::tempdir().unwrap();
    let ids = train_tokenizer(texts().into_iter(), &TokenizerTraining::new(400))
        .unwrap()
        .write(dir.path())
        .unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 400);
    for byte in 0..=255u8 {
        assert_eq!(tokenizer.token_bytes(u32::from(byte)).unwrap(), [byte]);
    }
    let specials: Vec<u32> = (0..400).filter(|id| tokenizer.is_special(*id)).collect();
    assert_eq!(specials, [396, 397, 398, 399]);
    assert_eq!(
        [ids.beginning_of_sentence, ids.end_of_sentence, ids.end_of_document, ids.begin_of_document],
        *specials
    );
    assert_eq!(tokenizer.end_token(), Some(ids.end_of_sentence));
}

#[test]
fn turn_markers_are_single_tokens_and_thinking_and_tool_calls_are_text() {
    let tokenizer = trained(TokenizerTraining::new(450));
    for (marker, id) in
        ["<beginning_of_sentence>", "<end_of_sentence>", "<end_of_document>", "<begin_of_document>"]
            .into_iter()
            .zip(446..)
    {
        assert_eq!(tokenizer.encode(marker).unwrap(), [id]);
    }
    for text in ["<think>", "</think>", "<tool_calls>", "</tool_calls>"] {
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.iter().all(|id| !tokenizer.is_special(*id)), "{text}");
        assert!(ids.len() < text.len(), "{text} is frequent but has no merges");
    }
    // The markers taught it nothing: no token is a part of one.
    for id in 0..446 {
        let token = tokenizer.decode(&[id]);
        assert!(!token.contains("sentence") && !token.contains("document"), "{token}");
    }
}

#[test]
fn frequent_words_become_single_tokens() {
    let tokenizer = trained(TokenizerTraining::new(450));
    assert_eq!(tokens(&tokenizer, "The sum is"), ["The", " sum", " is"]);
}

#[test]
fn digits_stand_alone_unless_groups_are_asked_for() {
    let single = trained(TokenizerTraining::new(450));
    assert_eq!(tokens(&single, "x 1234+5"), ["x", " ", "1", "2", "3", "4", "+", "5"]);
    for id in 0..446 {
        let token = single.decode(&[id]);
        assert!(token.chars().count() == 1 || !token.contains(|c: char| c.is_numeric()), "{token}");
    }
    let grouped = trained(TokenizerTraining { single_digits: false, ..TokenizerTraining::new(450) });
    let pairs = (0..446).map(|id| grouped.decode(&[id]));
    assert!(pairs.filter(|token| token.chars().filter(char::is_ascii_digit).count() > 1).count() > 5);
}

#[test]
fn the_same_texts_in_any_order_give_the_same_files() {
    let files = |texts: Vec<String>| {
        let dir = tempfile::tempdir().unwrap();
        train_tokenizer(texts.into_iter(), &TokenizerTraining::new(450)).unwrap().write(dir.path()).unwrap();
        ["tokenizer.json", "tokenizer_config.json"].map(|name| std::fs::read(dir.path().join(name)).unwrap())
    };
    let first = files(texts());
    for _ in 0..3 {
        assert_eq!(files(texts()), first);
    }
    assert_eq!(files(texts().into_iter().rev().collect()), first);
}

#[test]
fn a_vocabulary_that_cannot_be_is_an_error_that_says_what_can() {
    let error =
        |size: usize| train_tokenizer(texts().into_iter(), &TokenizerTraining::new(size)).unwrap_err();
    let small = error(MIN_VOCAB_SIZE - 1);
    assert!(matches!(small, TextError::VocabularySize { asked: 259, minimum: 260, .. }), "{small}");
    assert!(small.to_string().contains("260"), "{small}");
    let large = error(50_000);
    assert!(matches!(large, TextError::TooFewMerges { asked: 50_000, found: 400..2000 }), "{large}");
    assert!(large.to_string().contains("give more text"), "{large}");
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let tokenizer = train_tokenizer(texts().into_iter(), &TokenizerTraining::new(300)).unwrap();
    let error = tokenizer.write("/nonexistent/dir".as_ref()).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/dir/tokenizer.json"), "{error}");
}

#[test]
fn without_text_there_are_bytes_and_markers() {
    let dir = tempfile::tempdir().unwrap();
    let training = TokenizerTraining::new(MIN_VOCAB_SIZE);
    train_tokenizer(std::iter::empty(), &training).unwrap().write(dir.path()).unwrap();
    assert_eq!(Tokenizer::from_dir(dir.path()).unwrap().vocab_size(), MIN_VOCAB_SIZE);
}

#[test]
fn the_chat_template_written_along_is_the_built_in_one() {
    let dir = tempfile::tempdir().unwrap();
    trained_in(dir.path(), TokenizerTraining::new(300));
    let template = ChatTemplate::from_dir(dir.path()).unwrap().unwrap();
    let messages = [json!({"role": "user", "content": "Hello"})];
    let text = template.render(&messages, None, true).unwrap();
    assert_eq!(text, ChatTemplate::default_m1().render(&messages, None, true).unwrap());
}

#[test]
fn a_tokenizer_read_from_memory_is_that_of_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let there = trained_in(dir.path(), TokenizerTraining::new(400));
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let (json, config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    let origin = Path::new("somewhere");
    let here = Tokenizer::from_json(origin, &json, &config).unwrap();
    let text = &texts()[7];
    assert_eq!(here.encode(text).unwrap(), there.encode(text).unwrap());
    assert_eq!(here.end_token(), there.end_token());

    let template = ChatTemplate::from_config_json(origin, &config).unwrap().unwrap();
    let messages = [json!({"role": "user", "content": "Hello"})];
    let of_dir = ChatTemplate::from_dir(dir.path()).unwrap().unwrap();
    assert_eq!(
        template.render(&messages, None, true).unwrap(),
        of_dir.render(&messages, None, true).unwrap()
    );
    assert!(ChatTemplate::from_config_json(origin, "{}").unwrap().is_none());

    for error in [
        Tokenizer::from_json(origin, "{", &config).unwrap_err().to_string(),
        Tokenizer::from_json(origin, &json, "[]").unwrap_err().to_string(),
        ChatTemplate::from_config_json(origin, "7").unwrap_err().to_string(),
    ] {
        assert!(error.starts_with("somewhere/tokenizer"), "{error}");
    }
}

proptest! {
    #[test]
    fn any_text_and_any_bytes_come_back(text in any::<String>(), bytes in any::<Vec<u8>>()) {
        static TOKENIZER: std::sync::LazyLock<Tokenizer> =
            std::sync::LazyLock::new(|| trained(TokenizerTraining::new(450)));
        for text in [text, String::from_utf8_lossy(&bytes).into_owned()] {
            prop_assert_eq!(TOKENIZER.decode(&TOKENIZER.encode(&text).unwrap()), text);
        }
        let ids: Vec<u32> = bytes.iter().map(|byte| u32::from(*byte)).collect();
        let back: Vec<u8> = ids.iter().flat_map(|id| TOKENIZER.token_bytes(*id).unwrap()).collect();
        prop_assert_eq!(back, bytes);
    }
}
