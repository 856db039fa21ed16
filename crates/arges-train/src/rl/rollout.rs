//! Episodes under way: each a task of a small runtime beside the trainer's thread.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use arges_engine::RepetitionStop;
use arges_tasks::{Episode, Instance, Step, Task, ToolResult};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use super::judged::{Judged, Question};
use super::policy::{Policy, PolicyError, Turn, TurnEnd};
use super::talk::{Talk, TalkError};
use super::trajectory::{End, Trajectory};
use crate::data::mix;

/// An episode to be played.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub group: u64,
    pub member: u32,
    pub task: String,
    pub difficulty: u32,
    /// Seed of the instance.
    pub seed: u64,
    /// Seed of the samples.
    pub sampling_seed: u64,
    /// Tokens that the model may sample, over all turns.
    pub window: usize,
    /// Take the likeliest tokens.
    pub greedy: bool,
}

/// Why an episode gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum EpisodeError {
    /// There is no such task.
    #[error("there is no task {0:?}")]
    NoTask(String),
    /// The messages cannot become tokens.
    #[error(transparent)]
    Talk(#[from] TalkError),
    /// The prompt leaves no room.
    #[error("a prompt of {prompt} tokens leaves no room for a response in `update.max_tokens`, {longest}")]
    TooLong { prompt: usize, longest: usize },
    /// Sampling failed.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// What was sampled does not hold together.
    #[error("a trajectory is unusable: {0}")]
    Unusable(String),
    /// The judge failed, which says nothing about the response.
    #[error("a response could not be judged: {0}")]
    Unjudged(String),
}

/// An episode that ended.
pub struct Played {
    pub job: Job,
    pub outcome: Result<Trajectory, EpisodeError>,
}

/// What all episodes share.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Longest sequence, prompt and tools' answers included.
    pub longest: usize,
    /// Turns at most.
    pub max_turns: usize,
    /// Ends responses that go round in circles.
    pub repetition: Option<RepetitionStop>,
    /// Whether trajectories hold which experts served their tokens.
    pub experts: bool,
}

/// Plays episodes, many at once.
pub struct Rollouts {
    player: Arc<Player>,
    runtime: Runtime,
    places: Arc<Semaphore>,
    sender: Sender<Played>,
    played: Receiver<Played>,
}

/// Plays an episode to its end.
pub struct Player {
    policy: Arc<dyn Policy>,
    talk: Talk,
    limits: Limits,
    judged: Option<Judged>,
}

/// What happens in an episode, told as it does.
#[derive(Debug, Clone, Copy)]
pub enum Told<'a> {
    /// A turn begins.
    Begins,
    /// What the model wrote in it.
    Wrote(&'a str),
    /// What its calls gave; its turn comes next.
    Results(&'a [ToolResult]),
}

impl Rollouts {
    /// At most `concurrency` episodes at once; others wait.
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub fn new(player: Player, concurrency: usize) -> std::io::Result<Self> {
        // Verifiers may block while programs run, each in a thread of its own.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("arges-rollout")
            .enable_all()
            .build()?;
        let (sender, played) = mpsc::channel();
        Ok(Self {
            player: Arc::new(player),
            runtime,
            places: Arc::new(Semaphore::new(concurrency)),
            sender,
            played,
        })
    }

    /// Begins an episode as soon as there is a place.
    pub fn submit(&self, job: Job) {
        let (player, places) = (Arc::clone(&self.player), Arc::clone(&self.places));
        let sender = self.sender.clone();
        self.runtime.spawn(async move {
            // The places are never closed.
            let place = places.acquire().await;
            let played = player.play(&job).await;
            // A reward model takes its time, which is none of the sampler's.
            drop(place);
            let outcome = match played {
                Ok((trajectory, None)) => Ok(trajectory),
                Ok((trajectory, Some(reference))) => player.judge(&job, trajectory, &reference).await,
                Err(error) => Err(error),
            };
            // An error means that nobody waits any more.
            let _ = sender.send(Played { job, outcome });
        });
    }

    /// The next episode that ended, if one does in that time.
    pub fn next(&self, timeout: Duration) -> Option<Played> {
        self.played.recv_timeout(timeout).ok()
    }

    /// An episode that has ended already.
    pub fn ended(&self) -> Option<Played> {
        self.played.try_recv().ok()
    }
}

impl Player {
    /// One that samples from `policy`.
    pub fn new(policy: Arc<dyn Policy>, talk: Talk, limits: Limits) -> Self {
        Self { policy, talk, limits, judged: None }
    }

    /// The same, with questions that a reward model judges.
    #[must_use]
    pub fn with_judged(self, judged: Option<Judged>) -> Self {
        Self { judged, ..self }
    }

    /// An episode, and where it has yet to be judged what it is compared with.
    async fn play(&self, job: &Job) -> Result<(Trajectory, Option<Arc<str>>), EpisodeError> {
        let (trajectory, reference) = match self.question(job) {
            Some((judged, question)) => {
                let trajectory = self.answer(job, question).await?;
                (trajectory, Some(self.reference(job, judged, question).await?))
            }
            None => {
                let task =
                    arges_tasks::find(&job.task).ok_or_else(|| EpisodeError::NoTask(job.task.clone()))?;
                let instance = task.generate(job.seed, job.difficulty);
                (self.episode(job, task, &instance, &mut |_| ()).await?, None)
            }
        };
        trajectory.check().map_err(EpisodeError::Unusable)?;
        Ok((trajectory, reference))
    }

    fn question(&self, job: &Job) -> Option<(&Judged, &Question)> {
        let judged = self.judged.as_ref()?;
        Some((judged, judged.question(&job.task, job.seed)?))
    }

    /// An answer, not yet judged.
    async fn answer(&self, job: &Job, question: &Question) -> Result<Trajectory, EpisodeError> {
        let message = json!({ "role": "user", "content": question.prompt });
        let mut trajectory = self.begin(job, std::slice::from_ref(&message), &[])?;
        let seed = mix(&[job.sampling_seed, 0]);
        trajectory.end = self.sample(job, seed, &mut trajectory).await?;
        Ok(trajectory)
    }

    /// The answer of the file, or else the likeliest one of the model, the same for a whole group.
    async fn reference(
        &self,
        job: &Job,
        judged: &Judged,
        question: &Question,
    ) -> Result<Arc<str>, EpisodeError> {
        if let Some(reference) = &question.reference {
            return Ok(reference.as_str().into());
        }
        let likeliest = || async {
            let answer = self.answer(&Job { greedy: true, ..job.clone() }, question).await?;
            Ok(self.last_turn(&answer).into())
        };
        judged.reference(job.group).get_or_try_init(likeliest).await.cloned()
    }

    async fn judge(
        &self,
        job: &Job,
        mut trajectory: Trajectory,
        reference: &str,
    ) -> Result<Trajectory, EpisodeError> {
        let Some((judged, question)) = self.question(job) else { return Ok(trajectory) };
        let judgement = judged.judge(question, &self.last_turn(&trajectory), reference).await;
        let judgement = judgement.map_err(EpisodeError::Unjudged)?;
        (trajectory.reward, trajectory.reason) = (judgement.reward, judgement.reason.to_owned());
        Ok(trajectory)
    }

    fn last_turn(&self, trajectory: &Trajectory) -> String {
        let turn = trajectory.turns.last().cloned().unwrap_or_default();
        self.talk.text(&trajectory.tokens[turn])
    }

    /// A trajectory with its prompt alone.
    fn begin(&self, job: &Job, messages: &[Value], tools: &[Value]) -> Result<Trajectory, EpisodeError> {
        Ok(Trajectory {
            group: job.group,
            member: job.member,
            task: job.task.clone(),
            difficulty: job.difficulty,
            seed: job.seed,
            tokens: self.talk.prompt(messages, tools)?,
            turns: Vec::new(),
            logprobs: Vec::new(),
            versions: Vec::new(),
            experts: Vec::new(),
            end: End::Stop,
            reward: 0.0,
            reason: String::new(),
            trained: None,
        })
    }

    /// Plays that instance of a task; of the job its place, samples and window count. On a runtime of several threads:
    /// verifiers may block.
    ///
    /// # Errors
    /// An episode that cannot be begun, sampled or judged.
    pub async fn episode(
        &self,
        job: &Job,
        task: &dyn Task,
        instance: &Instance,
        tell: &mut (dyn FnMut(Told) + Send),
    ) -> Result<Trajectory, EpisodeError> {
        let mut episode = Episode::begin(task, instance);
        let mut messages = episode.messages();
        let mut trajectory = self.begin(job, &messages, &instance.tools)?;
        loop {
            tell(Told::Begins);
            let seed = mix(&[job.sampling_seed, trajectory.turns.len() as u64]);
            trajectory.end = self.sample(job, seed, &mut trajectory).await?;
            let answer = self.last_turn(&trajectory);
            tell(Told::Wrote(&answer));
            let next = tokio::task::block_in_place(|| episode.step(&answer));
            let results: Vec<Value> = match next {
                Step::Done(verdict) if verdict.unjudged => {
                    return Err(EpisodeError::Unjudged(verdict.reason));
                }
                Step::Done(verdict) => {
                    (trajectory.reward, trajectory.reason) = (verdict.reward, verdict.reason);
                    return Ok(trajectory);
                }
                Step::Results(results) => {
                    tell(Told::Results(&results));
                    results.iter().map(ToolResult::message).collect()
                }
            };
            if trajectory.end != End::Stop || trajectory.turns.len() >= self.limits.max_turns {
                trajectory.reason = "the episode was cut off before its end".to_owned();
                return Ok(trajectory);
            }
            let follow = self.talk.follow(&messages, &results, &instance.tools)?;
            let room = self.limits.longest.saturating_sub(trajectory.tokens.len() + follow.len());
            if room == 0 || trajectory.sampled() >= job.window {
                trajectory.end = End::Length;
                trajectory.reason = "results of tools leave no room for an answer".to_owned();
                return Ok(trajectory);
            }
            trajectory.tokens.extend(follow);
            messages.push(json!({ "role": "assistant", "content": answer }));
            messages.extend(results);
        }
    }

    /// Samples a turn to its end, however often it is broken off.
    async fn sample(&self, job: &Job, seed: u64, trajectory: &mut Trajectory) -> Result<End, EpisodeError> {
        let start = trajectory.tokens.len();
        let (longest, sampled) = (self.limits.longest, trajectory.sampled());
        let room = longest.saturating_sub(start).min(job.window.saturating_sub(sampled));
        if room == 0 {
            return Err(EpisodeError::TooLong { prompt: start, longest });
        }
        trajectory.turns.push(start..start);
        loop {
            let so_far = trajectory.tokens.len() - start;
            let turn = Turn {
                prompt: trajectory.tokens.clone(),
                max_tokens: room - so_far,
                seed,
                greedy: job.greedy,
                repetition: self.limits.repetition,
                experts: self.limits.experts && !job.greedy,
            };
            let sampled = self.policy.sample(turn).await?;
            if sampled.tokens.len() != sampled.logprobs.len()
                || sampled.tokens.len() != sampled.versions.len()
            {
                let reason = "tokens came without their log-probabilities or versions";
                return Err(EpisodeError::Unusable(reason.to_owned()));
            }
            trajectory.tokens.extend(&sampled.tokens);
            // Of what was known before, the experts stay that served it first.
            trajectory.experts.extend(sampled.experts.get(trajectory.experts.len()..).unwrap_or_default());
            trajectory.logprobs.extend(&sampled.logprobs);
            trajectory.push_versions(sampled.versions);
            let end = trajectory.tokens.len();
            if let Some(turn) = trajectory.turns.last_mut() {
                turn.end = end;
            }
            match sampled.end {
                TurnEnd::Stop => return Ok(End::Stop),
                TurnEnd::Length => return Ok(End::Length),
                TurnEnd::Repetition => return Ok(End::Repetition),
                TurnEnd::Aborted if end - start >= room => return Ok(End::Length),
                TurnEnd::Aborted => {}
            }
        }
    }
}
