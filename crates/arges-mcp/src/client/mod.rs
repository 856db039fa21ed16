//! MCP servers as a source of tools for a model.
//!
//! [`config`] reads the `mcpServers` file that MCP clients share. [`Toolbox`] connects to its servers, offers their
//! tools and the built-in ones under one interface, and runs calls: within limits on number, time and length, and
//! with every failure as a text that the model can read.

mod builtin;
pub mod config;
mod connection;
mod result;
mod toolbox;

pub use builtin::Builtin;
pub use config::{Config, ConfigError};
pub use connection::ConnectError;
pub use toolbox::{CallLimits, CallResult, OfferedTool, Toolbox, ToolboxError};
