//! One request while it is in the engine: its tokens, its sampler, its text, and where its events go.

use arges_kernels::sample::{
    RowConstraints, RowLogprobs, SampleError, SampleScratch, Sampled, Sampler, SamplingParamError,
};
use arges_text::{Detokenizer, StopStrings, Tokenizer};
use tokio::sync::mpsc::UnboundedSender;

use crate::handle::{QueuePlace, Submission};
use crate::request::{Event, FinishReason, Finished, StopCause, TokenEvent, TokenLogprob, Usage};

/// What a sequence takes from the model it runs on.
pub(crate) struct ModelFacts {
    pub tokenizer: Option<Tokenizer>,
    /// Ids below this may be sampled; rows of the head beyond belong to no token.
    pub sampleable: usize,
    pub end_tokens: Vec<u32>,
}

/// What one row of logits said about the token after it.
#[derive(Debug)]
pub(crate) struct RowReading {
    /// The token of the prompt that follows, or the one that was sampled.
    token: Sampled,
    /// The most likely tokens, if asked for.
    top: Vec<(u32, f32)>,
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
    text: Option<TextStream>,
    logprobs: Option<usize>,
    scores: Option<PromptScores>,
    events: UnboundedSender<Event>,
    sampleable: usize,
    /// Given up when it is admitted for the first time.
    queue_place: Option<QueuePlace>,
}

/// Tokens that end the answer.
struct Stops {
    /// End tokens of the model, then stop tokens of the request.
    ids: Vec<u32>,
    /// How many of `ids` are the model's.
    of_model: usize,
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
        let Submission { request, seed, max_tokens, events, queue_place } = submission;
        let sampler = Sampler::new(request.sampling, seed, &request.prompt)?;
        let mut ids = if request.stop.ignore_eos { Vec::new() } else { model.end_tokens.clone() };
        let of_model = ids.len();
        ids.extend(request.stop.tokens);
        let prompt_len = request.prompt.len();
        let strings = request.stop.strings;
        Ok(Self {
            tokens: request.prompt,
            prompt_len,
            max_tokens,
            min_tokens: request.stop.min_tokens,
            sampler,
            stops: Stops { ids, of_model },
            text: model.tokenizer.clone().map(|tokenizer| TextStream::new(tokenizer, strings)),
            logprobs: request.logprobs,
            scores: request.prompt_logprobs.map(|top| PromptScores { top, logprobs: vec![None] }),
            events,
            sampleable: model.sampleable,
            queue_place: Some(queue_place),
        })
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Makes its place in the queue free for another request.
    pub fn leave_queue(&mut self) {
        self.queue_place = None;
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
        self.finish(FinishReason::Length, None, String::new());
    }

    /// Whether nobody listens any more.
    pub fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    pub fn fail(&self, message: String) {
        self.send(Event::Failed(message));
    }

    /// Reads the row of logits of the token at `position`: samples the next token, or looks up the one that
    /// follows in the prompt.
    pub fn read_row(
        &self,
        position: usize,
        logits: &[f32],
        scratch: &mut SampleScratch,
    ) -> Result<RowReading, SampleError> {
        let row = RowLogprobs::new(logits)?;
        let next = position + 1;
        let (token, top) = if next < self.prompt_len {
            let id = self.tokens[next];
            (Sampled { id, logprob: row.logprob(id) }, self.scores.as_ref().map(|scores| scores.top))
        } else {
            let early = next - self.prompt_len < self.min_tokens;
            let forbidden = if early { &self.stops.ids[..] } else { &[] };
            let constraints = RowConstraints { sampleable: self.sampleable, allowed: None, forbidden };
            (self.sampler.sample(&row, next as u64, &constraints, scratch)?, self.logprobs)
        };
        let mut best = Vec::new();
        if let Some(count) = top.filter(|&count| count > 0) {
            best.reserve_exact(count.min(logits.len()));
            row.top(count, &mut best);
        }
        Ok(RowReading { token, top: best })
    }

    /// Takes what [`Self::read_row`] found at `position`, position after position, and sends what follows.
    pub fn accept(&mut self, position: usize, reading: RowReading) -> Next {
        if position + 1 < self.prompt_len {
            self.accept_score(position, reading)
        } else {
            self.accept_token(reading)
        }
    }

    fn accept_score(&mut self, position: usize, RowReading { token, top }: RowReading) -> Next {
        let Some(scores) = &mut self.scores else { return Next::Prompt };
        scores.logprobs.push(Some(TokenLogprob { id: token.id, logprob: token.logprob, top }));
        if position + 2 < self.prompt_len {
            return Next::Prompt;
        }
        self.send_scores();
        if self.max_tokens > 0 {
            return Next::Prompt;
        }
        self.finish(FinishReason::Length, None, String::new());
        Next::Ended { sampled: false }
    }

    fn accept_token(&mut self, RowReading { token: Sampled { id, logprob }, top }: RowReading) -> Next {
        if self.prompt_len == 1 && self.tokens.len() == 1 {
            // A prompt of one token has no row of its own before this one.
            self.send_scores();
        }
        self.tokens.push(id);
        self.sampler.record(id);
        let generated = self.tokens.len() - self.prompt_len;
        let mut cause = self.stops.cause(id);
        let mut text = String::new();
        if cause.is_none()
            && let Some(stream) = &mut self.text
        {
            let looks_for_stops = generated > self.min_tokens;
            (text, cause) = stream.push(id, looks_for_stops);
        }
        self.send(Event::Token(TokenEvent { id, text, logprob, top }));
        if cause.is_none() && generated < self.max_tokens {
            return Next::Grown;
        }
        let (rest, cause) = match (cause, &mut self.text) {
            // What was held back before a stop string is out already; what comes after it is dropped.
            (Some(StopCause::Text(_)), _) | (_, None) => (String::new(), cause),
            (_, Some(stream)) => {
                let (rest, late_cause) = stream.finish();
                (rest, cause.or(late_cause))
            }
        };
        let reason = if cause.is_some() { FinishReason::Stop } else { FinishReason::Length };
        self.finish(reason, cause, rest);
        Next::Ended { sampled: true }
    }

    fn send_scores(&mut self) {
        if let Some(scores) = self.scores.take() {
            self.send(Event::Prompt { logprobs: scores.logprobs, cached_tokens: 0 });
        }
    }

    fn finish(&self, reason: FinishReason, stop: Option<StopCause>, text: String) {
        let usage = Usage {
            prompt_tokens: self.prompt_len,
            completion_tokens: self.tokens.len() - self.prompt_len,
            cached_tokens: 0,
        };
        self.send(Event::Finished(Finished { reason, stop, text, usage }));
    }

    fn send(&self, event: Event) {
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

/// Tokens to text, up to a stop string.
struct TextStream {
    detokenizer: Detokenizer,
    stops: Option<StopStrings>,
}

impl TextStream {
    fn new(tokenizer: Tokenizer, strings: Vec<String>) -> Self {
        let stops = (!strings.is_empty()).then(|| StopStrings::new(strings));
        Self { detokenizer: Detokenizer::new(tokenizer), stops }
    }

    /// Text that a token makes certain, and the stop string it completes.
    fn push(&mut self, id: u32, looks_for_stops: bool) -> (String, Option<StopCause>) {
        let text = self.detokenizer.push(id);
        match &mut self.stops {
            Some(stops) if looks_for_stops => {
                let found = stops.push(&text);
                (found.text, found.stopped.map(StopCause::Text))
            }
            _ => (text, None),
        }
    }

    /// The text still held back, and a stop string it completes.
    fn finish(&mut self) -> (String, Option<StopCause>) {
        let rest = self.detokenizer.finish();
        let Some(stops) = &mut self.stops else { return (rest, None) };
        let found = stops.push(&rest);
        if found.stopped.is_some() {
            return (found.text, found.stopped.map(StopCause::Text));
        }
        (found.text + &stops.finish(), None)
    }
}
