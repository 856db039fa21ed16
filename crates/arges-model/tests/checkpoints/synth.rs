use std::path::Path;

use arges_model::synth::{self, SynthOptions, SynthProgress, SynthShape};
use arges_model::{AttentionKind, Checkpoint, DType, Dialect, Param};

use crate::support::{small_config, small_shape};

fn make(shape: &SynthShape, options: &SynthOptions) -> (tempfile::TempDir, Checkpoint) {
    let directory = tempfile::tempdir().unwrap();
    synth::write_checkpoint(&shape.config().unwrap(), directory.path(), options, &mut |_| {}).unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    (directory, checkpoint)
}

fn assert_same(a: &Checkpoint, b: &Checkpoint) {
    for param in Param::all(a.config()) {
        assert!(a.param(param).unwrap().data == b.param(param).unwrap().data, "{param:?} differs");
    }
}

#[test]
fn weights_depend_on_the_seed_alone_and_not_on_shards_or_threads() {
    // Large enough that a matrix takes several buffers and threads.
    let shape = SynthShape { vocab: 40_000, hidden: 128, ..small_shape(Dialect::MiniMaxM1) };
    let options = SynthOptions { seed: 5, dtype: DType::F32, threads: 1, ..SynthOptions::default() };
    let (_kept, one) = make(&shape, &options);
    let (_kept2, other) = make(&shape, &SynthOptions { shard_bytes: 1 << 20, threads: 3, ..options.clone() });
    assert_eq!(one.shard_count(), 1);
    assert!(other.shard_count() > 2);
    assert_same(&one, &other);
    let (_kept3, reseeded) = make(&shape, &SynthOptions { seed: 6, ..options });
    let embedding = |c: &Checkpoint| c.param(Param::Embedding).unwrap().to_f32();
    let equal = embedding(&one).iter().zip(&embedding(&reseeded)).filter(|(a, b)| a == b).count();
    assert!(equal < 1000, "{equal} of 5 M weights agree");
}

#[test]
fn narrower_types_hold_the_same_weights_rounded() {
    let shape = small_shape(Dialect::MiniMaxM1);
    let of = |dtype| make(&shape, &SynthOptions { dtype, ..SynthOptions::default() });
    let ((_a, wide), (_b, bf16), (_c, f16)) = (of(DType::F32), of(DType::Bf16), of(DType::F16));
    for param in Param::all(wide.config()) {
        let exact = wide.param(param).unwrap().to_f32();
        let rounded = |to: fn(f32) -> f32| exact.iter().map(|v| to(*v)).collect::<Vec<f32>>();
        assert_eq!(bf16.param(param).unwrap().to_f32(), rounded(|v| half::bf16::from_f32(v).to_f32()));
        assert_eq!(f16.param(param).unwrap().to_f32(), rounded(|v| half::f16::from_f32(v).to_f32()));
    }
}

#[test]
fn norms_are_one_and_matrices_have_the_deviation_of_the_configuration() {
    let mut config = small_config(Dialect::MiniMax);
    config.vocab_size = 4000;
    config.initializer_range = 0.1;
    let directory = tempfile::tempdir().unwrap();
    let options = SynthOptions { dtype: DType::F32, ..SynthOptions::default() };
    synth::write_checkpoint(&config, directory.path(), &options, &mut |_| {}).unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    for param in Param::all(&config).filter(|param| param.is_norm()) {
        assert!(checkpoint.param(param).unwrap().to_f32().iter().all(|value| *value == 1.0));
    }
    let head = checkpoint.param(Param::Head).unwrap().to_f32();
    let variance = head.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / head.len() as f64;
    assert!((variance.sqrt() - 0.1).abs() < 0.001, "{}", variance.sqrt());
}

#[test]
fn progress_grows_to_the_total() {
    let directory = tempfile::tempdir().unwrap();
    let config = small_config(Dialect::MiniMaxM1);
    let mut reports: Vec<SynthProgress> = Vec::new();
    let options = SynthOptions::default();
    synth::write_checkpoint(&config, directory.path(), &options, &mut |report| reports.push(report)).unwrap();
    assert!(reports.is_sorted_by(|a, b| a.bytes_done < b.bytes_done));
    let last = reports.last().unwrap();
    assert_eq!(last.bytes_done, last.bytes_total);
    assert_eq!(last.bytes_total, Checkpoint::open(directory.path()).unwrap().weight_bytes() as u64);
}

#[test]
fn a_directory_with_files_is_refused_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("notes.txt"), b"mine").unwrap();
    let config = small_config(Dialect::MiniMaxM1);
    let write = |overwrite| {
        let options = SynthOptions { overwrite, ..SynthOptions::default() };
        synth::write_checkpoint(&config, directory.path(), &options, &mut |_| {})
    };
    assert!(write(false).unwrap_err().to_string().contains("not empty"));
    write(true).unwrap();
    assert!(Path::new(&directory.path().join("notes.txt")).exists());
}

#[test]
fn shapes_become_configurations_or_name_the_field_that_is_wrong() {
    let config = SynthShape::default().config().unwrap();
    assert_eq!(config.count(AttentionKind::Softmax), 1);
    assert_eq!(config.attention[7], AttentionKind::Softmax);
    let lightning_only = SynthShape { softmax_every: 0, ..SynthShape::default() }.config().unwrap();
    assert_eq!(lightning_only.count(AttentionKind::Softmax), 0);
    // DeepNorm's alpha is M1's own at its 80 layers.
    let deep = SynthShape { layers: 80, ..SynthShape::default() }.config().unwrap();
    assert_eq!(deep.mlp.alpha, 3.556_558_8);
    for (shape, field) in [
        (SynthShape { kv_heads: 3, ..SynthShape::default() }, "num_key_value_heads"),
        (SynthShape { rotary_dim: 33, ..SynthShape::default() }, "rotary_dim"),
        (SynthShape { layers: usize::MAX, ..SynthShape::default() }, "num_hidden_layers"),
        (SynthShape { layers: 0, ..SynthShape::default() }, "num_hidden_layers"),
        (SynthShape { experts_per_token: 9, ..SynthShape::default() }, "num_experts_per_tok"),
        (SynthShape { vocab: 0, ..SynthShape::default() }, "vocab_size"),
    ] {
        let error = shape.config().unwrap_err().to_string();
        assert!(error.contains(field) && error.contains("the sizes given"), "{error}");
    }
}

#[test]
fn every_dialect_and_form_of_layer_can_be_made_and_opened() {
    for dialect in Dialect::ALL {
        for (experts, shared) in [(1, 0), (3, 0), (1, 10), (3, 10)] {
            let shared_intermediate = if dialect == Dialect::MiniMax { 0 } else { shared };
            for tie_embeddings in [false, true] {
                let shape = SynthShape {
                    experts,
                    experts_per_token: 1,
                    shared_intermediate,
                    tie_embeddings,
                    ..small_shape(dialect)
                };
                let (_directory, checkpoint) = make(&shape, &SynthOptions::default());
                let mut config = shape.config().unwrap();
                config.stored_dtype = Some(DType::Bf16);
                assert_eq!(checkpoint.config(), &config);
            }
        }
    }
}
