//! From gradients to new values and weights.

use std::ops::Range;
use std::sync::Arc;

use arges_kernels::adamw::AdamW;
use arges_kernels::adamw::cuda::{Learned, Weights};
use arges_kernels::device::cuda::Buffer;

use super::{CudaTrainer, publish};
use crate::training::TrainingError;

/// AdamW's moments on a device, of every value that learns.
pub struct CudaMoments {
    m: Buffer<f32>,
    v: Buffer<f32>,
}

impl CudaTrainer {
    /// Forgets the gradients. Those of the next batch overwrite them.
    pub fn zero_gradients(&mut self) {
        self.fresh = true;
    }

    /// The gradients accumulated so far, on the host, in the order of
    /// [`Parameters::tensors`](crate::training::Parameters::tensors).
    ///
    /// # Errors
    /// When the device fails.
    pub fn gradients(&self) -> Result<Vec<f32>, TrainingError> {
        match self.fresh {
            true => Ok(vec![0.0; self.gradients.len()]),
            false => Ok(self.gradients.to_vec()?),
        }
    }

    /// The Euclidean norm of all gradients. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    pub fn gradient_norm(&mut self) -> Result<f64, TrainingError> {
        let kernels = &self.buffers.kernels;
        let written = [kernels.products.squares(), kernels.experts.squares()];
        match self.fresh {
            true => Ok(0.0),
            false => Ok(self.adamw.sum_of_squares(&self.gradients, &written)?.sqrt()),
        }
    }

    /// Moments as they are on the host, on the device.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn moments(&self, m: &[f32], v: &[f32]) -> Result<CudaMoments, TrainingError> {
        let cuda = &self.model.cuda;
        Ok(CudaMoments { m: Buffer::from_slice(cuda, m)?, v: Buffer::from_slice(cuda, v)? })
    }

    /// One step of AdamW for ranges of values, each with its settings; gradients are multiplied by `gradient_scale`
    /// first. Brings all values into the model, as [`CudaTrainer::publish`] does: while a new value is at hand, its
    /// weight is written too.
    ///
    /// # Errors
    /// When the device fails, or has no room for a new model.
    ///
    /// # Panics
    /// When the moments are of another number of values, or a step is 0.
    pub fn adamw(
        &mut self,
        gradient_scale: f32,
        groups: &[(Range<usize>, AdamW)],
        moments: &mut CudaMoments,
    ) -> Result<(), TrainingError> {
        if self.fresh {
            self.gradients.clear()?;
        }
        self.own_model()?;
        let model = Arc::get_mut(&mut self.model).expect("nobody else holds it");
        let mut learned = Learned {
            values: &mut self.values,
            gradients: &self.gradients,
            m: &mut moments.m,
            v: &mut moments.v,
        };
        let (weights, tied) = match &mut self.adapters {
            None => publish::weights(model, &self.parameters),
            Some(adapters) => (adapters.weights(), Weights::default()),
        };
        self.adamw.step(gradient_scale, groups, &mut learned, &weights)?;
        if groups.iter().map(|(range, _)| range.len()).sum::<usize>() < self.values.len() {
            // Another model than before lacks those outside of the ranges.
            self.adamw.pack(&self.values, &weights)?;
        }
        self.adamw.pack(&self.values, &tied)?;
        if let Some(adapters) = &mut self.adapters {
            adapters.merge(model)?;
        }
        self.published = true;
        Ok(())
    }
}

impl CudaMoments {
    /// Brings the moments to the host. Waits for the device.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn fetch(&self, m: &mut [f32], v: &mut [f32]) -> Result<(), TrainingError> {
        self.m.read(0, m)?;
        Ok(self.v.read(0, v)?)
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.m.bytes() + self.v.bytes()
    }
}
