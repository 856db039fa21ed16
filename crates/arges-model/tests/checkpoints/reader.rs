use std::collections::HashSet;
use std::fs;
use std::path::Path;

use arges_model::checkpoint::StaticFile;
use arges_model::{Checkpoint, Config, DType, Dialect, LayerParam, Param};
use serde_json::json;

use crate::support::{
    GOLDEN, RawTensor, golden, json as read_json, m1_file, raw_file, raw_tensors, small_checkpoint,
    small_config, small_shape, write_raw,
};

fn message(directory: &Path) -> String {
    Checkpoint::open(directory).err().expect("should be refused").to_string()
}

#[track_caller]
fn assert_refused(directory: &Path, said: &[&str]) {
    let message = message(directory);
    for said in said {
        assert!(message.contains(said), "{message:?} lacks {said:?}");
    }
}

#[test]
fn the_golden_checkpoints_open_whole() {
    for (name, dtype, bytes) in [
        ("tiny-m1/fp32", DType::F32, None),
        ("tiny-m1/bf16", DType::Bf16, None),
        ("tiny-text01/fp32", DType::F32, None),
        // The index counts transformers' decay buffers too, which are no parameters.
        ("tiny-minimax-hf/fp32", DType::F32, Some(411_584 * 4)),
    ] {
        let checkpoint = Checkpoint::open(&golden(name)).unwrap();
        let index = read_json(&golden(name).join("model.safetensors.index.json"));
        let stored = index["metadata"]["total_size"].as_u64().map(|size| size as usize);
        assert_eq!(Some(checkpoint.weight_bytes()), bytes.or(stored), "{name}");
        assert_eq!(checkpoint.shard_count(), 3);
        for param in Param::all(checkpoint.config()) {
            let view = checkpoint.param(param).unwrap();
            assert_eq!([view.rows, view.cols], param.shape(checkpoint.config()), "{}", view.name);
            assert_eq!(view.dtype, dtype);
        }
    }
}

#[test]
fn the_bf16_golden_weights_are_the_f32_ones_rounded() {
    let wide = Checkpoint::open(&golden("tiny-m1/fp32")).unwrap();
    let narrow = Checkpoint::open(&golden("tiny-m1/bf16")).unwrap();
    for param in Param::all(wide.config()) {
        let (wide, narrow) = (wide.param(param).unwrap(), narrow.param(param).unwrap());
        let mut rounded = vec![half::bf16::ZERO; wide.elements()];
        wide.read_bf16(&mut rounded);
        let rounded: Vec<f32> = rounded.into_iter().map(half::bf16::to_f32).collect();
        assert_eq!(rounded, narrow.to_f32(), "{}", wide.name);
    }
}

#[test]
fn every_tensor_of_minimax_m1_is_placed_and_none_is_left() {
    let (Some(config), Some(index)) = (m1_file("config.json"), m1_file("model.safetensors.index.json"))
    else {
        return;
    };
    let config = Config::from_file(&config).unwrap();
    let index = read_json(&index);
    let stored: HashSet<&str> = index["weight_map"].as_object().unwrap().keys().map(String::as_str).collect();
    let names: Vec<String> = Param::all(&config).map(|param| param.name(&config)).collect();
    assert_eq!(names.len(), 8243);
    assert_eq!(names.iter().map(String::as_str).collect::<HashSet<_>>(), stored);
    // The released checkpoints store routers in f32 and everything else in bf16.
    let size = |param| if matches!(param, Param::Layer(_, LayerParam::Router)) { 4 } else { 2 };
    let bytes: usize = Param::all(&config).map(|param| param.elements(&config) * size(param)).sum();
    assert_eq!(Some(bytes as u64), index["metadata"]["total_size"].as_u64());
}

#[test]
fn a_misaligned_single_file_with_mixed_types_reads_the_same_values() {
    let config = small_config(Dialect::MiniMaxM1);
    let whole = raw_tensors(&config);
    let mut mixed = whole.clone();
    for (i, tensor) in mixed.iter_mut().enumerate() {
        let values = tensor.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        (tensor.dtype, tensor.data) = match i % 3 {
            0 => ("BF16", values.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect()),
            1 => ("F16", values.flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect()),
            _ => continue,
        };
    }
    let (plain, mixed) = (write_raw(&config, &whole), write_raw(&config, &mixed));
    let (plain, mixed) = (Checkpoint::open(plain.path()).unwrap(), Checkpoint::open(mixed.path()).unwrap());
    for (i, param) in Param::all(&config).enumerate() {
        let (exact, found) = (plain.param(param).unwrap().to_f32(), mixed.param(param).unwrap());
        let expected: Vec<f32> = exact
            .into_iter()
            .map(|v| match i % 3 {
                0 => half::bf16::from_f32(v).to_f32(),
                1 => half::f16::from_f32(v).to_f32(),
                _ => v,
            })
            .collect();
        assert_eq!(found.to_f32(), expected, "{}", found.name);
    }
}

#[test]
fn missing_extra_and_misshapen_tensors_are_named_with_shapes_and_file() {
    let config = small_config(Dialect::MiniMaxM1);
    let tensors = raw_tensors(&config);
    let key = "model.layers.1.self_attn.k_proj.weight";
    let at = tensors.iter().position(|tensor| tensor.name == key).unwrap();

    let mut missing = tensors.clone();
    missing.remove(at);
    let directory = write_raw(&config, &missing);
    assert_refused(directory.path(), &[key, "[16, 16]", "missing", "model.safetensors"]);

    let mut extra = tensors.clone();
    extra.push(RawTensor::f32("model.layers.2.input_layernorm.weight", &[16], &[1.0; 16]));
    let directory = write_raw(&config, &extra);
    assert_refused(
        directory.path(),
        &["model.layers.2.input_layernorm.weight", "[16]", "no part", "model.safetensors"],
    );

    let mut misshapen = tensors.clone();
    misshapen[at].shape = vec![32, 8];
    let directory = write_raw(&config, &misshapen);
    assert_refused(directory.path(), &[key, "[32, 8]", "[16, 16]", "model.safetensors"]);

    let mut flat = tensors.clone();
    flat[at].shape = vec![256];
    let directory = write_raw(&config, &flat);
    assert_refused(directory.path(), &[key, "[256]", "[16, 16]"]);

    let mut integers = tensors.clone();
    integers[at].dtype = "I32";
    let directory = write_raw(&config, &integers);
    assert_refused(directory.path(), &[key, "I32", "model.safetensors"]);

    let mut unknown = tensors;
    unknown[at].dtype = "F13";
    let directory = write_raw(&config, &unknown);
    assert_refused(directory.path(), &[key, "F13", "model.safetensors"]);
}

#[test]
fn decay_buffers_are_no_parameters_of_the_official_dialects() {
    let config = small_config(Dialect::MiniMaxM1);
    let mut tensors = raw_tensors(&config);
    tensors.push(RawTensor::f32("model.layers.0.self_attn.slope_rate", &[4, 1, 1], &[0.5; 4]));
    let directory = write_raw(&config, &tensors);
    assert_refused(directory.path(), &["model.layers.0.self_attn.slope_rate", "no part"]);
}

#[test]
fn a_shard_cut_short_names_the_tensor_and_the_file() {
    let directory = small_checkpoint(&small_config(Dialect::MiniMaxM1));
    let shard = directory.path().join("model-00002-of-00006.safetensors");
    let bytes = fs::read(&shard).unwrap();
    for length in [bytes.len() - 1, bytes.len() / 2] {
        fs::write(&shard, &bytes[..length]).unwrap();
        assert_refused(
            directory.path(),
            &["model-00002-of-00006.safetensors", "cut short: tensor `model.layers."],
        );
    }
    fs::write(&shard, &bytes[..50]).unwrap();
    assert_refused(directory.path(), &["model-00002-of-00006.safetensors", "cut short: its header"]);
    fs::write(&shard, b"").unwrap();
    assert_refused(directory.path(), &["model-00002-of-00006.safetensors", "0 bytes"]);
    fs::remove_file(&shard).unwrap();
    assert_refused(directory.path(), &["cannot read", "model-00002-of-00006.safetensors"]);
}

#[test]
fn an_index_that_disagrees_with_its_shards_names_tensor_and_file() {
    let directory = small_checkpoint(&small_config(Dialect::MiniMaxM1));
    let index = directory.path().join("model.safetensors.index.json");
    let original = read_json(&index);
    let write = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let mut changed = original.clone();
        change(changed["weight_map"].as_object_mut().unwrap());
        fs::write(&index, changed.to_string()).unwrap();
    };
    let embedding = "model.embed_tokens.weight";

    write(&|map| drop(map.insert(embedding.into(), json!("model-00002-of-00006.safetensors"))));
    assert_refused(directory.path(), &[embedding, "model-00002-of-00006.safetensors", "by the index"]);

    write(&|map| drop(map.insert("ghost".into(), json!("model-00001-of-00006.safetensors"))));
    assert_refused(directory.path(), &["ghost", "model-00001-of-00006.safetensors", "by the index"]);

    write(&|map| drop(map.remove(embedding)));
    assert_refused(directory.path(), &[embedding, "not listed", "model-00001-of-00006.safetensors"]);

    for escape in ["../model.safetensors", "/etc/passwd", ""] {
        write(&|map| drop(map.insert(embedding.into(), json!(escape))));
        assert_refused(directory.path(), &["leads out of the directory", "index.json"]);
    }

    write(&|map| drop(map.insert(embedding.into(), json!(3))));
    assert_refused(directory.path(), &[embedding, "index.json"]);

    let twice = r#"{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}"#;
    for (text, said) in [("{}", "weight_map"), (r#"{"weight_map": {}}"#, "no tensor"), (twice, "twice")] {
        fs::write(&index, text).unwrap();
        assert_refused(directory.path(), &[said, "index.json"]);
    }
    fs::remove_file(&index).unwrap();
    assert_refused(directory.path(), &["holds no weights"]);
}

#[test]
fn a_tensor_in_two_shards_names_both() {
    let config = small_config(Dialect::MiniMaxM1);
    let tensors = raw_tensors(&config);
    let directory = write_raw(&config, &tensors);
    fs::remove_file(directory.path().join("model.safetensors")).unwrap();
    fs::write(directory.path().join("a.safetensors"), raw_file(&tensors[..10])).unwrap();
    fs::write(directory.path().join("b.safetensors"), raw_file(&tensors[9..])).unwrap();
    let map: serde_json::Map<_, _> = tensors
        .iter()
        .enumerate()
        .map(|(i, t)| (t.name.clone(), json!(if i < 10 { "a.safetensors" } else { "b.safetensors" })))
        .collect();
    let index = json!({ "weight_map": map }).to_string();
    fs::write(directory.path().join("model.safetensors.index.json"), index).unwrap();
    assert_refused(directory.path(), &[&tensors[9].name, "a.safetensors", "b.safetensors"]);
}

#[test]
fn fused_experts_of_the_transformers_dialect_are_the_same_as_single_ones() {
    let config = small_config(Dialect::MiniMax);
    let tensors = raw_tensors(&config);
    let single = write_raw(&config, &tensors);
    let mut fused: Vec<RawTensor> =
        tensors.iter().filter(|tensor| !tensor.name.contains("block_sparse_moe")).cloned().collect();
    let data = |name: String| tensors.iter().find(|tensor| tensor.name == name).unwrap().data.clone();
    for layer in 0..config.num_layers {
        let old = format!("model.layers.{layer}.block_sparse_moe");
        let new = format!("model.layers.{layer}.mlp");
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for expert in 0..config.num_experts {
            gate_up.extend(data(format!("{old}.experts.{expert}.w1.weight")));
            gate_up.extend(data(format!("{old}.experts.{expert}.w3.weight")));
            down.extend(data(format!("{old}.experts.{expert}.w2.weight")));
        }
        let tensor = |name: &str, shape: &[usize], data| RawTensor {
            name: format!("{new}.{name}"),
            dtype: "F32",
            shape: shape.to_vec(),
            data,
        };
        let (experts, inner, hidden) = (config.num_experts, config.intermediate_size, config.hidden_size);
        fused.push(tensor("experts.gate_up_proj", &[experts, 2 * inner, hidden], gate_up));
        fused.push(tensor("experts.down_proj", &[experts, hidden, inner], down));
        fused.push(tensor("gate.weight", &[experts, hidden], data(format!("{old}.gate.weight"))));
    }
    let directory = write_raw(&config, &fused);
    let (single, fused_checkpoint) =
        (Checkpoint::open(single.path()).unwrap(), Checkpoint::open(directory.path()).unwrap());
    for param in Param::all(&config) {
        let (expected, found) = (single.param(param).unwrap(), fused_checkpoint.param(param).unwrap());
        assert_eq!([found.rows, found.cols], [expected.rows, expected.cols]);
        assert_eq!(found.data, expected.data, "{param:?}");
    }

    let transposed = fused.iter().cloned().map(|mut tensor| {
        if tensor.name.ends_with("gate_up_proj") {
            tensor.shape.swap(1, 2);
        }
        tensor
    });
    let directory = write_raw(&config, &transposed.collect::<Vec<_>>());
    assert_refused(directory.path(), &["mlp.experts.gate_up_proj", "[3, 16, 24]", "[3, 24, 16]"]);
}

#[test]
fn the_shared_mlp_takes_its_width_from_its_tensors() {
    let stored = SharedWidth { tensors: 12, config: 20 }.open().unwrap();
    assert_eq!(stored.config().shared_intermediate_size, 12);
    let down = stored.param(Param::Layer(1, LayerParam::SharedDown)).unwrap();
    assert_eq!([down.rows, down.cols], [16, 12]);
    let coefficient = stored.param(Param::Layer(0, LayerParam::SharedCoefficient)).unwrap();
    assert_eq!([coefficient.rows, coefficient.cols], [1, 16]);
}

#[test]
fn shared_mlps_of_unequal_width_are_misshapen() {
    let config = crate::support::SynthShape { shared_intermediate: 12, ..small_shape(Dialect::MiniMaxM1) };
    let config = config.config().unwrap();
    let mut tensors = raw_tensors(&config);
    let name = "model.layers.1.shared_mlp.up_proj.weight";
    let tensor = tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
    *tensor = RawTensor::f32(name, &[10, 16], &[0.0; 160]);
    let directory = write_raw(&config, &tensors);
    assert_refused(directory.path(), &[name, "[10, 16]", "[12, 16]"]);
}

/// A checkpoint whose configuration states another width of the shared MLP than its tensors have.
struct SharedWidth {
    tensors: usize,
    config: usize,
}

impl SharedWidth {
    fn open(&self) -> Result<Checkpoint, String> {
        let shape = |shared_intermediate| crate::support::SynthShape {
            shared_intermediate,
            ..small_shape(Dialect::MiniMaxText01)
        };
        let tensors = raw_tensors(&shape(self.tensors).config().unwrap());
        let directory = write_raw(&shape(self.config).config().unwrap(), &tensors);
        Checkpoint::open(directory.path()).map_err(|error| error.to_string())
    }
}

#[test]
fn a_plain_mlp_stands_where_there_is_one_expert() {
    let shape =
        crate::support::SynthShape { experts: 1, experts_per_token: 1, ..small_shape(Dialect::MiniMaxM1) };
    let checkpoint_dir = small_checkpoint(&shape.config().unwrap());
    let checkpoint = Checkpoint::open(checkpoint_dir.path()).unwrap();
    let gate = checkpoint.param(Param::Layer(0, LayerParam::ExpertGate(0))).unwrap();
    assert_eq!(gate.name, "model.layers.0.mlp.gate_proj.weight");
    let error = checkpoint.param(Param::Layer(0, LayerParam::Router)).unwrap_err().to_string();
    assert!(error.contains("Router"), "{error}");
}

#[test]
fn a_tied_head_is_the_embedding_and_a_stored_one_must_equal_it() {
    let shape = crate::support::SynthShape { tie_embeddings: true, ..small_shape(Dialect::MiniMaxM1) };
    let config = shape.config().unwrap();
    let mut tensors = raw_tensors(&config);
    assert!(tensors.iter().all(|tensor| tensor.name != "lm_head.weight"));
    let directory = write_raw(&config, &tensors);
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let head = checkpoint.param(Param::Head).unwrap();
    assert_eq!(head.data, checkpoint.param(Param::Embedding).unwrap().data);

    tensors.push(RawTensor { name: "lm_head.weight".into(), ..tensors[0].clone() });
    assert!(Checkpoint::open(write_raw(&config, &tensors).path()).is_ok());
    tensors.last_mut().unwrap().data[0] ^= 1;
    let directory = write_raw(&config, &tensors);
    assert_refused(directory.path(), &["lm_head.weight", "tie_word_embeddings", "model.safetensors"]);
}

#[test]
fn released_weights_read_the_same_again() {
    let checkpoint = Checkpoint::open(&golden(GOLDEN[0])).unwrap();
    let param = Param::Layer(3, LayerParam::LightningQkv);
    let before = checkpoint.param(param).unwrap().to_f32();
    checkpoint.release(param);
    checkpoint.release(Param::Layer(99, LayerParam::Query));
    assert_eq!(checkpoint.param(param).unwrap().to_f32(), before);
}

#[test]
fn a_directory_without_weights_or_in_place_of_a_file_is_named() {
    let config = small_config(Dialect::MiniMaxM1);
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("config.json"), config.to_json().to_string()).unwrap();
    assert_refused(directory.path(), &["holds no weights"]);
    fs::create_dir(directory.path().join("model.safetensors")).unwrap();
    assert_refused(directory.path(), &["cannot read", "model.safetensors"]);
}

/// The files of a directory, for as long as the tests run.
fn in_memory(directory: &Path) -> Vec<StaticFile> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let name = |entry: &fs::DirEntry| &*entry.file_name().into_string().unwrap().leak();
    entries.map(|entry| (name(&entry), &*fs::read(entry.path()).unwrap().leak())).collect()
}

#[test]
fn a_checkpoint_in_memory_is_that_of_its_directory() {
    // In several shards with an index, and in a single file.
    let config = small_config(Dialect::MiniMaxM1);
    let (sharded, single) = (small_checkpoint(&config), write_raw(&config, &raw_tensors(&config)));
    assert!(Checkpoint::open(sharded.path()).unwrap().shard_count() > 1);
    for directory in [sharded, single] {
        fs::write(directory.path().join("generation_config.json"), r#"{"eos_token_id": [7]}"#).unwrap();
        let there = Checkpoint::open(directory.path()).unwrap();
        let here = Checkpoint::from_static(Path::new("here"), in_memory(directory.path()).leak()).unwrap();
        assert_eq!(here.config(), there.config());
        assert_eq!(here.config().eos_token_ids, [7]);
        assert_eq!(here.shard_count(), there.shard_count());
        for param in Param::all(&config) {
            here.release(param);
            assert_eq!(here.param(param).unwrap().data, there.param(param).unwrap().data);
        }
    }
}

#[test]
fn a_checkpoint_in_memory_is_checked_like_one_in_a_directory() {
    let directory = small_checkpoint(&small_config(Dialect::MiniMaxM1));
    let open = |files: Vec<StaticFile>| {
        let opened = Checkpoint::from_static(Path::new("here"), files.leak());
        opened.err().expect("should be refused").to_string()
    };
    let without = |name: &str| {
        let files = in_memory(directory.path()).into_iter();
        open(files.filter(|(file, _)| *file != name).collect())
    };
    let index = "model.safetensors.index.json";
    assert!(without("config.json").starts_with("cannot read here/config.json"));
    assert!(without(index).contains("here holds no weights"));
    let mut files = in_memory(directory.path());
    let shard = files.iter_mut().find(|(name, _)| name.ends_with(".safetensors")).unwrap();
    let name = shard.0;
    assert!(without(name).starts_with(&format!("cannot read here/{name}")));
    shard.1 = &shard.1[..shard.1.len() - 1];
    assert!(open(files).contains("cut short"));
}
