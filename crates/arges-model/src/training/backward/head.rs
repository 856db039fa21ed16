//! Final norm, head and loss.

use arges_kernels::loss::HeadGradient;
use arges_kernels::norm::{rms_norm, rms_norm_backward};

use super::{Pass, norm_gradient};
use crate::params::Param;
use crate::training::buffers::HeadBuffers;
use crate::training::{Target, Trainer, TrainingBatch};

impl Trainer {
    /// Log-probabilities of the targets.
    pub(in crate::training) fn score(&mut self, batch: &TrainingBatch) {
        let (model, buffers) = (&self.model, &mut self.buffers);
        let head = &mut buffers.head;
        let count = batch.targets.len();
        gather(&batch.targets, buffers.workspace.residual_stream(), model.config().hidden_size, head);
        let len = count * model.config().hidden_size;
        let (rows, normed) = (&head.rows[..len], &mut head.normed[..len]);
        rms_norm(model.cpu(), rows, &model.final_norm, model.config().rms_norm_eps as f32, normed);
        let (logprobs, entropies) = (&mut head.logprobs[..count], &mut head.entropies[..count]);
        head.loss.run(model.cpu(), normed, &model.head, &head.tokens, logprobs, entropies, None);
    }
}

impl Pass<'_> {
    /// Runs the head on the targets' rows of `x` and puts the gradient by `x` into `dx`.
    pub(super) fn head(
        &mut self,
        targets: &[Target],
        weight: &(dyn Fn(usize, f32) -> f32 + Sync),
        x: &[f32],
        head: &mut HeadBuffers,
        dx: &mut [f32],
    ) {
        let (model, cpu) = (self.model, self.cpu);
        let (hidden, eps) = (model.config().hidden_size, model.config().rms_norm_eps as f32);
        let count = targets.len();
        gather(targets, x, hidden, head);
        let (rows, normed) = (&head.rows[..count * hidden], &mut head.normed[..count * hidden]);
        rms_norm(cpu, rows, &model.final_norm, eps, normed);
        let dnormed = &mut head.dnormed[..count * hidden];
        let (logprobs, entropies) = (&mut head.logprobs[..count], &mut head.entropies[..count]);
        let learns = self.parameters.learns(Param::Head);
        let mut run = |dhead: Option<&mut [f32]>| {
            let gradient = HeadGradient { weight, dx: &mut *dnormed, head: dhead };
            let tokens = &head.tokens;
            head.loss.run(cpu, normed, &model.head, tokens, logprobs, entropies, Some(gradient));
        };
        if learns {
            self.parameters.accumulate(cpu, Param::Head, |dhead| run(Some(dhead)));
        } else {
            run(None);
        }
        let drows = &mut head.drows[..count * hidden];
        norm_gradient(self.parameters, cpu, Param::FinalNorm, hidden, |dweight| {
            rms_norm_backward(cpu, rows, &model.final_norm, eps, dnormed, drows, dweight);
        });
        dx.fill(0.0);
        for (target, drow) in targets.iter().zip(drows.chunks_exact(hidden)) {
            dx[target.row as usize * hidden..][..hidden].copy_from_slice(drow);
        }
    }
}

fn gather(targets: &[Target], x: &[f32], hidden: usize, head: &mut HeadBuffers) {
    head.tokens.clear();
    head.tokens.extend(targets.iter().map(|target| target.token));
    for (target, row) in targets.iter().zip(head.rows.chunks_exact_mut(hidden)) {
        row.copy_from_slice(&x[target.row as usize * hidden..][..hidden]);
    }
}
