//! Log-probabilities of one row of logits.

use super::SampleError;
use super::vector::{GROUP, any_above, finite_max, sum_exp};

/// One row of raw logits with its normaliser: the model's own distribution, before temperature, penalties
/// and masks. Any row gives the same bits whoever asks.
#[derive(Debug, Clone, Copy)]
pub struct RowLogprobs<'a> {
    logits: &'a [f32],
    max: f32,
    log_sum: f64,
}

impl<'a> RowLogprobs<'a> {
    /// Normalises a row, `[vocab]`. Entries of negative infinity are impossible tokens.
    ///
    /// # Errors
    /// A logit that is NaN or positive infinity, and a row without a finite one.
    pub fn new(logits: &'a [f32]) -> Result<Self, SampleError> {
        let max = finite_max(logits)?;
        Ok(Self { logits, max, log_sum: sum_exp(logits, max).ln() })
    }

    /// The row itself.
    pub fn logits(&self) -> &'a [f32] {
        self.logits
    }

    /// `ln softmax(logits)[id]`.
    pub fn logprob(&self, id: u32) -> f32 {
        self.of_logit(self.logits[id as usize])
    }

    fn of_logit(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.max) - self.log_sum) as f32
    }

    /// Puts the `count` most likely tokens into `top`, most likely first, equal ones by id. Allocates nothing
    /// when `top` has the capacity.
    pub fn top(&self, count: usize, top: &mut Vec<(u32, f32)>) {
        top.clear();
        if count == 0 {
            return;
        }
        // Holds logits while it is being filled. A full list only changes for a strictly higher logit, which
        // is what keeps the lower of equal ids.
        for (first, group) in (0u32..).step_by(GROUP).zip(self.logits.chunks(GROUP)) {
            if top.len() == count && !any_above(group, top[count - 1].1) {
                continue;
            }
            for (id, &logit) in (first..).zip(group) {
                if top.len() == count {
                    if logit <= top[count - 1].1 {
                        continue;
                    }
                    top.pop();
                }
                let place = top.partition_point(|&(_, other)| other >= logit);
                top.insert(place, (id, logit));
            }
        }
        for entry in top {
            entry.1 = self.of_logit(entry.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_tokens_come_in_order_and_equal_ones_by_id() {
        let logits = [1.0, 3.0, 3.0, f32::NEG_INFINITY, 2.0, 3.0];
        let row = RowLogprobs::new(&logits).unwrap();
        let mut top = Vec::new();
        let ids = |top: &[(u32, f32)]| top.iter().map(|&(id, _)| id).collect::<Vec<_>>();
        row.top(2, &mut top);
        assert_eq!(ids(&top), [1, 2]);
        row.top(4, &mut top);
        assert_eq!(ids(&top), [1, 2, 5, 4]);
        assert!(top.iter().all(|&(id, logprob)| logprob == row.logprob(id)));
        row.top(10, &mut top);
        assert_eq!(ids(&top), [1, 2, 5, 4, 0, 3]);
        row.top(0, &mut top);
        assert!(top.is_empty());
    }
}
