//! The `arges` command: reads arguments, joins the libraries and prints. What it computes is theirs.
//!
//! One file a subcommand. [`args`] holds the arguments they share, [`model_source`] finds the model (a directory
//! or, through [`hub`], a Hugging Face id; else [`nano`], which is part of the program), [`loading`] opens it and
//! starts an engine whose sizes [`plan`] works out from the model and the [`memory`] of the machine; [`answer`] follows a
//! generation and [`shown`] writes it for people. Results go to
//! standard output, all else to standard error; what goes wrong is one chain of reasons, and what to do about it,
//! in [`failure`].
#![forbid(unsafe_code)]

mod answer;
mod args;
mod bench;
mod chat;
mod cli;
mod conversation;
mod device;
mod failure;
mod generate;
#[cfg(feature = "hub")]
mod hub;
mod inspect;
mod loading;
mod log;
mod mcp;
mod memory;
mod model_source;
mod nano;
mod output;
mod plan;
mod plot;
mod progress;
mod prompt;
mod rl;
mod score;
mod serve;
mod shown;
mod signals;
mod synth;
mod tasks;
mod tokenizer;
mod tools;
mod train;

use std::process::ExitCode;

use clap::CommandFactory;

use cli::{Cli, Command};
use serve::config::{self, Parsed};

fn main() -> ExitCode {
    if let Some(status) = arges_tasks::sandbox::enter_if_helper() {
        return status;
    }
    let cli = match config::parse::<Cli>(Cli::command(), std::env::args_os().collect()) {
        Ok(Parsed::Command(cli)) => cli,
        Ok(Parsed::Settings(text)) => return finished(output::line(&text)),
        Err(error) => return failure::report(&error),
    };
    log::start(cli.log, cli.log_format);
    let result = match cli.command {
        Command::Chat(args) => chat::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Score(args) => score::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Synth(args) => synth::run(args),
        Command::Tasks(args) => tasks::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Mcp { command } => mcp::run(command),
        Command::Rl(args) => rl::run(args),
        Command::Plot(args) => plot::run(args),
        Command::Tokenizer { command } => tokenizer::run(command),
        Command::Train { command } => train::run(&command),
    };
    finished(result)
}

fn finished(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
