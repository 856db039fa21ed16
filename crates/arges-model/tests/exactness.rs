//! A token's log-probability has the same bits however it is computed.

mod support;

use std::path::Path;

use arges_kernels::device::cpu::Isa;
use arges_kernels::matmul::Compute;
use arges_model::{Batch, LogitRows, SnapshotPlan, Snapshots};
use support::{Golden, Runner, data};

/// Log-probability of each token after the first, from logits `[tokens, vocab]`.
fn log_probabilities(tokens: &[u32], logits: &[f32]) -> Vec<u64> {
    let vocab = logits.len() / tokens.len();
    tokens[1..]
        .iter()
        .zip(logits.chunks_exact(vocab))
        .map(|(token, logits)| {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
            (f64::from(logits[*token as usize] - max) - total.ln()).to_bits()
        })
        .collect()
}

/// Runs several sequences side by side in pieces; returns all logits of each.
fn in_pieces(runner: &mut Runner, prompts: &[Vec<u32>], piece: usize) -> Vec<Vec<f32>> {
    let sequences: Vec<_> = prompts.iter().map(|_| runner.cache.open().unwrap()).collect();
    let vocab = runner.model.config().vocab_size;
    let mut logits = vec![Vec::new(); prompts.len()];
    let longest = prompts.iter().map(Vec::len).max().unwrap();
    for start in (0..longest).step_by(piece) {
        let mut batch = Batch::new();
        let mut parts = Vec::new();
        for (i, (prompt, sequence)) in prompts.iter().zip(&sequences).enumerate() {
            let end = (start + piece).min(prompt.len());
            if start < end {
                batch.push(*sequence, &prompt[start..end], LogitRows::All);
                parts.push((i, end - start));
            }
        }
        let out = runner.step(&batch);
        let mut rest = &out[..];
        for (i, rows) in parts {
            let (head, tail) = rest.split_at(rows * vocab);
            logits[i].extend_from_slice(head);
            rest = tail;
        }
    }
    sequences.into_iter().for_each(|sequence| runner.cache.close(sequence));
    logits
}

fn check(checkpoint: &Path, compute: Compute, isa: Isa) {
    let model = checkpoint.parent().unwrap().file_name().unwrap().to_str().unwrap();
    let inputs = Golden::open(model, "inputs");
    let text = inputs.tokens("len255");
    // 17 sequences of different lengths and beginnings.
    let prompts: Vec<Vec<u32>> = (0..17).map(|i| text[i * 3..255 - i * 11].to_vec()).collect();
    let mut runner = Runner::new(checkpoint, compute, Some(isa));
    let alone: Vec<Vec<u64>> =
        prompts.iter().map(|prompt| log_probabilities(prompt, &runner.logits(prompt))).collect();
    // Pieces of 1 are decode steps; at 17 sequences, 100 tokens each fill the workspace.
    for piece in [1, 7, 64, 100] {
        let together = in_pieces(&mut runner, &prompts, piece);
        for (i, (prompt, logits)) in prompts.iter().zip(&together).enumerate() {
            let got = log_probabilities(prompt, logits);
            assert!(got == alone[i], "{model} {compute} {isa}: sequence {i} in pieces of {piece}");
        }
    }
}

#[test]
fn log_probabilities_do_not_depend_on_batch_split_or_decode_in_f32() {
    for model in ["tiny-m1", "tiny-text01", "tiny-minimax-hf"] {
        for isa in Isa::available() {
            check(&data(model).join("fp32"), Compute::F32, isa);
        }
    }
}

#[test]
fn log_probabilities_do_not_depend_on_batch_split_or_decode_in_bf16() {
    for isa in Isa::available() {
        check(&data("tiny-m1").join("bf16"), Compute::Bf16, isa);
    }
}

#[test]
fn sequences_that_take_up_states_or_forget_tokens_get_the_bits_of_a_cold_one() {
    let text = Golden::open("tiny-m1", "inputs").tokens("len255");
    for (precision, compute) in [("fp32", Compute::F32), ("bf16", Compute::Bf16)] {
        let mut runner = Runner::new(&data("tiny-m1").join(precision), compute, None);
        let vocab = runner.model.config().vocab_size;
        let cold = runner.logits(&text);
        let mut snapshots = Snapshots::new(&runner.model, SnapshotPlan { device: 1, host: 1 });
        let first = runner.prefill(&text[..200], &[200]);
        snapshots.save(&runner.cache, first, 0);
        snapshots.offload(0, 1);
        let pages = runner.cache.pages(first)[..3].to_vec();
        pages.iter().for_each(|page| runner.cache.keep(*page));
        runner.cache.close(first);
        // Others have the slot in between.
        drop(runner.logits(&text[7..]));
        let second = runner.cache.open_with(&pages).unwrap();
        snapshots.load(1, &mut runner.cache, second);
        let step = |runner: &mut Runner, tokens: &[u32]| {
            let mut batch = Batch::new();
            batch.push(second, tokens, LogitRows::All);
            runner.step(&batch)
        };
        let start = step(&mut runner, &text[192..220]);
        step(&mut runner, &text[..30]);
        runner.cache.truncate(second, 220);
        let rest = step(&mut runner, &text[220..]);
        let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&[start, rest].concat()), bits(&cold[192 * vocab..]), "{compute}");
        runner.cache.close(second);
        pages.into_iter().for_each(|page| runner.cache.release(page));
        assert_eq!(runner.cache.free_pages(), runner.cache.pages_total());
    }
}
