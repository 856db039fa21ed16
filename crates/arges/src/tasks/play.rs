//! `arges tasks play`: has a model play one instance, and shows all of it.

use anyhow::Result;
use arges_engine::SamplingParams;
use arges_train::rl::rollout::Told;
use arges_train::rl::trajectory::End;
use clap::Args;

use super::find;
use super::player::{self, Player};
use crate::args::{EngineArgs, ModelArgs, at_least_1};
use crate::failure::usage;
use crate::loading::Opened;
use crate::output;
use crate::plan::{Context, Needs};

#[derive(Debug, Args)]
pub struct PlayArgs {
    /// The task's name
    name: String,
    /// Seed of the instance, and of the model's draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, value_name = "D", default_value_t = 1)]
    difficulty: u32,
    /// Tokens that the model may write, over all turns
    #[arg(short = 'n', long, value_name = "N", default_value_t = 4096, value_parser = at_least_1)]
    max_tokens: usize,
    /// Divides the logits before a token is drawn; 0 always takes the most likely token (greedy)
    #[arg(short, long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sizes: EngineArgs,
}

/// Plays an instance and tells what it earned.
pub fn run(args: &PlayArgs) -> Result<()> {
    let task = find(&args.name)?;
    let sampling =
        SamplingParams { temperature: args.temperature, seed: Some(args.seed), ..SamplingParams::default() };
    sampling.validate().map_err(|error| usage(format!("--{} {}", error.name, error.reason)))?;
    let opened = Opened::open(&args.model)?;
    let needs =
        Needs { context: Context::UpTo(player::CONTEXT), sequences: 1, step_tokens: 2048, logit_rows: 1 };
    let engine = opened.start(&args.model, &args.sizes, needs)?;
    // What cannot be written is noticed with the next line that is.
    let show: player::Show = |text| _ = output::answer(text);
    let player = Player::new(&opened, engine, sampling, args.max_tokens, Some(show))?;
    let instance = task.generate(args.seed, args.difficulty);
    output::line(&format!(
        "[{}, seed {}, difficulty {}]\n{}",
        args.name, args.seed, instance.difficulty, instance.prompt
    ))?;
    if !instance.tools.is_empty() {
        let names: Vec<&str> = instance.tools.iter().filter_map(|tool| tool["name"].as_str()).collect();
        output::line(&format!("\n[tools] {}", names.join(", ")))?;
    }
    let mut turn = 0;
    let mut tell = |told: Told| match told {
        Told::Begins => {
            turn += 1;
            _ = output::line(&format!("\n[turn {turn}]"));
        }
        Told::Wrote(_) => _ = output::line(""),
        Told::Results(results) => {
            for result in results {
                _ = output::line(&format!("\n[{}]", result.name));
                _ = output::answer(&format!("{}\n", result.content));
            }
        }
    };
    let (trajectory, _) = player::runtime()?.block_on(player.play(&instance, 0, &mut tell))?;
    let end = match trajectory.end {
        End::Stop => "",
        End::Length => "; -n and --context bound it",
        End::Repetition => "; it went round in circles",
    };
    output::line(&format!("\nreward {}: {}{end}", trajectory.reward, trajectory.reason))
}
