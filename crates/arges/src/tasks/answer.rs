//! `arges tasks answer`: has a model respond to instances, over as many turns as they have.

use std::io::{self, BufRead};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use arges_tasks::Instance;
use arges_train::rl::trajectory::Trajectory;
use clap::Args;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::player::{self, Player};
use crate::args::{EngineArgs, ModelArgs, SamplingArgs, at_least_1};
use crate::loading::Opened;
use crate::output;
use crate::plan::{Context, Needs};

/// Episodes that are played for each sequence that the engine runs: so it has a full batch while others' calls are run.
const PLAYED: usize = 2;
/// Episodes for each sequence that may have ended before one of an earlier line.
const AHEAD: usize = 8;

#[derive(Debug, Args)]
pub struct AnswerArgs {
    /// Tokens of a response at most, over all its turns
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1024, value_parser = at_least_1)]
    max_tokens: usize,
    /// Divides the logits before a token is drawn; 0 always takes the most likely token (greedy)
    #[arg(short, long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Responses that are generated at once
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_1)]
    parallel: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sizes: EngineArgs,
}

/// An instance with what the model said to it.
#[derive(Serialize)]
struct Answered {
    #[serde(flatten)]
    instance: Instance,
    response: Response,
}

/// What a model said: a text, or one for each turn where an instance has several.
#[derive(Serialize)]
#[serde(untagged)]
enum Response {
    Turn(String),
    Turns(Vec<String>),
}

/// Answers instances from standard input, in order.
pub fn run(args: &AnswerArgs) -> Result<()> {
    let sampling = args.sampling.params(args.temperature)?;
    let opened = Opened::open(&args.model)?;
    let needs = Needs {
        context: Context::UpTo(player::CONTEXT),
        sequences: args.parallel,
        step_tokens: 2048,
        logit_rows: args.parallel,
    };
    let engine = opened.start(&args.model, &args.sizes, needs)?;
    let player = Arc::new(Player::new(&opened, engine, sampling, args.max_tokens, None)?);
    let places = Arc::new(Semaphore::new(PLAYED * args.parallel));
    player::runtime()?.block_on(async {
        let episodes = stream::iter((1..).zip(io::stdin().lock().lines()))
            .filter(|(_, line)| {
                let blank = line.as_ref().is_ok_and(|line| line.trim().is_empty());
                std::future::ready(!blank)
            })
            .map(|(number, line)| {
                let (player, places) = (Arc::clone(&player), Arc::clone(&places));
                let played = tokio::spawn(async move {
                    let instance: Instance = serde_json::from_str(&line.context("it cannot be read")?)
                        .map_err(|error| anyhow!("it is no instance of a task: {error}"))?;
                    let _place = places.acquire().await;
                    answer(&player, number, instance).await
                });
                async move { played.await?.with_context(|| format!("line {number} of the input")) }
            })
            .buffered(AHEAD * args.parallel);
        let mut episodes = std::pin::pin!(episodes);
        while let Some(answered) = episodes.next().await {
            output::json(&answered?)?;
        }
        Ok(())
    })
}

async fn answer(player: &Player, number: u64, instance: Instance) -> Result<Answered> {
    let (trajectory, has_turns) = player.play(&instance, number, &mut |_| ()).await?;
    let mut turns = texts(player, &trajectory);
    let response =
        if has_turns { Response::Turns(turns) } else { Response::Turn(turns.pop().unwrap_or_default()) };
    Ok(Answered { instance, response })
}

fn texts(player: &Player, trajectory: &Trajectory) -> Vec<String> {
    trajectory.turns.iter().map(|turn| player.text(&trajectory.tokens[turn.clone()])).collect()
}
