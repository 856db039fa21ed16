//! `POST /v1/completions`.

use std::sync::Arc;

use arges_engine::{TokenEvent, TokenLogprob};
use arges_text::grammar::AnswerGrammar;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::answer::{Dialect, respond};
use super::logprobs::{CompletionLogprobs, Scored, scored_prompt};
use super::response::AnswerWeights;
use crate::answer::events::{End, Part};
use crate::answer::whole::Answer;
use crate::error::ApiError;
use crate::extract::parse_json;
use crate::frontend::Frontend;
use crate::job::{Job, Prompt};
use crate::request::fields::{MAX_CHOICES, MAX_TOP_LOGPROBS, SharedFields, in_range};
use crate::request::format::{StructuredOutputs, not_enforceable};
use crate::request::input::PromptInput;
use crate::state::AppState;

/// The API's default.
const DEFAULT_MAX_TOKENS: i64 = 16;

/// Fields of a completion request beside the shared ones.
#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct CompletionFields {
    prompt: Option<PromptInput>,
    max_tokens: Option<i64>,
    echo: Option<bool>,
    logprobs: Option<i64>,
    best_of: Option<i64>,
    suffix: Option<String>,
    /// An extension, for trainers that replay them.
    return_experts: Option<bool>,
    /// An extension, as in vLLM.
    structured_outputs: Option<StructuredOutputs>,
}

/// Handles the request.
pub(crate) async fn create(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let body = state.bodies.read(request).await?;
    let job = state.frontend.run(body, prepare).await?;
    respond::<Completion>(&state, job).await
}

/// From the body to a job: parse, check, tokenise.
fn prepare(frontend: &Frontend, body: &[u8]) -> Result<Job, ApiError> {
    let mut settings = parse_json::<SharedFields>(body)?.validate(&frontend.options)?;
    let fields: CompletionFields = parse_json(body)?;
    settings.return_experts = fields.return_experts.unwrap_or(false);
    if fields.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::unsupported(
            "suffix",
            "`suffix` is not supported: the model writes forwards only.",
        ));
    }
    if fields.best_of.is_some_and(|best_of| best_of != settings.n as i64) {
        return Err(ApiError::unsupported("best_of", "`best_of` is only supported where it equals `n`."));
    }
    let max_tokens = in_range("max_tokens", fields.max_tokens, 0..=i64::MAX)?.unwrap_or(DEFAULT_MAX_TOKENS);
    let logprobs = in_range("logprobs", fields.logprobs, 0..=MAX_TOP_LOGPROBS as i64)?;

    let prompt = fields.prompt.ok_or_else(|| ApiError::missing_param("prompt"))?;
    let prompts = prompts(frontend, prompt, fields.echo.unwrap_or(false))?;
    if prompts.len() * settings.n > MAX_CHOICES {
        let message = format!("At most {MAX_CHOICES} answers per request: prompts times `n`.");
        return Err(ApiError::invalid_param("prompt", message));
    }
    let format = fields.structured_outputs.map(StructuredOutputs::format).transpose()?;
    let grammar = format.map(|format| {
        let answer = AnswerGrammar { format: Some(format), calls: None };
        frontend.compile(&answer).map_err(|error| not_enforceable("structured_outputs", &error))
    });
    Ok(Job {
        prompt_param: "prompt",
        prompts,
        settings,
        // A text is a text: nothing in it is told apart.
        thinking: None,
        parse_calls: false,
        grammar: grammar.transpose()?,
        max_tokens: Some(max_tokens as usize),
        logprobs: logprobs.map(|top| top as usize),
    })
}

fn prompts(frontend: &Frontend, input: PromptInput, echo: bool) -> Result<Vec<Prompt>, ApiError> {
    let count = match &input {
        PromptInput::Texts(texts) => texts.len(),
        PromptInput::Tokens(lists) => lists.len(),
    };
    if count == 0 {
        return Err(ApiError::invalid_param("prompt", "The prompt is empty."));
    }
    if count > MAX_CHOICES {
        return Err(ApiError::invalid_param("prompt", format!("At most {MAX_CHOICES} prompts per request.")));
    }
    match input {
        PromptInput::Texts(texts) => texts
            .into_iter()
            .map(|text| Ok(Prompt { ids: frontend.encode(&text, "prompt")?, echo: echo.then_some(text) }))
            .collect(),
        PromptInput::Tokens(lists) => lists
            .into_iter()
            .map(|ids| {
                frontend.check_length(&ids, "prompt")?;
                let echo = echo.then(|| frontend.tokenizer.decode(&ids));
                Ok(Prompt { ids, echo })
            })
            .collect(),
    }
}

/// The completion API's way of writing answers.
#[derive(Debug)]
pub(crate) struct Completion;

/// A choice of an answer or of a chunk: the API has one shape for both.
#[derive(Debug, Default, Serialize)]
pub(crate) struct CompletionChoice {
    text: String,
    index: usize,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(flatten)]
    weights: AnswerWeights,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
    /// Two hexadecimal digits for each choice of an expert.
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<String>,
}

impl Dialect for Completion {
    const ID_PREFIX: &'static str = "cmpl-";
    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";
    const PROMPT_IDS_IN_ENVELOPE: bool = false;
    type Choice = CompletionChoice;
    type Chunk = CompletionChoice;
    /// Where the next token's text starts.
    type Progress = usize;

    fn choice(frontend: &Frontend, job: &Job, index: usize, answer: Answer) -> CompletionChoice {
        let prompt = job.prompt_of(index);
        let logprobs = job.logprobs.map(|_| {
            let scored = scored_prompt(&prompt.ids, &answer.prompt_logprobs);
            let mut offset = 0;
            collect_logprobs(frontend, scored.chain(answer.tokens.iter().map(Scored::from)), &mut offset)
        });
        let return_ids = job.settings.return_token_ids;
        CompletionChoice {
            index,
            logprobs,
            finish_reason: Some(answer.end.reason.name()),
            prompt_token_ids: return_ids.then(|| prompt.ids.clone()),
            weights: AnswerWeights::of(job, &answer),
            token_ids: return_ids.then(|| answer.ids()),
            experts: experts(job, &answer.tokens),
            text: prompt.echo.clone().unwrap_or_default() + &answer.content,
        }
    }

    /// The echo, unless it has to wait for its log-probabilities, and the prompt's ids.
    fn opening(_: &Frontend, job: &Job, index: usize, _: &mut usize) -> Option<CompletionChoice> {
        let prompt = job.prompt_of(index);
        let text = prompt.echo.clone().filter(|_| job.logprobs.is_none());
        let prompt_token_ids = job.settings.return_token_ids.then(|| prompt.ids.clone());
        (text.is_some() || prompt_token_ids.is_some()).then(|| CompletionChoice {
            text: text.unwrap_or_default(),
            index,
            prompt_token_ids,
            ..CompletionChoice::default()
        })
    }

    fn prompt(
        frontend: &Frontend,
        job: &Job,
        index: usize,
        logprobs: &[Option<TokenLogprob>],
        offset: &mut usize,
    ) -> Option<CompletionChoice> {
        let prompt = job.prompt_of(index);
        let text = prompt.echo.clone()?;
        let logprobs = collect_logprobs(frontend, scored_prompt(&prompt.ids, logprobs), offset);
        Some(CompletionChoice { text, index, logprobs: Some(logprobs), ..CompletionChoice::default() })
    }

    fn token(
        frontend: &Frontend,
        job: &Job,
        index: usize,
        token: &TokenEvent,
        parts: Vec<Part>,
        offset: &mut usize,
    ) -> Vec<CompletionChoice> {
        let scored = std::iter::once(Scored::from(token));
        let logprobs = job.logprobs.map(|_| collect_logprobs(frontend, scored, offset));
        let token_ids = job.settings.return_token_ids.then(|| vec![token.id]);
        let text = text_of(parts);
        let told = job.settings.return_token_ids.then_some(token.weight_version);
        let weights = AnswerWeights { weight_version: told, token_weight_versions: None };
        let experts = experts(job, std::slice::from_ref(token));
        let rest = CompletionChoice::default();
        vec![CompletionChoice { text, index, logprobs, token_ids, weights, experts, ..rest }]
    }

    fn closing(index: usize, parts: Vec<Part>, end: &End) -> Vec<CompletionChoice> {
        let finish_reason = Some(end.reason.name());
        let weights = AnswerWeights { weight_version: Some(end.weight_version), token_weight_versions: None };
        let text = text_of(parts);
        vec![CompletionChoice { text, index, finish_reason, weights, ..CompletionChoice::default() }]
    }
}

/// Experts that served the tokens before each of these, where they are asked for.
fn experts(job: &Job, tokens: &[TokenEvent]) -> Option<String> {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or_default();
    let experts = tokens.iter().flat_map(|token| &token.experts);
    let digits = || experts.flat_map(|expert| [digit(expert >> 4), digit(expert & 15)]).collect();
    job.settings.return_experts.then(digits)
}

/// The text of parts, which are all content.
fn text_of(parts: Vec<Part>) -> String {
    let contents = parts.into_iter().filter_map(|part| match part {
        Part::Content(text) => Some(text),
        _ => None,
    });
    contents.collect()
}

fn collect_logprobs<'a>(
    frontend: &Frontend,
    tokens: impl Iterator<Item = Scored<'a>>,
    offset: &mut usize,
) -> CompletionLogprobs {
    let mut logprobs = CompletionLogprobs::default();
    tokens.for_each(|token| logprobs.push(&frontend.tokenizer, token, offset));
    logprobs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::testing::frontend;
    use serde_json::{Value, json};

    fn job(fields: Value) -> Result<Job, ApiError> {
        prepare(&frontend(512), fields.to_string().as_bytes())
    }

    #[test]
    fn text_and_ids_of_the_same_prompt_give_the_same_job() {
        let ids = frontend(512).tokenizer.encode("hello there").unwrap();
        assert_eq!(job(json!({"prompt": "hello there"})), job(json!({"prompt": ids})));
        let both = job(json!({"prompt": ["hello there", "b"], "n": 2})).unwrap();
        assert_eq!((both.prompts.len(), both.choices()), (2, 4));
        assert_eq!(both.prompts[0].ids, ids);
    }

    #[test]
    fn echo_repeats_the_prompt_as_it_came() {
        let ids = frontend(512).tokenizer.encode("hello").unwrap();
        for prompt in [json!("hello"), json!(ids)] {
            let echoed = job(json!({"prompt": prompt, "echo": true})).unwrap();
            assert_eq!(echoed.prompts[0].echo.as_deref(), Some("hello"));
        }
        assert_eq!(job(json!({"prompt": "hello"})).unwrap().prompts[0].echo, None);
    }

    #[test]
    fn sixteen_tokens_are_written_unless_said_otherwise() {
        assert_eq!(job(json!({"prompt": "a"})).unwrap().max_tokens, Some(16));
        assert_eq!(job(json!({"prompt": "a", "max_tokens": 0})).unwrap().max_tokens, Some(0));
    }

    #[test]
    fn what_is_wrong_or_unsupported_is_refused_by_name() {
        for (field, value) in [
            ("prompt", json!("")),
            ("prompt", json!([])),
            ("prompt", json!(["a", ""])),
            ("prompt", json!([[1], []])),
            ("prompt", json!(vec!["a"; 129])),
            ("prompt", json!({"a": 1})),
            ("max_tokens", json!(-1)),
            ("logprobs", json!(21)),
            ("logprobs", json!(true)),
            ("echo", json!("yes")),
            ("best_of", json!(2)),
            ("suffix", json!("end")),
            ("structured_outputs", json!({})),
            ("structured_outputs", json!({"regex": "("})),
            ("structured_outputs", json!({"regex": "a".repeat(100_000)})),
        ] {
            let mut fields = json!({"prompt": "a"});
            fields[field] = value;
            assert_eq!(job(fields).expect_err(field).param(), Some(field));
        }
        assert_eq!(job(json!({})).unwrap_err().code(), Some("missing_required_parameter"));
        assert_eq!(job(json!({"prompt": ["a", "b"], "n": 65})).unwrap_err().param(), Some("prompt"));
    }

    #[test]
    fn a_prompt_longer_than_the_context_is_refused() {
        for prompt in [json!(vec![1; 513]), json!("q ".repeat(600)), json!("q".repeat(1_000_000))] {
            let error = job(json!({ "prompt": prompt })).unwrap_err();
            assert_eq!((error.param(), error.code()), (Some("prompt"), Some("context_length_exceeded")));
        }
    }
}
