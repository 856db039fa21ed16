//! `arges rl inspect`: rewards of a batch, and trajectories token by token.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use arges_train::rl::inspect::{TokenRow, batch, tokenizer, tokens};
use arges_train::rl::trajectory::Trajectory;
use clap::Args;
use serde_json::json;

use crate::output;

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Directory of the run
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// The batch [default: the newest]
    #[arg(short, long, value_name = "N")]
    batch: Option<u64>,
    /// Show the responses of this group, token by token
    #[arg(short, long, value_name = "N")]
    group: Option<u64>,
    /// Of the group, only this response
    #[arg(short, long, value_name = "N", requires = "group")]
    member: Option<u32>,
    /// Show the prompt's and the tools' tokens too
    #[arg(long, requires = "group")]
    all_tokens: bool,
    /// JSON, an object a line: of trajectories, or with --group of tokens
    #[arg(long)]
    json: bool,
}

/// Prints what was asked for.
///
/// # Errors
/// A run, batch or group that is not there.
pub fn run(args: &InspectArgs) -> Result<()> {
    let (number, trajectories) = batch(&args.run, args.batch)?;
    let Some(group) = args.group else { return overview(args, number, &trajectories) };
    let chosen: Vec<&Trajectory> = trajectories
        .iter()
        .filter(|one| one.group == group && args.member.is_none_or(|member| one.member == member))
        .collect();
    if chosen.is_empty() {
        return Err(anyhow!("batch {number} has no such response; without --group its groups are listed"));
    }
    let tokenizer = tokenizer(&args.run)?;
    for trajectory in chosen {
        let rows = tokens(trajectory, &tokenizer);
        let shown = rows.iter().filter(|row| args.all_tokens || row.sampled.is_some());
        if args.json {
            shown.into_iter().try_for_each(|row| {
                let mut line = serde_json::to_value(row)?;
                line["group"] = json!(trajectory.group);
                line["member"] = json!(trajectory.member);
                output::json(&line)
            })?;
        } else {
            output::line(&headline(trajectory))?;
            output::line(&format!(
                "{:>6}  {:>9}  {:>8}  {:>9}  {:>7}  token",
                "place", "p", "ratio", "advantage", "weights"
            ))?;
            shown.into_iter().try_for_each(|row| output::answer(&format!("{}\n", line_of(row))))?;
        }
    }
    Ok(())
}

fn overview(args: &InspectArgs, number: u64, trajectories: &[Trajectory]) -> Result<()> {
    if args.json {
        return trajectories.iter().try_for_each(output::json);
    }
    output::line(&format!("batch {number} of {}: {} responses", args.run.display(), trajectories.len()))?;
    trajectories.iter().try_for_each(|trajectory| output::answer(&format!("{}\n", headline(trajectory))))
}

fn headline(one: &Trajectory) -> String {
    let advantage = one.trained.as_ref().map_or(String::new(), |trained| {
        format!(", advantage {:+.3} in step {}", trained.advantage, trained.step)
    });
    format!(
        "group {} member {}: {} {}, reward {} ({}){advantage}, {} tokens in {} turns",
        one.group,
        one.member,
        one.task,
        one.difficulty,
        one.reward,
        one.reason,
        one.sampled(),
        one.turns.len()
    )
}

fn line_of(row: &TokenRow) -> String {
    let (place, text) = (row.place, format!("{:?}", row.text));
    match &row.sampled {
        None => format!("{place:>6}  {:>9}  {:>8}  {:>9}  {:>7}  {text}", "", "", "", ""),
        Some(token) => {
            let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.4}"));
            let (ratio, advantage) = (number(token.ratio), number(token.advantage));
            let (p, version) = (token.probability, token.version);
            format!("{place:>6}  {p:>9.6}  {ratio:>8}  {advantage:>9}  {version:>7}  {text}")
        }
    }
}
