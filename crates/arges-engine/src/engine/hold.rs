//! The engine's thread while it is held still, and the change of its weights.

use std::sync::atomic::Ordering;
use std::time::Duration;

use arges_model::{NewWeights, UpdateError};
use tracing::{error, info};

use super::{Worker, catch};
use crate::control::{ControlError, Order, PauseMode, Reply, RunningCaches};
use crate::handle::Submission;
use crate::scheduler::Rank;

/// How long a paused engine that has requests waits before it looks whether their clients are still there.
pub(super) const LOOK_FOR_CANCELLED: Duration = Duration::from_millis(20);

/// Whether steps are run.
#[derive(Default)]
pub(super) struct Hold {
    state: State,
    /// Requests that came since the pause.
    pub(super) arrived: Vec<Submission>,
    /// Why the weights cannot be used.
    torn: Option<String>,
}

#[derive(Default)]
enum State {
    #[default]
    Open,
    /// What is there runs to its end; whoever is to be told then.
    Emptying(Vec<Reply>),
    Still,
}

impl Hold {
    /// Whether steps are run.
    pub fn runs(&self) -> bool {
        !matches!(self.state, State::Still)
    }

    /// Whether new requests begin.
    pub fn admits(&self) -> bool {
        matches!(self.state, State::Open)
    }
}

fn answer(reply: &Reply, result: Result<(), ControlError>) {
    // An error means that nobody waits for it any more.
    let _ = reply.send(result);
}

impl Worker {
    pub(super) fn take_order(&mut self, order: Order, reply: &Reply) {
        let result = match order {
            Order::Pause(PauseMode::Wait) => return self.empty(reply),
            Order::Pause(mode) => {
                self.stand_still(mode);
                Ok(())
            }
            Order::Update { weights, version, caches } => self.update(weights, version, caches),
            Order::Resume => match &self.hold.torn {
                Some(message) => Err(ControlError::Torn(message.clone())),
                None => {
                    self.reopen();
                    Ok(())
                }
            },
        };
        self.publish_stats();
        answer(reply, result);
    }

    /// Takes a request, now or when the engine resumes.
    pub(super) fn receive_submission(&mut self, submission: Submission) {
        if self.hold.admits() {
            self.enqueue(submission);
        } else {
            self.hold.arrived.push(submission);
        }
    }

    fn empty(&mut self, reply: &Reply) {
        match &mut self.hold.state {
            State::Emptying(replies) => replies.push(reply.clone()),
            state => *state = State::Emptying(vec![reply.clone()]),
        }
        self.notice_empty();
    }

    /// Ends the wait for requests to end, if they have.
    pub(super) fn notice_empty(&mut self) {
        if let State::Emptying(replies) = &mut self.hold.state
            && self.scheduler.is_idle()
        {
            let replies = std::mem::take(replies);
            self.hold.state = State::Still;
            self.publish_stats();
            replies.iter().for_each(|reply| answer(reply, Ok(())));
        }
    }

    fn stand_still(&mut self, mode: PauseMode) {
        let before = std::mem::replace(&mut self.hold.state, State::Still);
        if mode == PauseMode::Abort {
            for submission in std::mem::take(&mut self.hold.arrived) {
                self.enqueue(submission);
            }
            let ranks: Vec<Rank> = self.sequences.keys().copied().collect();
            for rank in ranks {
                if let Some(mut sequence) = self.remove(rank) {
                    sequence.abort();
                    self.stats.aborted += 1;
                }
            }
        }
        if let State::Emptying(replies) = before {
            // Aborting left nothing; a pause that keeps requests takes the place of one that waits for them.
            let result = || match mode {
                PauseMode::Keep => Err(ControlError::Resumed),
                PauseMode::Abort | PauseMode::Wait => Ok(()),
            };
            replies.iter().for_each(|reply| answer(reply, result()));
        }
    }

    /// Runs steps again.
    pub(super) fn reopen(&mut self) {
        if let State::Emptying(replies) = std::mem::take(&mut self.hold.state) {
            replies.iter().for_each(|reply| answer(reply, Err(ControlError::Resumed)));
        }
        for submission in std::mem::take(&mut self.hold.arrived) {
            self.enqueue(submission);
        }
    }

    fn update(
        &mut self,
        weights: NewWeights,
        version: u64,
        caches: RunningCaches,
    ) -> Result<(), ControlError> {
        let executor = &mut self.runner.memory.executor;
        let result = catch(|| executor.update_weights(weights)).unwrap_or_else(|m| Err(UpdateError::Torn(m)));
        match result {
            Ok(()) => {
                self.hold.torn = None;
                self.facts.weight_version = version;
                self.shared.weight_version.store(version, Ordering::Release);
                self.forget_old_caches(caches);
                info!(version, "weights updated");
                Ok(())
            }
            Err(error) => {
                if let UpdateError::Torn(message) = &error {
                    error!(message, "the weights are incomplete");
                    self.hold.torn = Some(message.clone());
                    self.fail_all(&error.to_string());
                    self.stand_still(PauseMode::Keep);
                }
                Err(error.into())
            }
        }
    }

    /// Everything that was computed with other weights and may be used again is dropped here.
    fn forget_old_caches(&mut self, caches: RunningCaches) {
        self.runner.memory.flush();
        if caches == RunningCaches::Recompute {
            let Self { scheduler, sequences, runner, .. } = self;
            scheduler.set_back_all(&mut runner.memory.room(sequences));
            for (&rank, sequence) in sequences.iter_mut() {
                if sequence.restart_scores() {
                    scheduler.need_rows_from(rank, 0);
                }
            }
        }
    }
}
