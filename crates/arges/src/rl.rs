//! `arges rl`: reinforcement learning, and a look at what it learned from.

mod display;
mod inspect;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use arges_kernels::device::cpu::{Cpu, CpuOptions, Isa};
use arges_train::rl::run::Outcome;
use arges_train::rl::{RlConfig, RlRun};
use clap::{Args, Subcommand};

use crate::args::{DeviceChoice, at_least_1, instruction_set};
use crate::plan::gib;
use crate::train::{device_name, stop_on_interrupt, training_device};
use display::Display;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub struct RlArgs {
    #[command(subcommand)]
    command: Option<RlCommand>,
    #[command(flatten)]
    run: RunArgs,
}

const EXAMPLES: &str = "\
Examples:
  arges rl -c docs/rl-example.toml
  arges rl -c docs/rl-example.toml --device cuda
  arges rl inspect runs/rl-game-of-24
  arges rl inspect runs/rl-game-of-24 --batch 3 --group 17 --member 2
  arges plot runs/rl-game-of-24 --metric reward/mean --metric eval/pass@1";

#[derive(Debug, Subcommand)]
enum RlCommand {
    /// What a run learned from: rewards of a batch, or a trajectory token by token
    Inspect(inspect::InspectArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// TOML file that describes the run; docs/rl-example.toml has every field
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Go on from the run's newest checkpoint, if there is one
    #[arg(long)]
    resume: bool,
    /// What to train and sample on: cpu, cuda or cuda:N (the GPU of that number), or auto, which is the CPU
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = str::parse::<DeviceChoice>)]
    device: DeviceChoice,
    /// Threads to compute with; the result does not depend on it [default: one a core]
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    threads: Option<usize>,
    /// Instruction set: plain, avx2, avx512, avx512bf16 or amx [default: the best this machine has]
    #[arg(long, value_name = "NAME", value_parser = instruction_set)]
    isa: Option<Isa>,
}

/// Learns until the last batch, or until it is interrupted: then the state is saved. Or looks into a run.
///
/// # Errors
/// What the run says.
pub fn run(args: RlArgs) -> Result<()> {
    match args.command {
        Some(RlCommand::Inspect(args)) => inspect::run(&args),
        None => train(&args.run),
    }
}

fn train(args: &RunArgs) -> Result<()> {
    let Some(config) = &args.config else {
        bail!(crate::failure::usage("give `--config FILE`, a description of the run"));
    };
    let config = RlConfig::from_file(config)?;
    let cpu = Arc::new(Cpu::new(CpuOptions { threads: args.threads, isa: args.isa })?);
    let mut run = RlRun::open(config, training_device(args.device, cpu)?, args.resume)?;
    introduce(&run);
    let stop = stop_on_interrupt("saving after this batch; once more ends at once")?;
    let mut display = Display::new(&run);
    let outcome = run.train(&stop, &mut |event| display.show(event));
    display.finish();
    if outcome? == Outcome::Stopped {
        eprintln!("stopped after batch {}, step {}; --resume goes on from there", run.batch(), run.step());
    }
    Ok(())
}

fn introduce(run: &RlRun) {
    let (trainer, config) = (run.trainer(), run.config());
    eprintln!(
        "{}: {:.1} M values learn, {:.2} GiB with gradients, moments and caches; computes in {} on {}",
        config.run.display(),
        trainer.parameters().values().len() as f64 / 1e6,
        gib(run.bytes() as u64),
        arges_kernels::matmul::Compute::from(config.model.compute),
        device_name(trainer),
    );
    if run.step() > 0 {
        eprintln!("goes on after batch {}, step {}", run.batch(), run.step());
    }
    if run.batch() >= config.batches {
        eprintln!("all {} batches are learned already", config.batches);
    }
}
