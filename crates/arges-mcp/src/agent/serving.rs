//! The loop in front of a server: clients ask as ever, and the model has tools.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::future::{BoxFuture, ready};
use futures_util::{FutureExt, StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use super::turn::ToolCall;
use super::{Agent, AgentError, EndpointError, Finished, Observer, RouterEndpoint};
use crate::client::{CallResult, OfferedTool, Toolbox};

/// Bytes of a request at most, and time for it to arrive.
const BODY: usize = 32 << 20;
const BODY_TIME: Duration = Duration::from_secs(60);
/// Bodies that are read at once.
const BODIES: usize = 8;
/// Silence after which a stream sends a comment: a call may take long.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Chunks that may wait for a client that reads slowly.
const CHUNKS: usize = 256;

struct Serving {
    endpoint: RouterEndpoint,
    toolbox: Arc<Toolbox>,
    bodies: Semaphore,
}

/// The routes of a server, with the toolbox offered to its model in `/v1/chat/completions`. All tools of the toolbox run
/// without anyone being asked. Requests that bring `tools` of their own, or ask for several answers, go through as
/// they are: such a client runs its calls itself.
///
/// A stream whose request has `show_tool_calls` tells of the calls: the deltas of every turn as the model's own, and
/// after each call its result as a delta of role `tool`, in the form of a message. So a client can keep the whole
/// conversation. Others get the text of all turns as one answer.
pub fn with_tools(router: Router, toolbox: Arc<Toolbox>) -> Router {
    let endpoint = RouterEndpoint::new(router);
    let serving = Serving { endpoint, toolbox, bodies: Semaphore::new(BODIES) };
    Router::new().fallback(answer).with_state(Arc::new(serving))
}

async fn answer(State(serving): State<Arc<Serving>>, request: Request) -> Response {
    if request.method() != Method::POST || request.uri().path() != "/v1/chat/completions" {
        return serving.endpoint.pass(request).await;
    }
    let (head, body) = request.into_parts();
    let read = async {
        // The semaphore is never closed.
        let _turn = serving.bodies.acquire().await.ok();
        tokio::time::timeout(BODY_TIME, to_bytes(body, BODY)).await
    };
    let bytes = match read.await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            return refusal(StatusCode::PAYLOAD_TOO_LARGE, "The request body is too large or broke off.");
        }
        Err(_) => return refusal(StatusCode::REQUEST_TIMEOUT, "The request body took too long."),
    };
    let endpoint = serving.endpoint.on_behalf(&head.headers);
    let parsed: Option<Value> = serde_json::from_slice(&bytes).ok().filter(wants_tools);
    let Some(parsed) = parsed else {
        return endpoint.pass(Request::from_parts(head, Body::from(bytes))).await;
    };
    if parsed["stream"] == true {
        streamed(endpoint, Arc::clone(&serving.toolbox), parsed).await
    } else {
        whole(&endpoint, &serving.toolbox, parsed).await
    }
}

fn wants_tools(request: &Value) -> bool {
    let brings_tools = request["tools"].as_array().is_some_and(|tools| !tools.is_empty());
    let forbids_tools = request["tool_choice"] == "none";
    let asks_for_several = request["n"].as_u64().is_some_and(|n| n > 1);
    request["messages"].is_array() && !brings_tools && !forbids_tools && !asks_for_several
}

async fn whole(endpoint: &RouterEndpoint, toolbox: &Toolbox, request: Value) -> Response {
    match Agent::new(endpoint, toolbox).run(request, &mut Silent).await {
        Ok(Finished { last, usage, .. }) => {
            let mut completion = last.completion.unwrap_or_default();
            if let Some(usage) = usage {
                completion["usage"] = usage;
            }
            axum::Json(completion).into_response()
        }
        Err(error) => failure(&error),
    }
}

/// Streams all turns as one answer. The first chunk decides the status: a request that is refused is so as without
/// tools.
async fn streamed(endpoint: RouterEndpoint, toolbox: Arc<Toolbox>, request: Value) -> Response {
    let (chunks, mut received) = mpsc::channel(CHUNKS);
    let counts_tokens = request["stream_options"]["include_usage"] == true;
    tokio::spawn(async move {
        let shows_calls = request["show_tool_calls"] == true;
        let mut observer =
            Forwarding { chunks: chunks.clone(), head: None, shows_calls, results: VecDeque::new() };
        let agent = Agent::new(&endpoint, &toolbox);
        let result = tokio::select! {
            result = agent.run(request, &mut observer) => result,
            // Nobody waits for what a call brings. Dropping it cancels it.
            () = chunks.closed() => return,
        };
        let last = match result {
            Ok(finished) if counts_tokens => finished.usage.map(|usage| Ok(observer.usage_chunk(usage))),
            Ok(_) | Err(AgentError::Stopped) => None,
            Err(error) => Some(Err(error)),
        };
        if let Some(last) = last {
            // A client that has gone needs no end.
            let _ = chunks.send(last).await;
        }
    });
    let first = match received.recv().await {
        Some(Err(error)) => return failure(&error),
        first => first,
    };
    let rest = stream::unfold(received, |mut received| async { Some((received.recv().await?, received)) });
    let all = stream::iter(first).chain(rest).map(|chunk| match chunk {
        Ok(chunk) => chunk.to_string(),
        Err(error) => error_body(&error).to_string(),
    });
    let events = all.chain(stream::iter(["[DONE]".to_owned()]));
    let events = events.map(|data| Ok::<_, Infallible>(Event::default().data(data)));
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// Everything may run: what may not was taken out of the toolbox.
struct Silent;

impl Observer for Silent {
    fn chunk(&mut self, _: Value) -> BoxFuture<'_, bool> {
        ready(true).boxed()
    }

    fn may_run(&mut self, _: &ToolCall, _: &OfferedTool) -> bool {
        true
    }

    fn started(&mut self, call: &ToolCall) {
        tracing::info!(tool = call.name, "a call runs");
    }

    fn progress(&mut self, call: &ToolCall, message: &str) {
        tracing::debug!(tool = call.name, message, "progress");
    }

    fn finished(&mut self, call: &ToolCall, result: &CallResult) {
        tracing::info!(tool = call.name, is_error = result.is_error, "a call has ended");
    }
}

/// Sends on what the model writes as parts of one answer, with its calls only if they are asked for.
struct Forwarding {
    chunks: mpsc::Sender<Result<Value, AgentError>>,
    /// The fields of the first chunk that all have in common.
    head: Option<Value>,
    shows_calls: bool,
    /// Results that a slow client has had no room for.
    results: VecDeque<Value>,
}

impl Forwarding {
    /// The chunk as the client gets it, if anything is left of it.
    fn forwarded(&mut self, mut chunk: Value) -> Option<Value> {
        let is_first = self.head.is_none();
        if let Some(fields) = chunk.as_object_mut() {
            // Tokens are counted at the end, over all turns.
            fields.remove("usage");
        }
        let head = self.head.get_or_insert_with(|| {
            let mut head = chunk.clone();
            head["choices"] = json!([]);
            head
        });
        for field in ["id", "created"] {
            chunk[field] = head[field].clone();
        }
        if self.shows_calls {
            let says_something = chunk["choices"].as_array().is_some_and(|choices| !choices.is_empty());
            return says_something.then_some(chunk);
        }
        let choice = chunk["choices"].as_array_mut()?.first_mut().filter(|choice| choice.is_object())?;
        let calls = choice["delta"].as_object_mut().and_then(|delta| delta.remove("tool_calls"));
        if let (false, Some(delta)) = (is_first, choice["delta"].as_object_mut()) {
            delta.remove("role");
        }
        let ends_in_calls = choice["finish_reason"] == "tool_calls";
        if ends_in_calls {
            choice["finish_reason"] = Value::Null;
        }
        let says_nothing = choice["delta"].as_object().is_none_or(|delta| delta.is_empty());
        if says_nothing && (calls.is_some() || ends_in_calls || choice["finish_reason"].is_null()) {
            return None;
        }
        Some(chunk)
    }

    /// A chunk without choices.
    fn empty_chunk(&self) -> Value {
        let mut chunk = self.head.clone().unwrap_or_else(|| json!({ "object": "chat.completion.chunk" }));
        chunk["choices"] = json!([]);
        chunk
    }

    fn usage_chunk(&self, usage: Value) -> Value {
        let mut chunk = self.empty_chunk();
        chunk["usage"] = usage;
        chunk
    }

    fn result_chunk(&self, call: &ToolCall, result: &CallResult) -> Value {
        let mut delta = json!({
            "role": "tool",
            "tool_call_id": call.id,
            "name": call.name,
            "content": result.text,
        });
        if result.is_error {
            delta["is_error"] = true.into();
        }
        let mut chunk = self.empty_chunk();
        chunk["choices"] = json!([{ "index": 0, "delta": delta, "finish_reason": null }]);
        chunk
    }

    /// Sends what waits, as far as there is room.
    fn send_results(&mut self) {
        while let Ok(place) = self.chunks.try_reserve() {
            let Some(result) = self.results.pop_front() else { return };
            place.send(Ok(result));
        }
    }
}

impl Observer for Forwarding {
    fn chunk(&mut self, chunk: Value) -> BoxFuture<'_, bool> {
        let chunk = self.forwarded(chunk);
        async move {
            while let Some(result) = self.results.pop_front() {
                if self.chunks.send(Ok(result)).await.is_err() {
                    return false;
                }
            }
            match chunk {
                Some(chunk) => self.chunks.send(Ok(chunk)).await.is_ok(),
                None => !self.chunks.is_closed(),
            }
        }
        .boxed()
    }

    fn may_run(&mut self, call: &ToolCall, tool: &OfferedTool) -> bool {
        Silent.may_run(call, tool)
    }

    fn started(&mut self, call: &ToolCall) {
        Silent.started(call);
    }

    fn progress(&mut self, call: &ToolCall, message: &str) {
        Silent.progress(call, message);
    }

    fn finished(&mut self, call: &ToolCall, result: &CallResult) {
        Silent.finished(call, result);
        if self.shows_calls {
            self.results.push_back(self.result_chunk(call, result));
            self.send_results();
        }
    }
}

fn failure(error: &AgentError) -> Response {
    let status = match error {
        AgentError::Endpoint(EndpointError::Refused { status, .. }) => StatusCode::from_u16(*status),
        _ => Ok(StatusCode::INTERNAL_SERVER_ERROR),
    };
    (status.unwrap_or(StatusCode::BAD_GATEWAY), axum::Json(error_body(error))).into_response()
}

fn refusal(status: StatusCode, message: &str) -> Response {
    let body = json!({ "error": { "message": message, "type": "invalid_request_error", "param": null, "code": null } });
    (status, [(header::CONNECTION, "close")], axum::Json(body)).into_response()
}

fn error_body(error: &AgentError) -> Value {
    let (message, kind) = match error {
        AgentError::Endpoint(EndpointError::Refused { message, status }) if *status < 500 => {
            (message.clone(), "invalid_request_error")
        }
        error => (error.to_string(), "server_error"),
    };
    json!({ "error": { "message": message, "type": kind, "param": null, "code": null } })
}
