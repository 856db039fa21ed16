//! Figures of the official code, through the command.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::{arges, ids};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../arges-model/tests/data/tiny-m1").join(path)
}

fn words(file: &str, key: &str) -> Vec<[u8; 4]> {
    let bytes = std::fs::read(golden(file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor(key).unwrap().data();
    data.chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
}

/// A file of token ids, one a line.
fn ids_file(directory: &Path, name: &str, ids: &[u32]) -> String {
    let file = directory.join(name);
    let text = ids.iter().fold(String::new(), |mut text, id| {
        writeln!(text, "{id}").unwrap();
        text
    });
    std::fs::write(&file, text).unwrap();
    format!("@{}", file.display())
}

#[test]
fn greedy_tokens_are_the_official_ones() {
    let directory = tempfile::tempdir().unwrap();
    let cases: Vec<Value> =
        serde_json::from_slice(&std::fs::read(golden("greedy_fp32.json")).unwrap()).unwrap();
    assert!(!cases.is_empty());
    let model = golden("fp32");
    for case in cases {
        let prompt = ids_file(directory.path(), "prompt", &ids(&case["prompt"]));
        let args = ["generate", "--model", model.to_str().unwrap(), "--ids", &prompt, "-n", "64", "--json"];
        let answer = arges(args).json();
        assert_eq!(ids(&answer["ids"]), ids(&case["tokens"]), "prompt of {}", case["prompt_len"]);
        assert!(answer["text"].is_null());
    }
}

#[test]
fn scores_are_the_log_softmax_of_the_f64_logits() {
    let directory = tempfile::tempdir().unwrap();
    let model = golden("fp32");
    for key in ["len7", "len257"] {
        let tokens: Vec<u32> = words("inputs.safetensors", key).into_iter().map(u32::from_le_bytes).collect();
        let logits: Vec<f64> = words("logits_fp32_ref64.safetensors", key)
            .into_iter()
            .map(|word| f64::from(f32::from_le_bytes(word)))
            .collect();
        let vocab = logits.len() / tokens.len();
        let prompt = ids_file(directory.path(), key, &tokens);
        let scored = arges(["score", "--model", model.to_str().unwrap(), "--ids", &prompt, "--json"]).json();
        let logprobs = scored["logprobs"].as_array().unwrap();
        assert_eq!(logprobs.len(), tokens.len());
        assert!(logprobs[0].is_null());
        let mut sum = 0.0;
        for (at, row) in logits.chunks_exact(vocab).take(tokens.len() - 1).enumerate() {
            let log_sum = row.iter().map(|logit| logit.exp()).sum::<f64>().ln();
            let expected = row[tokens[at + 1] as usize] - log_sum;
            let got = logprobs[at + 1].as_f64().unwrap();
            assert!((got - expected).abs() < 1e-3, "{key} at {at}: {got} and not {expected}");
            sum += expected;
        }
        let perplexity = (-sum / (tokens.len() - 1) as f64).exp();
        assert!((scored["perplexity"].as_f64().unwrap() / perplexity - 1.0).abs() < 1e-3, "{key}");
    }
}
