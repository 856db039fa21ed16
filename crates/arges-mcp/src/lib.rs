//! MCP, the Model Context Protocol, on both sides: MiniMax's tools as a server, and tools for a model as a client.
//!
//! [`server`] offers speech, voices, pictures, video and music over stdio or HTTP under the names, arguments and
//! environment variables of MiniMax's own servers. [`minimax`] is the API behind the tools, [`files`] what they may
//! read and write, [`speech`] and [`player`] the programs of this machine that need no key. [`client`] connects to
//! the servers of an `mcpServers` file and calls their tools; [`agent`] lets a model behind any OpenAI-compatible
//! chat endpoint use them, call after call, until it answers.
//!
//! The crate may use the network, child processes, the folder it is given for output, and input files by name. Of
//! Arges it uses `arges-text`, for the markup of calls. It prints nothing and knows nothing of the command line.
#![forbid(unsafe_code)]

pub mod agent;
mod arguments;
pub mod client;
pub mod files;
pub mod http;
pub mod limits;
pub mod minimax;
pub mod player;
mod programs;
pub mod server;
pub mod speech;

pub use limits::Limits;
