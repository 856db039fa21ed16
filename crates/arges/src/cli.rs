//! The command line: its subcommands.

use clap::{Parser, Subcommand};

use crate::log::{Format, Level};
use crate::{bench, chat, generate, inspect, mcp, plot, rl, score, serve, synth, tasks, tokenizer, train};

/// Runs and serves models of the MiniMax-M1 family: a hybrid mixture of experts with lightning attention.
#[derive(Debug, Parser)]
#[command(name = "arges", version, after_help = EXAMPLES)]
pub struct Cli {
    /// Write log messages of this level and above to standard error; info has a line for every answer of a server
    #[arg(long, global = true, display_order = 900, value_enum, value_name = "LEVEL", default_value_t = Level::Warn, env = "ARGES_LOG")]
    pub log: Level,
    /// Form of log messages: lines for people, or JSON objects, one a line
    #[arg(long, global = true, display_order = 901, value_enum, value_name = "FORM", default_value_t = Format::Text, env = "ARGES_LOG_FORMAT")]
    pub log_format: Format,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
A first try, with arges-nano, the small model that is part of the program:
  arges chat \"What is 17 + 25?\"
  arges serve

With another model, from a directory or by its Hugging Face id:
  arges inspect models/MiniMax-M1-40k
  arges chat --model models/MiniMax-M1-40k
  arges chat --model MiniMaxAI/MiniMax-M1-40k \"Why is the sky blue?\"";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Talk with a model, or ask it one thing
    Chat(chat::ChatArgs),
    /// Serve a model over HTTP with OpenAI's and Anthropic's APIs
    Serve(serve::ServeArgs),
    /// Continue a text or a list of token ids
    Generate(generate::GenerateArgs),
    /// Log-probability of every token of a text, and its perplexity
    Score(score::ScoreArgs),
    /// MiniMax's tools as an MCP server, and the tools of MCP servers
    Mcp {
        #[command(subcommand)]
        command: mcp::McpCommand,
    },
    /// What a model consists of and what it costs to run
    Inspect(inspect::InspectArgs),
    /// Write a random model of any size
    Synth(synth::SynthArgs),
    /// Generate and judge tasks whose answers can be checked
    Tasks(tasks::TasksArgs),
    /// Speed of prefill and decode, as JSON
    Bench(bench::BenchArgs),
    /// Train a model from nothing, from a checkpoint, or adapters on one
    Train {
        #[command(subcommand)]
        command: train::TrainCommand,
    },
    /// Train a model by rewards on tasks whose answers can be checked
    Rl(rl::RlArgs),
    /// Charts of training runs, as SVG and PNG
    Plot(plot::PlotArgs),
    /// Tokenizers for new models
    Tokenizer {
        #[command(subcommand)]
        command: tokenizer::TokenizerCommand,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
