//! What one step computes: flat tokens with a span per sequence.

use std::ops::Range;

use crate::cache::SequenceId;

/// Consecutive tokens of one sequence, which follow those it has in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The sequence.
    pub sequence: SequenceId,
    /// Rows of [`Batch::tokens`].
    pub tokens: Range<usize>,
}

/// Which of a span's rows get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows {
    /// None: a piece of a prompt that is not its end.
    None,
    /// The last, from which the next token is sampled.
    Last,
    /// All, to score them.
    All,
}

/// Tokens of several sequences. Prefill, pieces of it, decode and mixtures of them are all batches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, one span after the other.
    pub tokens: Vec<u32>,
    /// The spans, of different sequences, in the order of their tokens.
    pub spans: Vec<Span>,
    /// Rows of `tokens` for which logits are computed, in ascending order.
    pub logit_rows: Vec<u32>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Removes everything and keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.spans.clear();
        self.logit_rows.clear();
    }

    /// Adds the next tokens of a sequence. Nothing is added for no tokens.
    pub fn push(&mut self, sequence: SequenceId, tokens: &[u32], logits: LogitRows) {
        if tokens.is_empty() {
            return;
        }
        let first = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        let end = self.tokens.len();
        self.spans.push(Span { sequence, tokens: first..end });
        let rows = match logits {
            LogitRows::None => end..end,
            LogitRows::Last => end - 1..end,
            LogitRows::All => first..end,
        };
        self.logit_rows.extend(rows.map(|row| row as u32));
    }

    /// Tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}
