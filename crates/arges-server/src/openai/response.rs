//! What both APIs' answers have in common: the envelope, usage and finish reasons.

use serde::Serialize;

use crate::answer::whole::Answer;
use crate::job::Job;

/// An answer, or one chunk of a streamed one; `C` is the API's choice.
#[derive(Debug, Serialize)]
pub(crate) struct Envelope<'a, C> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub system_fingerprint: &'static str,
    pub choices: Vec<C>,
    /// Left out, `null`, or the figures: a stream with usage says `null` until its last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<UsageBody>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
}

/// Changes when the same seed may give other tokens: with the version of the program.
pub(crate) const SYSTEM_FINGERPRINT: &str = concat!("arges-", env!("CARGO_PKG_VERSION"));

/// `usage`: tokens of all prompts, each counted once however many answers it has, and of all answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct UsageBody {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptTokensDetails,
    pub completion_tokens_details: CompletionTokensDetails,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct PromptTokensDetails {
    pub cached_tokens: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct CompletionTokensDetails {
    pub reasoning_tokens: usize,
}

impl UsageBody {
    /// Adds one answer's share; `first_of_prompt` for the first of the answers to a prompt.
    pub fn add(&mut self, usage: &arges_engine::Usage, first_of_prompt: bool) {
        if first_of_prompt {
            self.prompt_tokens += usage.prompt_tokens;
            self.prompt_tokens_details.cached_tokens += usage.cached_tokens;
        }
        self.completion_tokens += usage.completion_tokens;
        self.completion_tokens_details.reasoning_tokens += usage.reasoning_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// With which weights an answer was sampled: an extension, for trainers.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct AnswerWeights {
    /// Version at the end; in a chunk with tokens, that of the tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_version: Option<u64>,
    /// Version of each token of a whole answer, where their ids are asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_weight_versions: Option<Vec<u64>>,
}

impl AnswerWeights {
    /// Of a whole answer.
    pub fn of(job: &Job, answer: &Answer) -> Self {
        let versions = || answer.tokens.iter().map(|token| token.weight_version).collect();
        Self {
            weight_version: Some(answer.end.weight_version),
            token_weight_versions: job.settings.return_token_ids.then(versions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arges_engine::Usage;

    #[test]
    fn a_prompt_is_counted_once_however_many_answers_it_has() {
        let mut usage = UsageBody::default();
        let one = Usage { prompt_tokens: 10, completion_tokens: 3, reasoning_tokens: 2, cached_tokens: 4 };
        usage.add(&one, true);
        usage.add(&one, false);
        assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (10, 6, 16));
        assert_eq!(usage.prompt_tokens_details.cached_tokens, 4);
        assert_eq!(usage.completion_tokens_details.reasoning_tokens, 4);
    }
}
