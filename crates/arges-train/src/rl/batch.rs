//! A batch of trajectories: advantages, the shares of its updates, and pieces that fit the trainer.

use std::ops::Range;

use arges_model::training::{TrainingBatch, TrainingPlan};

use super::advantage::{OverlongPenalty, group_advantages};
use super::config::AdvantageConfig;
use super::groups::Group;
use super::objective::{Aggregation, Response};
use super::trajectory::{End, Trajectory};
use crate::data::mix;

/// What is learned in one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    pub trajectories: Vec<Trajectory>,
    /// Reward of each with what its length takes off.
    pub shaped: Vec<f64>,
    /// Advantage of each.
    pub advantages: Vec<f64>,
    /// Whether each takes part in the loss.
    pub counted: Vec<bool>,
}

impl Batch {
    /// Of groups, with responses of at most `window` tokens.
    pub fn new(groups: Vec<Group>, config: &AdvantageConfig, window: usize) -> Self {
        let mut batch = Self {
            trajectories: Vec::new(),
            shaped: Vec::new(),
            advantages: Vec::new(),
            counted: Vec::new(),
        };
        for group in groups {
            let members: Vec<Trajectory> = group.members.into_iter().flatten().collect();
            let penalty = |member: &Trajectory| {
                config.overlong.map_or(0.0, |overlong: OverlongPenalty| overlong.of(member.sampled(), window))
            };
            let shaped: Vec<f64> = members.iter().map(|member| member.reward + penalty(member)).collect();
            batch.advantages.extend(group_advantages(&shaped, config.by_deviation));
            batch.shaped.extend(shaped);
            let counts = |member: &Trajectory| !(config.mask_truncated && member.end == End::Length);
            batch.counted.extend(members.iter().map(counts));
            batch.trajectories.extend(members);
        }
        batch
    }

    /// The trajectories of each update: all of them once, shuffled by the key, as evenly as it goes.
    pub fn updates(&self, updates: usize, key: u64) -> Vec<Vec<usize>> {
        let count = self.trajectories.len();
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by_key(|index| mix(&[key, *index as u64]));
        let at = |update: usize| update * count / updates;
        (0..updates).map(|update| order[at(update)..at(update + 1)].to_vec()).collect()
    }

    /// The share of each token of each of these trajectories; 0 for those that do not count.
    pub fn shares(&self, of: &[usize], aggregation: Aggregation) -> Vec<f64> {
        let response = |&index: &usize| Response {
            group: self.trajectories[index].group,
            tokens: if self.counted[index] { self.trajectories[index].sampled() } else { 0 },
        };
        aggregation.shares(&of.iter().map(response).collect::<Vec<_>>())
    }

    /// These trajectories in pieces that fit a plan.
    pub fn pieces(&self, of: &[usize], plan: TrainingPlan) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        for (place, &index) in of.iter().enumerate() {
            let trajectory = &self.trajectories[index];
            let fits = |piece: &Piece| {
                piece.batch.tokens.len() + trajectory.tokens.len() <= plan.max_tokens
                    && piece.batch.lengths.len() < plan.max_sequences
            };
            if !pieces.last().is_some_and(fits) {
                pieces.push(Piece::default());
            }
            if let Some(piece) = pieces.last_mut() {
                let first = piece.batch.targets.len();
                trajectory.push_to(&mut piece.batch);
                piece.parts.push(Part { place, index, targets: first..piece.batch.targets.len() });
            }
        }
        pieces
    }
}

/// Sequences that go through the model at once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Piece {
    pub batch: TrainingBatch,
    pub parts: Vec<Part>,
}

/// A trajectory in a piece.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its place among those of the update.
    pub place: usize,
    /// Its place in the batch.
    pub index: usize,
    /// Its targets: the tokens that the model sampled.
    pub targets: Range<usize>,
}

impl Piece {
    /// Of each target its part, and its place among the part's sampled tokens.
    pub fn owners(&self) -> Vec<(usize, usize)> {
        let parts = self.parts.iter().enumerate();
        parts.flat_map(|(number, part)| (0..part.targets.len()).map(move |token| (number, token))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::trajectory::tests::example;

    fn group(index: u64, rewards: &[f64]) -> Group {
        let member = |(place, reward): (u32, &f64)| {
            Some(Trajectory { group: index, member: place, reward: *reward, ..example() })
        };
        Group {
            index,
            cell: 0,
            task: "addition".to_owned(),
            difficulty: 1,
            seed: 0,
            members: (0..).zip(rewards).map(member).chain([None]).collect(),
            lost: 1,
        }
    }

    fn batch(config: &AdvantageConfig) -> Batch {
        Batch::new(vec![group(4, &[1.0, 0.0]), group(6, &[0.0, 0.0, 1.0])], config, 4)
    }

    #[test]
    fn advantages_are_within_groups_and_length_is_taken_off_first() {
        let plain = batch(&AdvantageConfig::default());
        assert_eq!(plain.shaped, [1.0, 0.0, 0.0, 0.0, 1.0]);
        assert_eq!(plain.advantages[..2], [1.0, -1.0]);
        assert!((plain.advantages[4] - 2f64.sqrt()).abs() < 1e-12);
        let overlong =
            AdvantageConfig { overlong: Some(OverlongPenalty { buffer: 2 }), ..Default::default() };
        // All have four tokens of a window of four.
        assert_eq!(batch(&overlong).shaped, [0.0, -1.0, -1.0, -1.0, 0.0]);
    }

    #[test]
    fn updates_share_a_batch_evenly_and_differ_between_batches() {
        let batch = batch(&AdvantageConfig::default());
        for updates in 1..=5 {
            let shares = batch.updates(updates, 1);
            let mut all = shares.concat();
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3, 4]);
            let sizes: Vec<usize> = shares.iter().map(Vec::len).collect();
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
        }
        assert!((2..20).any(|key| batch.updates(2, key) != batch.updates(2, 1)));
    }

    #[test]
    fn pieces_keep_to_the_plan_and_know_whose_their_targets_are() {
        let batch = batch(&AdvantageConfig::default());
        let of = [3, 0, 4, 1];
        for (max_tokens, max_sequences, sizes) in
            [(21, 9, vec![3, 1]), (99, 2, vec![2, 2]), (7, 9, vec![1; 4])]
        {
            let pieces = batch.pieces(&of, TrainingPlan::new(max_tokens, max_sequences));
            assert_eq!(pieces.iter().map(|piece| piece.parts.len()).collect::<Vec<_>>(), sizes);
            let mut indices = Vec::new();
            for piece in &pieces {
                assert_eq!(piece.owners().len(), piece.batch.targets.len());
                for part in &piece.parts {
                    assert_eq!(of[part.place], part.index);
                    indices.push(part.index);
                    let tokens: Vec<u32> =
                        piece.batch.targets[part.targets.clone()].iter().map(|target| target.token).collect();
                    assert_eq!(tokens, [7, 8, 10, 11]);
                }
            }
            assert_eq!(indices, of);
        }
    }

    #[test]
    fn truncated_responses_can_be_left_out_of_the_loss() {
        let config = AdvantageConfig { mask_truncated: true, ..Default::default() };
        let mut groups = vec![group(4, &[1.0, 0.0])];
        groups[0].members[1].as_mut().unwrap().end = End::Length;
        let batch = Batch::new(groups, &config, 4);
        assert_eq!(batch.shares(&[0, 1], Aggregation::Token), [0.25, 0.0]);
        assert!(batch.advantages[1] < 0.0);
    }
}
