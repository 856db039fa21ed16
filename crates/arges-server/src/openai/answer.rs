//! Answers of chat and completions: whole, or streamed as server-sent events.

use std::sync::Arc;

use arges_engine::{TokenEvent, TokenLogprob};
use axum::Json;
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;
use futures_util::stream::unfold;
use serde::Serialize;

use super::response::{Envelope, SYSTEM_FINGERPRINT, UsageBody};
use super::stream::AnswerStream;
use crate::answer::events::{End, Part};
use crate::answer::ids::{unique_id, unix_time};
use crate::answer::sse;
use crate::answer::whole::Answer;
use crate::error::ApiError;
use crate::frontend::Frontend;
use crate::job::Job;
use crate::state::AppState;

/// How one of the two APIs writes answers. `index` is the choice's place in the job.
pub(crate) trait Dialect: Send + 'static {
    const ID_PREFIX: &'static str;
    const OBJECT: &'static str;
    const CHUNK_OBJECT: &'static str;
    /// Whether the prompt's token ids, when asked for, stand beside the choices or in each.
    const PROMPT_IDS_IN_ENVELOPE: bool;
    /// A choice of a whole answer.
    type Choice: Serialize;
    /// A choice of a chunk.
    type Chunk: Serialize;
    /// What a choice's chunks have to know of those before.
    type Progress: Default + Clone + Send;

    /// A whole answer.
    fn choice(frontend: &Frontend, job: &Job, index: usize, answer: Answer) -> Self::Choice;
    /// What is sent before anything is computed.
    fn opening(
        frontend: &Frontend,
        job: &Job,
        index: usize,
        progress: &mut Self::Progress,
    ) -> Option<Self::Chunk>;
    /// What is sent when the prompt's log-probabilities are known.
    fn prompt(
        frontend: &Frontend,
        job: &Job,
        index: usize,
        logprobs: &[Option<TokenLogprob>],
        progress: &mut Self::Progress,
    ) -> Option<Self::Chunk>;
    /// A generated token and what became certain with it. Where the job tells of tokens, something is sent for each.
    fn token(
        frontend: &Frontend,
        job: &Job,
        index: usize,
        token: &TokenEvent,
        parts: Vec<Part>,
        progress: &mut Self::Progress,
    ) -> Vec<Self::Chunk>;
    /// The end, with what was held back until now.
    fn closing(index: usize, parts: Vec<Part>, end: &End) -> Vec<Self::Chunk>;
}

/// Queues the job and answers in the way asked for.
///
/// # Errors
/// What the engine refuses; a failure while generating when the answer is not streamed.
pub(crate) async fn respond<D: Dialect>(state: &AppState, job: Job) -> Result<Response, ApiError> {
    let events = job.submit(&state.engine, &state.metrics)?;
    let head = Head::new::<D>(&state.frontend);
    if job.settings.stream {
        let stream = AnswerStream::<D>::new(Arc::clone(&state.frontend), job, head, events);
        let events = unfold(stream, |mut stream| async { stream.next().await.map(|event| (event, stream)) });
        return Ok(sse::response(events, &state.frontend.options));
    }

    let keep_tokens = job.tells_tokens();
    let answers = try_join_all(events.into_iter().map(|events| Answer::of(events, keep_tokens))).await?;
    let frontend = Arc::clone(&state.frontend);
    // The log-probabilities of a long prompt are many megabytes of text.
    tokio::task::spawn_blocking(move || whole::<D>(&frontend, &job, &head, answers))
        .await
        .map_err(|error| ApiError::internal(format!("The answer could not be written: {error}.")))
}

/// The response of an answer that is not streamed.
fn whole<D: Dialect>(frontend: &Frontend, job: &Job, head: &Head, answers: Vec<Answer>) -> Response {
    let mut usage = UsageBody::default();
    for (index, answer) in answers.iter().enumerate() {
        usage.add(&answer.end.usage, job.first_of_prompt(index));
    }
    let answers = answers.into_iter().enumerate();
    let choices = answers.map(|(index, answer)| D::choice(frontend, job, index, answer)).collect();
    let prompt_token_ids = head.prompt_token_ids::<D>(job);
    Json(head.envelope(D::OBJECT, choices, Some(Some(usage)), prompt_token_ids)).into_response()
}

/// What stays the same in all chunks of an answer.
#[derive(Debug)]
pub(crate) struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    fn new<D: Dialect>(frontend: &Frontend) -> Head {
        let model = frontend.options.model_name.clone();
        Head { id: unique_id(D::ID_PREFIX), created: unix_time(), model }
    }

    /// The prompt's ids where they are asked for and belong beside the choices.
    pub fn prompt_token_ids<'a, D: Dialect>(&self, job: &'a Job) -> Option<&'a [u32]> {
        (D::PROMPT_IDS_IN_ENVELOPE && job.settings.return_token_ids).then(|| &job.prompt_of(0).ids[..])
    }

    /// An envelope around `choices`.
    pub fn envelope<'a, C>(
        &'a self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<Option<UsageBody>>,
        prompt_token_ids: Option<&'a [u32]>,
    ) -> Envelope<'a, C> {
        let Head { id, created, model } = self;
        let system_fingerprint = SYSTEM_FINGERPRINT;
        Envelope {
            id,
            object,
            created: *created,
            model,
            system_fingerprint,
            choices,
            usage,
            prompt_token_ids,
        }
    }
}
