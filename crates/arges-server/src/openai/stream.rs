//! A streamed answer: the events of all choices, merged in the order they come, as chunks.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::response::sse::Event;
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll, select_all, unfold};

use super::answer::{Dialect, Head};
use super::response::UsageBody;
use crate::answer::events::{AnswerEvent, AnswerEvents};
use crate::answer::sse::data;
use crate::error::ApiError;
use crate::frontend::Frontend;
use crate::job::Job;

/// What happened in one of the answers.
type Happened = (usize, Result<AnswerEvent, ApiError>);

/// Turns answers into server-sent events. Dropping it, as happens when the client goes away, cancels them.
pub(crate) struct AnswerStream<D: Dialect> {
    frontend: Arc<Frontend>,
    job: Job,
    head: Head,
    events: SelectAll<BoxStream<'static, Happened>>,
    progress: Vec<D::Progress>,
    usage: UsageBody,
    ready: VecDeque<Event>,
    ended: bool,
}

impl<D: Dialect> AnswerStream<D> {
    pub fn new(frontend: Arc<Frontend>, job: Job, head: Head, answers: Vec<AnswerEvents>) -> Self {
        let events = answers.into_iter().enumerate().map(|(index, events)| {
            unfold(events, move |mut events| async move {
                events.next().await.map(|event| ((index, event), events))
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
    pub async fn next(&mut self) -> Option<Event> {
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

    fn take(&mut self, index: usize, event: Result<AnswerEvent, ApiError>) {
        let progress = &mut self.progress[index];
        match event {
            Ok(AnswerEvent::Prompt(logprobs)) => {
                let chunk = D::prompt(&self.frontend, &self.job, index, &logprobs, progress);
                self.send(chunk);
            }
            // A token may bring nothing of its own: half a character, a possible start of a stop string.
            Ok(AnswerEvent::Token { token, parts }) => {
                if self.job.tells_tokens() || !parts.is_empty() {
                    let chunks = D::token(&self.frontend, &self.job, index, &token, parts, progress);
                    self.send(chunks);
                }
            }
            Ok(AnswerEvent::End { parts, end }) => {
                self.usage.add(&end.usage, self.job.first_of_prompt(index));
                self.send(D::closing(index, parts, &end));
            }
            Err(error) => self.fail(&error),
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
        self.ready.push_back(Event::default().data("[DONE]"));
        self.ended = true;
    }
}
