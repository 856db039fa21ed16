//! Holding an engine still and giving it new weights: what a trainer does with the engine that its rollouts come from.

use std::sync::atomic::Ordering;
use std::sync::mpsc;

use arges_model::{NewWeights, UpdateError};

use crate::handle::{Engine, Message};

/// What becomes of the requests that are queued and running when an engine pauses. Later ones wait until it resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PauseMode {
    /// They end at once, with what they have and [`crate::FinishReason::Abort`].
    #[default]
    Abort,
    /// They run to their ends first.
    Wait,
    /// They stay as they are and go on after [`Engine::resume`].
    Keep,
}

/// What becomes of states, keys and values of running requests when the weights change. Those that were kept for later
/// requests are forgotten in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RunningCaches {
    /// They are computed again from the tokens, so that every later token is what the new weights say of them.
    #[default]
    Recompute,
    /// They stay as the old weights left them: no work, and later tokens come from a mixture of both.
    Keep,
}

/// An engine was not paused, updated or resumed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The weights were refused; the old ones are in force.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// The engine was resumed before all requests had ended.
    #[error("the engine was resumed before the requests it waited for had ended")]
    Resumed,
    /// An earlier update failed in the middle.
    #[error("the weights are incomplete since an update failed ({0}); publish whole ones first")]
    Torn(String),
    /// The engine's thread has ended.
    #[error("the engine is shutting down")]
    ShutDown,
}

/// Where the answer to an order goes.
pub(crate) type Reply = mpsc::SyncSender<Result<(), ControlError>>;

/// An order to the engine's thread.
pub(crate) enum Order {
    Pause(PauseMode),
    Update { weights: NewWeights, version: u64, caches: RunningCaches },
    Resume,
}

impl Engine {
    /// Stops the engine between two steps; returns when it stands still. A paused engine takes requests, up to its
    /// queue's limit, and begins them when it resumes. Pausing once more applies another mode to what is there.
    ///
    /// # Errors
    /// [`ControlError::Resumed`] when somebody resumes the engine while this waits for requests to end.
    pub fn pause(&self, mode: PauseMode) -> Result<(), ControlError> {
        self.order(Order::Pause(mode))
    }

    /// Replaces the weights between two steps, and names them `version`: tokens sampled from now on carry that number.
    /// The engine need not be paused. Running requests go on with the new weights.
    ///
    /// # Errors
    /// When the weights do not fit or cannot be read; the old ones stay in force, whole.
    pub fn update_weights(
        &self,
        weights: NewWeights,
        version: u64,
        caches: RunningCaches,
    ) -> Result<(), ControlError> {
        self.order(Order::Update { weights, version, caches })
    }

    /// Lets a paused engine go on.
    ///
    /// # Errors
    /// When an update that failed left weights that cannot be used.
    pub fn resume(&self) -> Result<(), ControlError> {
        self.order(Order::Resume)
    }

    /// The version of the weights in force: that of the last update, 0 before the first.
    pub fn weight_version(&self) -> u64 {
        self.shared().weight_version.load(Ordering::Acquire)
    }

    fn order(&self, order: Order) -> Result<(), ControlError> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.send(Message::Order(Box::new(order), reply)).map_err(|()| ControlError::ShutDown)?;
        answer.recv().unwrap_or(Err(ControlError::ShutDown))
    }
}
