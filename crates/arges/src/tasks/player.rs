//! Has a model play instances of tasks.

use std::sync::Arc;

use anyhow::Result;
use arges_engine::{Engine, SamplingParams};
use arges_tasks::{Episode, Instance};
use arges_train::rl::policy::{Policy, PolicyError, Sampled, Turn, sample_from};
use arges_train::rl::rollout::{Job, Limits, Player as Episodes, Told};
use arges_train::rl::talk::Talk;
use arges_train::rl::trajectory::Trajectory;
use futures_util::future::BoxFuture;
use tokio::runtime::Runtime;

use super::find;
use crate::loading::Opened;

/// Longest prompt and response where neither a flag nor the model says less.
pub const CONTEXT: usize = 32_768;

/// Is given a model's text as it comes.
pub type Show = fn(&str);

/// Plays instances with one model and one way to sample.
pub struct Player {
    episodes: Episodes,
    talk: Talk,
    max_tokens: usize,
    seed: u64,
}

impl Player {
    /// `max_tokens` of a response over all its turns; `show` where the text is to be seen as it comes.
    ///
    /// # Errors
    /// A model whose turns cannot be told apart.
    pub fn new(
        opened: &Opened,
        engine: Engine,
        sampling: SamplingParams,
        max_tokens: usize,
        show: Option<Show>,
    ) -> Result<Self> {
        let talk = Talk::new(opened.tokenizer()?, opened.chat_template()?)?;
        // The tasks themselves bound turns.
        let limits =
            Limits { longest: engine.max_context(), max_turns: usize::MAX, repetition: None, experts: false };
        let seed = sampling.seed.unwrap_or_else(rand::random);
        let policy = Arc::new(Sampler { engine, sampling, show });
        Ok(Self { episodes: Episodes::new(policy, talk.clone(), limits), talk, max_tokens, seed })
    }

    /// Plays an instance to its end, and whether its task is one of several turns. `number` sets its draws apart from those
    /// of others.
    ///
    /// # Errors
    /// An instance of no known task, a prompt that is too long, a model that fails.
    pub async fn play(
        &self,
        instance: &Instance,
        number: u64,
        tell: &mut (dyn FnMut(Told) + Send),
    ) -> Result<(Trajectory, bool)> {
        let task = find(&instance.task)?;
        let job = Job {
            group: 0,
            member: 0,
            task: instance.task.clone(),
            difficulty: instance.difficulty,
            seed: instance.seed,
            sampling_seed: self.seed.wrapping_add(number),
            window: self.max_tokens,
            greedy: false,
        };
        let trajectory = self.episodes.episode(&job, task, instance, tell).await?;
        Ok((trajectory, Episode::begin(task, instance).max_turns() > 1))
    }

    /// The text of a turn.
    pub fn text(&self, turn: &[u32]) -> String {
        self.talk.text(turn)
    }
}

/// A runtime on which episodes can be played.
///
/// # Errors
/// Threads that cannot be started.
pub fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

struct Sampler {
    engine: Engine,
    sampling: SamplingParams,
    show: Option<Show>,
}

impl Policy for Sampler {
    fn sample(&self, turn: Turn) -> BoxFuture<'_, Result<Sampled, PolicyError>> {
        Box::pin(async move {
            let mut show = self.show;
            let show = show.as_mut().map(|show| show as &mut (dyn FnMut(&str) + Send));
            sample_from(&self.engine, turn, self.sampling.clone(), show).await
        })
    }
}
