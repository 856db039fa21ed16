//! Final norm, head and loss, a block of targets at a time.

use arges_kernels::device::cuda::CudaError;
use arges_kernels::matmul::cuda::{Columns, Output, Rows};
use arges_kernels::norm::cuda::{BranchGradient, Norm, NormBackward, Past};

use super::CudaTrainer;
use super::sums::Sums;
use crate::params::Param;
use crate::training::{Target, TargetWeights};

impl CudaTrainer {
    /// Log-probabilities and entropies of the targets, from the stream that the forward pass left. With `weights` the
    /// gradients too: that by the stream is put into `dx`. Where they are equal the host waits for nothing, and what
    /// the targets gave is here once the device has been waited for.
    pub(super) fn head(
        &mut self,
        targets: &[Target],
        weights: Option<TargetWeights<'_>>,
    ) -> Result<(), CudaError> {
        let block = self.workspace.plan.max_logit_rows;
        if weights.is_some() {
            self.buffers.dx.data_mut().clear()?;
        }
        let head = &mut self.buffers.head;
        let of_targets =
            head.all_rows.host.as_mut_slice().iter_mut().zip(head.all_tokens.host.as_mut_slice());
        for (target, (row, token)) in targets.iter().zip(of_targets) {
            (*row, *token) = (target.row as i32, target.token as i32);
        }
        head.all_rows.send(targets.len())?;
        head.all_tokens.send(targets.len())?;
        for first in (0..targets.len()).step_by(block) {
            let count = block.min(targets.len() - first);
            self.logits(first, count)?;
            self.score(first, count, weights)?;
            if weights.is_some() {
                self.logits_backward(first, count)?;
            }
        }
        Ok(())
    }

    /// Logits of a block of targets.
    fn logits(&mut self, first: usize, count: usize) -> Result<(), CudaError> {
        let Self { model, workspace: ws, buffers, .. } = self;
        let (kernels, head) = (&model.kernels, &mut buffers.head);
        head.rows.copy_from(0, &head.all_rows.device, first, count)?;
        head.tokens.copy_from(0, &head.all_tokens.device, first, count)?;
        let norm = Norm { weight: &model.final_norm, epsilon: model.config.rms_norm_eps as f32 };
        if buffers.plan.rounded_head {
            let hidden = model.config.hidden_size;
            buffers.kernels.stream.gather_rows(&ws.stream.x, &head.rows, count, hidden, &mut head.x)?;
            kernels.norms.norm_rows(&head.x, count, norm, None, &mut head.normed)?;
            let output = Output::F32(&mut ws.logits);
            return kernels.products.run(&model.head, &head.normed, Rows::All(count), output);
        }
        let parts = ws.head_parts.as_mut();
        kernels.norms.head_rows(&ws.stream, &head.rows, count, norm, &mut ws.head_rows, parts)?;
        match &ws.head_parts {
            Some(parts) => kernels.products.run_parts(&model.head, parts, count, &mut ws.logits),
            None => {
                let output = Output::F32(&mut ws.logits);
                kernels.products.run(&model.head, &ws.head_rows, Rows::All(count), output)
            }
        }
    }

    /// Scores of a block of targets and, with `weights`, gradients by its logits.
    fn score(
        &mut self,
        first: usize,
        count: usize,
        weights: Option<TargetWeights<'_>>,
    ) -> Result<(), CudaError> {
        let Self { model, workspace: ws, buffers, .. } = self;
        let (head, loss, logits) = (&mut buffers.head, &buffers.kernels.loss, &ws.logits);
        if let Some(TargetWeights::Equal(weight)) = weights {
            let dlogits = head.dlogits.data_mut();
            loss.score_and_backward(logits, count, &head.tokens, &mut head.scores, weight, dlogits)?;
        } else {
            loss.score(logits, count, &head.tokens, &mut head.scores)?;
        }
        head.scores.logprobs.read_pinned_at(0, &mut head.logprobs, first, count)?;
        head.scores.entropies.read_pinned_at(0, &mut head.entropies, first, count)?;
        if let Some(TargetWeights::Each(weight)) = weights {
            model.cuda.synchronize()?;
            let logprobs = &head.logprobs.as_slice()[first..first + count];
            for (i, (to, logprob)) in head.weights.host.as_mut_slice().iter_mut().zip(logprobs).enumerate() {
                *to = weight(first + i, *logprob);
            }
            head.weights.send(count)?;
            let (scores, weights) = (&head.scores, &head.weights.device);
            loss.score_backward(logits, count, &head.tokens, scores, weights, head.dlogits.data_mut())?;
        }
        Ok(())
    }

    /// From the gradients by a block's logits to those by the stream, the head and the final norm.
    fn logits_backward(&mut self, first: usize, count: usize) -> Result<(), CudaError> {
        let fresh = self.fresh && first == 0;
        let Self { model, workspace: ws, buffers, parameters, gradients, adapters, .. } = self;
        let mut sums = Sums { parameters, gradients, adapters: adapters.as_mut(), fresh };
        let (head, kernels) = (&mut buffers.head, &mut buffers.kernels);
        let (hidden, vocab) = (model.config.hidden_size, model.config.vocab_size);
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
        if let Some(place) = sums.place(Param::Head) {
            let (dy, x) = (Columns::all(dlogits, vocab), Columns::all(normed, hidden));
            kernels.products.weights(dy, x, rows, false, place)?;
        }
        kernels.stream.norm_backward(NormBackward {
            x: &head.x,
            rows: count,
            norm,
            past: Past::Nothing,
            gradient: BranchGradient::Rows(&head.dnormed).into(),
            dx: &mut head.drows,
            scaled: None,
            weighed: None,
            sums: sums.norm(Param::FinalNorm),
        })?;
        kernels.stream.scatter_rows(&head.drows, &head.rows, count, hidden, buffers.dx.data_mut())
    }
}
