//! MiniMax's tools as an MCP server.
//!
//! [`Settings`] come from the environment. [`MiniMaxServer`] lists the tools and runs calls: arguments are checked
//! against the schema the client saw, a cancelled call is dropped with all it holds, and what goes wrong comes back
//! as a result with `isError`. [`transport`] carries it over stdio or HTTP.

mod content;
mod outcome;
mod progress;
mod settings;
mod tools;
pub mod transport;

use std::sync::Arc;

use rmcp::handler::server::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData, Implementation,
    JsonObject, ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::{RequestContext, RoleServer};

pub use settings::{Backend, ResourceMode, Settings, SettingsError};

use crate::arguments;
use crate::files::Inputs;
use crate::limits::Limits;
use crate::minimax::{Api, Transfer};
use outcome::{Outcome, ToolError};
use progress::Progress;
use tools::Definition;

/// The name under which clients see the server, as that of the original.
const NAME: &str = "Minimax";

/// A server of MiniMax's tools. Clones share everything.
#[derive(Debug, Clone)]
pub struct MiniMaxServer {
    shared: Arc<Shared>,
}

/// What all calls use.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    transfer: Arc<Transfer>,
    api: Option<Api>,
    inputs: Inputs,
    definitions: Vec<Definition>,
}

/// One call on its way.
#[derive(Debug)]
struct Call {
    shared: Arc<Shared>,
    progress: Progress,
}

impl Call {
    fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    fn limits(&self) -> &Limits {
        &self.shared.settings.limits
    }

    /// The API, for a tool that cannot do without.
    fn api(&self, tool: &'static str) -> Result<&Api, ToolError> {
        self.shared.api.as_ref().ok_or(ToolError::NeedsKey { tool })
    }
}

impl MiniMaxServer {
    /// A server by its settings.
    ///
    /// # Errors
    /// TLS that cannot be set up.
    pub fn new(settings: Settings) -> Result<MiniMaxServer, SettingsError> {
        let transfer = Arc::new(Transfer::new(settings.limits.clone())?);
        let api = match &settings.backend {
            Backend::Api { host, key } => Some(Api::new(Arc::clone(&transfer), host, key)),
            Backend::Local => None,
        };
        let base = settings.folder.base().to_owned();
        let relative = settings.base_path_given || settings.confined;
        let inputs = Inputs::new(base, relative, settings.confined);
        let definitions = tools::definitions(&settings);
        Ok(MiniMaxServer { shared: Arc::new(Shared { settings, transfer, api, inputs, definitions }) })
    }

    /// Descriptions of the tools.
    pub fn tools(&self) -> Vec<Tool> {
        self.shared.definitions.iter().map(|definition| definition.tool.clone()).collect()
    }

    async fn run(
        &self,
        definition: &Definition,
        mut given: JsonObject,
        context: &RequestContext<RoleServer>,
    ) -> Result<Outcome, ToolError> {
        arguments::check(&definition.tool.input_schema, &mut given).map_err(ToolError::Arguments)?;
        let progress = Progress::new(context.peer.clone(), context.meta.get_progress_token());
        let call = Call { shared: Arc::clone(&self.shared), progress };
        tokio::select! {
            outcome = (definition.run)(call, given) => outcome,
            () = context.ct.cancelled() => Err(ToolError::Cancelled),
        }
    }
}

impl ServerHandler for MiniMaxServer {
    fn get_info(&self) -> ServerConfig {
        let instructions = match self.shared.settings.backend {
            Backend::Api { .. } => {
                "Speech, voices, pictures, video and music made by MiniMax. Most tools cost money: call them when \
                 the user asks for what they make."
            }
            Backend::Local => {
                "Speech made on this machine, without MiniMax: text_to_audio, list_voices and play_audio work; \
                 the other tools tell which key they need."
            }
        };
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new(NAME, env!("CARGO_PKG_VERSION")))
            .with_instructions(instructions)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(self.tools()))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        let definition = self.shared.definitions.iter().find(|definition| definition.tool.name == name);
        definition.map(|definition| definition.tool.clone())
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let shared = Arc::clone(&self.shared);
        let Some(definition) = shared.definitions.iter().find(|known| known.tool.name == request.name) else {
            return Err(ErrorData::invalid_params(format!("there is no tool {:?}", request.name), None));
        };
        let result = match self.run(definition, request.arguments.unwrap_or_default(), &context).await {
            Ok(outcome) => {
                let version = context.protocol_version();
                content::result(outcome, version.as_ref(), shared.settings.limits.inline_bytes).await
            }
            Err(error) => {
                tracing::info!(tool = %request.name, %error, "a call failed");
                CallToolResult::error(vec![ContentBlock::text(format!("{}: {error}", request.name))])
            }
        };
        Ok(result.into())
    }
}
