//! Small models to take apart.

use std::fs;
use std::path::{Path, PathBuf};

use arges_model::checkpoint::{CheckpointWriter, WriteOptions};
pub use arges_model::synth::SynthShape;
use arges_model::synth::{self, SynthOptions};
use arges_model::{Config, DType, Dialect};
use serde_json::Value;

/// The golden checkpoints of the repository.
pub const GOLDEN: [&str; 4] = ["tiny-m1/fp32", "tiny-m1/bf16", "tiny-text01/fp32", "tiny-minimax-hf/fp32"];

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// MiniMax-M1's own files, which are not part of the repository.
pub fn m1_file(name: &str) -> Option<PathBuf> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/m1").join(name);
    if !file.exists() {
        println!("skipped: {} is absent", file.display());
        return None;
    }
    Some(file)
}

pub fn json(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// A model of a few kilobytes.
pub fn small_shape(dialect: Dialect) -> SynthShape {
    SynthShape {
        dialect,
        hidden: 16,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        rotary_dim: 4,
        softmax_every: 2,
        experts: 3,
        experts_per_token: 2,
        intermediate: 12,
        shared_intermediate: 0,
        vocab: 40,
        max_positions: 512,
        tie_embeddings: false,
    }
}

pub fn small_config(dialect: Dialect) -> Config {
    small_shape(dialect).config().unwrap()
}

/// A random checkpoint in a new directory.
pub fn small_checkpoint(config: &Config) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let options = SynthOptions { dtype: DType::F32, shard_bytes: 8 << 10, ..SynthOptions::default() };
    synth::write_checkpoint(config, directory.path(), &options, &mut |_| {}).unwrap();
    directory
}

/// A tensor of a hand-made safetensors file.
#[derive(Clone)]
pub struct RawTensor {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl RawTensor {
    pub fn f32(name: impl Into<String>, shape: &[usize], values: &[f32]) -> RawTensor {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        RawTensor { name: name.into(), dtype: "F32", shape: shape.to_vec(), data }
    }
}

/// Every parameter of a random model as a tensor of a file, to be changed at will.
pub fn raw_tensors(config: &Config) -> Vec<RawTensor> {
    let directory = small_checkpoint(config);
    let checkpoint = arges_model::Checkpoint::open(directory.path()).unwrap();
    arges_model::Param::all(config)
        .map(|param| {
            let view = checkpoint.param(param).unwrap();
            RawTensor::f32(view.name, &param.tensor_shape(config), &view.to_f32())
        })
        .collect()
}

/// Writes `config.json` and one `model.safetensors` without any help of the crate's writer. The
/// header's length is odd, so that no tensor is aligned.
pub fn write_raw(config: &Config, tensors: &[RawTensor]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("config.json"), config.to_json().to_string()).unwrap();
    fs::write(directory.path().join("model.safetensors"), raw_file(tensors)).unwrap();
    directory
}

pub fn raw_file(tensors: &[RawTensor]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for tensor in tensors {
        let start = data.len();
        data.extend(&tensor.data);
        let offsets = [start, data.len()];
        let entry =
            serde_json::json!({ "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets });
        header.insert(tensor.name.clone(), entry);
    }
    let mut header = Value::Object(header).to_string();
    if header.len().is_multiple_of(2) {
        header.push(' ');
    }
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// A writer into that directory with every weight in f32.
pub fn f32_writer(config: &Config, directory: &Path, overwrite: bool) -> CheckpointWriter {
    let options = WriteOptions { shard_bytes: 8 << 10, overwrite };
    CheckpointWriter::create(directory, config, options, |_| DType::F32).unwrap()
}
