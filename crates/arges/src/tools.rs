//! Arguments about tools, and the toolbox that they describe.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use arges_mcp::client::{Builtin, CallLimits, Config, Toolbox};
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use crate::failure::usage;

/// Which tools a model is offered.
#[derive(Debug, Args)]
#[command(next_help_heading = "Tools")]
pub struct ToolArgs {
    /// Offer the model the tools of the MCP servers that a file of the form {"mcpServers": …} names
    #[arg(long, value_name = "FILE")]
    mcp: Option<PathBuf>,
    /// Offer the model a built-in tool; may be repeated
    #[arg(long = "tool", value_name = "NAME", value_enum)]
    tools: Vec<BuiltinTool>,
}

/// How a model is asked that has tools.
#[derive(Debug, Args)]
#[command(next_help_heading = "Tools")]
pub struct AgentArgs {
    #[command(flatten)]
    pub tools: ToolArgs,
    /// Run every call without asking; else those of tools that change something are asked about
    #[arg(long)]
    pub yes: bool,
    /// Ask a model of another server with OpenAI's API, such as http://127.0.0.1:8000/v1; --model is then its name there
    /// [default: the first that the server names]
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Key of that server
    #[arg(long, value_name = "KEY", env = "ARGES_ENDPOINT_KEY", hide_env_values = true)]
    pub endpoint_key: Option<String>,
}

/// A built-in tool, by its name.
#[derive(Debug, Clone, Copy)]
pub struct BuiltinTool(Builtin);

impl ValueEnum for BuiltinTool {
    fn value_variants<'a>() -> &'a [Self] {
        &[BuiltinTool(Builtin::Calculator), BuiltinTool(Builtin::Clock)]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
}

impl AgentArgs {
    /// Whether there are tools or another server.
    pub fn is_asked(&self) -> bool {
        self.endpoint.is_some() || self.tools.is_asked()
    }
}

impl ToolArgs {
    /// Whether any tools are asked for.
    fn is_asked(&self) -> bool {
        self.mcp.is_some() || !self.tools.is_empty()
    }

    /// Connects to the servers.
    ///
    /// # Errors
    /// A configuration that cannot be used, and servers that cannot be reached.
    pub async fn open(&self) -> Result<Toolbox> {
        let config = match &self.mcp {
            Some(path) => Config::read(path).map_err(|error| usage(error.to_string()))?,
            None => Config { servers: Vec::new() },
        };
        let builtins: Vec<Builtin> = self.tools.iter().map(|tool| tool.0).collect();
        Ok(Toolbox::open(&config, &builtins, CallLimits::default()).await?)
    }

    /// As [`Self::open`], where there is nobody to be asked: with the tools alone that need no asking.
    ///
    /// # Errors
    /// As there.
    pub async fn open_unattended(&self) -> Result<Option<Arc<Toolbox>>> {
        if !self.is_asked() {
            return Ok(None);
        }
        let mut toolbox = self.open().await?;
        let withheld = toolbox.retain_allowed();
        if !withheld.is_empty() {
            eprintln!(
                "not offered, as nobody is there to be asked: {} (\"alwaysAllow\" of the server in the file allows them)",
                withheld.join(", ")
            );
        }
        Ok(Some(Arc::new(toolbox)))
    }
}
