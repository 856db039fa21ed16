//! From the engine's events to the response: whole, or streamed as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;

use arges_engine::{Event, FinishReason, Finished, Generation, TokenEvent, TokenLogprob};
use axum::Json;
use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;
use serde::Serialize;

use super::job::Job;
use super::response::{Envelope, SYSTEM_FINGERPRINT, UsageBody, unique_id, unix_time};
use super::stream::AnswerStream;
use crate::error::ApiError;
use crate::frontend::Frontend;
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
    fn choice(frontend: &Frontend, job: &Job, answer: Answer) -> Self::Choice;
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
    /// A generated token.
    fn token(
        frontend: &Frontend,
        job: &Job,
        index: usize,
        token: TokenEvent,
        progress: &mut Self::Progress,
    ) -> Self::Chunk;
    /// The end, with the text held back until now.
    fn closing(index: usize, rest: String, reason: FinishReason) -> Vec<Self::Chunk>;
}

/// One whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub index: usize,
    pub text: String,
    pub prompt_logprobs: Vec<Option<TokenLogprob>>,
    /// The generated tokens; kept only where ids or log-probabilities are asked for.
    pub tokens: Vec<TokenEvent>,
    pub reason: FinishReason,
    usage: arges_engine::Usage,
}

impl Answer {
    /// Ids of the generated tokens.
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// Queues the job and answers in the way asked for.
///
/// # Errors
/// What the engine refuses; a failure while generating when the answer is not streamed.
pub(crate) async fn respond<D: Dialect>(state: &AppState, job: Job) -> Result<Response, ApiError> {
    let generations = job.submit(&state.engine)?;
    let head = Head::new::<D>(&state.frontend);
    if job.settings.stream {
        let stream = AnswerStream::<D>::new(Arc::clone(&state.frontend), job, head, generations);
        let events = futures_util::stream::unfold(stream, |mut stream| async {
            stream.next().await.map(|event| (Ok::<_, Infallible>(event), stream))
        });
        let keep_alive = KeepAlive::new().interval(state.frontend.options.keep_alive);
        let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
        // nginx would gather the events otherwise.
        let unbuffered = HeaderName::from_static("x-accel-buffering");
        response.headers_mut().insert(unbuffered, HeaderValue::from_static("no"));
        return Ok(response);
    }

    let keep_tokens = job.logprobs.is_some() || job.settings.return_token_ids;
    let answers = generations.into_iter().enumerate().map(|(index, g)| collect(index, g, keep_tokens));
    let answers = try_join_all(answers).await?;
    let frontend = Arc::clone(&state.frontend);
    // The log-probabilities of a long prompt are many megabytes of text.
    tokio::task::spawn_blocking(move || whole::<D>(&frontend, &job, &head, answers))
        .await
        .map_err(|error| ApiError::internal(format!("The answer could not be written: {error}.")))
}

/// The response of an answer that is not streamed.
fn whole<D: Dialect>(frontend: &Frontend, job: &Job, head: &Head, answers: Vec<Answer>) -> Response {
    let mut usage = UsageBody::default();
    for answer in &answers {
        usage.add(&answer.usage, job.first_of_prompt(answer.index));
    }
    let choices = answers.into_iter().map(|answer| D::choice(frontend, job, answer)).collect();
    let prompt_token_ids = head.prompt_token_ids::<D>(job);
    Json(head.envelope(D::OBJECT, choices, Some(Some(usage)), prompt_token_ids)).into_response()
}

/// Waits for the whole of an answer.
async fn collect(index: usize, mut generation: Generation, keep_tokens: bool) -> Result<Answer, ApiError> {
    let mut text = String::new();
    let mut prompt_logprobs = Vec::new();
    let mut tokens = Vec::new();
    loop {
        match generation.next().await {
            Some(Event::Prompt { logprobs, .. }) => prompt_logprobs = logprobs,
            Some(Event::Token(token)) => {
                text += &token.text;
                if keep_tokens {
                    tokens.push(token);
                }
            }
            Some(Event::Finished(Finished { reason, text: rest, usage, .. })) => {
                text += &rest;
                return Ok(Answer { index, text, prompt_logprobs, tokens, reason, usage });
            }
            Some(Event::Failed(message)) => return Err(failed(&message)),
            None => return Err(failed("the engine gave no answer")),
        }
    }
}

/// The error of a generation that failed.
pub(crate) fn failed(message: &str) -> ApiError {
    tracing::error!(message, "a generation failed");
    ApiError::internal(format!("The generation failed: {message}."))
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
