//! The head with its loss on the CPU.

use super::{BLOCK_BYTES, LEAST_ROWS, MOST_ROWS};
use crate::device::cpu::simd::{Simd, exp, simd_dispatch, sum};
use crate::device::cpu::{AlignedBuffer, Cpu, Isa, SharedMut};
use crate::matmul::{Columns, Compute, Output, PackedMatrix, PackedRows, Segment, WeightGradient, matmul};
use crate::sample::RowLogprobs;

/// What the backward pass of a head needs and gives.
pub struct HeadGradient<'a> {
    /// Derivative of the loss by the log-probability of a row's target, from the row and that log-probability.
    pub weight: &'a (dyn Fn(usize, f32) -> f32 + Sync),
    /// Gradient by `x`, `[rows, hidden]`, overwritten.
    pub dx: &'a mut [f32],
    /// Gradient of the head, `[vocab, hidden]`, added to; `None` for a head that does not learn.
    pub head: Option<&'a mut [f32]>,
}

/// A head's loss, with the memory for one block of rows. Products are f32.
pub struct HeadLoss {
    vocab: usize,
    block_rows: usize,
    logits: AlignedBuffer<f32>,
    rows: PackedRows,
    dlogits: PackedRows,
    transposed: Option<PackedMatrix>,
    product: WeightGradient,
}

impl HeadLoss {
    /// For heads `[vocab, hidden]` and up to `max_rows` rows; more are more blocks.
    pub fn new(cpu: &Cpu, hidden: usize, vocab: usize, max_rows: usize) -> Self {
        let fitting = BLOCK_BYTES / (size_of::<f32>() * vocab.max(1));
        let block_rows = fitting.clamp(LEAST_ROWS, MOST_ROWS).min(max_rows.max(1));
        Self {
            vocab,
            block_rows,
            logits: AlignedBuffer::zeroed(block_rows * vocab),
            rows: PackedRows::new(cpu, Compute::F32, block_rows, hidden),
            dlogits: PackedRows::new(cpu, Compute::F32, block_rows, vocab),
            transposed: None,
            product: WeightGradient::new(cpu, Compute::F32),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let transposed = self.transposed.as_ref().map_or(0, PackedMatrix::bytes);
        self.logits.bytes() + self.rows.bytes() + self.dlogits.bytes() + transposed + self.product.bytes()
    }

    /// Log-probabilities of `targets[rows]` and entropies of their distributions, in nats, from `x[rows, hidden]`;
    /// with `gradient` the gradients too. Both are NaN where a logit is not finite.
    ///
    /// # Panics
    /// When sizes do not agree, or a target is not in the vocabulary.
    #[allow(clippy::too_many_arguments)]
    pub fn run(
        &mut self,
        cpu: &Cpu,
        x: &[f32],
        head: &PackedMatrix,
        targets: &[u32],
        logprobs: &mut [f32],
        entropies: &mut [f32],
        mut gradient: Option<HeadGradient<'_>>,
    ) {
        let (hidden, vocab) = (head.inputs(), self.vocab);
        assert_eq!(head.outputs(), vocab);
        assert_eq!(
            (x.len(), logprobs.len(), entropies.len()),
            (targets.len() * hidden, targets.len(), targets.len())
        );
        if gradient.is_some() {
            let element = head.element();
            let fits = self.transposed.as_ref().is_some_and(|matrix| matrix.element() == element);
            if !fits {
                self.transposed = Some(PackedMatrix::zeroed(1, 1, element));
            }
        }
        for first in (0..targets.len()).step_by(self.block_rows) {
            let rows = first..(first + self.block_rows).min(targets.len());
            let segment = Segment::all(rows.len());
            let x = &x[rows.start * hidden..rows.end * hidden];
            self.rows.pack(cpu, x, hidden, &segment, |row| row);
            let logits = &mut self.logits[..rows.len() * vocab];
            matmul(cpu, &self.rows, &segment, std::slice::from_ref(head), Output::Rows(logits));
            let weight = gradient.as_ref().map(|gradient| gradient.weight);
            let scored = (&mut logprobs[rows.clone()], &mut entropies[rows.clone()]);
            score(cpu, first, logits, &targets[rows.clone()], scored.0, scored.1, weight);
            let (Some(gradient), Some(transposed)) = (&mut gradient, &mut self.transposed) else { continue };
            self.dlogits.pack(cpu, logits, vocab, &segment, |row| row);
            let dx = Output::Rows(&mut gradient.dx[rows.start * hidden..rows.end * hidden]);
            if first == 0 {
                transposed.set_transposed(cpu, head);
            }
            matmul(cpu, &self.dlogits, &segment, std::slice::from_ref(transposed), dx);
            if let Some(head) = &mut gradient.head {
                self.product.set_inputs(cpu, Columns::all(x, hidden, rows.len()));
                self.product.add(cpu, Columns::all(logits, vocab, rows.len()), head);
            }
        }
    }
}

/// Scores the rows of a block whose first row is `first` of all, and turns their logits into gradients where
/// there is a weight.
fn score(
    cpu: &Cpu,
    first: usize,
    logits: &mut [f32],
    targets: &[u32],
    logprobs: &mut [f32],
    entropies: &mut [f32],
    weight: Option<&(dyn Fn(usize, f32) -> f32 + Sync)>,
) {
    let vocab = logits.len() / targets.len().max(1);
    let logits = SharedMut::new(logits);
    let (logprobs, entropies) = (SharedMut::new(logprobs), SharedMut::new(entropies));
    cpu.for_rows(targets.len(), 4, |rows| {
        for row in rows {
            let target = targets[row] as usize;
            // SAFETY: rows do not overlap.
            let (logits, logprob, entropy) = unsafe {
                (
                    logits.slice(row * vocab, vocab),
                    &mut logprobs.slice(row, 1)[0],
                    &mut entropies.slice(row, 1)[0],
                )
            };
            assert!(target < vocab, "target {target} of {vocab} tokens");
            *logprob = RowLogprobs::new(logits).map_or(f32::NAN, |scores| scores.logprob(targets[row]));
            *entropy = f32::NAN;
            // ln p_target = logit - log-sum-exp.
            let log_sum = logits[target] - *logprob;
            let weight = weight.map(|weight| weight(first + row, *logprob));
            finish_row(cpu.isa(), logits, log_sum, weight, entropy);
            if let Some(weight) = weight {
                logits[target] += weight;
            }
        }
    });
}

/// Entropy of a row; with a weight, `-weight * p` in place of its logits.
fn finish_row(isa: Isa, logits: &mut [f32], log_sum: f32, weight: Option<f32>, entropy: &mut f32) {
    // SAFETY: there is nothing to promise beyond the instruction set.
    unsafe { finish_row_on(isa, logits, log_sum, weight, entropy) };
}

simd_dispatch!(
    fn finish_row_on(logits: &mut [f32], log_sum: f32, weight: Option<f32>, entropy: &mut f32) => finish
);

#[inline(always)]
unsafe fn finish<S: Simd>(logits: &mut [f32], log_sum: f32, weight: Option<f32>, entropy: &mut f32) {
    let mut total = 0.0f64;
    for logits in logits.chunks_mut(1024) {
        // SAFETY: S is the instruction set we run on; the copies hold whole vectors.
        unsafe {
            let mut terms = S::splat(0.0);
            for logits in logits.chunks_mut(S::LANES) {
                let mut values = [f32::NEG_INFINITY; 16];
                values[..logits.len()].copy_from_slice(logits);
                let shifted = S::sub(S::load(values.as_ptr()), S::splat(log_sum));
                let p = exp::<S>(shifted);
                // A token whose probability is 0 adds nothing, however far below it lies.
                let bounded = S::max(shifted, S::splat(-1e30));
                terms = S::fma(p, bounded, terms);
                if let Some(weight) = weight {
                    S::store(values.as_mut_ptr(), S::mul(p, S::splat(-weight)));
                    logits.copy_from_slice(&values[..logits.len()]);
                }
            }
            total -= f64::from(sum::<S>(terms));
        }
    }
    *entropy = if log_sum.is_nan() { f32::NAN } else { total as f32 };
}
