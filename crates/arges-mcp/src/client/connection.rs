//! A connection to one server.

use std::collections::HashMap;
use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};
use rmcp::handler::client::ClientHandler;
use rmcp::model::{ClientConfig, Implementation, ProgressNotificationParam, Tool};
use rmcp::service::{ClientInitializeError, NotificationContext, RoleClient, RunningService};
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::transport::{StreamableHttpClientTransport, TokioChildProcess};
use rmcp::{ServiceExt, serve_client};
use thiserror::Error;
use tokio::process::Command;
use tokio::sync::broadcast;

use super::config::{ServerEntry, Transport};
use crate::http;

/// To open a connection of HTTP.
const CONNECT: Duration = Duration::from_secs(10);
/// For a server that is asked to end.
const CLOSING: Duration = Duration::from_secs(5);

/// A server that cannot be used.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// A program that cannot be started.
    #[error("MCP server {server:?}: cannot start {command:?}: {source}")]
    Start { server: String, command: String, source: std::io::Error },
    /// An address or header that is none.
    #[error("MCP server {server:?}: {message}")]
    Address { server: String, message: String },
    /// A server that does not speak the protocol.
    #[error("MCP server {server:?}: it did not begin as MCP wants it: {reason}")]
    Initialize { server: String, reason: String },
    /// A server whose tools cannot be listed.
    #[error("MCP server {server:?}: its tools cannot be listed: {reason}")]
    List { server: String, reason: String },
    /// A server that takes too long.
    #[error("MCP server {server:?}: not ready within {} s", .limit.as_secs_f32())]
    Timeout { server: String, limit: Duration },
}

/// Reports of progress that may wait for a call to look at them; older ones are forgotten.
const REPORTS: usize = 64;

/// This side of the connection: hands reports of progress to the calls that wait for them. A call listens before it is
/// sent, and so before it knows its token: it picks its own reports out of all.
#[derive(Debug, Clone)]
pub struct Handler {
    pub progress: broadcast::Sender<ProgressNotificationParam>,
}

impl Default for Handler {
    fn default() -> Handler {
        Handler { progress: broadcast::Sender::new(REPORTS) }
    }
}

impl ClientHandler for Handler {
    fn get_info(&self) -> ClientConfig {
        let info = Implementation::new("arges", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(Default::default(), info)
    }

    async fn on_progress(&self, report: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        // Nobody may be listening, which is as well.
        let _ = self.progress.send(report);
    }
}

/// A server that is connected.
#[derive(Debug)]
pub struct Connection {
    pub name: String,
    pub running: RunningService<RoleClient, Handler>,
    pub tools: Vec<Tool>,
}

impl Connection {
    /// Starts or reaches a server and asks for its tools, within `limit`.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn open(entry: &ServerEntry, limit: Duration) -> Result<Connection, ConnectError> {
        let server = || entry.name.clone();
        tokio::time::timeout(limit, Self::connect(entry))
            .await
            .map_err(|_| ConnectError::Timeout { server: server(), limit })?
    }

    async fn connect(entry: &ServerEntry) -> Result<Connection, ConnectError> {
        let server = || entry.name.clone();
        let handler = Handler::default();
        let running = match &entry.transport {
            Transport::Stdio { command, args, env, cwd } => {
                let mut program = Command::new(command);
                program.args(args).envs(env.iter().map(|(name, value)| (name, value)));
                if let Some(cwd) = cwd {
                    program.current_dir(cwd);
                }
                let process = TokioChildProcess::new(program).map_err(|source| ConnectError::Start {
                    server: server(),
                    command: command.clone(),
                    source,
                })?;
                serve_client(handler, process).await
            }
            Transport::Http { url, headers } => handler.serve(over_http(&server(), url, headers)?).await,
        };
        let running = running.map_err(|error: ClientInitializeError| ConnectError::Initialize {
            server: server(),
            reason: error.to_string(),
        })?;
        let tools = running.list_all_tools().await;
        let tools =
            tools.map_err(|error| ConnectError::List { server: server(), reason: error.to_string() })?;
        Ok(Connection { name: server(), running, tools })
    }

    /// Ends the connection; a child process is given time to end by itself.
    pub async fn close(mut self) {
        if let Err(error) = self.running.close_with_timeout(CLOSING).await {
            tracing::warn!(server = self.name, %error, "the connection did not close");
        }
    }
}

fn over_http(
    server: &str,
    url: &str,
    headers: &[(String, String)],
) -> Result<StreamableHttpClientTransport<reqwest::Client>, ConnectError> {
    let wrong = |message: String| ConnectError::Address { server: server.to_owned(), message };
    let parsed = reqwest::Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    if parsed.is_none() {
        return Err(wrong(format!("`url` {url:?} is not an address of the form http://… or https://…")));
    }
    let client = http::client(CONNECT).map_err(|error| wrong(http::reason(error)))?;
    let mut custom = HashMap::new();
    for (name, value) in headers {
        let parsed: (HeaderName, HeaderValue) = match (name.parse(), value.parse()) {
            (Ok(name), Ok(value)) => (name, value),
            _ => return Err(wrong(format!("header {name:?} is not a header"))),
        };
        custom.insert(parsed.0, parsed.1);
    }
    let config = StreamableHttpClientTransportConfig::with_uri(url).custom_headers(custom);
    Ok(StreamableHttpClientTransport::with_client(client, config))
}
