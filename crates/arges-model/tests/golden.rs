//! What the official code computes on small models: logits, hidden states, caches and greedy tokens.

mod support;

use arges_kernels::device::cpu::Isa;
use arges_kernels::matmul::Compute;
use arges_model::model::Stage;
use arges_model::{Batch, LogitRows};
use support::{Golden, Runner, data};

/// Models and the file of f32 logits computed by the code that each comes from.
const MODELS: [(&str, &str); 3] = [
    ("tiny-m1", "logits_fp32_official_f32"),
    ("tiny-text01", "logits_fp32_official_f32"),
    ("tiny-minimax-hf", "logits_fp32_transformers_f32"),
];
const LENGTHS: [usize; 7] = [1, 7, 255, 256, 257, 700, 1500];
const LOGIT_TOLERANCE: f32 = 2e-4;

fn largest_difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The last rows of `logits` that `expected` holds.
fn last_rows<'a>(logits: &'a [f32], expected: &[f32]) -> &'a [f32] {
    &logits[logits.len() - expected.len()..]
}

#[test]
fn f32_logits_equal_the_official_ones_at_every_length_on_every_instruction_set() {
    for (name, official) in MODELS {
        let inputs = Golden::open(name, "inputs");
        let expected = [Golden::open(name, "logits_fp32_ref64"), Golden::open(name, official)];
        let mut largest = [0.0; 2];
        for isa in Isa::available() {
            let mut runner = Runner::new(&data(name).join("fp32"), Compute::F32, Some(isa));
            for length in LENGTHS {
                let key = format!("len{length}");
                let logits = runner.logits(&inputs.tokens(&key));
                for (golden, largest) in expected.iter().zip(&mut largest) {
                    let expected = golden.f32(&key);
                    let difference = largest_difference(last_rows(&logits, &expected), &expected);
                    assert!(difference < LOGIT_TOLERANCE, "{name} {key} on {isa}: {difference:e}");
                    *largest = difference.max(*largest);
                }
            }
        }
        println!(
            "{name}: logits differ by up to {:.1e} from f64, {:.1e} from the official f32",
            largest[0], largest[1]
        );
    }
}

#[test]
fn a_bf16_checkpoint_computed_in_f32_equals_the_official_code_on_its_widened_weights() {
    let inputs = Golden::open("tiny-m1", "inputs");
    let mut runner = Runner::new(&data("tiny-m1").join("bf16"), Compute::F32, None);
    for file in ["logits_bf16_ref64", "logits_bf16_official_f32"] {
        let golden = Golden::open("tiny-m1", file);
        for length in [7, 257, 700] {
            let key = format!("len{length}");
            let logits = runner.logits(&inputs.tokens(&key));
            let expected = golden.f32(&key);
            let difference = largest_difference(last_rows(&logits, &expected), &expected);
            assert!(difference < LOGIT_TOLERANCE, "{file} {key}: {difference:e}");
            println!("{file} {key}: logits differ by up to {difference:.1e}");
        }
    }
}

#[test]
fn bf16_compute_is_on_average_no_further_from_f64_than_the_official_bf16() {
    let inputs = Golden::open("tiny-m1", "inputs");
    let exact = Golden::open("tiny-m1", "logits_bf16_ref64");
    let official = Golden::open("tiny-m1", "logits_bf16_official_bf16compute");
    for isa in Isa::available() {
        let mut runner = Runner::new(&data("tiny-m1").join("bf16"), Compute::Bf16, Some(isa));
        let (mut ours, mut theirs, mut count) = (0.0, 0.0, 0);
        for length in [7, 257, 700] {
            let key = format!("len{length}");
            let logits = runner.logits(&inputs.tokens(&key));
            let exact = exact.f32(&key);
            let official = official.f32(&key);
            // The two files may hold different numbers of last rows.
            let rows = exact.len().min(official.len());
            let tail = |x: &[f32]| x[x.len() - rows..].to_vec();
            let (logits, exact, official) = (tail(&logits), tail(&exact), tail(&official));
            for i in 0..rows {
                ours += f64::from((logits[i] - exact[i]).abs());
                theirs += f64::from((official[i] - exact[i]).abs());
                count += 1;
            }
        }
        let (ours, theirs) = (ours / f64::from(count), theirs / f64::from(count));
        println!("{isa}: mean error {ours:.5}, official bf16 {theirs:.5}");
        assert!(ours <= theirs, "{isa}: mean error {ours} is above the official {theirs}");
    }
}

#[test]
fn hidden_states_of_every_layer_equal_the_f64_ones() {
    for (name, _) in MODELS {
        let tokens = Golden::open(name, "inputs").tokens("len257");
        let hidden = Golden::open(name, "hidden_len257_ref64");
        let mut runner = Runner::new(&data(name).join("fp32"), Compute::F32, None);
        let (mut stages, mut largest) = (0, 0.0);
        runner.observe(&tokens, |stage, values| {
            let key = match stage {
                Stage::LayerInput(layer) => format!("layer{layer}_input"),
                Stage::FinalNorm => "final_norm_output".to_owned(),
                Stage::RouterLogits(_) | Stage::Projections(_) | Stage::Middle(_) => return,
            };
            let difference = largest_difference(values, &hidden.f32(&key));
            assert!(difference < LOGIT_TOLERANCE, "{name} {key}: {difference:e}");
            largest = difference.max(largest);
            stages += 1;
        });
        println!("{name}: hidden states differ by up to {largest:.1e}");
        assert_eq!(stages, hidden.len());
    }
}

#[test]
fn caches_after_a_prefill_equal_the_f64_ones() {
    for (name, _) in MODELS {
        let tokens = Golden::open(name, "inputs").tokens("len257");
        let golden = Golden::open(name, "cache_len257_ref64");
        let mut runner = Runner::new(&data(name).join("fp32"), Compute::F32, None);
        let sequence = runner.prefill(&tokens, &[257]);
        let (mut lightning, mut softmax) = (0, 0);
        for layer in 0..runner.model.config().num_layers {
            let (key, got) = if golden.has(&format!("layer{layer}.state")) {
                lightning += 1;
                (format!("layer{layer}.state"), runner.cache.state(&runner.model, sequence, lightning - 1))
            } else {
                softmax += 1;
                let keys = runner.cache.keys(sequence, softmax - 1);
                (
                    format!("layer{layer}.k"),
                    heads_first(&keys, tokens.len(), runner.model.config().num_kv_heads),
                )
            };
            let expected = golden.f32(&key);
            let scale = expected.iter().map(|x| x.abs()).fold(1.0, f32::max);
            let difference = largest_difference(&got, &expected);
            assert!(difference < LOGIT_TOLERANCE * scale, "{name} {key}: {difference:e} of {scale}");
            println!("{name} {key}: differs by up to {:.1e} of its largest value", difference / scale);
        }
        assert_eq!(lightning + softmax, golden.len());
    }
}

/// `[tokens, heads, d]` as `[heads, tokens, d]`.
fn heads_first(keys: &[f32], tokens: usize, heads: usize) -> Vec<f32> {
    let d = keys.len() / (tokens * heads);
    let row = |head: usize, token: usize| &keys[(token * heads + head) * d..][..d];
    (0..heads).flat_map(|head| (0..tokens).flat_map(move |token| row(head, token).to_vec())).collect()
}

#[test]
fn greedy_tokens_equal_the_official_ones_from_every_prompt() {
    for (name, file, checkpoint) in [
        ("tiny-m1", "greedy_fp32", "fp32"),
        ("tiny-m1", "greedy_bf16", "bf16"),
        ("tiny-text01", "greedy_fp32", "fp32"),
        ("tiny-minimax-hf", "greedy_fp32", "fp32"),
    ] {
        let cases = support::greedy_cases(name, file);
        let mut runner = Runner::new(&data(name).join(checkpoint), Compute::F32, None);
        assert!(!cases.is_empty());
        for case in cases {
            let mut batch = Batch::new();
            let sequence = runner.cache.open().unwrap();
            let mut next = case.prompt.clone();
            let mut tokens = Vec::new();
            while tokens.len() < case.tokens.len() {
                batch.clear();
                batch.push(sequence, &next, LogitRows::Last);
                let logits = runner.step(&batch);
                let best = support::argmax(&logits);
                tokens.push(best);
                next = vec![best];
            }
            runner.cache.close(sequence);
            assert_eq!(tokens, case.tokens, "{name} {file}, prompt of {}", case.prompt.len());
        }
    }
}
