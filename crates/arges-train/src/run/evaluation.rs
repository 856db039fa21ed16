//! The loss on data that is not trained on.

use arges_model::training::{DeviceTrainer, TrainingPlan};

use super::{SourceSums, TrainError};
use crate::config::EvaluationConfig;
use crate::data::{DataError, Encoder, Learn, PackedBatch, first_documents, pack_all};

/// The batches of an evaluation, made once: every evaluation is over the same.
pub struct Evaluation {
    every: u64,
    names: Vec<String>,
    batches: Vec<PackedBatch>,
}

impl Evaluation {
    pub fn open(
        config: &EvaluationConfig,
        encoder: &Encoder,
        learn: Learn,
        sequence_length: usize,
        plan: TrainingPlan,
    ) -> Result<Self, DataError> {
        let documents = first_documents(&config.data, encoder, learn, sequence_length, config.documents)?;
        let names = config.data.iter().map(|source| source.display_name()).collect();
        Ok(Self { every: config.every, names, batches: pack_all(documents, plan) })
    }

    /// Steps from one evaluation to the next.
    pub fn every(&self) -> u64 {
        self.every
    }

    pub fn run(&self, trainer: &mut DeviceTrainer) -> Result<SourceSums, TrainError> {
        let mut sums = SourceSums::of(self.names.clone());
        for packed in &self.batches {
            sums.add(&packed.parts, trainer.evaluate(&packed.batch)?.logprobs);
        }
        Ok(sums)
    }
}
