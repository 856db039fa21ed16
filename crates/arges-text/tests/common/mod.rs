//! What the tests of this crate share.

use std::path::{Path, PathBuf};

use arges_text::Tokenizer;
use serde::de::DeserializeOwned;

/// A JSON file of `tests/data`.
#[allow(dead_code, reason = "not every test file reads data")]
pub fn data<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The directory of M1's own tokenizer files; without it a line says that the test is skipped.
#[allow(dead_code, reason = "not every test file needs M1's files")]
pub fn m1_dir() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/m1");
    let found = dir.join("tokenizer.json").is_file();
    if !found {
        println!("skipped: M1's tokenizer files are not at ../shared/m1");
    }
    found.then_some(dir)
}

/// A synthetic tokenizer.
#[allow(dead_code, reason = "not every test file needs one")]
pub fn synthetic(vocab_size: usize) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    arges_text::synthetic::write_tokenizer(dir.path(), vocab_size).unwrap();
    Tokenizer::from_dir(dir.path()).unwrap()
}
