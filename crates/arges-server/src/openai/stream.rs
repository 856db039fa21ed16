//! A streamed answer: the events of all choices, merged in the order they come, as chunks.

use std::collections::VecDeque;
use std::sync::Arc;

use arges_engine::{Event, Finished, Generation};
use axum::response::sse;
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll, select_all, unfold};
use serde::Serialize;

use super::answer::{Dialect, Head, failed};
use super::job::Job;
use super::response::UsageBody;
use crate::error::ApiError;
use crate::frontend::Frontend;

/// Turns generations into server-sent events. Dropping it, as happens when the client goes away, drops the
/// generations and so cancels them.
pub(crate) struct AnswerStream<D: Dialect> {
    frontend: Arc<Frontend>,
    job: Job,
    head: Head,
    events: SelectAll<BoxStream<'static, (usize, Event)>>,
    progress: Vec<D::Progress>,
    usage: UsageBody,
    ready: VecDeque<sse::Event>,
    ended: bool,
}

impl<D: Dialect> AnswerStream<D> {
    pub fn new(frontend: Arc<Frontend>, job: Job, head: Head, generations: Vec<Generation>) -> Self {
        let events = generations.into_iter().enumerate().map(|(index, generation)| {
            unfold(generation, move |mut generation| async move {
                generation.next().await.map(|event| ((index, event), generation))
            })
            .boxed()
        });
        let mut stream = AnswerStream {
            events: select_all(events),
            progress: vec![D::Progress::default(); job.choices()],
            usage: UsageBody::default(),
            ready: VecDeque::new(),
            ended: false,
            frontend,
            job,
            head,
        };
        stream.open();
        stream
    }

    /// The next server-sent event; `None` after `[DONE]`.
    pub async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            match self.events.next().await {
                Some((index, event)) => self.take(index, event),
                None => self.close(),
            }
        }
    }

    fn open(&mut self) {
        for index in 0..self.job.choices() {
            let progress = &mut self.progress[index];
            if let Some(chunk) = D::opening(&self.frontend, &self.job, index, progress) {
                let ids = self.head.prompt_token_ids::<D>(&self.job).filter(|_| index == 0);
                let envelope = self.head.envelope(D::CHUNK_OBJECT, vec![chunk], self.no_usage(), ids);
                self.ready.push_back(data(&envelope));
            }
        }
    }

    fn take(&mut self, index: usize, event: Event) {
        let progress = &mut self.progress[index];
        match event {
            Event::Prompt { logprobs, .. } => {
                let chunk = D::prompt(&self.frontend, &self.job, index, &logprobs, progress);
                self.send(chunk);
            }
            // A token may bring no text of its own: half a character, a possible start of a stop string.
            Event::Token(token) => {
                let told = self.job.logprobs.is_some() || self.job.settings.return_token_ids;
                if told || !token.text.is_empty() {
                    let chunk = D::token(&self.frontend, &self.job, index, token, progress);
                    self.send(Some(chunk));
                }
            }
            Event::Finished(Finished { reason, text, usage, .. }) => {
                self.usage.add(&usage, self.job.first_of_prompt(index));
                self.send(D::closing(index, text, reason));
            }
            Event::Failed(message) => self.fail(&failed(&message)),
        }
    }

    fn send(&mut self, chunks: impl IntoIterator<Item = D::Chunk>) {
        for chunk in chunks {
            let envelope = self.head.envelope(D::CHUNK_OBJECT, vec![chunk], self.no_usage(), None);
            self.ready.push_back(data(&envelope));
        }
    }

    /// `usage` of every chunk but the last: `null` where a last one will carry it, else left out.
    fn no_usage(&self) -> Option<Option<UsageBody>> {
        self.job.settings.include_usage.then_some(None)
    }

    /// All choices have ended.
    fn close(&mut self) {
        if self.job.settings.include_usage {
            let none: Vec<D::Chunk> = Vec::new();
            let envelope = self.head.envelope(D::CHUNK_OBJECT, none, Some(Some(self.usage)), None);
            self.ready.push_back(data(&envelope));
        }
        self.done();
    }

    /// The status line is long gone, so the error is sent as an event, as OpenAI does; the other choices are
    /// cancelled.
    fn fail(&mut self, error: &ApiError) {
        self.events.clear();
        self.ready.push_back(data(&error.body()));
        self.done();
    }

    fn done(&mut self) {
        self.ready.push_back(sse::Event::default().data("[DONE]"));
        self.ended = true;
    }
}

/// An event with `value` as its data.
fn data(value: &impl Serialize) -> sse::Event {
    // The values are structs, strings and numbers, which always serialise; were one not to, the client is told.
    let json = serde_json::to_string(value).unwrap_or_else(|error| {
        ApiError::internal(format!("A chunk could not be written: {error}.")).body().to_string()
    });
    sse::Event::default().data(json)
}
