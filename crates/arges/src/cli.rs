//! The command line: its subcommands.

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::filter::LevelFilter;

use crate::{bench, chat, generate, inspect, score, serve, synth};

/// Runs and serves models of the MiniMax-M1 family: a hybrid mixture of experts with lightning attention.
#[derive(Debug, Parser)]
#[command(name = "arges", version, after_help = EXAMPLES)]
pub struct Cli {
    /// Write log messages of this level and above to standard error
    #[arg(long, global = true, display_order = 900, value_enum, value_name = "LEVEL", default_value_t = Level::Warn)]
    pub log: Level,
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
A first try, with a small random model (untrained: what it writes means nothing):
  arges synth random-model
  arges serve --model random-model

With a trained model, from a directory or by its Hugging Face id:
  arges inspect models/MiniMax-M1-40k
  arges chat --model models/MiniMax-M1-40k
  arges chat --model MiniMaxAI/MiniMax-M1-40k \"Why is the sky blue?\"";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Talk with a model, or ask it one thing
    Chat(chat::ChatArgs),
    /// Serve a model over HTTP with OpenAI's API
    Serve(serve::ServeArgs),
    /// Continue a text or a list of token ids
    Generate(generate::GenerateArgs),
    /// Log-probability of every token of a text, and its perplexity
    Score(score::ScoreArgs),
    /// What a model consists of and what it costs to run
    Inspect(inspect::InspectArgs),
    /// Write a random model of any size
    Synth(synth::SynthArgs),
    /// Speed of prefill and decode, as JSON
    Bench(bench::BenchArgs),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Level {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    pub fn level(self) -> LevelFilter {
        match self {
            Self::Off => LevelFilter::OFF,
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }
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
