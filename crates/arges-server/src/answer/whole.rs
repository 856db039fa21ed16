//! An answer that is given out at once.

use arges_engine::{TokenEvent, TokenLogprob};

use super::events::{AnswerEvent, AnswerEvents, End, Part};
use crate::error::ApiError;

/// One whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub reasoning: String,
    pub content: String,
    pub calls: Vec<Call>,
    pub prompt_logprobs: Vec<Option<TokenLogprob>>,
    /// The generated tokens; kept only where ids or log-probabilities are asked for.
    pub tokens: Vec<TokenEvent>,
    pub end: End,
}

/// One call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub id: String,
    pub name: String,
    pub arguments: String,
}

impl Answer {
    /// Waits for the end of an answer.
    ///
    /// # Errors
    /// 500 where the generation failed.
    pub async fn of(mut events: AnswerEvents, keep_tokens: bool) -> Result<Answer, ApiError> {
        let (mut text, mut prompt_logprobs, mut tokens) = (Texts::default(), Vec::new(), Vec::new());
        while let Some(event) = events.next().await {
            match event? {
                AnswerEvent::Prompt(logprobs) => prompt_logprobs = logprobs,
                AnswerEvent::Token { token, parts } => {
                    parts.into_iter().for_each(|part| text.add(part));
                    if keep_tokens {
                        tokens.push(token);
                    }
                }
                AnswerEvent::End { parts, end } => {
                    parts.into_iter().for_each(|part| text.add(part));
                    let Texts { reasoning, content, calls } = text;
                    return Ok(Answer { reasoning, content, calls, prompt_logprobs, tokens, end });
                }
            }
        }
        Err(ApiError::internal("The engine gave no answer."))
    }

    /// Ids of the generated tokens.
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// The parts of an answer, put together.
#[derive(Debug, Default)]
struct Texts {
    reasoning: String,
    content: String,
    calls: Vec<Call>,
}

impl Texts {
    fn add(&mut self, part: Part) {
        match part {
            Part::Reasoning(text) => self.reasoning += &text,
            Part::Content(text) => self.content += &text,
            Part::CallStart { id, name, .. } => self.calls.push(Call { id, name, arguments: String::new() }),
            Part::CallArguments { text, .. } => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments += &text;
                }
            }
        }
    }
}
