//! Packed sequences and what they should predict.

use super::{TrainingError, TrainingPlan};
use crate::config::Config;
use crate::model::OWN_CHOICE;

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
    /// Experts that serve the tokens whatever the router would choose, `[tokens, layers, k]`, best first; a token whose
    /// experts in a layer begin with [`OWN_CHOICE`] chooses there. Empty where all do. Their weights are the router's in
    /// any case, and gradients go through those.
    pub experts: Vec<u16>,
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
        self.check_experts(config)?;
        let mut next = 0;
        for (index, &Target { row, token }) in self.targets.iter().enumerate() {
            if row < next || row as usize >= tokens || token as usize >= config.vocab_size {
                return Err(TrainingError::Target { index, row, token });
            }
            next = row + 1;
        }
        Ok(())
    }

    fn check_experts(&self, config: &Config) -> Result<(), TrainingError> {
        if self.experts.is_empty() {
            return Ok(());
        }
        let invalid = |reason: String| Err(TrainingError::Experts { reason });
        let k = config.experts_per_token;
        let wanted = self.tokens.len() * config.attention.len() * k;
        if self.experts.len() != wanted {
            return invalid(format!("there are {} of them, not {wanted}", self.experts.len()));
        }
        for experts in self.experts.chunks_exact(k).filter(|experts| experts[0] != OWN_CHOICE) {
            if let Some(expert) = experts.iter().find(|expert| usize::from(**expert) >= config.num_experts) {
                return invalid(format!("{expert} is none of {}", config.num_experts));
            }
            if (1..k).any(|slot| experts[..slot].contains(&experts[slot])) {
                return invalid(format!("{experts:?} has one twice"));
            }
        }
        Ok(())
    }
}
