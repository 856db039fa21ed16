use std::fs;
use std::path::Path;

use arges_model::checkpoint::{CheckpointWriter, WriteOptions, copy_tokenizer_files};
use arges_model::{Checkpoint, Config, DType, Dialect, Param};

use crate::support::{
    GOLDEN, f32_writer, golden, json as read_json, raw_tensors, small_checkpoint, small_config,
};

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Writes an open checkpoint anew, each tensor in the type it has.
fn copy(checkpoint: &Checkpoint, directory: &Path, shard_bytes: u64) {
    let dtype = |param| checkpoint.param(param).unwrap().dtype;
    let options = WriteOptions { shard_bytes, overwrite: false };
    let mut writer = CheckpointWriter::create(directory, checkpoint.config(), options, dtype).unwrap();
    // Backwards: the order of writing is free.
    let params: Vec<Param> = Param::all(checkpoint.config()).collect();
    for param in params.into_iter().rev() {
        let view = checkpoint.param(param).unwrap();
        let mut tensor = writer.begin(param).unwrap();
        for row in 0..view.rows {
            tensor.write_bytes(view.row_bytes(row..row + 1)).unwrap();
        }
        tensor.finish().unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn what_is_written_opens_bit_equal_whatever_the_shards() {
    for name in GOLDEN {
        let original = Checkpoint::open(&golden(name)).unwrap();
        for (limit, shards) in [(u64::MAX, 1), (1 << 20, 0), (1, usize::MAX)] {
            let directory = tempfile::tempdir().unwrap();
            copy(&original, directory.path(), limit);
            let written = Checkpoint::open(directory.path()).unwrap();
            let expected = match shards {
                0 => original.weight_bytes().div_ceil(1 << 20),
                usize::MAX => Param::all(original.config()).count(),
                n => n,
            };
            assert_eq!(written.shard_count(), expected, "{name} in shards of {limit}");
            assert_eq!(written.config().dialect, original.config().dialect);
            for param in Param::all(original.config()) {
                let (a, b) = (original.param(param).unwrap(), written.param(param).unwrap());
                assert_eq!(
                    (a.dtype, a.rows, a.cols, a.data),
                    (b.dtype, b.rows, b.cols, b.data),
                    "{}",
                    a.name
                );
            }
        }
    }
}

#[test]
fn shards_and_index_have_the_layout_of_hugging_face() {
    let original = Checkpoint::open(&golden("tiny-m1/bf16")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    copy(&original, directory.path(), 1 << 20);
    assert_eq!(
        names(directory.path()),
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ]
    );
    let index = read_json(&directory.path().join("model.safetensors.index.json"));
    assert_eq!(index["metadata"]["total_size"].as_u64(), Some(original.weight_bytes() as u64));
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), Param::all(original.config()).count());
    for shard in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"] {
        let bytes = fs::read(directory.path().join(shard)).unwrap();
        let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!((header + 8) % 64, 0, "data are aligned");
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        for name in metadata.offset_keys() {
            assert_eq!(map[&name], shard);
        }
    }
    let config = read_json(&directory.path().join("config.json"));
    assert_eq!(config["torch_dtype"], "bfloat16");
    assert_eq!(config["architectures"][0], "MiniMaxM1ForCausalLM");
}

#[test]
fn narrower_tensors_stand_behind_wider_ones_so_that_all_are_aligned() {
    let config = small_config(Dialect::MiniMaxM1);
    let directory = tempfile::tempdir().unwrap();
    let dtype = |param: Param| if param.is_norm() { DType::F32 } else { DType::F16 };
    let mut writer =
        CheckpointWriter::create(directory.path(), &config, WriteOptions::default(), dtype).unwrap();
    for param in Param::all(&config) {
        writer.write_f32(param, &vec![0.5; param.elements(&config)]).unwrap();
    }
    writer.finish().unwrap();
    let bytes = fs::read(directory.path().join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, tensor) in tensors.iter() {
        let offset = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert_eq!(offset * 8 % tensor.dtype().bitsize(), 0, "{name}");
    }
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    assert_eq!(checkpoint.config().stored_dtype, Some(DType::F16));
    assert!(Param::all(&config).all(|p| checkpoint.param(p).unwrap().to_f32().iter().all(|v| *v == 0.5)));
}

#[test]
fn a_writer_given_up_leaves_the_directory_as_it_was() {
    let config = small_config(Dialect::MiniMaxM1);
    let directory = small_checkpoint(&config);
    let before = names(directory.path());
    let mut writer = f32_writer(&config, directory.path(), true);
    writer.write_f32(Param::FinalNorm, &[2.0; 16]).unwrap();
    assert_ne!(names(directory.path()), before, "new shards carry temporary names");
    drop(writer);
    assert_eq!(names(directory.path()), before);
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    assert_eq!(checkpoint.param(Param::FinalNorm).unwrap().to_f32(), [1.0; 16]);
}

#[test]
fn overwriting_replaces_the_old_checkpoint_and_leaves_open_readers_whole() {
    let config = small_config(Dialect::MiniMaxM1);
    let directory = small_checkpoint(&config);
    fs::write(directory.path().join(".model-00077.safetensors.partial"), b"from a killed writer").unwrap();
    fs::write(directory.path().join("notes.txt"), b"kept").unwrap();
    let old = Checkpoint::open(directory.path()).unwrap();

    let options = WriteOptions { overwrite: true, ..WriteOptions::default() };
    let mut writer = CheckpointWriter::create(directory.path(), &config, options, |_| DType::Bf16).unwrap();
    for param in Param::all(&config) {
        writer.write_f32(param, &vec![0.25; param.elements(&config)]).unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(names(directory.path()), ["config.json", "model.safetensors", "notes.txt"]);
    let new = Checkpoint::open(directory.path()).unwrap();
    assert!(new.param(Param::Head).unwrap().to_f32().iter().all(|value| *value == 0.25));
    assert_eq!(old.param(Param::FinalNorm).unwrap().to_f32(), [1.0; 16]);
}

#[test]
fn a_directory_with_files_is_refused_unless_overwriting_is_asked_for() {
    let config = small_config(Dialect::MiniMaxM1);
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("notes.txt"), b"mine").unwrap();
    let outcome =
        CheckpointWriter::create(directory.path(), &config, WriteOptions::default(), |_| DType::F32);
    let error = outcome.err().unwrap().to_string();
    assert!(error.contains("not empty") && error.contains("overwriting"), "{error}");
    assert_eq!(names(directory.path()), ["notes.txt"]);
}

#[test]
fn misuse_is_an_error_that_names_the_tensor() {
    let config = small_config(Dialect::MiniMaxM1);
    let directory = tempfile::tempdir().unwrap();
    let mut writer = f32_writer(&config, directory.path(), false);
    let text = |outcome: Result<(), arges_model::checkpoint::WriteError>| outcome.unwrap_err().to_string();

    let long = text(writer.write_f32(Param::FinalNorm, &[0.0; 17]));
    assert!(long.contains("`model.norm.weight` takes 64 bytes, but 68"), "{long}");
    let short = text(writer.write_bytes(Param::Embedding, &[0; 12]));
    assert!(short.contains("`model.embed_tokens.weight` takes 2560 bytes, but 12"), "{short}");
    let twice = text(writer.write_f32(Param::FinalNorm, &[0.0; 16]));
    assert!(twice.contains("`model.norm.weight` was begun twice"), "{twice}");
    let foreign = text(writer.write_f32(Param::Layer(9, arges_model::LayerParam::InputNorm), &[]));
    assert!(foreign.contains("no parameter"), "{foreign}");
    let unwritten = text(writer.finish());
    assert!(unwritten.contains("`model.embed_tokens.weight` was never written"), "{unwritten}");
    assert!(names(directory.path()).is_empty());

    let mut broken = config;
    broken.num_kv_heads = 3;
    let outcome =
        CheckpointWriter::create(directory.path(), &broken, WriteOptions::default(), |_| DType::F32);
    assert!(outcome.err().unwrap().to_string().contains("num_key_value_heads"));
}

#[test]
fn the_files_of_a_tokenizer_are_copied_and_no_others() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in ["tokenizer.json", "merges.txt", "chat_template.jinja", "config.json", "model.safetensors"] {
        fs::write(from.path().join(name), name).unwrap();
    }
    let copied = copy_tokenizer_files(from.path(), to.path()).unwrap();
    assert_eq!(copied, ["tokenizer.json", "merges.txt", "chat_template.jinja"]);
    assert_eq!(names(to.path()), ["chat_template.jinja", "merges.txt", "tokenizer.json"]);
    assert_eq!(fs::read(to.path().join("merges.txt")).unwrap(), b"merges.txt");
}

#[test]
fn another_dialect_can_be_written_from_the_same_parameters() {
    let config = small_config(Dialect::MiniMaxText01);
    let values = raw_tensors(&config);
    let other = Config { dialect: Dialect::MiniMax, ..config.clone() };
    let directory = tempfile::tempdir().unwrap();
    let mut writer = f32_writer(&other, directory.path(), false);
    for (param, tensor) in Param::all(&config).zip(&values) {
        writer.write_bytes(param, &tensor.data).unwrap();
    }
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    for (param, tensor) in Param::all(&config).zip(&values) {
        assert_eq!(checkpoint.param(param).unwrap().data, tensor.data);
    }
}
