//! From the flat values on the device to the model's weights there.

use std::sync::Arc;

use arges_kernels::adamw::cuda::{AdamWCuda, Part, Weights};
use arges_kernels::device::cuda::{Activations, Buffer, CudaError};
use arges_kernels::matmul::cuda::{DeviceMatrix, GATE_GROUP};

use super::CudaTrainer;
use crate::dtype::DType;
use crate::model::cuda::{Attention, CudaModel, Layer};
use crate::params::{LayerParam, Param};
use crate::training::{Parameters, TrainingError};

impl CudaTrainer {
    /// Brings changed values into the model. Where others hold [`CudaTrainer::shared_model`], they keep the model as it
    /// was, and the trainer goes on with another one: that which was in use before, if they hold it no more. Two take
    /// turns so, however often weights change. After [`CudaTrainer::adamw`] there is nothing left to do.
    ///
    /// # Errors
    /// When the device fails, or has no room for a new model.
    pub fn publish(&mut self) -> Result<(), TrainingError> {
        if self.published {
            return Ok(());
        }
        self.own_model()?;
        let model = Arc::get_mut(&mut self.model).expect("nobody else holds it");
        match &mut self.adapters {
            None => pack(model, &self.parameters, &self.values, &mut self.adamw)?,
            Some(adapters) => adapters.publish(model, &self.values, &mut self.adamw)?,
        }
        self.published = true;
        Ok(())
    }

    /// Makes the model one that nobody else holds, whatever its weights are.
    pub(super) fn own_model(&mut self) -> Result<(), TrainingError> {
        if Arc::get_mut(&mut self.model).is_some() {
            return Ok(());
        }
        let free = self.before.take().filter(|model| Arc::strong_count(model) == 1);
        let other = match free {
            Some(model) => model,
            None => {
                let CudaModel { config, compute, cuda, .. } = &*self.model;
                let mut model = CudaModel::zeroed(config, *compute, &|_| Ok(DType::F32), cuda)?;
                if self.adapters.is_some() {
                    // What is not adapted is the same in both.
                    model.copy_weights(&self.model)?;
                }
                Arc::new(model)
            }
        };
        self.before = Some(std::mem::replace(&mut self.model, other));
        Ok(())
    }
}

/// Copies all values into a model of the same configuration.
pub(super) fn pack(
    model: &mut CudaModel,
    parameters: &Parameters,
    values: &Buffer<f32>,
    kernels: &mut AdamWCuda,
) -> Result<(), CudaError> {
    let (weights, tied) = weights(model, parameters);
    kernels.pack(values, &weights)?;
    kernels.pack(values, &tied)
}

/// What each value becomes in a model of the same configuration; and, apart, a head that is tied: its values become
/// rows of the embedding too.
pub(super) fn weights<'a>(model: &'a mut CudaModel, parameters: &Parameters) -> (Weights<'a>, Weights<'a>) {
    let CudaModel { config, embedding, layers, final_norm, head, .. } = model;
    let (mut weights, mut tied) = (Weights::default(), Weights::default());
    weights.add(embedding, [whole(parameters, Param::Embedding, [config.vocab_size, config.hidden_size])]);
    let owner = if config.tie_word_embeddings { &mut tied } else { &mut weights };
    matrix(owner, parameters, Param::Head, head);
    weights.add_vector(final_norm, parameters.place(Param::FinalNorm));
    for (index, layer) in layers.iter_mut().enumerate() {
        add_layer(&mut weights, parameters, index, layer);
    }
    (weights, tied)
}

/// A matrix that fills a buffer.
fn whole(parameters: &Parameters, first: Param, shape: [usize; 2]) -> Part {
    Part { from: parameters.place(first), shape, to: 0, in_turn: false }
}

/// A matrix whose parameters lie one behind the other, from `first` on.
fn matrix<'a>(weights: &mut Weights<'a>, parameters: &Parameters, first: Param, to: &'a mut DeviceMatrix) {
    let part = whole(parameters, first, [to.outputs(), to.k()]);
    weights.add(to.data_mut(), [part]);
}

/// Gates and ups of all of a matrix's experts in turn, and their down projections. `stride` values lie between one
/// expert and the next.
fn mlps<'a>(
    weights: &mut Weights<'a>,
    [gate, up, down]: [usize; 3],
    stride: usize,
    gate_up: &'a mut DeviceMatrix,
    downs: &'a mut DeviceMatrix,
) {
    let (experts, inner, hidden) = (gate_up.experts(), gate_up.outputs() / 2, gate_up.k());
    let gates_and_ups = (0..experts).flat_map(|expert| {
        [gate, up].into_iter().enumerate().map(move |(half, first)| Part {
            from: first + expert * stride,
            shape: [inner, hidden],
            to: (expert * 2 * inner + half * GATE_GROUP) * hidden,
            in_turn: true,
        })
    });
    weights.add(gate_up.data_mut(), gates_and_ups);
    let down = |expert| Part {
        from: down + expert * stride,
        shape: [hidden, inner],
        to: expert * hidden * inner,
        in_turn: false,
    };
    weights.add(downs.data_mut(), (0..experts).map(down));
}

fn add_layer<'a>(weights: &mut Weights<'a>, parameters: &Parameters, index: usize, layer: &'a mut Layer) {
    use LayerParam as P;
    let config = parameters.config();
    let param = |param| Param::Layer(index, param);
    let place = |param| parameters.place(Param::Layer(index, param));
    weights.add_vector(&mut layer.input_norm, place(P::InputNorm));
    match &mut layer.attention {
        Attention::Lightning { qkv_gate, norm, out, .. } => {
            matrix(weights, parameters, param(P::LightningQkv), qkv_gate);
            weights.add_vector(norm, place(P::LightningNorm));
            matrix(weights, parameters, param(P::LightningOut), out);
        }
        Attention::Softmax { qkv, out, .. } => {
            matrix(weights, parameters, param(P::Query), qkv);
            matrix(weights, parameters, param(P::Output), out);
        }
    }
    weights.add_vector(&mut layer.post_attention_norm, place(P::PostAttentionNorm));
    let exact = |weights: &mut Weights<'a>, first: Param, to: &'a mut Activations| {
        weights.add(to, [whole(parameters, first, first.shape(config))]);
    };
    if let Some(router) = &mut layer.experts.router {
        exact(weights, param(P::Router), router);
    }
    let first = place(P::ExpertGate(0));
    let stride = if config.num_experts > 1 { place(P::ExpertGate(1)) - first } else { 0 };
    let places = [first, place(P::ExpertUp(0)), place(P::ExpertDown(0))];
    mlps(weights, places, stride, &mut layer.experts.gate_up, &mut layer.experts.down);
    if let Some(shared) = &mut layer.shared {
        let places = [P::SharedGate, P::SharedUp, P::SharedDown].map(place);
        mlps(weights, places, 0, &mut shared.gate_up, &mut shared.down);
        exact(weights, param(P::SharedCoefficient), &mut shared.coefficient);
    }
}
