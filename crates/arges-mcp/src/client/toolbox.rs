//! All tools that a model is offered, and their calls.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CallToolResult, CancelledNotificationParam, ClientRequest,
    JsonObject, ProgressNotificationParam, RequestId, ServerResult,
};
use rmcp::service::{Peer, PeerRequestOptions, RoleClient, ServiceError};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::{Semaphore, broadcast};

use super::config::{Config, ServerEntry};
use super::connection::{ConnectError, Connection};
use super::{Builtin, result};

/// Characters of a tool's name at most, as OpenAI's API has it.
const NAME: usize = 64;

/// What calls may take.
#[derive(Debug, Clone)]
pub struct CallLimits {
    /// For a server to be ready.
    pub connect: Duration,
    /// For a call, or for the next report of its progress.
    pub silence: Duration,
    /// For a call altogether.
    pub total: Duration,
    /// Bytes of a result's text; what is longer is cut.
    pub result_bytes: usize,
    /// Calls that run at once; others wait for their turn.
    pub parallel: usize,
}

impl Default for CallLimits {
    fn default() -> CallLimits {
        CallLimits {
            connect: Duration::from_secs(30),
            silence: Duration::from_secs(300),
            total: Duration::from_secs(3600),
            result_bytes: 64 << 10,
            parallel: 8,
        }
    }
}

/// A toolbox that cannot be filled.
#[derive(Debug, Error)]
pub enum ToolboxError {
    /// A server that cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// A tool as a model is offered it.
#[derive(Debug)]
pub struct OfferedTool {
    /// What the model calls it by.
    pub name: String,
    /// The server that it is of; `built-in` for those of the program.
    pub server: String,
    pub description: String,
    /// The schema of its arguments.
    pub schema: Value,
    /// Whether its server says that it changes nothing.
    pub read_only: bool,
    /// Whether it may run without anyone being asked: it is read-only, or the configuration allows it.
    pub allowed: bool,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Builtin(Builtin),
    Server { name: String, peer: Peer<RoleClient>, progress: broadcast::Sender<ProgressNotificationParam> },
}

/// The result of a call, as a text for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallResult {
    pub text: String,
    pub is_error: bool,
}

/// Tools, and the connections to the servers that have them.
#[derive(Debug)]
pub struct Toolbox {
    tools: Vec<OfferedTool>,
    connections: Vec<Connection>,
    limits: CallLimits,
    turns: Semaphore,
}

impl Toolbox {
    /// Connects to all servers of a configuration at once, and adds built-in tools.
    ///
    /// # Errors
    /// The first server that cannot be used; the others are closed.
    pub async fn open(
        config: &Config,
        builtins: &[Builtin],
        limits: CallLimits,
    ) -> Result<Toolbox, ToolboxError> {
        let opened = config.servers.iter().map(|entry| Connection::open(entry, limits.connect));
        let mut connections = Vec::new();
        let mut failed = None;
        for connection in join_all(opened).await {
            match connection {
                Ok(connection) => connections.push(connection),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            join_all(connections.into_iter().map(Connection::close)).await;
            return Err(error.into());
        }
        let mut tools: Vec<OfferedTool> = builtins.iter().copied().map(OfferedTool::builtin).collect();
        for (connection, entry) in connections.iter().zip(&config.servers) {
            tools.extend(connection.tools.iter().map(|tool| OfferedTool::of(tool, connection, entry)));
        }
        name_apart(&mut tools);
        let turns = Semaphore::new(limits.parallel.max(1));
        Ok(Toolbox { tools, connections, limits, turns })
    }

    /// The tools, those of the program first, then server by server.
    pub fn tools(&self) -> &[OfferedTool] {
        &self.tools
    }

    /// The tool of that name.
    pub fn find(&self, name: &str) -> Option<&OfferedTool> {
        self.tools.iter().find(|tool| tool.name == name)
    }

    /// Keeps the tools that may run without anyone being asked, and gives the names of the others.
    pub fn retain_allowed(&mut self) -> Vec<String> {
        let withheld = self.tools.extract_if(.., |tool| !tool.allowed);
        withheld.map(|tool| tool.name).collect()
    }

    /// The tools as `tools` of OpenAI's API.
    pub fn openai_tools(&self) -> Vec<Value> {
        let tools = self.tools.iter().map(|tool| {
            json!({
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.schema,
                },
            })
        });
        tools.collect()
    }

    /// Runs a call whose arguments are the text of a JSON object, when it is its turn. `report` gets what the server
    /// says about its progress. What goes wrong is in the result, for the model to read. Dropping the future cancels
    /// the call at its server.
    pub async fn call(
        &self,
        name: &str,
        arguments: &str,
        report: &(dyn Fn(&str) + Send + Sync),
    ) -> CallResult {
        let called = self.try_call(name, arguments, report).await;
        let (text, is_error) = match called {
            Ok(result) => (result::text(&result, self.limits.result_bytes), result.is_error == Some(true)),
            Err(message) => (result::cut(message, self.limits.result_bytes), true),
        };
        CallResult { text, is_error }
    }

    async fn try_call(
        &self,
        name: &str,
        arguments: &str,
        report: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<CallToolResult, String> {
        let Some(tool) = self.find(name) else {
            let names: Vec<&str> = self.tools.iter().map(|tool| tool.name.as_str()).collect();
            return Err(format!("there is no tool {name:?}; the tools are {}", names.join(", ")));
        };
        let arguments = if arguments.trim().is_empty() { "{}" } else { arguments };
        let arguments: JsonObject = serde_json::from_str(arguments)
            .map_err(|error| format!("the arguments of {name} are not a JSON object: {error}"))?;
        let _turn = self.turns.acquire().await.map_err(|error| error.to_string())?;
        match &tool.source {
            Source::Builtin(builtin) => {
                let text = builtin.call(arguments)?;
                Ok(CallToolResult::success(vec![rmcp::model::ContentBlock::text(text)]))
            }
            Source::Server { name, peer, progress } => {
                let call = RemoteCall { peer, progress, limits: &self.limits };
                let called = call.run(name.clone(), arguments, report).await;
                called
                    .map_err(|error| format!("the call of {} at {} failed: {error}", tool.name, tool.server))
            }
        }
    }

    /// Closes all connections; child processes are given time to end by themselves.
    pub async fn close(self) {
        join_all(self.connections.into_iter().map(Connection::close)).await;
    }
}

impl OfferedTool {
    fn builtin(builtin: Builtin) -> OfferedTool {
        OfferedTool {
            name: builtin.name().to_owned(),
            server: "built-in".to_owned(),
            description: builtin.description().to_owned(),
            schema: Value::Object(builtin.schema()),
            read_only: true,
            allowed: true,
            source: Source::Builtin(builtin),
        }
    }

    fn of(tool: &rmcp::model::Tool, connection: &Connection, entry: &ServerEntry) -> OfferedTool {
        let read_only = tool.annotations.as_ref().and_then(|hints| hints.read_only_hint).unwrap_or(false);
        let always = entry.always_allow.iter().any(|name| name == "*" || *name == tool.name);
        OfferedTool {
            name: tool.name.to_string(),
            server: connection.name.clone(),
            description: tool.description.as_deref().unwrap_or_default().to_owned(),
            schema: tool.schema_as_json_value(),
            read_only,
            allowed: read_only || always,
            source: Source::Server {
                name: tool.name.to_string(),
                peer: connection.running.peer().clone(),
                progress: connection.running.service().progress.clone(),
            },
        }
    }
}

/// Gives every tool a name of its own in the letters that OpenAI's API allows: where two have the same, the later one
/// gets its server's in front, and a number if need be.
fn name_apart(tools: &mut [OfferedTool]) {
    let mut taken = HashSet::new();
    for tool in tools {
        let plain = allowed_name(&tool.name);
        let with_server = allowed_name(&format!("{}_{}", tool.server, tool.name));
        let numbered = (2..).map(|number| {
            let end = format!("_{number}");
            format!("{}{end}", &with_server[..with_server.len().min(NAME - end.len())])
        });
        let mut names = [plain, with_server.clone()].into_iter().chain(numbered);
        // The numbers do not end.
        tool.name = names.find(|name| !taken.contains(name)).unwrap_or_default();
        taken.insert(tool.name.clone());
    }
}

fn allowed_name(name: &str) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    name.chars().map(|c| if is_allowed(c) { c } else { '_' }).take(NAME).collect()
}

/// A call at a server.
struct RemoteCall<'a> {
    peer: &'a Peer<RoleClient>,
    progress: &'a broadcast::Sender<ProgressNotificationParam>,
    limits: &'a CallLimits,
}

impl RemoteCall<'_> {
    async fn run(
        &self,
        name: String,
        arguments: JsonObject,
        report: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<CallToolResult, ServiceError> {
        let params = CallToolRequestParams::new(name).with_arguments(arguments);
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
        let options = PeerRequestOptions::with_timeout(self.limits.silence)
            .reset_timeout_on_progress()
            .with_max_total_timeout(self.limits.total);
        let mut reports = self.progress.subscribe();
        let handle = self.peer.send_cancellable_request(request, options).await?;
        let mut abandoned = CancelOnDrop { peer: self.peer, id: Some(handle.id.clone()) };
        let token = handle.progress_token.clone();
        let mut response = std::pin::pin!(handle.await_response());
        let response = loop {
            tokio::select! {
                biased;
                // An error says that some were missed; the channel does not close while its other end is borrowed.
                progress = reports.recv() => {
                    if let Ok(progress) = progress && progress.progress_token == token {
                        report(&told(&progress));
                    }
                }
                response = &mut response => break response,
            }
        };
        abandoned.id = None;
        match response? {
            ServerResult::CallToolResult(result) => Ok(result),
            _ => Err(ServiceError::UnexpectedResponse),
        }
    }
}

fn told(progress: &ProgressNotificationParam) -> String {
    let done = match progress.total {
        Some(total) => format!("{} of {total}", progress.progress),
        None => progress.progress.to_string(),
    };
    progress.message.clone().unwrap_or(done)
}

/// Tells the server when nobody waits for a call any more.
struct CancelOnDrop<'a> {
    peer: &'a Peer<RoleClient>,
    id: Option<RequestId>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        let (Some(id), Ok(runtime)) = (self.id.take(), tokio::runtime::Handle::try_current()) else { return };
        let peer = self.peer.clone();
        runtime.spawn(async move {
            let params = CancelledNotificationParam::new(Some(id), Some("nobody waits for it".to_owned()));
            if let Err(error) = peer.notify_cancelled(params).await {
                tracing::debug!(%error, "the server was not told of a cancelled call");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_of_the_same_name_are_told_apart() {
        let tool = |server: &str, name: &str| OfferedTool {
            name: name.to_owned(),
            server: server.to_owned(),
            ..OfferedTool::builtin(Builtin::Clock)
        };
        let mut tools =
            [tool("a", "x"), tool("b", "x"), tool("b", "x"), tool("c", "p.q/ü"), tool("d", &"y".repeat(99))];
        name_apart(&mut tools);
        let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!(names, ["x", "b_x", "b_x_2", "p_q__", &"y".repeat(64)]);
    }
}
