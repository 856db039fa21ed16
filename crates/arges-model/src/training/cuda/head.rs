//! Final norm, head and loss, a block of targets at a time.

use arges_kernels::device::cuda::{Buffer, CudaError};
use arges_kernels::matmul::cuda::{Columns, GradientPlace, Output, Rows};
use arges_kernels::norm::cuda::{BranchGradient, Norm, NormBackward, Past};

use super::CudaTrainer;
use super::buffers::Buffers;
use crate::params::Param;
use crate::training::Target;

/// Derivative of the loss by the log-probability of a target, from its number and that log-probability.
pub(super) type Weight<'a> = &'a (dyn Fn(usize, f32) -> f32 + Sync);

impl CudaTrainer {
    /// Log-probabilities and entropies of the targets, from the stream that the forward pass left. With `weight` the
    /// gradients too: that by the stream is put into `dx`.
    pub(super) fn head(&mut self, targets: &[Target], weight: Option<Weight<'_>>) -> Result<(), CudaError> {
        let block = self.workspace.plan.max_logit_rows;
        if weight.is_some() {
            self.buffers.dx.data_mut().clear()?;
        }
        if targets.is_empty() {
            return self.model.cuda.synchronize();
        }
        for (i, targets) in targets.chunks(block).enumerate() {
            self.score(i * block, targets)?;
            if let Some(weight) = weight {
                self.score_backward(i * block, targets.len(), weight)?;
            }
        }
        Ok(())
    }

    /// Logits of a block of targets, and their scores, brought to the host.
    fn score(&mut self, first: usize, targets: &[Target]) -> Result<(), CudaError> {
        let Self { model, workspace: ws, buffers, .. } = self;
        let (kernels, head, count) = (&model.kernels, &mut buffers.head, targets.len());
        let rows: Vec<i32> = targets.iter().map(|target| target.row as i32).collect();
        let tokens: Vec<i32> = targets.iter().map(|target| target.token as i32).collect();
        head.rows.write(0, &rows)?;
        head.tokens.write(0, &tokens)?;
        let norm = Norm { weight: &model.final_norm, epsilon: model.config.rms_norm_eps as f32 };
        if buffers.plan.rounded_head {
            let hidden = model.config.hidden_size;
            buffers.kernels.stream.gather_rows(&ws.stream.x, &head.rows, count, hidden, &mut head.x)?;
            kernels.norms.norm_rows(&head.x, count, norm, None, &mut head.normed)?;
            let output = Output::F32(&mut ws.logits);
            kernels.products.run(&model.head, &head.normed, Rows::All(count), output)?;
            return Self::read_scores(buffers, &ws.logits, first, count);
        }
        let parts = ws.head_parts.as_mut();
        kernels.norms.head_rows(&ws.stream, &head.rows, count, norm, &mut ws.head_rows, parts)?;
        match &ws.head_parts {
            Some(parts) => kernels.products.run_parts(&model.head, parts, count, &mut ws.logits)?,
            None => {
                let output = Output::F32(&mut ws.logits);
                kernels.products.run(&model.head, &ws.head_rows, Rows::All(count), output)?;
            }
        }
        Self::read_scores(buffers, &ws.logits, first, count)
    }

    fn read_scores(
        buffers: &mut Buffers,
        logits: &Buffer<f32>,
        first: usize,
        count: usize,
    ) -> Result<(), CudaError> {
        let head = &mut buffers.head;
        buffers.kernels.loss.score(logits, count, &head.tokens, &mut head.scores)?;
        head.scores.logprobs.read(0, &mut head.logprobs[first..first + count])?;
        head.scores.entropies.read(0, &mut head.entropies[first..first + count])
    }

    /// Gradients of the block that was scored last.
    fn score_backward(&mut self, first: usize, count: usize, weight: Weight<'_>) -> Result<(), CudaError> {
        let fresh = self.fresh && first == 0;
        let Self { model, workspace: ws, buffers, parameters, gradients, .. } = self;
        let (head, kernels) = (&mut buffers.head, &mut buffers.kernels);
        let (hidden, vocab) = (model.config.hidden_size, model.config.vocab_size);
        let weights: Vec<f32> = (first..first + count).map(|i| weight(i, head.logprobs[i])).collect();
        head.weights.write(0, &weights)?;
        let dlogits = head.dlogits.data_mut();
        kernels.loss.score_backward(&ws.logits, count, &head.tokens, &head.scores, &head.weights, dlogits)?;
        let norm = Norm { weight: &model.final_norm, epsilon: model.config.rms_norm_eps as f32 };
        if !buffers.plan.rounded_head {
            kernels.stream.gather_rows(&ws.stream.x, &head.rows, count, hidden, &mut head.x)?;
            model.kernels.norms.norm_rows(&head.x, count, norm, None, &mut head.normed)?;
        }
        let rows = Rows::All(count);
        let output = Output::Rounded(&mut head.dnormed);
        let products = &model.kernels.products;
        kernels.products.inputs(
            products,
            &model.head,
            &head.dlogits,
            rows,
            output,
            &mut buffers.transposed,
        )?;
        let (dlogits, normed) = (head.dlogits.data(), head.normed.data());
        let place = GradientPlace { at: parameters.place(Param::Head), stride: 0, gradients, fresh };
        let (dy, x) = (Columns::all(dlogits, vocab), Columns::all(normed, hidden));
        kernels.products.weights(dy, x, rows, false, place)?;
        kernels.stream.norm_backward(NormBackward {
            x: &head.x,
            rows: count,
            norm,
            past: Past::Nothing,
            gradient: BranchGradient::Rows(&head.dnormed).into(),
            dx: &mut head.drows,
            scaled: None,
            gradients,
            weight_at: parameters.place(Param::FinalNorm),
            outer_at: None,
        })?;
        kernels.stream.scatter_rows(&head.drows, &head.rows, count, hidden, buffers.dx.data_mut())
    }
}
