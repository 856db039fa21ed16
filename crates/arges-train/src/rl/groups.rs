//! Groups under way, in order, and how far they may run ahead.
//!
//! Groups are learned from in the order of their numbers, and a group is begun only while fewer than
//! `(max_staleness + 1) * prompts` wait to be learned from or are just being learned from. So one begun at version `v`,
//! which is the number of batches learned, is learned in batch `v + max_staleness` at the latest, counted from 0: no
//! token is older than `max_staleness` versions. Groups without anything to learn make room for others at once. With
//! `max_staleness = 0`, which groups a batch has depends on their rewards alone and not on time.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::advantage::differ;
use super::rollout::Job;
use super::trajectory::Trajectory;

/// Responses to one prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Its number: groups are numbered in the order in which they are begun.
    pub index: u64,
    /// Place of its task and difficulty in the curriculum.
    pub cell: usize,
    pub task: String,
    pub difficulty: u32,
    /// Seed of the instance.
    pub seed: u64,
    /// Those that have ended, by their place in the group.
    pub members: Vec<Option<Trajectory>>,
    /// Members that gave nothing.
    pub lost: usize,
}

impl Group {
    fn is_complete(&self) -> bool {
        self.members.iter().flatten().count() + self.lost == self.members.len()
    }

    /// Rewards of the members that there are.
    pub fn rewards(&self) -> Vec<f64> {
        self.members.iter().flatten().map(|member| member.reward).collect()
    }
}

/// A group that ended, told to the curriculum and the metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub index: u64,
    pub cell: usize,
    pub rewards: Vec<f64>,
    /// Tokens that each of these took.
    pub lengths: Vec<usize>,
    /// Whether there is something to learn from it.
    pub kept: bool,
}

/// What became of a member's group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is gone.
    Unknown,
    /// Others of it are awaited.
    Open,
    /// It is complete, and will be learned from.
    Kept,
    /// It is complete, and there is nothing to learn.
    Dropped,
}

/// All groups that are not learned from yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Groups {
    /// Number of the next group.
    next: u64,
    waiting: VecDeque<Group>,
    /// What has ended since the last batch.
    outcomes: Vec<Outcome>,
    /// Members lost since the last batch.
    lost: usize,
    /// Those of them that were sampled, but could not be judged.
    #[serde(default)]
    unjudged: usize,
}

impl Groups {
    /// Number of the next group, if fewer than `most` wait.
    pub fn next(&self, most: u64) -> Option<u64> {
        ((self.waiting.len() as u64) < most).then_some(self.next)
    }

    /// Begins the next group.
    pub fn begin(&mut self, group: Group) {
        self.next = group.index + 1;
        self.waiting.push_back(group);
    }

    /// Takes a member that has ended, or `None` for one that is lost. Without `keep_uniform`, groups of which nothing
    /// can be learned are dropped.
    pub fn take(&mut self, job: &Job, member: Option<Trajectory>, keep_uniform: bool) -> Taken {
        let place = self.waiting.iter().position(|group| group.index == job.group);
        let Some(place) = place else { return Taken::Unknown };
        let group = &mut self.waiting[place];
        let Some(slot) = group.members.get_mut(job.member as usize) else { return Taken::Unknown };
        if member.is_none() {
            group.lost += 1;
            self.lost += 1;
        }
        *slot = member;
        if !group.is_complete() {
            return Taken::Open;
        }
        let rewards = group.rewards();
        let kept = rewards.len() > 1 && (keep_uniform || differ(&rewards));
        let lengths = group.members.iter().flatten().map(Trajectory::sampled).collect();
        self.outcomes.push(Outcome { index: group.index, cell: group.cell, rewards, lengths, kept });
        if kept {
            return Taken::Kept;
        }
        self.waiting.remove(place);
        Taken::Dropped
    }

    /// The first groups, as many as a batch has, once all of them have ended.
    pub fn batch(&mut self, prompts: usize) -> Option<Vec<Group>> {
        let complete = self.waiting.iter().take(prompts).filter(|group| group.is_complete()).count();
        (complete == prompts).then(|| self.waiting.drain(..prompts).collect())
    }

    /// What has ended since the last call, in the order of the groups, and the members that were lost.
    pub fn outcomes(&mut self) -> (Vec<Outcome>, usize) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        outcomes.sort_unstable_by_key(|outcome| outcome.index);
        (outcomes, std::mem::take(&mut self.lost))
    }

    /// Notes that a member was lost because it could not be judged.
    pub fn count_unjudged(&mut self) {
        self.unjudged += 1;
    }

    /// Members that were lost since the last batch, in sampling and in judging.
    pub fn lost(&self) -> (usize, usize) {
        (self.lost.saturating_sub(self.unjudged), self.unjudged)
    }

    /// Members that could not be judged since the last call.
    pub fn take_unjudged(&mut self) -> usize {
        std::mem::take(&mut self.unjudged)
    }

    /// Responses that have ended and wait to be learned from, and all that are awaited.
    pub fn progress(&self) -> (usize, usize) {
        let ended = self.waiting.iter().map(|group| group.members.iter().flatten().count()).sum();
        (ended, self.waiting.iter().map(|group| group.members.len()).sum())
    }

    /// Group and place of every member that has not ended: what a resumed run has to ask for again.
    pub fn unfinished(&mut self) -> Vec<(Group, u32)> {
        let mut unfinished = Vec::new();
        for group in self.waiting.iter_mut().filter(|group| !group.is_complete()) {
            // Those that were lost get another chance.
            group.lost = 0;
            let missing =
                (0..).zip(&group.members).filter(|(_, member)| member.is_none()).map(|(place, _)| place);
            unfinished.extend(missing.collect::<Vec<u32>>().into_iter().map(|place| (group.clone(), place)));
        }
        unfinished
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::trajectory::tests::example;

    fn begin(groups: &mut Groups, members: usize) {
        let index = groups.next;
        let (task, members) = ("addition".to_owned(), vec![None; members]);
        groups.begin(Group { index, cell: 0, task, difficulty: 1, seed: index, members, lost: 0 });
    }

    fn job(group: u64, member: u32) -> Job {
        Job {
            group,
            member,
            task: "addition".to_owned(),
            difficulty: 1,
            seed: 0,
            sampling_seed: 0,
            window: 9,
            greedy: false,
        }
    }

    fn end(groups: &mut Groups, group: u64, rewards: &[f64]) {
        for (member, reward) in (0..).zip(rewards) {
            let trajectory = Trajectory { reward: *reward, ..example() };
            assert_ne!(groups.take(&job(group, member), Some(trajectory), false), Taken::Unknown);
        }
    }

    #[test]
    fn groups_without_variance_are_dropped_and_refilled_and_the_rest_is_learned_in_order() {
        let mut groups = Groups::default();
        let fill = |groups: &mut Groups| {
            while groups.next(2).is_some() {
                begin(groups, 2);
            }
            groups.next
        };
        assert_eq!(fill(&mut groups), 2);
        end(&mut groups, 1, &[0.0, 1.0]);
        assert_eq!(fill(&mut groups), 2);
        end(&mut groups, 0, &[1.0, 1.0]);
        assert_eq!(groups.batch(2), None);
        assert_eq!(fill(&mut groups), 3);
        end(&mut groups, 2, &[1.0, 0.0]);
        let batch = groups.batch(2).unwrap();
        assert_eq!(batch.iter().map(|group| group.index).collect::<Vec<_>>(), [1, 2]);
        let (outcomes, lost) = groups.outcomes();
        let kept: Vec<_> = outcomes.iter().map(|outcome| (outcome.index, outcome.kept)).collect();
        assert_eq!((kept, lost), (vec![(0, false), (1, true), (2, true)], 0));
        // A late member of a group that is gone.
        assert_eq!(groups.take(&job(1, 0), None, false), Taken::Unknown);
    }

    #[test]
    fn no_group_is_learned_later_than_the_bound_on_staleness() {
        // Whatever order groups end in, and whichever are dropped.
        for staleness in 0..3u64 {
            let (mut groups, mut begun, mut random) = (Groups::default(), Vec::new(), 12345u64);
            for version in 0..30 {
                let batch = loop {
                    while groups.next(3 * (staleness + 1)).is_some() {
                        begun.push(version);
                        begin(&mut groups, 2);
                    }
                    if let Some(batch) = groups.batch(3) {
                        // While it is learned from, others are begun.
                        while groups.next(3 * staleness).is_some() {
                            begun.push(version);
                            begin(&mut groups, 2);
                        }
                        break batch;
                    }
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let open: Vec<u64> =
                        groups.waiting.iter().filter(|g| !g.is_complete()).map(|g| g.index).collect();
                    let index = open[(random >> 33) as usize % open.len()];
                    end(&mut groups, index, if random >> 60 == 0 { &[1.0, 1.0] } else { &[0.0, 1.0] });
                };
                let oldest = batch.iter().map(|group| begun[group.index as usize]).min().unwrap();
                assert!(version - oldest <= staleness, "begun at {oldest}, learned at {version}");
            }
        }
    }

    #[test]
    fn a_lost_member_costs_itself_and_a_group_with_one_left_is_dropped() {
        let mut groups = Groups::default();
        begin(&mut groups, 3);
        begin(&mut groups, 2);
        groups.take(&job(0, 0), None, false);
        groups.take(&job(1, 0), None, false);
        for (member, reward) in [(1, 0.0), (2, 1.0)] {
            groups.take(&job(0, member), Some(Trajectory { reward, ..example() }), false);
        }
        assert_eq!(groups.lost(), (2, 0));
        groups.count_unjudged();
        assert_eq!((groups.lost(), groups.take_unjudged(), groups.lost()), ((1, 1), 1, (2, 0)));
        groups.take(&job(1, 1), Some(example()), false);
        assert_eq!(groups.batch(1).unwrap()[0].rewards(), [0.0, 1.0]);
        assert!(groups.waiting.is_empty());
    }

    #[test]
    fn what_has_ended_is_kept_over_a_restart_and_the_rest_is_asked_for_again() {
        let mut groups = Groups::default();
        begin(&mut groups, 2);
        begin(&mut groups, 2);
        end(&mut groups, 0, &[1.0]);
        end(&mut groups, 1, &[0.0, 1.0]);
        let text = serde_json::to_string(&groups).unwrap();
        let mut back: Groups = serde_json::from_str(&text).unwrap();
        assert_eq!(back, groups);
        let again: Vec<(u64, u32)> =
            back.unfinished().iter().map(|(group, place)| (group.index, *place)).collect();
        assert_eq!(again, [(0, 1)]);
        end(&mut back, 0, &[1.0, 0.0]);
        assert_eq!(back.batch(2).unwrap().len(), 2);
    }
}
