//! Whole documents put together into batches of at most so many tokens.

use std::collections::VecDeque;

use arges_model::training::{TrainingBatch, TrainingPlan};
use serde::{Deserialize, Serialize};

use super::DataError;
use super::mixture::{Mixture, MixtureState};
use super::source::{Document, DocumentId};

/// Documents that a batch may pass over, as they do not fit, to be filled with later ones. They wait for the next
/// batch, and the first of them is its first.
const LOOKAHEAD: usize = 32;

/// A batch and the sources of its sequences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackedBatch {
    /// The packed sequences.
    pub batch: TrainingBatch,
    /// Source and number of targets of each sequence.
    pub parts: Vec<(usize, usize)>,
}

impl PackedBatch {
    fn push(&mut self, document: &Document) {
        let before = self.batch.targets.len();
        document.push_to(&mut self.batch);
        self.parts.push((document.id.source, self.batch.targets.len() - before));
    }
}

/// The batches of a run, one after the other.
pub struct Stream {
    mixture: Mixture,
    plan: TrainingPlan,
    pending: VecDeque<Document>,
}

/// Where a [`Stream`] is: enough to go on with the same batches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    /// How far the walks through the sources have come.
    pub mixture: MixtureState,
    /// Documents that were taken from the sources and are in no batch yet.
    pub pending: Vec<DocumentId>,
}

impl Stream {
    /// No document of the mixture is longer than `plan.max_tokens`.
    pub fn new(mixture: Mixture, plan: TrainingPlan) -> Self {
        Self { mixture, plan, pending: VecDeque::new() }
    }

    /// The next batch, which has at least one target.
    ///
    /// # Errors
    /// A record that cannot be read or encoded.
    pub fn next_batch(&mut self) -> Result<PackedBatch, DataError> {
        self.look_ahead()?;
        Ok(take_batch(&mut self.pending, self.plan))
    }

    /// Reads what the next batch is chosen from. [`next_batch`](Self::next_batch) does so too; done before, it shows
    /// data that cannot be used.
    ///
    /// # Errors
    /// As there.
    pub fn look_ahead(&mut self) -> Result<(), DataError> {
        let TrainingPlan { max_tokens, max_sequences, .. } = self.plan;
        let mut tokens: usize = self.pending.iter().map(|document| document.sample.tokens.len()).sum();
        let fills = |count: usize, tokens: usize| tokens >= max_tokens || count >= max_sequences;
        while self.pending.len() < LOOKAHEAD || !fills(self.pending.len(), tokens) {
            let document = self.mixture.next_document()?;
            tokens += document.sample.tokens.len();
            self.pending.push_back(document);
        }
        Ok(())
    }

    /// Where the stream is.
    pub fn state(&self) -> StreamState {
        let pending = self.pending.iter().map(|document| document.id).collect();
        StreamState { mixture: self.mixture.state().clone(), pending }
    }

    /// Goes on where `state` was taken.
    ///
    /// # Errors
    /// Sources that are not those of the state.
    pub fn restore(&mut self, state: StreamState) -> Result<(), DataError> {
        self.mixture.restore(state.mixture)?;
        self.pending =
            state.pending.into_iter().map(|id| self.mixture.fetch(id)).collect::<Result<_, _>>()?;
        Ok(())
    }
}

/// All documents in batches.
pub fn pack_all(documents: Vec<Document>, plan: TrainingPlan) -> Vec<PackedBatch> {
    let mut pending = VecDeque::from(documents);
    let mut batches = Vec::new();
    while !pending.is_empty() {
        batches.push(take_batch(&mut pending, plan));
    }
    batches
}

/// Takes the documents of a batch out of the pending ones; those that stay keep their order.
fn take_batch(pending: &mut VecDeque<Document>, plan: TrainingPlan) -> PackedBatch {
    let chosen = choose(pending.iter().map(|document| document.sample.tokens.len()), plan);
    let mut batch = PackedBatch::default();
    for &place in &chosen {
        batch.push(&pending[place]);
    }
    for &place in chosen.iter().rev() {
        pending.remove(place);
    }
    batch
}

/// Places of the documents that make up a batch: each that still fits, in order. The first always does.
fn choose(lengths: impl Iterator<Item = usize>, plan: TrainingPlan) -> Vec<usize> {
    let (mut chosen, mut free, mut passed) = (Vec::new(), plan.max_tokens, 0);
    for (place, length) in lengths.enumerate() {
        if chosen.is_empty() || (length <= free && chosen.len() < plan.max_sequences) {
            free = free.saturating_sub(length);
            chosen.push(place);
        } else {
            passed += 1;
        }
        if passed == LOOKAHEAD || chosen.len() >= plan.max_sequences {
            break;
        }
    }
    chosen
}

#[cfg(test)]
mod tests;
