//! `arges plot`: charts of training runs.

use std::path::PathBuf;

use anyhow::Result;
use arges_train::plot::{PlotOptions, XAxis, plot};
use clap::{Args, ValueEnum};

use crate::output;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PlotArgs {
    /// Directories of runs; several are drawn into the same charts
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Directory of the charts [default: plots in the first run's directory]
    #[arg(short, long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// A chart to draw: a metric such as train/loss, or loss, which joins training and evaluation; may be repeated
    /// [default: all]
    #[arg(long = "metric", value_name = "TAG")]
    metrics: Vec<String>,
    /// What the horizontal axis tells
    #[arg(long, value_name = "AXIS", default_value = "step")]
    x: Horizontal,
    /// Logarithmic values, wherever none are negative
    #[arg(long)]
    log_scale: bool,
}

const EXAMPLES: &str = "\
Each chart is written as SVG and PNG; the paths are printed.

Examples:
  arges plot runs/nano
  arges plot runs/first runs/second -o comparison --metric loss --x tokens --log-scale";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Horizontal {
    /// Steps of the optimizer
    Step,
    /// Tokens trained on
    Tokens,
    /// Time since the start
    Time,
}

impl From<Horizontal> for XAxis {
    fn from(axis: Horizontal) -> Self {
        match axis {
            Horizontal::Step => Self::Step,
            Horizontal::Tokens => Self::Tokens,
            Horizontal::Time => Self::Time,
        }
    }
}

/// Draws the charts and prints their paths.
///
/// # Errors
/// Runs that cannot be read, and charts that cannot be written.
pub fn run(args: PlotArgs) -> Result<()> {
    let options =
        PlotOptions { directory: args.out, metrics: args.metrics, x: args.x.into(), log: args.log_scale };
    plot(&args.runs, &options)?.iter().try_for_each(|path| output::line(&path.display().to_string()))
}
