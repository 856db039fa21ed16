//! Synthetic tokenizers of every size a checkpoint may have.

mod common;

use std::collections::HashSet;

use arges_text::synthetic::write_tokenizer;
use arges_text::{ChatTemplate, MIN_VOCAB_SIZE, TextError, Tokenizer};
use common::synthetic;
use serde_json::json;

#[test]
fn every_id_of_any_size_has_a_text_of_its_own() {
    for size in [MIN_VOCAB_SIZE, MIN_VOCAB_SIZE + 1, 300, 512, 8_192, 32_000, 200_064] {
        let tokenizer = synthetic(size);
        assert_eq!(tokenizer.vocab_size(), size);
        let texts: HashSet<Vec<u8>> = (0..size as u32).map(|id| tokenizer.token_bytes(id).unwrap()).collect();
        assert_eq!(texts.len(), size);
    }
}

#[test]
fn the_special_ids_are_the_last_and_are_recognised_in_text() {
    let dir = tempfile::tempdir().unwrap();
    let ids = write_tokenizer(dir.path(), 512).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let markers = [
        ("<beginning_of_sentence>", ids.beginning_of_sentence),
        ("<end_of_sentence>", ids.end_of_sentence),
        ("<end_of_document>", ids.end_of_document),
        ("<begin_of_document>", ids.begin_of_document),
    ];
    for ((marker, id), expected) in markers.into_iter().zip(508..) {
        assert_eq!(id, expected);
        assert_eq!(tokenizer.encode(marker).unwrap(), [id]);
        assert!(tokenizer.is_special(id));
    }
    assert_eq!(tokenizer.end_token(), Some(ids.end_of_sentence));
    let turn = tokenizer.encode("hi<end_of_sentence>").unwrap();
    assert_eq!(turn.last(), Some(&ids.end_of_sentence));
    assert_eq!(tokenizer.decode_skip_special(&turn), "hi");
}

#[test]
fn merges_shorten_words() {
    let tokenizer = synthetic(32_000);
    assert_eq!(tokenizer.encode("abc").unwrap().len(), 1);
    let text = "the quick brown fox jumps over the lazy dog";
    assert!(tokenizer.encode(text).unwrap().len() * 2 < text.len());
}

#[test]
fn the_same_size_gives_the_same_files() {
    let read = || {
        let dir = tempfile::tempdir().unwrap();
        write_tokenizer(dir.path(), 1_000).unwrap();
        ["tokenizer.json", "tokenizer_config.json"].map(|name| std::fs::read(dir.path().join(name)).unwrap())
    };
    assert_eq!(read(), read());
}

#[test]
fn too_small_a_vocabulary_is_an_error_that_says_the_smallest() {
    let dir = tempfile::tempdir().unwrap();
    let error = write_tokenizer(dir.path(), 259).unwrap_err();
    assert!(matches!(error, TextError::VocabularySize { asked: 259, minimum: 260, .. }), "{error}");
    assert!(error.to_string().contains("260"));
    assert!(matches!(write_tokenizer(dir.path(), usize::MAX), Err(TextError::VocabularySize { .. })));
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let error = write_tokenizer("/nonexistent/dir".as_ref(), 512).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/dir/tokenizer.json"), "{error}");
}

#[test]
fn the_chat_template_written_along_is_the_built_in_one() {
    let dir = tempfile::tempdir().unwrap();
    write_tokenizer(dir.path(), 512).unwrap();
    let template = ChatTemplate::from_dir(dir.path()).unwrap().unwrap();
    let messages = [json!({"role": "user", "content": "Hello"})];
    let text = template.render(&messages, None, true).unwrap();
    assert_eq!(text, ChatTemplate::default_m1().render(&messages, None, true).unwrap());
}
