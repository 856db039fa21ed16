//! Adapters in place of whole parameters: their base, their places in the model, and how a step brings them into it.

use std::collections::HashMap;

use arges_kernels::adamw::cuda::{AdamWCuda, Weights};
use arges_kernels::adapter::cuda::{AdaptedMatrix, Adapter, AdaptersCuda, Step};
use arges_kernels::device::cuda::{Buffer, CudaError};
use arges_kernels::matmul::Element;
use arges_kernels::matmul::cuda::{DeviceMatrix, ProductGradients, Products};

use super::matrix::Matrix;
use crate::config::Config;
use crate::dtype::DType;
use crate::model::cuda::{Attention, CudaModel, Layer};
use crate::model::source::WeightSource;
use crate::params::Param;
use crate::training::lora::Lora;
use crate::training::{TrainingError, TrainingPlan};

/// What a trainer holds of adapters beside their values.
pub(super) struct Adapters {
    kernels: AdaptersCuda,
    /// Number of each adapted matrix in the order of layers.
    numbers: HashMap<(usize, Matrix), usize>,
    first_layer: usize,
    /// The values that the model was made of last.
    merged: Buffer<f32>,
    /// Sums of gradients by norms, which do not learn.
    unread: Buffer<f32>,
}

impl Adapters {
    /// Brings a base into a new model, and its adapted matrices to their place beside it.
    pub(super) fn new(
        lora: &Lora,
        model: &mut CudaModel,
        plan: TrainingPlan,
        values: usize,
    ) -> Result<Self, TrainingError> {
        model.copy_from(lora.base(), &|param| !lora.adapts(param), &mut |_| {})?;
        let (config, cuda) = (&model.config, &model.cuda);
        let (mut numbers, mut matrices, mut params) = (HashMap::new(), Vec::new(), Vec::new());
        for (index, layer) in model.layers.iter_mut().enumerate() {
            for (which, matrix) in of_layer(layer) {
                let adapted = adapted(lora, config, (index, which), matrix, plan)?;
                if let Some((matrix, its_params)) = adapted {
                    numbers.insert((index, which), matrices.len());
                    matrices.push(matrix);
                    params.push(its_params);
                }
            }
        }
        let first_layer = numbers.keys().map(|(layer, _)| *layer).min().unwrap_or(0);
        let element = model.head.element();
        let mut kernels = AdaptersCuda::new(cuda, element, lora.rank(), lora.scale(), &matrices)?;
        for (matrix, params) in params.iter().enumerate() {
            for (adapter, param) in params.iter().enumerate() {
                let mut written = Ok(());
                lora.base().show(*param, &mut |base| written = kernels.write_base(matrix, adapter, base))?;
                written?;
            }
        }
        let unread = config.hidden_size.max(config.query_width());
        Ok(Self {
            kernels,
            numbers,
            first_layer,
            merged: Buffer::zeroed(cuda, values)?,
            unread: Buffer::zeroed(cuda, unread)?,
        })
    }

    /// The lowest layer that has adapters.
    pub(super) fn first_layer(&self) -> usize {
        self.first_layer
    }

    /// Takes sums that nobody reads.
    pub(super) fn unread(&mut self) -> &mut Buffer<f32> {
        &mut self.unread
    }

    /// Adds the gradients of a matrix's adapters, if it has some.
    pub(super) fn add(
        &mut self,
        matrix: (usize, Matrix),
        step: &Step<'_>,
        products: &Products,
        by_weights: &mut ProductGradients,
        gradients: &mut Buffer<f32>,
        fresh: bool,
    ) -> Result<(), CudaError> {
        match self.numbers.get(&matrix) {
            Some(number) => self.kernels.accumulate(*number, step, products, by_weights, gradients, fresh),
            None => Ok(()),
        }
    }

    /// What values become before [`Adapters::merge`].
    pub(super) fn weights(&mut self) -> Weights<'_> {
        let mut weights = Weights::default();
        weights.add_vector(&mut self.merged, 0);
        weights
    }

    /// Makes the adapted weights of a model from the values.
    pub(super) fn publish(
        &mut self,
        model: &mut CudaModel,
        values: &Buffer<f32>,
        kernels: &mut AdamWCuda,
    ) -> Result<(), CudaError> {
        kernels.pack(values, &self.weights())?;
        self.merge(model)
    }

    /// Makes them from the values as they were brought here last.
    pub(super) fn merge(&mut self, model: &mut CudaModel) -> Result<(), CudaError> {
        let Self { kernels, numbers, merged, .. } = self;
        let numbers = &*numbers;
        let matrices = model.layers.iter_mut().enumerate().flat_map(|(index, layer)| {
            let adapted = move |(which, _): &(Matrix, _)| numbers.contains_key(&(index, *which));
            of_layer(layer).filter(adapted).map(|(_, matrix)| matrix)
        });
        kernels.merge(merged, &mut matrices.collect::<Vec<_>>())
    }

    pub(super) fn bytes(&self) -> usize {
        self.kernels.bytes() + self.merged.bytes() + self.unread.bytes()
    }
}

/// The matrices of a layer, in the order of [`Matrix::ALL`].
fn of_layer(layer: &mut Layer) -> impl Iterator<Item = (Matrix, &mut DeviceMatrix)> {
    let (projections, out) = match &mut layer.attention {
        Attention::Lightning { qkv_gate, out, .. } => (qkv_gate, out),
        Attention::Softmax { qkv, out, .. } => (qkv, out),
    };
    let (gate_up, down) = (&mut layer.experts.gate_up, &mut layer.experts.down);
    let shared = layer.shared.as_mut().map(|shared| [&mut shared.gate_up, &mut shared.down]);
    Matrix::ALL
        .into_iter()
        .zip([projections, out, gate_up, down].into_iter().chain(shared.into_iter().flatten()))
}

/// A matrix as its adapters need it, with the parameter of each; none without adapters.
fn adapted(
    lora: &Lora,
    config: &Config,
    (layer, which): (usize, Matrix),
    matrix: &DeviceMatrix,
    plan: TrainingPlan,
) -> Result<Option<(AdaptedMatrix, Vec<Param>)>, TrainingError> {
    let (mut adapters, mut params) = (Vec::new(), Vec::new());
    for expert in 0..matrix.experts() {
        let mut first = 0;
        for param in which.params(config, layer, expert) {
            let rows = first..first + param.shape(config)[0];
            first = rows.end;
            let Some([a, b]) = lora.places(param) else { continue };
            let rounded = lora.base().dtype(param)? == DType::Bf16;
            let base = if rounded { Element::Bf16 } else { Element::F32 };
            adapters.push(Adapter { expert, rows, a, b, base });
            params.push(param);
        }
    }
    let choices = if which.is_experts() && config.has_router() { config.experts_per_token } else { 1 };
    let matrix = AdaptedMatrix {
        experts: matrix.experts(),
        outputs: matrix.outputs(),
        k: matrix.k(),
        gated: which.is_gated(),
        most_rows: plan.max_tokens.max(1) * choices,
        adapters,
    };
    Ok((!params.is_empty()).then_some((matrix, params)))
}
