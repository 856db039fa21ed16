//! A model that uses tools: asked again with the results of its calls until it answers.
//!
//! [`Agent`] works over a [`ChatEndpoint`], which is any that speaks OpenAI's chat API: [`HttpEndpoint`] at an
//! address, [`RouterEndpoint`] in this process, [`Divided`] for those that leave calls in the text. An [`Observer`] sees what the model writes, is asked before a tool
//! runs, and follows the calls. [`serving`] puts the loop in front of a server's own endpoint.

mod divided;
mod endpoint;
mod http_endpoint;
mod router_endpoint;
pub mod serving;
mod turn;

use futures_util::future::{BoxFuture, join_all};
use futures_util::{FutureExt, StreamExt};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::mpsc;

pub use divided::Divided;
pub use endpoint::{ChatEndpoint, EndpointError};
pub use http_endpoint::HttpEndpoint;
pub use router_endpoint::RouterEndpoint;
pub use turn::{ToolCall, Turn};

use crate::client::{CallResult, OfferedTool, Toolbox};

/// Turns in which a model may call tools; in the one after them it must answer.
const ROUNDS: usize = 16;
/// Calls of one turn that are run; a model that makes more is told so.
const CALLS: usize = 32;

/// A conversation that could not go on.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The endpoint failed.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The observer wants no more.
    #[error("stopped")]
    Stopped,
}

/// Somebody who follows a conversation.
pub trait Observer: Send {
    /// A piece of the model's answer, as the endpoint streamed it. `false` ends the conversation.
    fn chunk(&mut self, chunk: Value) -> BoxFuture<'_, bool>;

    /// Whether a call may run.
    fn may_run(&mut self, call: &ToolCall, tool: &OfferedTool) -> bool;

    /// A call runs.
    fn started(&mut self, call: &ToolCall);

    /// A call's server says how far it is.
    fn progress(&mut self, call: &ToolCall, message: &str);

    /// A call has ended, or was not allowed.
    fn finished(&mut self, call: &ToolCall, result: &CallResult);
}

/// What came of a conversation.
#[derive(Debug)]
pub struct Finished {
    /// The messages that were added to the request's: turns with calls, their results, and the answer.
    pub messages: Vec<Value>,
    /// The last turn.
    pub last: Turn,
    /// Tokens over all turns, where the endpoint counts them.
    pub usage: Option<Value>,
}

/// A model and its tools.
#[derive(Clone, Copy)]
pub struct Agent<'a> {
    endpoint: &'a dyn ChatEndpoint,
    toolbox: &'a Toolbox,
}

impl<'a> Agent<'a> {
    /// The model behind an endpoint, with the tools of a toolbox.
    pub fn new(endpoint: &'a dyn ChatEndpoint, toolbox: &'a Toolbox) -> Agent<'a> {
        Agent { endpoint, toolbox }
    }

    /// Carries on a conversation until the model answers without a call. `request` is a body of OpenAI's chat API; its
    /// answers are streamed if its `stream` is true.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn run(&self, mut request: Value, observer: &mut dyn Observer) -> Result<Finished, AgentError> {
        let mut messages = Vec::new();
        let mut usage = Usage::default();
        let tools = self.toolbox.openai_tools();
        if !tools.is_empty() {
            request["tools"] = tools.into();
        }
        for round in 0..=ROUNDS {
            if round == ROUNDS {
                request["tool_choice"] = "none".into();
            }
            let turn = self.turn(&request, observer).await?;
            usage.add(turn.usage.as_ref());
            messages.push(turn.message());
            if turn.calls.is_empty() || round == ROUNDS {
                return Ok(Finished { messages, last: turn, usage: usage.total() });
            }
            let results = self.run_calls(&turn.calls, observer).await;
            for (call, result) in turn.calls.iter().zip(results) {
                messages.push(json!({
                    "role": "tool",
                    "tool_call_id": call.id,
                    "name": call.name,
                    "content": result.text,
                }));
            }
            let added = messages.len() - 1 - turn.calls.len();
            if let Some(all) = request["messages"].as_array_mut() {
                all.extend(messages[added..].iter().cloned());
            }
        }
        unreachable!("the last round returns")
    }

    async fn turn(&self, request: &Value, observer: &mut dyn Observer) -> Result<Turn, AgentError> {
        if request["stream"] != true {
            return Ok(Turn::of_completion(self.endpoint.complete(request.clone()).await?));
        }
        let mut turn = Turn::default();
        let mut chunks = self.endpoint.stream(request.clone()).await?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            turn.push(&chunk);
            if !observer.chunk(chunk).await {
                return Err(AgentError::Stopped);
            }
        }
        turn.finish();
        Ok(turn)
    }

    /// Runs the calls of a turn at the same time. Results are in the calls' order.
    async fn run_calls(&self, calls: &[ToolCall], observer: &mut dyn Observer) -> Vec<CallResult> {
        // Whoever is asked is asked about one call after the other, before any of them runs.
        let refusals: Vec<Option<CallResult>> =
            calls.iter().enumerate().map(|(number, call)| self.refusal(number, call, observer)).collect();
        for (call, refusal) in calls.iter().zip(&refusals) {
            match refusal {
                None => observer.started(call),
                Some(result) => observer.finished(call, result),
            }
        }
        let (reports, mut reported) = mpsc::unbounded_channel();
        let running = calls.iter().zip(refusals).enumerate().map(|(number, (call, refusal))| {
            let reports = reports.clone();
            async move {
                if let Some(result) = refusal {
                    return result;
                }
                // Nobody listens any more only when the conversation is over.
                let report =
                    |message: &str| drop(reports.send((number, Report::Progress(message.to_owned()))));
                let result = self.toolbox.call(&call.name, &call.arguments, &report).await;
                drop(reports.send((number, Report::Finished(result.clone()))));
                result
            }
        });
        let mut results = std::pin::pin!(join_all(running));
        let mut tell = |number: usize, report: Report| match report {
            Report::Progress(message) => observer.progress(&calls[number], &message),
            Report::Finished(result) => observer.finished(&calls[number], &result),
        };
        let results = loop {
            tokio::select! {
                biased;
                Some((number, report)) = reported.recv() => tell(number, report),
                results = &mut results => break results,
            }
        };
        while let Some(Some((number, report))) = reported.recv().now_or_never() {
            tell(number, report);
        }
        results
    }

    /// Why a call is not run, if it is not.
    fn refusal(&self, number: usize, call: &ToolCall, observer: &mut dyn Observer) -> Option<CallResult> {
        let refused = |text: String| Some(CallResult { text, is_error: true });
        if number >= CALLS {
            return refused(format!("not run: at most {CALLS} calls are made in one turn"));
        }
        // A tool that there is not is answered by the toolbox.
        let tool = self.toolbox.find(&call.name)?;
        if observer.may_run(call, tool) {
            None
        } else {
            refused("the user did not allow this call".to_owned())
        }
    }
}

enum Report {
    Progress(String),
    Finished(CallResult),
}

/// Adds up the numbers of tokens of turns.
#[derive(Default)]
struct Usage {
    prompt: u64,
    completion: u64,
    reasoning: u64,
    is_known: bool,
}

impl Usage {
    fn add(&mut self, usage: Option<&Value>) {
        let Some(usage) = usage else { return };
        self.is_known = true;
        self.prompt += usage["prompt_tokens"].as_u64().unwrap_or(0);
        self.completion += usage["completion_tokens"].as_u64().unwrap_or(0);
        self.reasoning += usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap_or(0);
    }

    fn total(&self) -> Option<Value> {
        let (prompt, completion) = (self.prompt, self.completion);
        self.is_known.then(|| {
            json!({
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "completion_tokens_details": { "reasoning_tokens": self.reasoning },
            })
        })
    }
}
