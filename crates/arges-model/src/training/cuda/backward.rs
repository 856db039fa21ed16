//! The backward pass from the head to the embedding.

use arges_kernels::device::cuda::CudaError;
use arges_kernels::norm::cuda::Past;

use super::CudaTrainer;
use super::adapters::Adapters;
use super::buffers::Buffers;
use crate::config::{Config, ResidualScale};
use crate::model::cuda::Attention;
use crate::model::cuda::forward::Shape;
use crate::params::Param;
use crate::training::{TargetWeights, TrainingBatch, TrainingError};

impl CudaTrainer {
    pub(super) fn backward(
        &mut self,
        batch: &TrainingBatch,
        shape: &Shape,
        weights: TargetWeights<'_>,
        balance: f32,
    ) -> Result<(), TrainingError> {
        if batch.tokens.is_empty() {
            return Ok(());
        }
        if self.fresh {
            self.clear_sums(!batch.targets.is_empty())?;
        }
        self.head(&batch.targets, Some(weights))?;
        let balanced = balance != 0.0 && self.model.config.has_router();
        if balanced {
            self.buffers.kernels.mixture.balance_slopes(&mut self.buffers.balance, balance)?;
        }
        let Buffers { kernels, dx, dbranch, .. } = &mut self.buffers;
        let (count, beta) = (shape.rows * self.model.config.hidden_size, self.model.config.mlp.beta);
        if let Some(dbranch) = dbranch {
            kernels.stream.scaled(dx.data(), count, beta, dbranch.data_mut())?;
        }
        // Below the first layer with adapters nothing learns.
        let first = self.adapters.as_ref().map_or(0, Adapters::first_layer);
        let mut weighed = false;
        for index in (first..self.model.layers.len()).rev() {
            if self.buffers.insides.is_none() {
                self.recompute_attention(index, shape)?;
            }
            self.buffers.exchange(index, &mut self.cache, &mut self.workspace);
            self.experts(index, shape.rows, balanced, weighed)?;
            weighed = index > first && self.buffers.keeps_choices();
            self.attention(index, shape, weighed)?;
            self.buffers.exchange(index, &mut self.cache, &mut self.workspace);
        }
        self.fresh = false;
        if self.adapters.is_none() {
            self.embedding()?;
        }
        Ok(())
    }

    /// Clears the gradients that nothing of a batch overwrites: those of the embedding, which rows are added to, and those
    /// of a head without targets. The others are products and sums of norms, which overwrite fresh ones.
    fn clear_sums(&mut self, has_targets: bool) -> Result<(), CudaError> {
        let Self { model, parameters, gradients, buffers, adapters, .. } = self;
        if adapters.is_some() {
            return Ok(());
        }
        let (config, kernels) = (&model.config, &mut buffers.kernels);
        kernels.products.squares_mut().clear();
        kernels.experts.squares_mut().clear();
        let is_cleared = |param: &Param| match param {
            Param::Head | Param::FinalNorm => !has_targets,
            // A tied head's product overwrites it first.
            Param::Embedding => !config.tie_word_embeddings || !has_targets,
            Param::Layer(..) => false,
        };
        Param::all(config)
            .filter(is_cleared)
            .try_for_each(|param| gradients.clear_range(parameters.place(param), param.elements(config)))
    }

    /// Sums the rows of each token in their order.
    fn embedding(&mut self) -> Result<(), CudaError> {
        let Self { model, buffers, gradients, parameters, .. } = self;
        let table = parameters.place(Param::Embedding);
        // Its gradients are a tied head's as well, which a product wrote.
        buffers.kernels.products.squares_mut().forget(&(table..table + 1))?;
        let order = &buffers.embedding;
        buffers.kernels.stream.embedding_backward(
            buffers.dx.data(),
            &order.distinct.device,
            &order.begins.device,
            &order.order.device,
            order.count,
            model.config.hidden_size,
            gradients,
        )
    }
}

/// How attention joins the stream.
pub(super) fn residual(config: &Config, attention: &Attention) -> ResidualScale {
    match attention {
        Attention::Lightning { .. } => config.lightning,
        Attention::Softmax { .. } => config.softmax,
    }
}

/// What goes past a block.
pub(super) fn past(config: &Config, scale: ResidualScale) -> Past {
    if config.postnorm { Past::Normed(scale.alpha) } else { Past::Stream(scale.alpha) }
}
