//! The forward pass that keeps the input of each layer, and the backward pass from the head to the embedding.

mod attention;
mod experts;
mod head;

use std::ops::Range;
use std::slice::from_ref;

use arges_kernels::device::cpu::Cpu;
use arges_kernels::embed::embedding_gradient;
use arges_kernels::lightning;
use arges_kernels::matmul::{
    Columns, Output, PackedMatrix, PackedRows, Segment, WeightGradient, input_gradient,
};

use super::{Parameters, Trainer, TrainingBatch, TrainingError};
use crate::batch::{Batch, LogitRows};
use crate::model::{GivenExperts, Model, Stage};
use crate::params::Param;

/// What the layers of one backward pass share.
struct Pass<'a> {
    model: &'a Model,
    cpu: &'a Cpu,
    tokens: usize,
    /// One a sequence.
    spans: &'a [lightning::Span],
    /// Pages of the cache, taken by the sequences one after the other.
    pages: &'a [u32],
    parameters: &'a mut Parameters,
    /// Experts that were chosen before.
    given: GivenExperts<'a>,
}

impl Trainer {
    /// Runs the batch, keeping the input of each layer and what the load-balancing loss needs. Leaves the
    /// residual stream after the last layer in the workspace.
    pub(super) fn forward(&mut self, batch: &TrainingBatch) -> Result<(), TrainingError> {
        batch.check(self.buffers.plan, self.model.config())?;
        let mut step = Batch::new();
        let mut first = 0;
        for &length in &batch.lengths {
            let sequence = self.cache.open().expect("the cache has a slot for each sequence of the plan");
            self.cache.reserve(sequence, length).expect("the cache has pages for every batch of the plan");
            step.push(sequence, &batch.tokens[first..first + length], LogitRows::None);
            first += length;
        }
        let (inputs, balance) = (&mut self.buffers.inputs, &mut self.buffers.balance);
        let kept = &mut self.buffers.kept;
        balance.clear();
        let result = self.model.forward_given(
            &step,
            GivenExperts(&batch.experts),
            &mut self.cache,
            &mut self.buffers.workspace,
            &mut |stage, values| match stage {
                Stage::LayerInput(layer) => inputs[layer][..values.len()].copy_from_slice(values),
                Stage::Projections(layer) => {
                    if let Some(kept) = kept {
                        kept[layer].projected[..values.len()].copy_from_slice(values);
                    }
                }
                Stage::Middle(layer) => {
                    if let Some(kept) = kept {
                        kept[layer].middle[..values.len()].copy_from_slice(values);
                    }
                }
                Stage::RouterLogits(_) => balance.add(values),
                Stage::FinalNorm => {}
            },
        );
        for span in &step.spans {
            self.cache.close(span.sequence);
        }
        result?;
        Ok(())
    }

    pub(super) fn backward(
        &mut self,
        batch: &TrainingBatch,
        weight: &(dyn Fn(usize, f32) -> f32 + Sync),
        balance: f32,
    ) {
        if batch.tokens.is_empty() {
            return;
        }
        let (model, buffers) = (&self.model, &mut self.buffers);
        let spans: Vec<lightning::Span> = sequence_spans(&batch.lengths);
        let pages: Vec<u32> = (0..self.cache.pages_total() as u32).collect();
        let mut pass = Pass {
            model,
            cpu: model.cpu(),
            tokens: batch.tokens.len(),
            spans: &spans,
            pages: &pages,
            parameters: &mut self.parameters,
            given: GivenExperts(&batch.experts),
        };
        let len = pass.tokens * model.config().hidden_size;
        let dx = &mut buffers.dx[..len];
        pass.head(&batch.targets, weight, buffers.workspace.residual_stream(), &mut buffers.head, dx);
        for index in (0..model.layers.len()).rev() {
            let (input, layer) = (&buffers.inputs[index][..len], &mut buffers.layer);
            if let Some(kept) = &mut buffers.kept {
                // The next forward pass fills what is handed back.
                std::mem::swap(&mut layer.projected, &mut kept[index].projected);
                std::mem::swap(&mut layer.middle, &mut kept[index].middle);
            }
            let kept = buffers.kept.is_some();
            pass.recompute_attention(index, input, kept, &mut self.cache, buffers.workspace.angles(), layer);
            pass.experts(index, balance, &buffers.balance, layer, dx);
            pass.attention(index, input, buffers.workspace.angles(), layer, dx);
        }
        let (cpu, tokens) = (pass.cpu, &batch.tokens);
        pass.parameters.accumulate(cpu, Param::Embedding, |gradient| {
            embedding_gradient(cpu, tokens, dx, gradient);
        });
    }
}

/// Sequence `i` in slot `i`, from position 0.
fn sequence_spans(lengths: &[usize]) -> Vec<lightning::Span> {
    let mut first = 0;
    let spans = lengths.iter().enumerate().map(|(slot, &rows)| {
        let span = lightning::Span { first, rows, position: 0, slot };
        first += rows;
        span
    });
    spans.collect()
}

impl Pass<'_> {
    /// `dx = dy · W`, or added to what is there, for rows of an ordinary product.
    fn input_gradient(
        &self,
        dy: &[f32],
        matrix: &PackedMatrix,
        packed: &mut PackedRows,
        transposed: &mut PackedMatrix,
        out: Output<'_>,
    ) {
        let rows = Segment::all(self.tokens);
        packed.pack(self.cpu, dy, matrix.outputs(), &rows, |row| row);
        input_gradient(self.cpu, packed, &rows, from_ref(matrix), transposed, out);
    }

    /// Adds the gradients of parameters that stand one below the other in a matrix, from its inputs
    /// `x[tokens, cols]` and the gradient by its outputs `dy[tokens, stride]`.
    fn weight_gradients(
        &mut self,
        params: &[Param],
        x: &[f32],
        dy: &[f32],
        stride: usize,
        product: &mut WeightGradient,
    ) {
        let (cpu, config) = (self.cpu, self.model.config());
        if !params.iter().any(|param| self.parameters.learns(*param)) {
            return;
        }
        product.set_inputs(cpu, Columns::all(x, x.len() / self.tokens, self.tokens));
        let mut first = 0;
        for &param in params {
            let rows = param.shape(config)[0];
            let columns: Range<usize> = first..first + rows;
            first += rows;
            self.parameters.accumulate(cpu, param, |gradient| {
                product.add(cpu, Columns::range(dy, stride, self.tokens, columns), gradient);
            });
        }
    }
}

/// A norm's weight and its gradient, or a gradient that nobody needs where it does not learn.
fn norm_gradient(
    parameters: &mut Parameters,
    cpu: &Cpu,
    param: Param,
    len: usize,
    run: impl FnOnce(&mut [f32]),
) {
    if parameters.learns(param) {
        parameters.accumulate(cpu, param, run);
    } else {
        run(&mut vec![0.0; len]);
    }
}
