//! Sampling a batch: groups are begun, and those without anything to learn replaced, until it is full.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::{Event, LOOK, RlError, RlRun};
use crate::data::{FIRST_TRAINING_SEED, mix};
use crate::rl::curriculum::choose;
use crate::rl::groups::{Group, Taken};
use crate::rl::rollout::{EpisodeError, Job, Played};

/// Numbers of groups from here up are of evaluation.
pub const FIRST_EVALUATION_GROUP: u64 = 1 << 63;
/// Groups without anything to learn in a row, in batches, after which a run gives up.
const MOST_UNIFORM: usize = 20;
/// Lost responses, in batches, after which a run gives up.
const MOST_LOST: usize = 2;
/// The same, of responses that cannot be judged: meanwhile those of other tasks are learned from.
const MOST_UNJUDGED: usize = 8;

/// What a random choice is for.
#[derive(Clone, Copy)]
enum Purpose {
    Cell,
    Instance,
    Samples,
}

impl RlRun {
    /// The groups of the next batch; `None` when the run is to stop before it is full.
    pub(super) fn collect(
        &mut self,
        stop: &AtomicBool,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Option<Vec<Group>>, RlError> {
        let (prompts, staleness) = (self.config.rollout.prompts, self.config.rollout.max_staleness);
        let start = Instant::now();
        loop {
            self.fill(staleness + 1);
            if let Some(batch) = self.groups.batch(prompts) {
                // Sampling goes on while this batch is learned from.
                self.fill(staleness);
                self.dropped = 0;
                self.waited = start.elapsed().as_secs_f64();
                return Ok(Some(batch));
            }
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            if let Some(played) = self.rollouts.next(LOOK) {
                self.take(played, tell)?;
            }
            let (ended, awaited) = self.groups.progress();
            tell(Event::Sampling { batch: self.place.batch + 1, ended, awaited, dropped: self.dropped });
        }
    }

    /// Takes what has ended, without waiting.
    pub(super) fn pump(&mut self, tell: &mut dyn FnMut(Event)) -> Result<(), RlError> {
        while let Some(played) = self.rollouts.ended() {
            self.take(played, tell)?;
        }
        self.fill(self.config.rollout.max_staleness);
        Ok(())
    }

    /// Begins groups until that many batches of them wait.
    fn fill(&mut self, batches: u64) {
        let most = self.config.rollout.prompts as u64 * batches;
        while let Some(index) = self.groups.next(most) {
            let group = self.draw(index);
            for member in 0..group.members.len() as u32 {
                self.submit(&group, member);
            }
            self.groups.begin(group);
        }
    }

    fn draw(&self, index: u64) -> Group {
        let (config, curriculum) = (&self.config, &self.place.curriculum);
        let weights = curriculum.weights(&config.task, &config.curriculum, self.place.batch);
        let draw = (self.number(index, Purpose::Cell) >> 11) as f64 / (1u64 << 53) as f64;
        let cell = choose(&weights, draw);
        Group {
            index,
            cell,
            task: curriculum.cells()[cell].task.clone(),
            difficulty: curriculum.cells()[cell].difficulty,
            seed: self.number(index, Purpose::Instance) | FIRST_TRAINING_SEED,
            members: vec![None; config.rollout.responses],
            lost: 0,
        }
    }

    fn number(&self, group: u64, purpose: Purpose) -> u64 {
        mix(&[self.config.seed, group, purpose as u64])
    }

    pub(super) fn submit(&self, group: &Group, member: u32) {
        self.rollouts.submit(Job {
            group: group.index,
            member,
            task: group.task.clone(),
            difficulty: group.difficulty,
            seed: group.seed,
            sampling_seed: mix(&[self.number(group.index, Purpose::Samples), u64::from(member)]),
            window: self.window().tokens,
            greedy: false,
        });
    }

    /// Puts an episode where it belongs; gives up when nothing can come of it.
    pub(super) fn take(&mut self, played: Played, tell: &mut dyn FnMut(Event)) -> Result<(), RlError> {
        let Played { job, outcome } = played;
        let unjudged = matches!(outcome, Err(EpisodeError::Unjudged(_)));
        let (member, reason) = match outcome {
            Ok(trajectory) => (Some(trajectory), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let keeps = !self.config.advantage.dynamic_sampling;
        let taken = self.groups.take(&job, member, keeps);
        if unjudged && taken != Taken::Unknown {
            self.groups.count_unjudged();
        }
        match taken {
            Taken::Unknown | Taken::Open => {}
            Taken::Kept => self.uniform = 0,
            Taken::Dropped => {
                self.dropped += 1;
                self.uniform += 1;
            }
        }
        let rollout = &self.config.rollout;
        if self.uniform >= MOST_UNIFORM * rollout.prompts {
            return Err(RlError::Uniform { groups: self.uniform });
        }
        if let Some(reason) = reason {
            let (lost, unjudged) = self.groups.lost();
            let responses = rollout.prompts * rollout.responses;
            if unjudged >= MOST_UNJUDGED * responses {
                return Err(RlError::Unjudged { unjudged, reason });
            }
            if lost >= MOST_LOST * responses {
                return Err(RlError::Lost { lost, reason });
            }
            tell(Event::Lost { reason });
        }
        Ok(())
    }
}
