//! Answers as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{Stream, unfold};
use serde::Serialize;

use super::events::{AnswerEvent, AnswerEvents};
use crate::error::ApiError;
use crate::options::ServerOptions;

/// An event with `value` as its data.
pub(crate) fn data(value: &impl Serialize) -> Event {
    Event::default().data(json(value))
}

fn json(value: &impl Serialize) -> String {
    // The values are structs, strings and numbers, which always serialise; were one not to, the client is told.
    serde_json::to_string(value).unwrap_or_else(|error| {
        ApiError::internal(format!("A chunk could not be written: {error}.")).body().to_string()
    })
}

/// An event that has a name, with `value` as its data.
pub(crate) fn named(name: &str, value: &impl Serialize) -> Event {
    Event::default().event(name).data(json(value))
}

/// The response that sends these events, and comments while there are none.
pub(crate) fn response(
    events: impl Stream<Item = Event> + Send + 'static,
    options: &ServerOptions,
) -> Response {
    use futures_util::StreamExt;
    let keep_alive = KeepAlive::new().interval(options.keep_alive);
    let mut response = Sse::new(events.map(Ok::<_, Infallible>)).keep_alive(keep_alive).into_response();
    // nginx would gather the events otherwise.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(unbuffered, HeaderValue::from_static("no"));
    response
}

/// How an API tells of an answer in events of its own.
pub(crate) trait Narrator: Send + 'static {
    /// What is sent before anything is computed.
    fn open(&mut self) -> Vec<Event>;
    /// What is sent for an event of the answer.
    fn tell(&mut self, event: AnswerEvent) -> Vec<Event>;
    /// What is sent when the answer fails. The status line is long gone.
    fn fail(&mut self, error: &ApiError) -> Vec<Event>;
}

/// An answer as a narrator tells it. Dropping it, as happens when the client goes away, cancels the answer.
pub(crate) fn narrate(mut narrator: impl Narrator, events: AnswerEvents) -> impl Stream<Item = Event> + Send {
    let ready = VecDeque::from(narrator.open());
    unfold((narrator, events, ready), |(mut narrator, mut events, mut ready)| async move {
        while ready.is_empty() {
            ready.extend(match events.next().await? {
                Ok(event) => narrator.tell(event),
                Err(error) => narrator.fail(&error),
            });
        }
        ready.pop_front().map(|event| (event, (narrator, events, ready)))
    })
}
