//! Routing and combination on the CPU.

use crate::device::cpu::simd::{Simd, simd_dispatch};
use crate::device::cpu::{Cpu, SharedMut};
use crate::matmul::Segment;

/// Which experts serve the tokens of a step. Allocated once for the largest step.
pub struct Routing {
    pub(super) experts_per_token: usize,
    pub(super) tokens: usize,
    /// `[tokens, k]`, best first.
    experts: Vec<u32>,
    /// `[tokens, k]`, each token's summing to 1.
    pub(super) weights: Vec<f32>,
    /// Packed row of each choice, `[tokens, k]`.
    pub(super) places: Vec<u32>,
    /// Token of each packed row.
    sources: Vec<u32>,
    /// One for each expert that serves a token.
    segments: Vec<Segment>,
    pub(super) counts: Vec<u32>,
}

impl Routing {
    /// Room for steps of `tokens` tokens.
    pub fn new(tokens: usize, experts: usize, experts_per_token: usize) -> Self {
        let choices = tokens * experts_per_token;
        Self {
            experts_per_token,
            tokens: 0,
            experts: vec![0; choices],
            weights: vec![0.0; choices],
            places: vec![0; choices],
            sources: vec![0; choices],
            segments: Vec::with_capacity(experts),
            counts: vec![0; experts],
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.experts.len() * 16 + self.counts.len() * (4 + size_of::<Segment>())
    }

    /// Chooses experts from router logits `[tokens, experts]` and groups the choices by expert.
    ///
    /// # Panics
    /// When there are more tokens than there is room for.
    pub fn route(&mut self, logits: &[f32]) {
        self.route_given(logits, |_| None);
    }

    /// As [`Self::route`], but a token for which `given` has experts, `k` different ones, goes to those, weighed by its
    /// logits. Where they are the ones it would choose, in that order, the same bits come out.
    ///
    /// # Panics
    /// When there are more tokens than there is room for, and for experts that there are not.
    pub fn route_given<'g>(&mut self, logits: &[f32], given: impl Fn(usize) -> Option<&'g [u16]>) {
        let (experts, k) = (self.counts.len(), self.experts_per_token);
        self.tokens = logits.len() / experts;
        self.counts.fill(0);
        for (t, logits) in logits.chunks_exact(experts).enumerate() {
            let (chosen, weights) = (&mut self.experts[t * k..][..k], &mut self.weights[t * k..][..k]);
            match given(t) {
                None => choose(logits, chosen, weights),
                Some(given) => weigh(logits, given, chosen, weights),
            }
            for expert in chosen {
                self.counts[*expert as usize] += 1;
            }
        }
        self.group();
    }

    fn group(&mut self) {
        self.segments.clear();
        let mut first = 0;
        for (matrix, count) in self.counts.iter_mut().enumerate() {
            let rows = *count as usize;
            if rows > 0 {
                self.segments.push(Segment { first, rows, matrix });
            }
            // From here on, the next free place of the expert.
            *count = first as u32;
            first += rows;
        }
        for choice in 0..self.tokens * self.experts_per_token {
            let next = &mut self.counts[self.experts[choice] as usize];
            self.places[choice] = *next;
            self.sources[*next as usize] = (choice / self.experts_per_token) as u32;
            *next += 1;
        }
    }

    /// Rows of each expert: segments of packed rows whose matrix is the expert.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The token whose row packed row `row` is.
    pub fn source(&self, row: usize) -> usize {
        self.sources[row] as usize
    }

    /// Chosen experts, `[tokens, k]`, best first.
    pub fn experts(&self) -> &[u32] {
        &self.experts[..self.tokens * self.experts_per_token]
    }

    /// Their weights, `[tokens, k]`.
    pub fn weights(&self) -> &[f32] {
        &self.weights[..self.tokens * self.experts_per_token]
    }
}

/// The `k` largest logits, and their softmax among themselves, which is the softmax over all renormalised.
fn choose(logits: &[f32], experts: &mut [u32], weights: &mut [f32]) {
    let mut filled = 0;
    for (expert, logit) in logits.iter().enumerate() {
        let mut at = filled;
        // Strictly larger: on a tie the lower expert, which came first, stays before.
        while at > 0 && *logit > weights[at - 1] {
            at -= 1;
        }
        if at < weights.len() {
            filled = (filled + 1).min(weights.len());
            weights[at..filled].rotate_right(1);
            experts[at..filled].rotate_right(1);
            (weights[at], experts[at]) = (*logit, expert as u32);
        }
    }
    softmax(weights);
}

/// Experts that were chosen before, and the softmax of their logits among themselves.
fn weigh(logits: &[f32], given: &[u16], experts: &mut [u32], weights: &mut [f32]) {
    for ((expert, weight), given) in experts.iter_mut().zip(weights.iter_mut()).zip(given) {
        (*expert, *weight) = (u32::from(*given), logits[usize::from(*given)]);
    }
    softmax(weights);
}

fn softmax(weights: &mut [f32]) {
    let max = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    for weight in weights.iter_mut() {
        *weight = (*weight - max).exp();
        total += *weight;
    }
    weights.iter_mut().for_each(|weight| *weight /= total);
}

simd_dispatch!(fn add_scaled_on(out: &mut [f32], weight: f32, row: &[f32]) => add_scaled);

#[inline(always)]
unsafe fn add_scaled<S: Simd>(out: &mut [f32], weight: f32, row: &[f32]) {
    for (out, x) in out.iter_mut().zip(row) {
        *out += weight * x;
    }
}

/// `out[t] = sum_slot weight * expert_rows[place]`, both `[_, n]`.
///
/// # Panics
/// When sizes do not agree.
pub fn combine(cpu: &Cpu, routing: &Routing, expert_rows: &[f32], out: &mut [f32], n: usize) {
    let k = routing.experts_per_token;
    assert_eq!(out.len(), routing.tokens * n);
    let out = SharedMut::new(out);
    cpu.for_rows(routing.tokens, 16, |tokens| {
        for t in tokens {
            // SAFETY: rows do not overlap.
            let out = unsafe { out.slice(t * n, n) };
            out.fill(0.0);
            for slot in t * k..(t + 1) * k {
                let weight = routing.weights[slot];
                let row = &expert_rows[routing.places[slot] as usize * n..][..n];
                // SAFETY: both are `n` long.
                unsafe { add_scaled_on(cpu.isa(), out, weight, row) };
            }
        }
    });
}

/// `out = out * (1 - c) + shared * c` with `c = sigmoid(coefficient)` of the row, both `[rows, n]`.
///
/// # Panics
/// When sizes do not agree.
pub fn mix_shared(cpu: &Cpu, out: &mut [f32], shared: &[f32], coefficients: &[f32]) {
    let rows = coefficients.len();
    assert_eq!(out.len(), shared.len());
    assert!(rows > 0 && out.len().is_multiple_of(rows));
    let n = out.len() / rows;
    let out = SharedMut::new(out);
    cpu.for_rows(rows, 16, |range| {
        for row in range {
            let c = 1.0 / (1.0 + (-coefficients[row]).exp());
            // SAFETY: rows do not overlap.
            let out = unsafe { out.slice(row * n, n) };
            for (out, shared) in out.iter_mut().zip(&shared[row * n..][..n]) {
                *out = *out * (1.0 - c) + shared * c;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::*;
    use crate::device::cpu::CpuOptions;
    use crate::testing::{Random, widen};

    #[test]
    fn routes_agree_with_the_reference() {
        let mut random = Random::new(1);
        for (tokens, experts, k) in [(1, 1, 1), (50, 8, 2), (33, 32, 4), (7, 3, 3)] {
            let logits = random.normal(tokens * experts);
            let mut routing = Routing::new(tokens, experts, k);
            routing.route(&logits);
            for (t, logits) in logits.chunks(experts).enumerate() {
                for (slot, (expert, weight)) in reference::route(&widen(logits), k).into_iter().enumerate() {
                    assert_eq!(routing.experts()[t * k + slot] as usize, expert);
                    assert!((f64::from(routing.weights()[t * k + slot]) - weight).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn given_experts_are_weighed_by_the_logits_as_they_are_and_their_own_choice_changes_no_bit() {
        let mut random = Random::new(3);
        let (tokens, experts, k) = (40, 8, 3);
        let logits = random.normal(tokens * experts);
        let [mut own, mut given] = [0, 1].map(|_| Routing::new(tokens, experts, k));
        own.route(&logits);
        let chosen: Vec<u16> = own.experts().iter().map(|expert| *expert as u16).collect();
        given.route_given(&logits, |t| Some(&chosen[t * k..][..k]));
        assert_eq!((own.experts(), own.weights()), (given.experts(), given.weights()));
        assert_eq!(own.places, given.places);
        // Other logits, the same experts: weights are the softmax of the new logits among these.
        let moved = random.normal(tokens * experts);
        given.route_given(&moved, |t| (t > 0).then(|| &chosen[t * k..][..k]));
        own.route(&moved);
        assert_eq!(
            (&own.experts()[..k], &own.weights()[..k]),
            (&given.experts()[..k], &given.weights()[..k])
        );
        assert_ne!(own.experts(), given.experts());
        for t in 1..tokens {
            let of = |slot: usize| f64::from(moved[t * experts + usize::from(chosen[t * k + slot])]).exp();
            let total: f64 = (0..k).map(of).sum();
            for slot in 0..k {
                assert_eq!(given.experts()[t * k + slot], u32::from(chosen[t * k + slot]));
                assert!((f64::from(given.weights()[t * k + slot]) - of(slot) / total).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn equal_logits_go_to_the_lower_expert() {
        let mut routing = Routing::new(1, 5, 2);
        routing.route(&[0.0, 3.0, 1.0, 3.0, 3.0]);
        assert_eq!(routing.experts(), [1, 3]);
        assert_eq!(routing.weights(), [0.5, 0.5]);
    }

    #[test]
    fn every_choice_has_a_row_in_the_segment_of_its_expert() {
        let mut random = Random::new(2);
        let (tokens, experts, k) = (100, 6, 2);
        let mut routing = Routing::new(tokens, experts, k);
        routing.route(&random.normal(tokens * experts));
        let mut seen = vec![false; tokens * k];
        for segment in routing.segments() {
            let rows = segment.first..segment.first + segment.rows;
            for (row, seen) in rows.clone().zip(&mut seen[rows]) {
                assert!(!std::mem::replace(seen, true));
                let chosen = &routing.experts()[routing.source(row) * k..][..k];
                assert!(chosen.contains(&(segment.matrix as u32)));
            }
        }
        assert!(seen.into_iter().all(|seen| seen));
    }

    #[test]
    fn combined_rows_are_the_weighted_sums_of_the_choices() {
        let cpu = Cpu::new(CpuOptions::default()).unwrap();
        let mut routing = Routing::new(2, 2, 2);
        routing.route(&[0.0, 1.0, 2.0, 2.0]);
        // Packed rows: expert 0 for tokens 0, 1, then expert 1 for tokens 0, 1.
        let rows = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0];
        let mut out = [0.0; 4];
        combine(&cpu, &routing, &rows, &mut out, 2);
        let high = 1.0 / (1.0 + (-1.0f32).exp());
        assert!((out[0] - (high * 3.0 + (1.0 - high) * 1.0)).abs() < 1e-6);
        assert_eq!(out[2..], [3.0, 30.0]);
    }
}
