//! Several sources, each with its share of the tokens.

use serde::{Deserialize, Serialize};

use super::DataError;
use super::encode::Encoder;
use super::source::{Document, DocumentId, Fingerprint, Learn, Purpose, Source, source_key};
use crate::config::DataConfig;

/// The sources of a run. The next document comes from the source that is furthest behind its share of the tokens, so
/// that the order is fixed and the shares are exact to within a document.
pub struct Mixture {
    sources: Vec<Source>,
    encoder: Encoder,
    state: MixtureState,
}

/// How far the walks through all sources have come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MixtureState {
    pub sources: Vec<SourceState>,
}

/// How far the walk through one source has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceState {
    /// The source's name in metrics.
    pub name: String,
    /// What the source consists of.
    pub fingerprint: Fingerprint,
    /// Position in the endless sequence of records; it divided by the records of an epoch is the epoch.
    pub position: u64,
    /// Samples of that record that were given out.
    pub piece: usize,
    /// Tokens given out.
    pub tokens: u64,
    /// Conversations that were left out because they are longer than a sequence.
    pub too_long: u64,
}

impl Mixture {
    /// Opens all sources for training.
    pub fn open(
        sources: &[DataConfig],
        encoder: Encoder,
        learn: Learn,
        sequence_length: usize,
        seed: u64,
    ) -> Result<Self, DataError> {
        let open = |(index, config): (usize, &DataConfig)| {
            let purpose = Purpose::Training { key: source_key(seed, index) };
            Source::open(config, learn, sequence_length, purpose)
        };
        let sources = sources.iter().enumerate().map(open).collect::<Result<Vec<_>, _>>()?;
        let state = |source: &Source| SourceState {
            name: source.name().to_owned(),
            fingerprint: source.fingerprint(),
            position: 0,
            piece: 0,
            tokens: 0,
            too_long: 0,
        };
        let state = MixtureState { sources: sources.iter().map(state).collect() };
        Ok(Self { sources, encoder, state })
    }

    pub fn state(&self) -> &MixtureState {
        &self.state
    }

    /// Goes on where `state` was taken.
    pub fn restore(&mut self, state: MixtureState) -> Result<(), DataError> {
        let changed = |reason: String| Err(DataError::Changed { reason });
        if state.sources.len() != self.state.sources.len() {
            let (now, then) = (self.state.sources.len(), state.sources.len());
            return changed(format!("there are {now} sources now and there were {then}"));
        }
        for (now, then) in self.state.sources.iter().zip(&state.sources) {
            if (&now.name, now.fingerprint) != (&then.name, then.fingerprint) {
                let describe = |state: &SourceState| {
                    let Fingerprint { records, bytes } = state.fingerprint;
                    format!("{:?} with {records} records in {bytes} bytes", state.name)
                };
                return changed(format!("a source is {} now and was {}", describe(now), describe(then)));
            }
        }
        self.state = state;
        Ok(())
    }

    /// The next document.
    pub fn next_document(&mut self) -> Result<Document, DataError> {
        let behind = |index: &usize| self.state.sources[*index].tokens as f64 / self.sources[*index].weight;
        let source = (0..self.sources.len()).min_by(|a, b| behind(a).total_cmp(&behind(b))).unwrap_or(0);
        let (position, piece, sample) =
            self.sources[source].next(&mut self.state.sources[source], &self.encoder)?;
        Ok(Document { id: DocumentId { source, position, piece }, sample })
    }

    /// A document that was given out before.
    pub fn fetch(&mut self, id: DocumentId) -> Result<Document, DataError> {
        let gone = || DataError::Changed { reason: format!("there is no document {id:?}") };
        let source = self.sources.get_mut(id.source).ok_or_else(gone)?;
        let sample = source.fetch(id.position, id.piece, &self.encoder)?.ok_or_else(gone)?;
        Ok(Document { id, sample })
    }
}

/// The first documents of each source, for evaluation, in order.
pub fn first_documents(
    sources: &[DataConfig],
    encoder: &Encoder,
    learn: Learn,
    sequence_length: usize,
    count: u64,
) -> Result<Vec<Document>, DataError> {
    let mut documents = Vec::new();
    for (index, config) in sources.iter().enumerate() {
        let mut source = Source::open(config, learn, sequence_length, Purpose::Evaluation)?;
        let records = source.len().unwrap_or(count).min(count);
        let (before, mut too_long) = (documents.len(), 0);
        for position in 0..records {
            let (samples, left_out) = source.record(position, encoder)?;
            too_long += left_out;
            documents.extend(samples.iter().cloned().enumerate().map(|(piece, sample)| Document {
                id: DocumentId { source: index, position, piece },
                sample,
            }));
        }
        if documents.len() == before {
            return Err(DataError::Nothing { name: source.name().to_owned(), records, too_long });
        }
    }
    Ok(documents)
}
