//! Golden files and a small driver of the model.
#![allow(dead_code)] // Each test file uses a part.

pub mod training;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arges_kernels::device::cpu::{Cpu, CpuOptions, Isa};
use arges_kernels::matmul::Compute;
use arges_model::model::Stage;
use arges_model::{
    Batch, Cache, CachePlan, Checkpoint, LoadOptions, LogitRows, Model, SequenceId, Workspace, WorkspacePlan,
};
use safetensors::SafeTensors;

/// Where the golden data of a model lie.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A file of golden tensors.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(model: &str, file: &str) -> Self {
        let path = data(model).join(format!("{file}.safetensors"));
        Self(std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn words(&self, key: &str) -> Vec<[u8; 4]> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        let bytes = tensors.tensor(key).unwrap_or_else(|error| panic!("{key}: {error}")).data();
        bytes.chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    }

    pub fn f32(&self, key: &str) -> Vec<f32> {
        self.words(key).into_iter().map(f32::from_le_bytes).collect()
    }

    pub fn tokens(&self, key: &str) -> Vec<u32> {
        self.words(key).into_iter().map(|word| i32::from_le_bytes(word).cast_unsigned()).collect()
    }

    pub fn has(&self, key: &str) -> bool {
        SafeTensors::deserialize(&self.0).unwrap().tensor(key).is_ok()
    }

    pub fn len(&self) -> usize {
        SafeTensors::deserialize(&self.0).unwrap().len()
    }
}

pub struct GreedyCase {
    pub prompt: Vec<u32>,
    pub tokens: Vec<u32>,
}

pub fn greedy_cases(model: &str, file: &str) -> Vec<GreedyCase> {
    let text = std::fs::read_to_string(data(model).join(format!("{file}.json"))).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let ids = |value: &serde_json::Value| serde_json::from_value(value.clone()).unwrap();
    cases
        .iter()
        .map(|case| GreedyCase { prompt: ids(&case["prompt"]), tokens: ids(&case["tokens"]) })
        .collect()
}

/// A loaded model with room for a few sequences.
pub struct Runner {
    pub model: Model,
    pub cache: Cache,
    pub workspace: Workspace,
}

impl Runner {
    pub fn new(checkpoint: &Path, compute: Compute, isa: Option<Isa>) -> Self {
        let cpu = Arc::new(Cpu::new(CpuOptions { threads: Some(2), isa }).unwrap());
        let checkpoint = Checkpoint::open(checkpoint).unwrap();
        let model = Model::load(&checkpoint, LoadOptions { compute }, cpu, &mut |_| {}).unwrap();
        let cache = Cache::new(&model, CachePlan { max_sequences: 20, max_tokens: 8192 }).unwrap();
        let plan = WorkspacePlan { max_tokens: 2048, max_logit_rows: 2048 };
        let workspace = Workspace::new(&model, plan);
        Self { model, cache, workspace }
    }

    /// Reserves pages and runs a batch.
    pub fn step(&mut self, batch: &Batch) -> Vec<f32> {
        for span in &batch.spans {
            let length = self.cache.length(span.sequence) + span.tokens.len();
            self.cache.reserve(span.sequence, length).unwrap();
        }
        self.model.forward(batch, &mut self.cache, &mut self.workspace).unwrap().to_vec()
    }

    /// Logits of every token of a prompt, in one step.
    pub fn logits(&mut self, tokens: &[u32]) -> Vec<f32> {
        let sequence = self.cache.open().unwrap();
        let mut batch = Batch::new();
        batch.push(sequence, tokens, LogitRows::All);
        let logits = self.step(&batch);
        self.cache.close(sequence);
        logits
    }

    /// Runs a prompt in pieces of the given sizes, in turn, and leaves the sequence open.
    pub fn prefill(&mut self, tokens: &[u32], pieces: &[usize]) -> SequenceId {
        let sequence = self.cache.open().unwrap();
        let mut sizes = pieces.iter().cycle();
        let mut done = 0;
        while done < tokens.len() {
            let size = (*sizes.next().unwrap()).min(tokens.len() - done);
            let mut batch = Batch::new();
            batch.push(sequence, &tokens[done..done + size], LogitRows::None);
            self.step(&batch);
            done += size;
        }
        sequence
    }

    pub fn observe(&mut self, tokens: &[u32], mut observe: impl FnMut(Stage, &[f32])) {
        let sequence = self.cache.open().unwrap();
        let mut batch = Batch::new();
        batch.push(sequence, tokens, LogitRows::All);
        self.cache.reserve(sequence, tokens.len()).unwrap();
        let (cache, workspace) = (&mut self.cache, &mut self.workspace);
        self.model.forward_observed(&batch, cache, workspace, &mut observe).unwrap();
        self.cache.close(sequence);
    }
}

pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}
