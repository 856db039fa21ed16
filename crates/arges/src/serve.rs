//! `arges serve`: OpenAI's and Anthropic's APIs over HTTP.

pub mod config;
mod in_process;
mod options;

use std::future::Future;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use arges_kernels::device::cpu::return_freed_memory;
use arges_mcp::agent::serving::with_tools;
use arges_server::{AppState, ServerOptions};
use clap::Args;
use socket2::SockRef;

use crate::args::{EngineArgs, ModelArgs, at_least_1};
use crate::loading::Opened;
use crate::output;
use crate::plan::{Context, Needs};
use crate::signals::Signals;
use crate::tools::ToolArgs;

pub use in_process::InProcess;
use options::{DefaultArgs, LimitArgs};

/// What a server needs where flags say nothing.
const NEEDS: Needs = Needs { context: Context::Shared, sequences: 32, step_tokens: 1024, logit_rows: 64 };

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ServeArgs {
    /// Address to listen on; 0.0.0.0 is every one of this machine
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    port: u16,
    /// A TOML file of settings, by the names of these flags with `_` for `-`. What the environment sets comes before
    /// it, and what flags set before both
    #[arg(long, value_name = "FILE", env = "ARGES_CONFIG")]
    config: Option<PathBuf>,
    /// Print the settings, and where each comes from, as such a file, and end; keys are not shown
    #[arg(long)]
    print_config: bool,
    /// Key that clients must send as `Authorization: Bearer KEY` or `x-api-key: KEY`
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// File of such keys, one a line, any of which will do; empty lines and those that begin with # are passed over
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Key for `/admin`, with which a trainer pauses the engine and gives it new weights. Without one there is no `/admin`
    #[arg(long, value_name = "KEY", conflicts_with = "admin_key_file")]
    admin_key: Option<String>,
    /// File that holds that key
    #[arg(long, value_name = "FILE")]
    admin_key_file: Option<PathBuf>,
    /// Name of the model in the API [default: the directory's name, the Hugging Face id, or arges-nano]
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// End answers that go round in circles: after this many tokens in a row that the model was all but certain of
    /// (above 0.99), unless a request says otherwise [default: off; 3000 if no number is given]
    #[arg(long, value_name = "TOKENS", num_args = 0..=1, default_missing_value = "3000", value_parser = at_least_1)]
    repetition_stop: Option<usize>,
    #[command(flatten)]
    defaults: DefaultArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    tools: ToolArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sizes: EngineArgs,
}

const EXAMPLES: &str = "\
Every setting may also be given in a file (--config) and in the environment, as ARGES_ and the flag's name in capitals: \
--max-sequences is max_sequences in the file and ARGES_MAX_SEQUENCES in the environment.

Serves a chat page at /, and /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages (Anthropic's), /v1/models, /tokenize, \
/metrics, /health and more; GET /openapi.json lists all. When it is ready it prints its address on standard output. Ctrl-C or SIGTERM let running requests finish; a second one does not wait for \
them.

Examples:
  arges serve
  arges serve --model DIR
  arges serve --model DIR --host 0.0.0.0 --port 80 --api-key \"$KEY\"
  arges serve --model DIR --max-sequences 16 --context 65536
  arges serve --model DIR --tool calculator --mcp mcp.json
  arges serve --config serve.toml --port 80 --print-config

  curl http://127.0.0.1:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'";

pub fn run(args: ServeArgs) -> Result<()> {
    let options = args.options()?;
    if let Some(path) = &args.config {
        eprintln!("settings of {}", path.display());
    }
    return_freed_memory();
    // Before the weights are read, so that a port in use is known at once.
    let listener = listen(&args.host, args.port)?;
    let opened = Opened::open(&args.model)?;
    let tokenizer = opened.tokenizer()?;
    let template = opened.chat_template()?;
    let sizes = EngineArgs { max_queue: Some(args.limits.max_queue), ..args.sizes };
    let engine = opened.start(&args.model, &sizes, NEEDS)?;
    let model_name = args.model_name.unwrap_or_else(|| opened.source.name().to_owned());
    let options = ServerOptions { model_name, ..options };
    let state = AppState::new(engine, tokenizer, Some(template), options);

    runtime()?.block_on(async {
        let toolbox = args.tools.open_unattended().await?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let stop = stop_signal()?;
        output::line(&format!("listening on http://{address}"))?;
        let around = |router| match &toolbox {
            Some(toolbox) => with_tools(router, Arc::clone(toolbox)),
            None => router,
        };
        arges_server::serve_with(listener, state, around, stop).await.context("the server failed")?;
        if let Some(toolbox) = toolbox.and_then(Arc::into_inner) {
            toolbox.close().await;
        }
        Ok(())
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

fn listen(host: &str, port: u16) -> Result<TcpListener> {
    let addresses: Vec<SocketAddr> = (host, port)
        .to_socket_addrs()
        .with_context(|| format!("--host {host} is not an address of this machine"))?
        .collect();
    let listener = TcpListener::bind(&addresses[..]).with_context(|| {
        format!("cannot listen on {host} port {port} (--host and --port choose another place)")
    })?;
    // The standard library lets 128 wait; of more that come at once, some would try again a second later.
    SockRef::from(&listener).listen(BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Completes at the first interrupt or request to terminate. The second ends the process.
pub fn stop_signal() -> Result<impl Future<Output = ()> + Send + 'static> {
    let mut signals = Signals::new().context("cannot listen for signals")?;
    Ok(async move {
        signals.next().await;
        eprintln!("finishing running requests; once more ends them");
        tokio::spawn(async move {
            signals.next().await;
            std::process::exit(130);
        });
    })
}
