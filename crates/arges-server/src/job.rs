//! A request after parsing: prompts and settings, ready for the engine.

use std::sync::Arc;

use arges_engine::{Engine, GenerateRequest, SubmitError, Thinking};
use arges_text::grammar::Grammar;

use crate::answer::events::AnswerEvents;
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::request::fields::Settings;

/// Prompt tokens one request may queue, over all its prompts and answers: every answer has its own copy of its
/// prompt in the queue.
const MAX_QUEUED_TOKENS: usize = 8 << 20;

/// What one HTTP request asks of the engine: `settings.n` answers to each prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Job {
    /// The field the prompts came from, for error messages.
    pub prompt_param: &'static str,
    pub prompts: Vec<Prompt>,
    pub settings: Settings,
    /// How thinking is told apart; `None` where all text is the answer's.
    pub thinking: Option<Thinking>,
    /// Whether calls of tools are looked for in the answers.
    pub parse_calls: bool,
    /// What the answers have to keep to.
    pub grammar: Option<Grammar>,
    /// Tokens to generate per answer; `None` as many as the context allows.
    pub max_tokens: Option<usize>,
    /// Alternatives to give beside each generated token.
    pub logprobs: Option<usize>,
}

/// One prompt of a job.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Prompt {
    pub ids: Vec<u32>,
    /// The prompt's text, when it is to be repeated before the answer.
    pub echo: Option<String>,
}

impl Job {
    /// Whether every token is told of, with its id, its log-probability or experts.
    pub fn tells_tokens(&self) -> bool {
        self.logprobs.is_some() || self.settings.return_token_ids || self.settings.return_experts
    }

    /// Answers of the whole job.
    pub fn choices(&self) -> usize {
        self.prompts.len() * self.settings.n
    }

    /// The prompt that choice `index` answers: all answers to a prompt stand together.
    pub fn prompt_of(&self, index: usize) -> &Prompt {
        &self.prompts[index / self.settings.n]
    }

    /// Whether choice `index` is the first of its prompt.
    pub fn first_of_prompt(&self, index: usize) -> bool {
        index.is_multiple_of(self.settings.n)
    }

    /// Queues every choice. Where one is refused, those already queued are cancelled (dropped).
    ///
    /// # Errors
    /// What the engine refuses, as the client should see it.
    pub fn submit(&self, engine: &Engine, metrics: &Arc<Metrics>) -> Result<Vec<AnswerEvents>, ApiError> {
        let tokens = self.settings.n * self.prompts.iter().map(|prompt| prompt.ids.len()).sum::<usize>();
        if tokens > MAX_QUEUED_TOKENS {
            let message = format!(
                "Prompts times `n` come to {tokens} tokens; one request may have {MAX_QUEUED_TOKENS}. Split it."
            );
            return Err(ApiError::invalid_param(self.prompt_param, message));
        }
        (0..self.choices())
            .map(|index| {
                let generation = engine.submit(self.request(index)).map_err(|error| self.refused(error))?;
                Ok(AnswerEvents::new(generation, self.parse_calls, metrics))
            })
            .collect()
    }

    fn request(&self, index: usize) -> GenerateRequest {
        let prompt = self.prompt_of(index);
        let mut sampling = self.settings.sampling.clone();
        // Answers to one prompt must differ, and the first must be the one that n = 1 gives.
        let answer = (index % self.settings.n) as u64;
        sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(answer));
        GenerateRequest {
            prompt: prompt.ids.clone(),
            max_tokens: self.max_tokens,
            sampling,
            stop: self.settings.stop.clone(),
            thinking: self.thinking.clone(),
            grammar: self.grammar.clone(),
            logprobs: self.logprobs,
            prompt_logprobs: self.logprobs.filter(|_| prompt.echo.is_some()),
            priority: self.settings.priority,
            tokens_at_end: false,
            experts: self.settings.return_experts,
        }
    }

    fn refused(&self, error: SubmitError) -> ApiError {
        let param = self.prompt_param;
        let message = sentence(&error);
        match error {
            SubmitError::EmptyPrompt => ApiError::invalid_param(param, message),
            SubmitError::TooLong { .. } => ApiError::context_length(param, message),
            SubmitError::UnknownToken { id, .. } => ApiError::invalid_param(self.field_of_token(id), message),
            SubmitError::InvalidParameter { name: "experts", .. } => {
                ApiError::unsupported("return_experts", message)
            }
            SubmitError::InvalidParameter { name, .. } => ApiError::invalid_param(name, message),
            SubmitError::QueueFull { .. } => ApiError::overloaded(message),
            SubmitError::ShutDown => ApiError::shutting_down(),
        }
    }

    /// The request field in which token `id` stands.
    fn field_of_token(&self, id: u32) -> &'static str {
        if self.prompts.iter().any(|prompt| prompt.ids.contains(&id)) {
            self.prompt_param
        } else if self.settings.stop.tokens.contains(&id) {
            "stop_token_ids"
        } else {
            "logit_bias"
        }
    }
}

/// An error's words as a sentence.
fn sentence(error: &SubmitError) -> String {
    let text = error.to_string();
    let mut characters = text.chars();
    match (&error, characters.next()) {
        // A parameter's name keeps its spelling.
        (SubmitError::InvalidParameter { .. }, _) | (_, None) => format!("{text}."),
        (_, Some(first)) => format!("{}{}.", first.to_uppercase(), characters.as_str()),
    }
}
