//! What makes a batch one that can be run, on any device.

use super::WorkspacePlan;
use crate::batch::Batch;
use crate::cache::Slots;

/// A batch that cannot be run. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// More tokens than the workspace was made for.
    #[error("a step of {tokens} tokens is over the planned {planned}")]
    TooManyTokens {
        /// Tokens of the batch.
        tokens: usize,
        /// Tokens planned.
        planned: usize,
    },
    /// More logits than the workspace was made for.
    #[error("a step with logits for {rows} rows is over the planned {planned}")]
    TooManyLogitRows {
        /// Rows of the batch.
        rows: usize,
        /// Rows planned.
        planned: usize,
    },
    /// A token id beyond the vocabulary.
    #[error("token {token} is not in the vocabulary of {vocab_size}")]
    UnknownToken {
        /// The id.
        token: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// The spans do not cover the tokens one after the other.
    #[error("span {span} does not follow the one before it")]
    BrokenSpans {
        /// Its place in the batch.
        span: usize,
    },
    /// A sequence that is closed, or twice in the batch.
    #[error("the sequence of span {span} is closed or in the batch twice")]
    BadSequence {
        /// Its place in the batch.
        span: usize,
    },
    /// Pages were not reserved.
    #[error("the sequence of span {span} needs {length} tokens of cache and has {reserved}")]
    NotReserved {
        /// Its place in the batch.
        span: usize,
        /// Length after the step.
        length: usize,
        /// Tokens its pages hold.
        reserved: usize,
    },
    /// A logit row that is no row of the batch, or out of order.
    #[error("logit row {row} is out of range or out of order")]
    BadLogitRow {
        /// The row.
        row: u32,
    },
    /// The device failed. What its caches hold is lost.
    #[error("{message}")]
    Device {
        /// What it said.
        message: String,
    },
}

/// Whether a batch can be run: in order, within the plan, and with pages reserved.
pub(crate) fn check(
    batch: &Batch,
    slots: &Slots,
    plan: WorkspacePlan,
    vocab_size: usize,
) -> Result<(), ForwardError> {
    let (tokens, rows) = (batch.len(), batch.logit_rows.len());
    if tokens > plan.max_tokens {
        return Err(ForwardError::TooManyTokens { tokens, planned: plan.max_tokens });
    }
    if rows > plan.max_logit_rows {
        return Err(ForwardError::TooManyLogitRows { rows, planned: plan.max_logit_rows });
    }
    if let Some(&token) = batch.tokens.iter().find(|token| **token as usize >= vocab_size) {
        return Err(ForwardError::UnknownToken { token, vocab_size });
    }
    let mut end = 0;
    for (i, span) in batch.spans.iter().enumerate() {
        if span.tokens.start != end || span.tokens.is_empty() {
            return Err(ForwardError::BrokenSpans { span: i });
        }
        end = span.tokens.end;
        let twice = batch.spans[..i].iter().any(|other| other.sequence == span.sequence);
        let Some(slot) = slots.slot_index(span.sequence).filter(|_| !twice) else {
            return Err(ForwardError::BadSequence { span: i });
        };
        let length = slots.length_of(slot) + span.tokens.len();
        let reserved = slots.page_capacity(slot);
        if length > reserved {
            return Err(ForwardError::NotReserved { span: i, length, reserved });
        }
    }
    if end != tokens {
        return Err(ForwardError::BrokenSpans { span: batch.spans.len() });
    }
    let mut last = None;
    for &row in &batch.logit_rows {
        if row as usize >= tokens || last.is_some_and(|last| last >= row) {
            return Err(ForwardError::BadLogitRow { row });
        }
        last = Some(row);
    }
    Ok(())
}
