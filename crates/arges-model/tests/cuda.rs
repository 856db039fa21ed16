//! The model on a GPU against the official code's figures, and against itself however a token is computed. Without a
//! GPU nothing is tested, unless `ARGES_REQUIRE_GPU` is set.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arges_kernels::device::cuda::Cuda;
use arges_kernels::matmul::Compute;
use arges_kernels::sample::cuda::Rule;
use arges_model::model::cuda::{CudaCache, CudaModel, CudaSnapshots, CudaWorkspace};
use arges_model::{
    Batch, CachePlan, Checkpoint, LoadOptions, LogitRows, SequenceId, SnapshotPlan, WorkspacePlan,
};
use support::{Golden, argmax, data, greedy_cases};

const MODELS: [&str; 3] = ["tiny-m1", "tiny-text01", "tiny-minimax-hf"];
const LENGTHS: [usize; 7] = [1, 7, 255, 256, 257, 700, 1500];
const LOGIT_TOLERANCE: f32 = 2e-4;

struct Runner {
    model: CudaModel,
    cache: CudaCache,
    workspace: CudaWorkspace,
}

impl Runner {
    fn new(cuda: &Arc<Cuda>, checkpoint: &Path, compute: Compute, exact: bool) -> Self {
        let checkpoint = Checkpoint::open(checkpoint).unwrap();
        let model = CudaModel::load(&checkpoint, LoadOptions { compute }, cuda, &mut |_| {}).unwrap();
        let plan = CachePlan { max_sequences: 24, max_tokens: 16 * 1024 };
        let cache = CudaCache::new(&model, plan).unwrap();
        let plan = WorkspacePlan { max_tokens: 1700, max_logit_rows: 1700 };
        let workspace = CudaWorkspace::new(&model, plan, exact).unwrap();
        Self { model, cache, workspace }
    }

    fn step(&mut self, batch: &Batch) -> Vec<f32> {
        for span in &batch.spans {
            let length = self.cache.length(span.sequence) + span.tokens.len();
            self.cache.reserve(span.sequence, length).unwrap();
        }
        self.model.forward(batch, &mut self.cache, &mut self.workspace).unwrap().to_vec()
    }

    /// All logits of a sequence of its own, in one step.
    fn logits(&mut self, tokens: &[u32]) -> Vec<f32> {
        let sequence = self.cache.open().unwrap();
        let mut batch = Batch::new();
        batch.push(sequence, tokens, LogitRows::All);
        let logits = self.step(&batch);
        self.cache.close(sequence);
        logits
    }
}

fn largest_difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn last_rows<'a>(logits: &'a [f32], expected: &[f32]) -> &'a [f32] {
    &logits[logits.len() - expected.len()..]
}

#[test]
fn f32_logits_equal_the_official_ones_at_every_length() {
    let Some(cuda) = Cuda::for_test() else { return };
    for name in MODELS {
        let (inputs, golden) = (Golden::open(name, "inputs"), Golden::open(name, "logits_fp32_ref64"));
        let mut runner = Runner::new(&cuda, &data(name).join("fp32"), Compute::F32, false);
        let mut largest = 0.0f32;
        for length in LENGTHS {
            let key = format!("len{length}");
            let (logits, expected) = (runner.logits(&inputs.tokens(&key)), golden.f32(&key));
            let difference = largest_difference(last_rows(&logits, &expected), &expected);
            assert!(difference < LOGIT_TOLERANCE, "{name} {key}: {difference:e}");
            largest = largest.max(difference);
        }
        println!("{name}: logits differ by up to {largest:.1e} from f64");
    }
}

#[test]
fn a_bf16_checkpoint_computed_in_f32_equals_the_official_code_on_its_widened_weights() {
    let Some(cuda) = Cuda::for_test() else { return };
    let (inputs, golden) = (Golden::open("tiny-m1", "inputs"), Golden::open("tiny-m1", "logits_bf16_ref64"));
    let mut runner = Runner::new(&cuda, &data("tiny-m1").join("bf16"), Compute::F32, false);
    for length in [7, 257, 700] {
        let key = format!("len{length}");
        let (logits, expected) = (runner.logits(&inputs.tokens(&key)), golden.f32(&key));
        let difference = largest_difference(last_rows(&logits, &expected), &expected);
        assert!(difference < LOGIT_TOLERANCE, "{key}: {difference:e}");
    }
}

#[test]
fn bf16_compute_is_on_average_no_further_from_f64_than_the_official_bf16() {
    let Some(cuda) = Cuda::for_test() else { return };
    let inputs = Golden::open("tiny-m1", "inputs");
    let exact = Golden::open("tiny-m1", "logits_bf16_ref64");
    let official = Golden::open("tiny-m1", "logits_bf16_official_bf16compute");
    let mut runner = Runner::new(&cuda, &data("tiny-m1").join("bf16"), Compute::Bf16, false);
    let (mut ours, mut theirs, mut count) = (0.0, 0.0, 0);
    for length in [7, 257, 700] {
        let key = format!("len{length}");
        let (logits, exact, official) =
            (runner.logits(&inputs.tokens(&key)), exact.f32(&key), official.f32(&key));
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
    println!("mean error {ours:.5}, official bf16 {theirs:.5}");
    assert!(ours <= theirs, "mean error {ours} is above the official {theirs}");
}

#[test]
fn caches_after_a_prefill_equal_the_f64_ones() {
    let Some(cuda) = Cuda::for_test() else { return };
    for name in MODELS {
        let tokens = Golden::open(name, "inputs").tokens("len257");
        let golden = Golden::open(name, "cache_len257_ref64");
        let mut runner = Runner::new(&cuda, &data(name).join("fp32"), Compute::F32, false);
        let sequence = runner.cache.open().unwrap();
        let mut batch = Batch::new();
        batch.push(sequence, &tokens, LogitRows::None);
        runner.step(&batch);
        let (mut lightning, mut softmax) = (0, 0);
        for layer in 0..runner.model.config().num_layers {
            let state = format!("layer{layer}.state");
            let (key, got) = if golden.has(&state) {
                lightning += 1;
                (state, runner.cache.state(&runner.model, sequence, lightning - 1).unwrap())
            } else {
                softmax += 1;
                let keys = runner.cache.keys(sequence, softmax - 1).unwrap();
                let heads = runner.model.config().num_kv_heads;
                let d = keys.len() / (tokens.len() * heads);
                let row = |head: usize, token: usize| keys[(token * heads + head) * d..][..d].to_vec();
                let by_head =
                    (0..heads).flat_map(|head| (0..tokens.len()).flat_map(move |token| row(head, token)));
                (format!("layer{layer}.k"), by_head.collect())
            };
            let expected = golden.f32(&key);
            let scale = expected.iter().map(|x| x.abs()).fold(1.0, f32::max);
            let difference = largest_difference(&got, &expected);
            assert!(difference < LOGIT_TOLERANCE * scale, "{name} {key}: {difference:e} of {scale}");
        }
        assert_eq!(lightning + softmax, golden.len());
    }
}

#[test]
fn greedy_tokens_equal_the_official_ones_from_every_prompt_chosen_on_the_device_from_a_graph() {
    let Some(cuda) = Cuda::for_test() else { return };
    for (name, file, checkpoint) in [
        ("tiny-m1", "greedy_fp32", "fp32"),
        ("tiny-m1", "greedy_bf16", "bf16"),
        ("tiny-text01", "greedy_fp32", "fp32"),
        ("tiny-minimax-hf", "greedy_fp32", "fp32"),
    ] {
        let mut runner = Runner::new(&cuda, &data(name).join(checkpoint), Compute::F32, false);
        let vocab_size = runner.model.config().vocab_size;
        // All at once: three of them are padded to four.
        let cases = greedy_cases(name, file);
        for cases in cases.chunks(3) {
            let sequences: Vec<SequenceId> = cases.iter().map(|_| runner.cache.open().unwrap()).collect();
            let mut next: Vec<Vec<u32>> = cases.iter().map(|case| case.prompt.clone()).collect();
            let mut tokens = vec![Vec::new(); cases.len()];
            for _ in 0..cases[0].tokens.len() {
                let mut batch = Batch::new();
                for (sequence, next) in sequences.iter().zip(&next) {
                    batch.push(*sequence, next, LogitRows::Last);
                }
                for span in &batch.spans {
                    let length = runner.cache.length(span.sequence) + span.tokens.len();
                    runner.cache.reserve(span.sequence, length).unwrap();
                }
                let Runner { model, cache, workspace } = &mut runner;
                // The last is left to the host.
                let mut choices = vec![Some((Rule::largest(), None)); cases.len()];
                *choices.last_mut().unwrap() = None;
                let chosen = model.forward_choosing(&batch, vocab_size, &choices, cache, workspace).unwrap();
                let last = argmax(&chosen.logits[(cases.len() - 1) * vocab_size..]) as u32;
                assert!(chosen.tokens.iter().flatten().all(|token| token.logprob <= 0.0));
                let best = chosen.tokens.iter().map(|token| token.map_or(last, |token| token.id));
                next = best.map(|token| vec![token]).collect();
                tokens.iter_mut().zip(&next).for_each(|(tokens, token)| tokens.push(token[0]));
            }
            for (case, tokens) in cases.iter().zip(&tokens) {
                assert_eq!(*tokens, case.tokens, "{name} {file}, prompt of {}", case.prompt.len());
            }
            sequences.into_iter().for_each(|sequence| runner.cache.close(sequence));
        }
    }
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

/// Sequences of different lengths and beginnings.
fn prompts(name: &str, count: usize) -> Vec<Vec<u32>> {
    let text = Golden::open(name, "inputs").tokens("len255");
    (0..count).map(|i| text[i * 3..255 - i * 11].to_vec()).collect()
}

#[test]
fn in_exact_mode_logits_do_not_depend_on_batch_split_or_decode() {
    let Some(cuda) = Cuda::for_test() else { return };
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    let cases = MODELS.map(|name| (data(name).join("fp32"), name, Compute::F32)).into_iter();
    let bf16 = (data("tiny-m1").join("bf16"), "tiny-m1", Compute::Bf16);
    // arges-nano has the shapes for which there are tensor cores.
    for (checkpoint, name, compute) in cases.chain([bf16, (nano, "tiny-m1", Compute::Bf16)]) {
        let mut runner = Runner::new(&cuda, &checkpoint, compute, true);
        let prompts = prompts(name, 17);
        let alone: Vec<Vec<f32>> = prompts.iter().map(|prompt| runner.logits(prompt)).collect();
        for piece in [1, 7, 64, 100] {
            let together = in_pieces(&mut runner, &prompts, piece);
            for (i, (got, expected)) in together.iter().zip(&alone).enumerate() {
                let same = got.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{} {compute}: sequence {i} in pieces of {piece}", checkpoint.display());
            }
        }
    }
}

/// Checkpoints for which exact mode is tested: f32, bf16, and shapes for which there are tensor cores.
fn exact_cases() -> [(PathBuf, Compute); 3] {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    let tiny = |precision| data("tiny-m1").join(precision);
    [(tiny("fp32"), Compute::F32), (tiny("bf16"), Compute::Bf16), (nano, Compute::Bf16)]
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[test]
fn a_sequence_that_takes_up_pages_and_states_of_another_gets_the_bits_of_a_cold_one() {
    let Some(cuda) = Cuda::for_test() else { return };
    for (checkpoint, compute) in exact_cases() {
        let mut runner = Runner::new(&cuda, &checkpoint, compute, true);
        let vocab = runner.model.config().vocab_size;
        let mut snapshots = CudaSnapshots::new(&runner.model, SnapshotPlan { device: 1, host: 1 }).unwrap();
        let all = prompts("tiny-m1", 4);
        let text = &all[0];
        let cold = runner.logits(text);
        let first = runner.cache.open().unwrap();
        let mut batch = Batch::new();
        batch.push(first, &text[..200], LogitRows::Last);
        runner.step(&batch);
        snapshots.save(&runner.cache, first, 0).unwrap();
        snapshots.offload(0, 1).unwrap();
        let pages = runner.cache.pages(first)[..3].to_vec();
        pages.iter().for_each(|page| runner.cache.keep(*page));
        runner.cache.close(first);
        // Others have the slot and the rest of the memory.
        all.iter().for_each(|other| drop(runner.logits(other)));
        let sequences = [0, 1].map(|place| {
            let sequence = runner.cache.open_with(&pages).unwrap();
            snapshots.load(place, &mut runner.cache, sequence).unwrap();
            sequence
        });
        let mut batch = Batch::new();
        sequences.iter().for_each(|sequence| batch.push(*sequence, &text[192..], LogitRows::All));
        let got = runner.step(&batch);
        for (got, place) in got.chunks(got.len() / 2).zip(["device", "host"]) {
            assert!(same_bits(got, &cold[192 * vocab..]), "{} {place}", checkpoint.display());
        }
        sequences.into_iter().for_each(|sequence| runner.cache.close(sequence));
        assert_eq!(runner.cache.idle_pages(), 3);
        pages.into_iter().for_each(|page| runner.cache.release(page));
        assert_eq!(runner.cache.free_pages(), runner.cache.pages_total());
    }
}

#[test]
fn tokens_that_are_forgotten_leave_no_trace() {
    let Some(cuda) = Cuda::for_test() else { return };
    for (checkpoint, compute) in exact_cases() {
        let mut runner = Runner::new(&cuda, &checkpoint, compute, true);
        let vocab = runner.model.config().vocab_size;
        let text = &prompts("tiny-m1", 1)[0];
        let cold = runner.logits(text);
        let sequence = runner.cache.open().unwrap();
        let push = |runner: &mut Runner, tokens: &[u32]| {
            let mut batch = Batch::new();
            batch.push(sequence, tokens, LogitRows::All);
            runner.step(&batch)
        };
        push(&mut runner, &text[..120]);
        // One that is right and six that are not, up to before the grid point.
        push(&mut runner, &[&text[120..121], &text[..6]].concat());
        runner.cache.truncate(sequence, 121);
        let got = push(&mut runner, &text[121..]);
        assert!(same_bits(&got, &cold[121 * vocab..]), "{}", checkpoint.display());
        runner.cache.close(sequence);
    }
}

#[test]
fn decoding_agrees_with_prefill_where_it_is_not_exact() {
    let Some(cuda) = Cuda::for_test() else { return };
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    for (checkpoint, compute, tolerance) in
        [(data("tiny-m1").join("fp32"), Compute::F32, 2e-4), (nano, Compute::Bf16, 0.5)]
    {
        let mut runner = Runner::new(&cuda, &checkpoint, compute, false);
        let prompts = prompts("tiny-m1", 5);
        let alone: Vec<Vec<f32>> = prompts.iter().map(|prompt| runner.logits(prompt)).collect();
        for piece in [1, 60] {
            let together = in_pieces(&mut runner, &prompts, piece);
            for (got, expected) in together.iter().zip(&alone) {
                // Rounding may flip an expert of a row; most rows are close.
                let vocab = runner.model.config().vocab_size;
                let close = |(a, b): (&[f32], &[f32])| largest_difference(a, b) < tolerance;
                let rows = got.chunks(vocab).zip(expected.chunks(vocab));
                let (count, near) = (got.len() / vocab, rows.filter(|pair| close(*pair)).count());
                assert!(near * 10 >= count * 9, "{near} of {count} rows in pieces of {piece}");
            }
        }
    }
}

#[test]
fn the_embedded_model_answers_as_on_the_cpu() {
    let Some(cuda) = Cuda::for_test() else { return };
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    let prompts = prompts("tiny-m1", 8);
    let mut device = Runner::new(&cuda, &nano, Compute::Bf16, false);
    let mut host = support::Runner::new(&nano, Compute::Bf16, None);
    let vocab = device.model.config().vocab_size;
    let (mut same, mut rows) = (0, 0);
    for prompt in &prompts {
        let (got, expected) = (device.logits(prompt), host.logits(prompt));
        for (got, expected) in got.chunks(vocab).zip(expected.chunks(vocab)) {
            same += usize::from(argmax(got) == argmax(expected));
            rows += 1;
        }
    }
    println!("{same} of {rows} greedy choices are those of the CPU");
    assert!(same * 100 >= rows * 95, "{same} of {rows}");
}
