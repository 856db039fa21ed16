//! AdamW over flat parameters, with the gradient's length kept in bounds.

use std::ops::Range;

use arges_kernels::adamw::{AdamW, adamw, sum_of_squares};
use arges_kernels::device::cpu::Cpu;
use arges_model::training::cuda::CudaMoments;
use arges_model::training::{DeviceTrainer, TrainableTensor, TrainingError};

use crate::config::OptimizerConfig;

/// The moments of every value that learns, and the number of steps taken.
pub struct Optimizer {
    config: OptimizerConfig,
    /// Neighbouring values that decay alike.
    groups: Vec<(Range<usize>, bool)>,
    step: u64,
    m: Vec<f32>,
    v: Vec<f32>,
    /// The moments of a trainer on a GPU; those above are then as they were when last fetched.
    on_device: Option<CudaMoments>,
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The gradient is not finite.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// The device failed.
    #[error(transparent)]
    Training(#[from] TrainingError),
}

/// A gradient that is not finite: nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("the gradient is not finite (its norm is {norm})")]
pub struct NotFinite {
    pub norm: f64,
}

impl Optimizer {
    /// An optimizer that has taken no step, for values that lie as the tensors say.
    pub fn new(config: OptimizerConfig, tensors: &[TrainableTensor]) -> Self {
        let mut groups: Vec<(Range<usize>, bool)> = Vec::new();
        for tensor in tensors {
            match groups.last_mut() {
                Some((range, decay)) if *decay == tensor.decay && range.end == tensor.range.start => {
                    range.end = tensor.range.end;
                }
                _ => groups.push((tensor.range.clone(), tensor.decay)),
            }
        }
        let len = tensors.iter().map(|tensor| tensor.range.end).max().unwrap_or(0);
        Self { config, groups, step: 0, m: vec![0.0; len], v: vec![0.0; len], on_device: None }
    }

    /// Steps taken.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The first and the second moments; the latter in the form of [`adamw`]. Those of a GPU are as they were when last
    /// fetched.
    pub fn moments(&self) -> [&[f32]; 2] {
        [&self.m, &self.v]
    }

    /// The moments, to be restored together with the number of steps taken.
    pub fn restore(&mut self, step: u64) -> [&mut [f32]; 2] {
        self.step = step;
        self.on_device = None;
        [&mut self.m, &mut self.v]
    }

    /// Brings moments from a GPU, where they are on one.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fetch(&mut self) -> Result<(), TrainingError> {
        match &self.on_device {
            Some(moments) => moments.fetch(&mut self.m, &mut self.v),
            None => Ok(()),
        }
    }

    /// Bytes of the moments, where they are in use.
    pub fn bytes(&self) -> usize {
        let host = size_of_val(&*self.m) + size_of_val(&*self.v);
        self.on_device.as_ref().map_or(host, CudaMoments::bytes)
    }

    /// Takes a step of a trainer, on its device, with that learning rate, and gives the norm that the gradient had.
    ///
    /// # Errors
    /// A gradient that is not finite, which changes nothing; a device that fails.
    pub fn update_trainer(
        &mut self,
        learning_rate: f64,
        trainer: &mut DeviceTrainer,
    ) -> Result<f64, UpdateError> {
        let trainer = match trainer {
            DeviceTrainer::Cpu(trainer) => {
                let cpu = trainer.shared_cpu();
                let (values, gradients) = trainer.parameters_mut().values_and_gradients_mut();
                return Ok(self.update(&cpu, learning_rate, values, gradients)?);
            }
            DeviceTrainer::Cuda(trainer, _) => trainer,
        };
        let norm = trainer.gradient_norm()?;
        let scale = self.begin_step(norm)?;
        if self.on_device.is_none() {
            self.on_device = Some(trainer.moments(&self.m, &self.v)?);
        }
        let settings = [false, true].map(|decay| self.settings(learning_rate, decay));
        let group = |(range, decay): &(Range<usize>, bool)| (range.clone(), settings[usize::from(*decay)]);
        let groups: Vec<_> = self.groups.iter().map(group).collect();
        if let Some(moments) = &mut self.on_device {
            trainer.adamw(scale, &groups, moments)?;
        }
        Ok(norm)
    }

    /// Counts a step whose gradient has that norm, and says what the gradient is to be multiplied by.
    fn begin_step(&mut self, norm: f64) -> Result<f32, NotFinite> {
        if !norm.is_finite() {
            return Err(NotFinite { norm });
        }
        let clip = self.config.clip;
        self.step += 1;
        Ok(if clip > 0.0 && norm > clip { clip / norm } else { 1.0 } as f32)
    }

    fn settings(&self, lr: f64, decay: bool) -> AdamW {
        let OptimizerConfig { beta1, beta2, eps, weight_decay, .. } = self.config;
        let weight_decay = if decay { weight_decay } else { 0.0 };
        AdamW { lr, beta1, beta2, eps, weight_decay, step: self.step }
    }

    /// Changes how long a gradient may be; 0 leaves gradients as they are.
    pub fn set_clip(&mut self, clip: f64) {
        self.config.clip = clip;
    }

    /// Takes a step with that learning rate and gives the norm that the gradient had.
    ///
    /// # Errors
    /// A gradient that is not finite.
    pub fn update(
        &mut self,
        cpu: &Cpu,
        learning_rate: f64,
        values: &mut [f32],
        gradients: &[f32],
    ) -> Result<f64, NotFinite> {
        let norm = sum_of_squares(cpu, gradients).sqrt();
        let scale = self.begin_step(norm)?;
        for (range, decay) in &self.groups {
            let settings = self.settings(learning_rate, *decay);
            let range = range.clone();
            let (m, v) = (&mut self.m[range.clone()], &mut self.v[range.clone()]);
            adamw(cpu, settings, scale, &mut values[range.clone()], &gradients[range], m, v);
        }
        Ok(norm)
    }
}

#[cfg(test)]
mod tests {
    use arges_kernels::device::cpu::CpuOptions;

    use super::*;

    fn tensor(range: Range<usize>, decay: bool) -> TrainableTensor {
        TrainableTensor { name: format!("{range:?}"), shape: vec![range.len()], range, decay }
    }

    fn cpu() -> Cpu {
        Cpu::new(CpuOptions { threads: Some(1), isa: None }).unwrap()
    }

    #[test]
    fn only_tensors_that_decay_shrink_without_a_gradient() {
        let config = OptimizerConfig { weight_decay: 0.5, ..OptimizerConfig::default() };
        let tensors = [tensor(0..2, true), tensor(2..3, false), tensor(3..4, true), tensor(4..6, true)];
        let mut optimizer = Optimizer::new(config, &tensors);
        assert_eq!(optimizer.groups, [(0..2, true), (2..3, false), (3..6, true)]);
        let mut values = [1.0; 6];
        assert_eq!(optimizer.update(&cpu(), 0.1, &mut values, &[0.0; 6]), Ok(0.0));
        for (value, decayed) in values.iter().zip([true, true, false, true, true, true]) {
            assert!((value - if decayed { 0.95 } else { 1.0 }).abs() < 1e-6, "{values:?}");
        }
    }

    #[test]
    fn a_long_gradient_is_shortened_and_a_short_one_is_not() {
        // The first moment shows the gradient that was used: m = (1 - beta1) g.
        let config = OptimizerConfig { clip: 1.0, beta1: 0.5, ..OptimizerConfig::default() };
        for (gradient, used) in [([3.0, 4.0], [0.6, 0.8]), ([0.3, 0.4], [0.3, 0.4])] {
            let mut optimizer = Optimizer::new(config, &[tensor(0..2, true)]);
            let norm = optimizer.update(&cpu(), 0.1, &mut [0.0; 2], &gradient).unwrap();
            assert!((norm - f64::from(gradient[0].hypot(gradient[1]))).abs() < 1e-6);
            for (m, used) in optimizer.m.iter().zip(used) {
                assert!((m - 0.5 * used).abs() < 1e-6, "{:?}", optimizer.m);
            }
        }
        let unclipped = OptimizerConfig { clip: 0.0, ..config };
        let mut optimizer = Optimizer::new(unclipped, &[tensor(0..1, true)]);
        optimizer.update(&cpu(), 0.1, &mut [0.0], &[100.0]).unwrap();
        assert!((optimizer.m[0] - 50.0).abs() < 1e-4);
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let mut optimizer = Optimizer::new(OptimizerConfig::default(), &[tensor(0..2, true)]);
        let mut values = [1.0, 2.0];
        assert!(optimizer.update(&cpu(), 0.1, &mut values, &[f32::NAN, 1.0]).is_err());
        assert_eq!((values, optimizer.step()), ([1.0, 2.0], 0));
    }

    #[test]
    fn a_gradient_of_1e_18_moves_a_weight_by_the_learning_rate() {
        let mut optimizer = Optimizer::new(OptimizerConfig::default(), &[tensor(0..1, false)]);
        let config = OptimizerConfig { eps: 1e-24, ..OptimizerConfig::default() };
        optimizer.config = config;
        let mut values = [0.0];
        optimizer.update(&cpu(), 1e-3, &mut values, &[1e-18]).unwrap();
        assert!((values[0] + 1e-3).abs() < 1e-6, "{values:?}");
    }
}
