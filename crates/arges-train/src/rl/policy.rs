//! What samples: the engine of this process, or another machine's.

use arges_engine::{
    ControlError, Engine, Event, FinishReason, GenerateRequest, NewWeights, RepetitionStop, RunningCaches,
    SamplingParams, StopConditions, SubmitError,
};
use futures_util::future::BoxFuture;

/// A turn to be sampled.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// All tokens so far.
    pub prompt: Vec<u32>,
    /// Tokens to sample at most; at least 1.
    pub max_tokens: usize,
    /// Seed of the draws, each of which is a function of it and of the token's place: a turn that was broken off goes on
    /// as if it had not been.
    pub seed: u64,
    /// Take the likeliest tokens instead.
    pub greedy: bool,
    /// Ends text that goes round in circles.
    pub repetition: Option<RepetitionStop>,
    /// Tell which experts served the tokens.
    pub experts: bool,
}

/// What was sampled. The first three lists are of the same length.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    pub tokens: Vec<u32>,
    /// Natural log-probability of each, under the model's whole distribution.
    pub logprobs: Vec<f32>,
    /// Version of the weights that sampled each.
    pub versions: Vec<u64>,
    /// Experts of all tokens but the last, prompt included, `[tokens, layers, k]`; empty unless asked for.
    pub experts: Vec<u8>,
    pub end: TurnEnd,
}

/// Why a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnEnd {
    Stop,
    Length,
    Repetition,
    /// It was broken off, for new weights say; it can be asked for again from where it is.
    Aborted,
}

/// Why nothing was sampled.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The engine refuses the turn.
    #[error("the engine refuses a turn: {0}")]
    Refused(#[from] SubmitError),
    /// It failed, or its machine did.
    #[error("sampling failed: {0}")]
    Failed(String),
    /// It did not take the new weights.
    #[error("the engine did not take the new weights: {0}")]
    Weights(#[from] ControlError),
}

/// What samples with the model's weights.
pub trait Policy: Send + Sync {
    /// Samples a turn, to its end or until it is aborted.
    fn sample(&self, turn: Turn) -> BoxFuture<'_, Result<Sampled, PolicyError>>;
}

/// The engine of this process, which shares its model with the trainer.
pub struct LocalPolicy {
    engine: Engine,
    caches: RunningCaches,
}

impl LocalPolicy {
    /// `caches` is what becomes of turns under way when the weights change.
    pub fn new(engine: Engine, caches: RunningCaches) -> Self {
        Self { engine, caches }
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Brings new weights in force, under a number that every later token carries. Turns under way go on with them.
    ///
    /// # Errors
    /// Weights that the engine does not take; it goes on with those it has.
    pub fn publish(&self, weights: NewWeights, version: u64) -> Result<(), PolicyError> {
        Ok(self.engine.update_weights(weights, version, self.caches)?)
    }
}

impl Policy for LocalPolicy {
    fn sample(&self, turn: Turn) -> BoxFuture<'_, Result<Sampled, PolicyError>> {
        let temperature = if turn.greedy { 0.0 } else { 1.0 };
        let sampling = SamplingParams { temperature, ..SamplingParams::default() };
        Box::pin(sample_from(&self.engine, turn, sampling, None))
    }
}

/// Samples a turn from an engine with those parameters, of which the seed is the turn's, and shows its text as it comes,
/// where anybody wants to see it.
///
/// # Errors
/// A turn that the engine refuses or fails.
pub async fn sample_from(
    engine: &Engine,
    turn: Turn,
    sampling: SamplingParams,
    mut show: Option<&mut (dyn FnMut(&str) + Send)>,
) -> Result<Sampled, PolicyError> {
    let request = GenerateRequest {
        prompt: turn.prompt,
        max_tokens: Some(turn.max_tokens),
        sampling: SamplingParams { seed: Some(turn.seed), ..sampling },
        stop: StopConditions { repetition: turn.repetition, ..StopConditions::default() },
        experts: turn.experts,
        tokens_at_end: show.is_none(),
        ..GenerateRequest::default()
    };
    let mut generation = engine.submit(request)?;
    let mut shown = |text: &str| {
        if let Some(show) = &mut show {
            show(text);
        }
    };
    let mut sampled = Vec::new();
    loop {
        match generation.next().await {
            Some(Event::Prompt { .. }) => {}
            Some(Event::Token(token)) => {
                shown(&token.text);
                sampled.push(token);
            }
            Some(Event::Finished(finished)) => {
                shown(&finished.text);
                sampled.extend(finished.tokens);
                let tokens = sampled.iter().map(|token| token.id).collect();
                let logprobs = sampled.iter().map(|token| token.logprob).collect();
                let versions = sampled.iter().map(|token| token.weight_version).collect();
                let experts = sampled.iter().flat_map(|token| token.experts.iter().copied()).collect();
                let end = match finished.reason {
                    FinishReason::Stop => TurnEnd::Stop,
                    FinishReason::Length => TurnEnd::Length,
                    FinishReason::Repetition => TurnEnd::Repetition,
                    FinishReason::Abort => TurnEnd::Aborted,
                };
                return Ok(Sampled { tokens, logprobs, versions, experts, end });
            }
            Some(Event::Failed(message) | Event::GrammarFailed(message)) => {
                return Err(PolicyError::Failed(message));
            }
            None => return Err(PolicyError::Failed("the generation has no end".to_owned())),
        }
    }
}
