//! Packed sequences and what they should predict.

use super::{TrainingError, TrainingPlan};
use crate::config::Config;

/// A token to be predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The row of the batch that predicts it; usually the token stands in the row after it.
    pub row: u32,
    /// The token.
    pub token: u32,
}

/// Whole sequences, one after the other. None sees another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrainingBatch {
    /// Token ids of all sequences.
    pub tokens: Vec<u32>,
    /// Tokens of each sequence.
    pub lengths: Vec<usize>,
    /// What is to be predicted, rows ascending. Rows without a target cost no logits.
    pub targets: Vec<Target>,
}

impl TrainingBatch {
    /// Adds a sequence whose every token but the first is a target.
    pub fn push(&mut self, tokens: &[u32]) {
        self.push_masked(tokens, |_| true);
    }

    /// Adds a sequence of which the tokens at places `learn` says, but not the first, are targets.
    pub fn push_masked(&mut self, tokens: &[u32], learn: impl Fn(usize) -> bool) {
        if tokens.is_empty() {
            return;
        }
        let first = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.lengths.push(tokens.len());
        let targets = (1..tokens.len()).filter(|place| learn(*place));
        self.targets
            .extend(targets.map(|place| Target { row: (first + place - 1) as u32, token: tokens[place] }));
    }

    pub(in crate::training) fn check(
        &self,
        plan: TrainingPlan,
        config: &Config,
    ) -> Result<(), TrainingError> {
        let (tokens, sequences) = (self.tokens.len(), self.lengths.len());
        if sequences > plan.max_sequences {
            return Err(TrainingError::TooManySequences { sequences, planned: plan.max_sequences });
        }
        let lengths = self.lengths.iter().sum();
        if lengths != tokens || self.lengths.contains(&0) {
            return Err(TrainingError::Lengths { lengths, tokens });
        }
        let mut next = 0;
        for (index, &Target { row, token }) in self.targets.iter().enumerate() {
            if row < next || row as usize >= tokens || token as usize >= config.vocab_size {
                return Err(TrainingError::Target { index, row, token });
            }
            next = row + 1;
        }
        Ok(())
    }
}
