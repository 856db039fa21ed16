//! Low-rank adapters (Hu et al., "LoRA", 2021): `W' = W + (alpha / rank) B A`, where only `A` `[rank, inputs]`
//! and `B` `[outputs, rank]` learn.
//!
//! The model always computes with the merged `W'`, so that what is trained, served and saved is one thing:
//! an adapter costs no product of its own in the forward pass, and merging changes no logit. The gradients are
//! those of `W'`, made for one matrix at a time and projected at once: `dA = s B^T dW'`, `dB = s dW' A^T`. The
//! base stays in its checkpoint, without gradients or optimizer state.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arges_kernels::device::cpu::Cpu;
use arges_kernels::matmul::{
    Columns, Compute, Element, Output, PackedMatrix, PackedRows, RowMajor, Segment, Stored, WeightGradient,
    matmul,
};
use serde::{Deserialize, Serialize};

use super::{TrainableTensor, TrainingError};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::dtype::DType;
use crate::model::source::row_major;
use crate::params::{LayerParam, Param};
use crate::synth;

/// Which matrices get adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraTarget {
    /// Lightning attention's query, key and value.
    LightningQkv,
    /// Lightning attention's output gate.
    LightningGate,
    /// Lightning attention's output projection.
    LightningOut,
    /// Softmax attention's query.
    Query,
    /// Softmax attention's key.
    Key,
    /// Softmax attention's value.
    Value,
    /// Softmax attention's output projection.
    Output,
    /// Gates of the experts (`w1`) and of the shared MLP.
    ExpertGate,
    /// Up projections of the experts (`w3`) and of the shared MLP.
    ExpertUp,
    /// Down projections of the experts (`w2`) and of the shared MLP.
    ExpertDown,
}

impl LoraTarget {
    /// Every one.
    pub const ALL: [Self; 10] = [
        Self::LightningQkv,
        Self::LightningGate,
        Self::LightningOut,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Output,
        Self::ExpertGate,
        Self::ExpertUp,
        Self::ExpertDown,
    ];

    fn of(param: Param) -> Option<Self> {
        use LayerParam as P;
        let Param::Layer(_, param) = param else { return None };
        Some(match param {
            P::LightningQkv => Self::LightningQkv,
            P::LightningGate => Self::LightningGate,
            P::LightningOut => Self::LightningOut,
            P::Query => Self::Query,
            P::Key => Self::Key,
            P::Value => Self::Value,
            P::Output => Self::Output,
            P::ExpertGate(_) | P::SharedGate => Self::ExpertGate,
            P::ExpertUp(_) | P::SharedUp => Self::ExpertUp,
            P::ExpertDown(_) | P::SharedDown => Self::ExpertDown,
            P::InputNorm | P::PostAttentionNorm | P::LightningNorm | P::Router | P::SharedCoefficient => {
                return None;
            }
        })
    }
}

/// How to adapt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraOptions {
    /// Inner dimension of the adapters.
    pub rank: usize,
    /// Numerator of the scale `alpha / rank`.
    pub alpha: f32,
    /// The matrices that get adapters.
    pub targets: Vec<LoraTarget>,
    /// The layers that get adapters; all when absent.
    #[serde(default)]
    pub layers: Option<Vec<usize>>,
    /// The experts that get adapters; all when absent. A shared MLP is adapted whatever stands here.
    #[serde(default)]
    pub experts: Option<Vec<usize>>,
}

impl LoraOptions {
    fn wants(&self, param: Param) -> bool {
        use LayerParam::{ExpertDown, ExpertGate, ExpertUp};
        let (Param::Layer(layer, kind), Some(target)) = (param, LoraTarget::of(param)) else { return false };
        let expert = match kind {
            ExpertGate(e) | ExpertUp(e) | ExpertDown(e) => Some(e),
            _ => None,
        };
        let listed = |list: &Option<Vec<usize>>, i: usize| list.as_ref().is_none_or(|list| list.contains(&i));
        self.targets.contains(&target)
            && listed(&self.layers, layer)
            && expert.is_none_or(|expert| listed(&self.experts, expert))
    }
}

/// Where the two matrices of an adapter lie among the values.
#[derive(Clone)]
struct Adapter {
    a: Range<usize>,
    b: Range<usize>,
}

pub(super) struct Lora {
    base: Arc<Checkpoint>,
    rank: usize,
    scale: f32,
    adapters: HashMap<Param, Adapter>,
    /// Gradient of one merged matrix, and its packed form.
    scratch: Option<Scratch>,
}

struct Scratch {
    gradient: Vec<f32>,
    product: WeightGradient,
}

impl Lora {
    pub(super) fn new(
        base: Arc<Checkpoint>,
        options: &LoraOptions,
    ) -> Result<(Self, Vec<TrainableTensor>), TrainingError> {
        let config = base.config();
        if options.rank == 0 {
            return Err(TrainingError::Lora { reason: "the rank is 0".into() });
        }
        let beyond =
            |list: &Option<Vec<usize>>, count| list.iter().flatten().copied().find(|index| *index >= count);
        if let Some(layer) = beyond(&options.layers, config.num_layers) {
            let reason = format!("there is no layer {layer}, the model has {}", config.num_layers);
            return Err(TrainingError::Lora { reason });
        }
        if let Some(expert) = beyond(&options.experts, config.num_experts) {
            let reason = format!("there is no expert {expert}, a layer has {}", config.num_experts);
            return Err(TrainingError::Lora { reason });
        }
        let (mut tensors, mut adapters, mut end) = (Vec::new(), HashMap::new(), 0);
        for param in Param::all(config).filter(|param| options.wants(*param)) {
            let [rows, cols] = param.shape(config);
            let name = param.name(config);
            let stem = name.strip_suffix(".weight").unwrap_or(&name);
            let mut add = |letter: &str, shape: [usize; 2]| {
                let range = end..end + shape[0] * shape[1];
                end = range.end;
                let name = format!("{stem}.lora_{letter}.weight");
                tensors.push(TrainableTensor {
                    name,
                    shape: shape.into(),
                    range: range.clone(),
                    decay: true,
                });
                range
            };
            let adapter = Adapter { a: add("A", [options.rank, cols]), b: add("B", [rows, options.rank]) };
            adapters.insert(param, adapter);
        }
        if tensors.is_empty() {
            return Err(TrainingError::Lora { reason: "no matrix of the model is among the targets".into() });
        }
        let scale = options.alpha / options.rank as f32;
        Ok((Self { base, rank: options.rank, scale, adapters, scratch: None }, tensors))
    }

    /// `A` normal with deviation `1 / sqrt(inputs)`, `B` zero: the merged model begins as the base.
    pub(super) fn initialize(&self, tensors: &[TrainableTensor], seed: u64, values: &mut [f32]) {
        for tensor in tensors.iter().filter(|tensor| tensor.name.ends_with(".lora_A.weight")) {
            let deviation = (tensor.shape[1] as f32).sqrt().recip();
            synth::fill_normal(seed, &tensor.name, deviation, &mut values[tensor.range.clone()]);
        }
    }

    pub(super) fn adapts(&self, param: Param) -> bool {
        self.adapters.contains_key(&param)
    }

    pub(super) fn base_bytes(&self) -> usize {
        self.base.weight_bytes()
    }

    /// What is adapted.
    pub(super) fn base(&self) -> &Checkpoint {
        &self.base
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    /// `alpha / rank`.
    pub(super) fn scale(&self) -> f32 {
        self.scale
    }

    /// Where `A` and `B` of a parameter lie among the values, if it has them.
    pub(super) fn places(&self, param: Param) -> Option<[usize; 2]> {
        self.adapters.get(&param).map(|adapter| [adapter.a.start, adapter.b.start])
    }

    /// A merged matrix is f32, as its sum is; and so are the others, as the backward pass takes all alike.
    pub(super) fn dtype(&self, param: Param) -> Result<DType, CheckpointError> {
        self.base.param(param).map(|_| DType::F32)
    }

    /// Shows the base's parameter, or the merged one where it is adapted.
    pub(super) fn show(
        &self,
        cpu: &Cpu,
        param: Param,
        values: &[f32],
        take: &mut dyn FnMut(RowMajor<'_>),
    ) -> Result<(), CheckpointError> {
        let view = self.base.param(param)?;
        match self.adapters.get(&param) {
            None => take(row_major(&view)),
            Some(adapter) => {
                let mut merged = view.to_f32();
                self.merge(
                    cpu,
                    &values[adapter.a.clone()],
                    &values[adapter.b.clone()],
                    view.cols,
                    &mut merged,
                );
                let data = bytemuck::cast_slice(&merged);
                take(RowMajor { stored: Stored::F32, rows: view.rows, cols: view.cols, data });
            }
        }
        self.base.release(param);
        Ok(())
    }

    /// `merged[N, K] += scale * B[N, r] A[r, K]`.
    fn merge(&self, cpu: &Cpu, a: &[f32], b: &[f32], cols: usize, merged: &mut [f32]) {
        let rank = self.rank;
        let rows = b.len() / rank;
        let a = PackedMatrix::pack(cpu, f32_rows(a, rank, cols), Element::F32);
        let mut transposed = PackedMatrix::zeroed(cols, rank, Element::F32);
        transposed.set_transposed(cpu, &a);
        let b: Vec<f32> = b.iter().map(|b| b * self.scale).collect();
        let mut packed = PackedRows::new(cpu, Compute::F32, rows, rank);
        let segment = Segment::all(rows);
        packed.pack(cpu, &b, rank, &segment, |row| row);
        matmul(cpu, &packed, &segment, std::slice::from_ref(&transposed), Output::Add(merged));
    }

    /// Projects the gradient of the merged matrix that `add` makes onto the adapter.
    pub(super) fn accumulate(
        &mut self,
        cpu: &Cpu,
        param: Param,
        values: &[f32],
        gradients: &mut [f32],
        add: impl FnOnce(&mut [f32]),
    ) {
        let Some(adapter) = self.adapters.get(&param).cloned() else { return };
        let [rows, cols] = param.shape(self.base.config());
        let scratch = self.scratch.get_or_insert_with(|| Scratch {
            gradient: Vec::new(),
            product: WeightGradient::new(cpu, Compute::F32),
        });
        scratch.gradient.clear();
        scratch.gradient.resize(rows * cols, 0.0);
        add(&mut scratch.gradient);
        for value in &mut scratch.gradient {
            *value *= self.scale;
        }
        // dA[r, K] += B^T dW: rows of both are the outputs of W.
        let b = &values[adapter.b.clone()];
        scratch.product.set_inputs(cpu, Columns::all(&scratch.gradient, cols, rows));
        scratch.product.add(cpu, Columns::all(b, self.rank, rows), &mut gradients[adapter.a.clone()]);
        // dB[N, r] += dW A^T.
        let a = PackedMatrix::pack(cpu, f32_rows(&values[adapter.a], self.rank, cols), Element::F32);
        let mut packed = PackedRows::new(cpu, Compute::F32, rows, cols);
        let segment = Segment::all(rows);
        packed.pack(cpu, &scratch.gradient, cols, &segment, |row| row);
        matmul(cpu, &packed, &segment, std::slice::from_ref(&a), Output::Add(&mut gradients[adapter.b]));
    }
}

fn f32_rows(data: &[f32], rows: usize, cols: usize) -> RowMajor<'_> {
    RowMajor { stored: Stored::F32, rows, cols, data: bytemuck::cast_slice(data) }
}
