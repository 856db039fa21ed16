//! One request while it is in the engine: its tokens, its sampler, its text, and where its events go.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use arges_kernels::sample::cuda::Rule;
use arges_kernels::sample::{
    RowConstraints, RowLogprobs, SampleError, SampleScratch, Sampled, Sampler, SamplingParamError,
};
use arges_text::grammar::GrammarError;
use arges_text::{END_OF_THINKING, ThinkingParser, Tokenizer};
use tokio::sync::mpsc::UnboundedSender;

use crate::constraint::{Allowed, Constraint};
use crate::handle::{QueuePlace, Submission};
use crate::request::{
    Event, FinishReason, Finished, RepetitionStop, StopCause, TokenEvent, TokenLogprob, Usage,
};
use crate::speculation::Drafter;
use crate::text::{Piece, TextStream};

/// Most tokens that are kept for the answer when thinking has a budget.
const ANSWER_ROOM: usize = 1024;

/// What a sequence takes from the model it runs on.
pub(crate) struct ModelFacts {
    pub tokenizer: Option<Tokenizer>,
    /// Ids below this may be sampled; rows of the head beyond belong to no token.
    pub sampleable: usize,
    pub end_tokens: Vec<u32>,
    /// Version of the weights in force.
    pub weight_version: u64,
    /// Whether sequences guess what comes next.
    pub speculates: bool,
}

/// What one row of logits said about the token after it.
#[derive(Debug)]
pub(crate) struct RowReading {
    /// The token of the prompt that follows, or the one that was sampled.
    token: Sampled,
    /// The most likely tokens, if asked for.
    top: Vec<(u32, f32)>,
    /// Tokens to write after it.
    forced: Vec<u32>,
}

/// Why a row of logits gives no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowError {
    #[error(transparent)]
    Sample(#[from] SampleError),
    #[error(transparent)]
    Grammar(#[from] GrammarError),
}

/// What a sequence does after a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The row was of the prompt; nothing changed.
    Prompt,
    /// A token was appended.
    Grown,
    /// It ended, and has said so.
    Ended {
        /// Whether with a token that was sampled.
        sampled: bool,
    },
}

pub(crate) struct Sequence {
    /// The prompt and what was generated.
    tokens: Vec<u32>,
    prompt_len: usize,
    max_tokens: usize,
    min_tokens: usize,
    sampler: Sampler,
    stops: Stops,
    repetition: Option<Repetition>,
    text: Option<TextStream>,
    /// Tokens after which thinking is closed.
    thinking_limit: Option<usize>,
    /// Tokens generated up to the end of the thinking, or so far within it.
    reasoning_tokens: usize,
    /// Tokens to write before any is chosen.
    forced: VecDeque<u32>,
    /// What may come next, if guesses are tried at all.
    drafter: Option<Drafter>,
    /// The guesses of the next step.
    drafts: Vec<u32>,
    /// Rows are read on several threads, one row of a sequence at a time.
    constraint: Option<Mutex<Constraint>>,
    logprobs: Option<usize>,
    scores: Option<PromptScores>,
    events: UnboundedSender<Event>,
    /// Tokens that are told at the end.
    kept: Option<Vec<TokenEvent>>,
    sampleable: usize,
    /// Tokens of the prompt that were in the caches.
    cached_tokens: usize,
    /// Version of the weights that the last row came from.
    weight_version: u64,
    /// Experts of its tokens, if they are asked for.
    experts: Option<Experts>,
    /// Given up when it is admitted for the first time.
    queue_place: Option<QueuePlace>,
}

/// Experts of a sequence's tokens.
#[derive(Default)]
struct Experts {
    /// `[tokens, layers, k]`, of those that are computed.
    ids: Vec<u8>,
    /// Of these, told.
    told: usize,
    /// `layers * k`.
    each: usize,
}

/// Tokens that end the answer.
struct Stops {
    /// End tokens of the model, then stop tokens of the request.
    ids: Vec<u32>,
    /// How many of `ids` are the model's.
    of_model: usize,
}

/// A run of tokens that were all but certain.
struct Repetition {
    stop: RepetitionStop,
    run: usize,
}

/// Log-probabilities of the prompt as they come in.
struct PromptScores {
    top: usize,
    logprobs: Vec<Option<TokenLogprob>>,
}

impl Sequence {
    /// # Errors
    /// A sampling parameter outside its range.
    pub fn new(submission: Submission, model: &ModelFacts) -> Result<Self, SamplingParamError> {
        let Submission { request, seed, max_tokens, grammar, events, queue_place } = submission;
        let sampler = Sampler::new(request.sampling, seed, &request.prompt)?;
        let mut ids = if request.stop.ignore_eos { Vec::new() } else { model.end_tokens.clone() };
        let of_model = ids.len();
        ids.extend(request.stop.tokens);
        let prompt_len = request.prompt.len();
        let strings = request.stop.strings;
        let thinking = request.thinking.as_ref().map(|thinking| ThinkingParser::after(&thinking.prompt_end));
        let budget = request.thinking.and_then(|thinking| thinking.budget);
        let thinking_limit = budget.zip(model.tokenizer.as_ref()).map(|(budget, tokenizer)| {
            // Tokens that close thinking; a budget is no use if they do not leave room for an answer.
            let closing = tokenizer.encode(&thinking_end()).map_or(0, |ids| ids.len());
            budget.min(last_chance_to_answer(max_tokens, closing).unwrap_or(budget))
        });
        let needs_text = thinking.is_some() || grammar.is_some() || !strings.is_empty();
        let tokenizer = model.tokenizer.clone().filter(|_| needs_text || !request.tokens_at_end);
        let text = tokenizer.map(|tokenizer| TextStream::new(tokenizer, thinking, strings));
        let constraint = grammar.zip(text.as_ref()).map(|(grammar, text)| Constraint::new(grammar, text));
        Ok(Self {
            tokens: request.prompt,
            prompt_len,
            max_tokens,
            min_tokens: request.stop.min_tokens,
            sampler,
            stops: Stops { ids, of_model },
            repetition: request.stop.repetition.map(|stop| Repetition { stop, run: 0 }),
            text,
            thinking_limit,
            reasoning_tokens: 0,
            forced: VecDeque::new(),
            drafter: model.speculates.then(Drafter::new),
            drafts: Vec::new(),
            constraint: constraint.map(Mutex::new),
            logprobs: request.logprobs,
            scores: request.prompt_logprobs.map(|top| PromptScores { top, logprobs: vec![None] }),
            events,
            kept: request.tokens_at_end.then(Vec::new),
            sampleable: model.sampleable,
            cached_tokens: 0,
            weight_version: model.weight_version,
            experts: request.experts.then(Experts::default),
            queue_place: Some(queue_place),
        })
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whether it tells which experts served its tokens.
    pub fn wants_experts(&self) -> bool {
        self.experts.is_some()
    }

    /// Notes the experts of tokens from `position` on, `each` a token; in place of those of guesses that were wrong.
    pub fn note_experts(&mut self, position: usize, noted: &[u8], each: usize) {
        let Some(experts) = &mut self.experts else { return };
        experts.each = each;
        let (start, end) = (position * each, position * each + noted.len());
        // What is computed once more, for want of room or for new weights, is told as it was first.
        let known = experts.told.clamp(start, end);
        experts.ids.resize(experts.ids.len().max(end), 0);
        experts.ids[known..end].copy_from_slice(&noted[known - start..]);
    }

    /// The experts of all tokens so far that are not told yet.
    fn tell_experts(&mut self) -> Vec<u8> {
        let Some(experts) = &mut self.experts else { return Vec::new() };
        let end = (self.tokens.len() * experts.each).min(experts.ids.len());
        let told = std::mem::replace(&mut experts.told, end);
        experts.ids[told..end].to_vec()
    }

    /// Guesses what comes after its tokens, `most` at most, where that is worth `price`; how many it guesses.
    pub fn draft(&mut self, price: f64, most: usize) -> usize {
        self.drafts.clear();
        let Some(drafter) = &mut self.drafter else { return 0 };
        // The last token is not computed, and after it nothing is.
        let most = most.min((self.prompt_len + self.max_tokens - self.tokens.len()).saturating_sub(1));
        match self.forced.is_empty() {
            true => self.drafts.extend_from_slice(drafter.draft(&self.tokens, price, most)),
            // What has to be written is no guess.
            false => self.drafts.extend(self.forced.iter().take(most)),
        }
        self.drafts.len()
    }

    /// What it guessed last.
    pub fn drafts(&self) -> &[u32] {
        &self.drafts
    }

    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// Makes its place in the queue free for another request. `cached` tokens need not be computed; what is there of
    /// its own, when it comes back, does not count.
    pub fn leave_queue(&mut self, cached: usize) {
        if self.queue_place.take().is_some() {
            self.cached_tokens = cached;
        }
    }

    /// Tokens the model has to compute before the first answer token or the last score is known, and the
    /// first of them whose logits are needed. `None` if there is nothing to compute.
    pub fn work(&self) -> Option<(usize, usize)> {
        // The logits of the prompt's last token say nothing about the prompt.
        let length = if self.max_tokens == 0 { self.prompt_len - 1 } else { self.prompt_len };
        let scores = self.scores.is_some() && self.prompt_len > 1;
        match (scores, self.max_tokens) {
            (true, _) => Some((length, 0)),
            (false, 0) => None,
            (false, _) => Some((length, length - 1)),
        }
    }

    /// Ends a sequence for which [`Self::work`] gave nothing.
    pub fn finish_without_work(&mut self) {
        self.send_scores();
        self.finish(FinishReason::Length, Piece::default());
    }

    /// Ends it with what it has.
    pub fn abort(&mut self) {
        let rest = self.text.as_mut().map(TextStream::finish).unwrap_or_default();
        self.finish(FinishReason::Abort, Piece { stop: None, ..rest });
    }

    /// Forgets what it knows of the prompt's log-probabilities, if they are not sent yet; whether there is any such.
    pub fn restart_scores(&mut self) -> bool {
        if let Some(scores) = &mut self.scores {
            scores.logprobs.truncate(1);
        }
        self.scores.is_some() && self.prompt_len > 1
    }

    /// Whether nobody listens any more.
    pub fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// Reads the row of logits of the token at `position`: samples the next token, or looks up the one that
    /// follows in the prompt.
    pub fn read_row(
        &self,
        position: usize,
        logits: &[f32],
        scratch: &mut SampleScratch,
    ) -> Result<RowReading, RowError> {
        let row = RowLogprobs::new(logits)?;
        let next = position + 1;
        let scored = |id| Sampled { id, logprob: row.logprob(id) };
        let (token, forced, top) = if next < self.prompt_len {
            let top = self.scores.as_ref().map(|scores| scores.top);
            (scored(self.tokens[next]), Vec::new(), top)
        } else if let Some(&id) = self.forced.front() {
            (scored(id), Vec::new(), self.logprobs)
        } else {
            let sampled = self.sample(&row, next, scratch)?;
            match self.cut_at_answer(sampled.id) {
                Some(kept) => (scored(kept[0]), kept[1..].to_vec(), self.logprobs),
                None => (sampled, Vec::new(), self.logprobs),
            }
        };
        let mut best = Vec::new();
        if let Some(count) = top.filter(|&count| count > 0) {
            best.reserve_exact(count.min(logits.len()));
            row.top(count, &mut best);
        }
        Ok(RowReading { token, top: best, forced })
    }

    /// How a GPU is to read the row of logits of the token at `position`, and whether with the mask that is put in `mask`.
    /// `None` if that takes more than it can do, so that [`Self::read_row`] has to.
    pub fn device_rule(&self, position: usize, mask: &mut Vec<u32>) -> Option<(Rule, bool)> {
        let next = position + 1;
        let wants_top = |top: Option<usize>| top.is_some_and(|count| count > 0);
        if next < self.prompt_len {
            let top = self.scores.as_ref().map(|scores| scores.top);
            return (!wants_top(top)).then(|| (Rule::given(self.tokens[next]), false));
        }
        if wants_top(self.logprobs) {
            return None;
        }
        if let Some(&id) = self.forced.front() {
            return Some((Rule::given(id), false));
        }
        let rule = self.sampler.rule(next as u64)?;
        let Some(constraint) = &self.constraint else {
            let early = next - self.prompt_len < self.min_tokens;
            return (!early).then_some((rule, false));
        };
        // A fault of the grammar is told by `read_row`.
        match lock(constraint).allowed().ok()? {
            Allowed::Thinking => None,
            Allowed::Mask(allowed) => {
                mask.clear();
                mask.extend_from_slice(allowed);
                Some((rule, true))
            }
        }
    }

    /// What a GPU read by [`Self::device_rule`].
    pub fn device_reading(token: Sampled) -> RowReading {
        RowReading { token, top: Vec::new(), forced: Vec::new() }
    }

    /// Chooses the token at `position`.
    fn sample(
        &self,
        row: &RowLogprobs<'_>,
        position: usize,
        scratch: &mut SampleScratch,
    ) -> Result<Sampled, RowError> {
        let mut constraint = self.constraint.as_ref().map(lock);
        let (early, stops) = (position - self.prompt_len < self.min_tokens, &self.stops.ids[..]);
        let (allowed, forbidden) = match &mut constraint {
            None => (None, if early { stops } else { &[] }),
            Some(constraint) => match constraint.allowed()? {
                Allowed::Thinking => (None, stops),
                Allowed::Mask(mask) => (Some(mask), &[][..]),
            },
        };
        let constraints = RowConstraints { sampleable: self.sampleable, allowed, forbidden };
        Ok(self.sampler.sample(row, position as u64, &constraints, scratch)?)
    }

    /// The tokens to write instead of one that ends thinking and begins an answer that is constrained.
    fn cut_at_answer(&self, id: u32) -> Option<Vec<u32>> {
        let is_thinking = self.constraint.as_ref().is_some_and(|constraint| lock(constraint).is_thinking());
        self.text.as_ref().filter(|_| is_thinking)?.cut_at_answer(id)
    }

    /// Takes what [`Self::read_row`] found at `position`, position after position, and sends what follows.
    ///
    /// # Errors
    /// A grammar that became too complex.
    pub fn accept(
        &mut self,
        position: usize,
        reading: RowReading,
        weight_version: u64,
    ) -> Result<Next, RowError> {
        self.weight_version = weight_version;
        if position + 1 < self.prompt_len {
            Ok(self.accept_score(position, reading))
        } else {
            self.accept_token(reading)
        }
    }

    fn accept_score(&mut self, position: usize, RowReading { token, top, .. }: RowReading) -> Next {
        let Some(scores) = &mut self.scores else { return Next::Prompt };
        scores.logprobs.push(Some(TokenLogprob { id: token.id, logprob: token.logprob, top }));
        if position + 2 < self.prompt_len {
            return Next::Prompt;
        }
        self.send_scores();
        if self.max_tokens > 0 {
            return Next::Prompt;
        }
        self.finish(FinishReason::Length, Piece::default());
        Next::Ended { sampled: false }
    }

    fn accept_token(&mut self, reading: RowReading) -> Result<Next, RowError> {
        let RowReading { token: Sampled { id, logprob }, top, forced } = reading;
        if self.prompt_len == 1 && self.tokens.len() == 1 {
            // A prompt of one token has no row of its own before this one.
            self.send_scores();
        }
        let was_forced = self.forced.pop_front().is_some();
        self.forced.extend(forced);
        let experts = self.tell_experts();
        self.tokens.push(id);
        self.sampler.record(id);
        let generated = self.tokens.len() - self.prompt_len;
        let mut piece = Piece { stop: self.stops.cause(id), ..Piece::default() };
        if piece.stop.is_none() {
            piece = self.take_text(id, generated)?;
        }
        let stop = piece.stop;
        let event = TokenEvent {
            id,
            text: piece.answer,
            reasoning: piece.reasoning,
            logprob,
            top,
            weight_version: self.weight_version,
            experts,
        };
        match &mut self.kept {
            Some(kept) => kept.push(event),
            None => self.send(Event::Token(event)),
        }
        let circles = self.repetition.as_mut().is_some_and(|repetition| repetition.push(logprob, was_forced));
        if stop.is_none() && !circles && generated < self.max_tokens {
            return Ok(Next::Grown);
        }
        let mut rest = match (stop, &mut self.text) {
            // What was held back before a stop string is out already; what comes after it is dropped.
            (Some(StopCause::Text(_)), _) | (_, None) => Piece::default(),
            (_, Some(stream)) => stream.finish(),
        };
        rest.stop = stop.or(rest.stop);
        let reason = match rest.stop {
            Some(_) => FinishReason::Stop,
            None if circles => FinishReason::Repetition,
            None => FinishReason::Length,
        };
        self.finish(reason, rest);
        Ok(Next::Ended { sampled: true })
    }

    /// Takes the text of a token that is no end, and what follows from it for thinking and grammar.
    fn take_text(&mut self, id: u32, generated: usize) -> Result<Piece, RowError> {
        let Some(text) = &mut self.text else { return Ok(Piece::default()) };
        let was_answering = text.is_answering();
        let mut piece = text.push(id, generated > self.min_tokens);
        if text.is_thinking() || (text.is_answering() && !was_answering && self.reasoning_tokens > 0) {
            self.reasoning_tokens = generated;
        }
        let is_over = self.thinking_limit.is_some_and(|limit| generated >= limit);
        if is_over && text.is_thinking() && self.forced.is_empty() {
            self.forced.extend(text.tokenizer().encode(&thinking_end()).unwrap_or_default());
        }
        if let Some(constraint) = &self.constraint {
            let mut constraint = lock(constraint);
            constraint.accept(id, text)?;
            if text.lacks_line_break() && self.forced.is_empty() {
                self.forced.extend(text.tokenizer().encode("\n").unwrap_or_default());
            }
            if constraint.is_finished() {
                piece.stop = piece.stop.or(Some(StopCause::Grammar));
            }
        }
        Ok(piece)
    }

    fn send_scores(&mut self) {
        if let Some(scores) = self.scores.take() {
            self.send(Event::Prompt { logprobs: scores.logprobs, cached_tokens: self.cached_tokens });
        }
    }

    /// Sends the end, with the text held back until now.
    fn finish(&mut self, reason: FinishReason, Piece { reasoning, answer: text, stop }: Piece) {
        let usage = Usage {
            prompt_tokens: self.prompt_len,
            completion_tokens: self.tokens.len() - self.prompt_len,
            reasoning_tokens: self.reasoning_tokens,
            cached_tokens: self.cached_tokens,
        };
        let tokens = self.kept.take().unwrap_or_default();
        self.send(Event::Finished(Finished {
            reason,
            stop,
            text,
            reasoning,
            usage,
            weight_version: self.weight_version,
            tokens,
        }));
    }

    pub fn send(&self, event: Event) {
        // An error means that the generation was dropped, which the engine sees before its next step.
        let _ = self.events.send(event);
    }
}

impl Stops {
    fn cause(&self, id: u32) -> Option<StopCause> {
        let index = self.ids.iter().position(|&stop| stop == id)?;
        Some(if index < self.of_model { StopCause::EndToken(id) } else { StopCause::Token(id) })
    }
}

impl Repetition {
    /// Takes a token; whether the run is long enough. Tokens that the model did not choose say nothing.
    fn push(&mut self, logprob: f32, was_forced: bool) -> bool {
        let certain = !was_forced && logprob > self.stop.probability.ln();
        self.run = if certain { self.run + 1 } else { 0 };
        self.run >= self.stop.tokens
    }
}

/// What is written where thinking has to end.
fn thinking_end() -> String {
    format!("\n\n{END_OF_THINKING}")
}

/// Tokens of thinking after which it has to be closed, in `closing` tokens, for an answer to fit into `max_tokens`. The
/// answer keeps a quarter of them, [`ANSWER_ROOM`] at most. `None` where the closing alone does not fit.
fn last_chance_to_answer(max_tokens: usize, closing: usize) -> Option<usize> {
    let left = max_tokens.checked_sub(closing).filter(|&left| left > 0)?;
    Some(left.saturating_sub((max_tokens / 4).clamp(1, ANSWER_ROOM)))
}

fn lock(constraint: &Mutex<Constraint>) -> MutexGuard<'_, Constraint> {
    constraint.lock().unwrap_or_else(PoisonError::into_inner)
}
