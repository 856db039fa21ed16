//! `arges mcp`: MiniMax's tools as a server, and a look at the tools of other servers.

use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};

use anyhow::{Context as _, Result};
use arges_mcp::server::transport::{Access, PATH, serve_http, serve_streams};
use arges_mcp::server::{MiniMaxServer, Settings};
use clap::{Args, Subcommand, ValueEnum};

use crate::failure::usage;
use crate::output;
use crate::serve::stop_signal;
use crate::tools::ToolArgs;

#[derive(Debug, Subcommand)]
pub enum McpCommand {
    /// Serve MiniMax's tools: speech, voices, pictures, video and music
    Serve(McpServeArgs),
    /// List the tools that a model would be offered
    Tools(ToolArgs),
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct McpServeArgs {
    /// Who makes what the tools give: MiniMax, or this machine, which needs no key and can speak only
    #[arg(long, value_enum, default_value_t = BackendName::Api)]
    backend: BackendName,
    /// Serve over streamable HTTP, at /mcp of this address, in place of standard input and output
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// Token that HTTP clients must send as `Authorization: Bearer TOKEN`
    #[arg(long, value_name = "TOKEN", env = "ARGES_MCP_TOKEN", hide_env_values = true, requires = "http")]
    token: Option<String>,
    /// Name by which HTTP clients may address the server beside the loopback's; may be repeated
    #[arg(long, value_name = "HOST[:PORT]", requires = "http")]
    allowed_host: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum BackendName {
    Api,
    Local,
}

const EXAMPLES: &str = "\
An MCP client starts this command and talks to it over standard input and output. The environment says the \
rest, under the names of MiniMax's own servers: MINIMAX_API_KEY, MINIMAX_API_HOST, MINIMAX_MCP_BASE_PATH (where \
files go; default ~/Desktop) and MINIMAX_API_RESOURCE_MODE (url or local; default url). docs/mcp.md has more.

Examples:
  arges mcp serve --backend local
  arges mcp serve --http 127.0.0.1:9593
  arges mcp serve --http 0.0.0.0:9593 --token \"$TOKEN\" --allowed-host tools.example.com";

pub fn run(command: McpCommand) -> Result<()> {
    match command {
        McpCommand::Serve(args) => serve(args),
        McpCommand::Tools(args) => tools(&args),
    }
}

fn serve(args: McpServeArgs) -> Result<()> {
    let local = matches!(args.backend, BackendName::Local);
    let settings = Settings::from_environment(|name| std::env::var(name).ok(), local)
        .map_err(|error| usage(error.to_string()))?;
    let settings = Settings { confined: args.http.is_some(), ..settings };
    let server = MiniMaxServer::new(settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = match &args.http {
        Some(address) => {
            let listener = listen_at(address, args.token.as_deref())?;
            let access = Access { token: args.token.clone(), hosts: args.allowed_host.clone() };
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                output::line(&format!("listening on http://{}{PATH}", listener.local_addr()?))?;
                Ok(serve_http(server, listener, access, stop_signal()?).await?)
            })
        }
        None => {
            if std::io::stdin().is_terminal() {
                eprintln!(
                    "speaking MCP on standard input and output; a client starts this, and Ctrl-D ends it"
                );
            }
            runtime.block_on(async {
                let streams = (tokio::io::stdin(), tokio::io::stdout());
                Ok(serve_streams(server, streams.0, streams.1, stop_signal()?).await?)
            })
        }
    };
    // Reading standard input cannot be called off, and must not be waited for.
    runtime.shutdown_background();
    served
}

/// Other machines are let in with a token alone: the tools cost money.
fn listen_at(address: &str, token: Option<&str>) -> Result<TcpListener> {
    let wrong = || usage(format!("--http {address} is not of the form HOST:PORT, such as 127.0.0.1:9593"));
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if token == Some("") {
        return Err(usage("--token (or ARGES_MCP_TOKEN) is empty: give a token, or leave it out"));
    }
    let addresses: Vec<SocketAddr> =
        (host, port).to_socket_addrs().with_context(|| format!("--http {address}"))?.collect();
    if token.is_none() && !addresses.iter().all(|address| address.ip().is_loopback()) {
        return Err(usage(format!("--http {address} lets other machines in: that needs --token")));
    }
    let listener =
        TcpListener::bind(&addresses[..]).with_context(|| format!("cannot listen on {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn tools(args: &ToolArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let toolbox = args.open().await?;
        let listed = toolbox.tools().iter().try_for_each(|tool| {
            let asked = if tool.allowed { "" } else { " (asks before it runs)" };
            output::line(&format!("{} of {}{asked}: {}", tool.name, tool.server, tool.description))
        });
        toolbox.close().await;
        listed
    })
}
