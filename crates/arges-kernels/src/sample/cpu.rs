//! The sampler as it runs.

use std::collections::HashMap;

use super::cuda::Rule;
use super::logprob::RowLogprobs;
use super::select::{Cut, Selection};
use super::vector::{BLOCK, GROUP, exp_weights, finite_max, group_maxima, keep};
use super::{SampleError, Sampled, SamplingParamError, SamplingParams, uniform};

/// What may be sampled from one row, beside the sequence's own parameters.
#[derive(Debug, Clone, Copy)]
pub struct RowConstraints<'a> {
    /// Ids at or above this are never sampled: rows of the head that belong to no token.
    pub sampleable: usize,
    /// Bit `id % 32` of word `id / 32` says that `id` may be sampled; ids past its end may not.
    pub allowed: Option<&'a [u32]>,
    /// Ids that may not be sampled.
    pub forbidden: &'a [u32],
}

impl RowConstraints<'_> {
    /// Nothing but the vocabulary's size.
    pub fn vocabulary(sampleable: usize) -> Self {
        Self { sampleable, allowed: None, forbidden: &[] }
    }
}

/// Buffers of a draw, made once for the vocabulary and used for any sequence.
#[derive(Debug)]
pub struct SampleScratch {
    logits: Vec<f32>,
    weights: Vec<f32>,
    /// Sums of the weights, one per block.
    block_sums: Vec<f64>,
    /// Largest logits, one per group.
    maxima: Vec<f32>,
    selection: Selection,
}

impl SampleScratch {
    /// Buffers for rows of `vocab_size` logits: a little over 12 bytes each.
    pub fn new(vocab_size: usize) -> Self {
        Self {
            logits: vec![0.0; vocab_size],
            weights: vec![0.0; vocab_size],
            block_sums: vec![0.0; vocab_size.div_ceil(BLOCK)],
            maxima: vec![0.0; vocab_size.div_ceil(GROUP)],
            selection: Selection::new(vocab_size),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.logits)
            + size_of_val(&*self.weights)
            + size_of_val(&*self.block_sums)
            + size_of_val(&*self.maxima)
            + self.selection.bytes()
    }
}

/// How one sequence's tokens are chosen: its parameters, its seed, and the tokens its penalties look at.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: SamplingParams,
    seed: u64,
    /// Times each token of the prompt (0 at first) or answer was generated. Kept only for penalties.
    generated: HashMap<u32, u32>,
}

impl Sampler {
    /// A sampler for a sequence that starts with `prompt`. `seed` is the one used, whatever `params` says.
    ///
    /// # Errors
    /// A parameter outside its range.
    pub fn new(params: SamplingParams, seed: u64, prompt: &[u32]) -> Result<Self, SamplingParamError> {
        params.validate()?;
        let seen = if params.has_penalties() { prompt } else { &[] };
        let generated = seen.iter().map(|&id| (id, 0)).collect();
        Ok(Self { params, seed, generated })
    }

    /// Tells that a token was appended to the answer.
    pub fn record(&mut self, id: u32) {
        if self.params.has_penalties() {
            *self.generated.entry(id).or_default() += 1;
        }
    }

    /// Chooses the token at `position` of the sequence from its row of logits.
    ///
    /// # Errors
    /// A logit that is not a number once penalties and biases are applied, or no token that may be chosen.
    ///
    /// # Panics
    /// If the row is longer than the scratch was made for.
    pub fn sample(
        &self,
        row: &RowLogprobs<'_>,
        position: u64,
        constraints: &RowConstraints<'_>,
        scratch: &mut SampleScratch,
    ) -> Result<Sampled, SampleError> {
        let raw = &row.logits()[..constraints.sampleable.min(row.logits().len())];
        let logits = &mut scratch.logits[..raw.len()];
        logits.copy_from_slice(raw);
        self.adjust(logits);
        constrain(logits, constraints);
        let max = finite_max(logits)?;
        let id = if self.params.temperature == 0.0 {
            logits.iter().position(|&logit| logit == max).unwrap_or_default() as u32
        } else {
            self.draw(raw.len(), max, uniform(self.seed, position), scratch)
        };
        Ok(Sampled { id, logprob: row.logprob(id) })
    }

    /// How a GPU is to choose the token at `position`; `None` if it cannot, because of penalties or biases.
    pub fn rule(&self, position: u64) -> Option<Rule> {
        let SamplingParams { temperature, top_k, top_p, min_p, .. } = self.params;
        let plain = !self.params.has_penalties() && self.params.logit_bias.is_empty();
        plain.then(|| match temperature {
            0.0 => Rule::largest(),
            _ => Rule::draw(uniform(self.seed, position), temperature, top_k, top_p, min_p),
        })
    }

    /// Penalties and biases.
    fn adjust(&self, logits: &mut [f32]) {
        let SamplingParams { repetition_penalty, frequency_penalty, presence_penalty, .. } = self.params;
        for (&id, &count) in &self.generated {
            let Some(logit) = logits.get_mut(id as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
            if count > 0 {
                *logit -= count as f32 * frequency_penalty + presence_penalty;
            }
        }
        for &(id, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
    }

    /// Draws from the first `len` logits in the scratch, whose largest is `max`, with the number `u`.
    fn draw(&self, len: usize, max: f32, u: f64, scratch: &mut SampleScratch) -> u32 {
        let logits = &scratch.logits[..len];
        let weights = &mut scratch.weights[..len];
        let block_sums = &mut scratch.block_sums[..len.div_ceil(BLOCK)];
        exp_weights(logits, max, self.params.temperature, weights, block_sums);
        let SamplingParams { top_k, top_p, min_p, .. } = self.params;
        let mut cut = Cut::NONE;
        if top_k > 0 && top_k < len {
            let floor = floor_of_top(logits, top_k, &mut scratch.maxima);
            let high_enough = |id: u32| logits[id as usize] >= floor;
            cut = scratch.selection.cut(logits, top_k as f64, high_enough, |_| 1.0);
            keep(cut, 0.0, logits, weights, block_sums);
        }
        if top_p < 1.0 {
            let mass: f64 = block_sums.iter().sum();
            // All tokens this unlikely have together less than the mass that top-p cuts off, so it cannot
            // reach them. Half of the bound leaves room for rounding.
            let unlikely = (0.5 * (1.0 - f64::from(top_p)) * mass / len as f64) as f32;
            let likely = |id: u32| weights[id as usize] >= unlikely;
            let weight = |id: u32| f64::from(weights[id as usize]);
            cut = scratch.selection.cut(logits, f64::from(top_p) * mass, likely, weight);
        }
        if top_p < 1.0 || min_p > 0.0 {
            keep(cut, min_p, logits, weights, block_sums);
        }
        draw_weighted(weights, block_sums, u)
    }
}

/// A logit that at least `count` others reach: the smallest of the `count` largest of the groups' maxima.
fn floor_of_top(logits: &[f32], count: usize, maxima: &mut [f32]) -> f32 {
    let maxima = &mut maxima[..logits.len().div_ceil(GROUP)];
    if count > maxima.len() {
        return f32::NEG_INFINITY;
    }
    group_maxima(logits, maxima);
    *maxima.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
}

/// Removes what the constraints rule out.
fn constrain(logits: &mut [f32], constraints: &RowConstraints<'_>) {
    if let Some(allowed) = constraints.allowed {
        for (id, logit) in logits.iter_mut().enumerate() {
            if allowed.get(id / 32).is_none_or(|word| word >> (id % 32) & 1 == 0) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    for &id in constraints.forbidden {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// The first id at which the running sum of the weights passes `u` of the whole; if rounding keeps it below,
/// the last with a weight.
fn draw_weighted(weights: &[f32], block_sums: &[f64], u: f64) -> u32 {
    let target = u * block_sums.iter().sum::<f64>();
    let mut before = 0.0;
    let mut last = 0;
    for (block, &sum) in block_sums.iter().enumerate() {
        if sum == 0.0 {
            continue;
        }
        last = block;
        if before + sum > target {
            break;
        }
        before += sum;
    }
    let start = last * BLOCK;
    let mut id = start;
    for (index, &weight) in weights[start..].iter().take(BLOCK).enumerate() {
        if weight > 0.0 {
            id = start + index;
            before += f64::from(weight);
            if before > target {
                break;
            }
        }
    }
    id as u32
}
