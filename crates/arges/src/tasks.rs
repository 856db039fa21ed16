//! `arges tasks`: tasks whose answers can be checked.

mod answer;
mod play;
mod player;

use std::io::{self, BufRead};

use anyhow::{Context as _, Result, anyhow, bail};
use arges_tasks::{Episode, Instance, Task, Verdict};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use crate::failure::usage;
use crate::output;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct TasksArgs {
    #[command(subcommand)]
    command: TasksCommand,
}

#[derive(Debug, Subcommand)]
enum TasksCommand {
    /// The tasks there are
    List {
        /// Print one JSON object a task
        #[arg(long)]
        json: bool,
    },
    /// What a task asks, with an example and its solution
    Show {
        /// The task's name
        name: String,
        #[arg(long, default_value_t = 0)]
        seed: u64,
        #[arg(long, value_name = "D", default_value_t = 1)]
        difficulty: u32,
    },
    /// Instances of a task, one JSON object a line
    Generate(GenerateArgs),
    /// Have a model play one instance, and show its turns, what tools give, and the reward
    Play(play::PlayArgs),
    /// Have a model respond to instances, one JSON object a line, from standard input
    Answer(Box<answer::AnswerArgs>),
    /// Judge responses: instances with a field `response`, one JSON object a line, from standard input
    Verify,
}

#[derive(Debug, Args)]
struct GenerateArgs {
    /// The task's name; `all` takes each task in turn
    name: String,
    /// Instances of each task
    #[arg(long, value_name = "N", default_value_t = 1)]
    count: u64,
    /// Seed of the first instance; the others have those after it
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// From 1 up, or a task's highest where that is lower. Without it the difficulties take turns
    #[arg(long, value_name = "D", value_parser = clap::value_parser!(u32).range(1..))]
    difficulty: Option<u32>,
    /// Print solved conversations, ready for fine-tuning, in place of instances
    #[arg(long)]
    solved: bool,
}

const EXAMPLES: &str = "\
Examples:
  arges tasks list
  arges tasks show sudoku --difficulty 3
  arges tasks generate all --count 1000 --solved > conversations.jsonl
  arges tasks generate countdown --count 100 --difficulty 4 > instances.jsonl
  arges tasks play lookup_chain --seed 3
  arges tasks answer --model DIR < instances.jsonl > responses.jsonl
  arges tasks verify < responses.jsonl

A line for `verify` is a line of `generate` with one more field, \"response\": a text, or a list of \
texts, one for each turn of the model. Each gives a line \
{\"reward\": from 0 to 1, \"reason\": …}.";

pub fn run(args: TasksArgs) -> Result<()> {
    match args.command {
        TasksCommand::List { json } => list(json),
        TasksCommand::Show { name, seed, difficulty } => show(find(&name)?, seed, difficulty),
        TasksCommand::Generate(args) => generate(&args),
        TasksCommand::Play(args) => play::run(&args),
        TasksCommand::Answer(args) => answer::run(&args),
        TasksCommand::Verify => verify(io::stdin().lock()),
    }
}

/// The task of that name, or one that may be meant.
fn find(name: &str) -> Result<&'static dyn Task> {
    arges_tasks::find(name)
        .ok_or_else(|| usage(format!("there is no task {name:?}; `arges tasks list` names them")))
}

#[derive(Serialize)]
struct Listed {
    name: &'static str,
    summary: &'static str,
    max_difficulty: u32,
}

fn list(json: bool) -> Result<()> {
    let tasks = arges_tasks::all();
    let width = tasks.iter().map(|task| task.name().len()).max().unwrap_or(0);
    if !json {
        output::line(&format!("{:width$}  difficulties  what it asks", "name"))?;
    }
    for task in tasks {
        let (name, summary, max_difficulty) = (task.name(), task.summary(), task.max_difficulty());
        if json {
            output::json(&Listed { name, summary, max_difficulty })?;
        } else {
            output::line(&format!("{name:width$}  {:<12}  {summary}", format!("1 to {max_difficulty}")))?;
        }
    }
    Ok(())
}

fn show(task: &dyn Task, seed: u64, difficulty: u32) -> Result<()> {
    let instance = task.generate(seed, difficulty);
    let solution = task.solve(&instance);
    let (name, summary, hardest) = (task.name(), task.summary(), task.max_difficulty());
    output::line(&format!("{name}: {summary}. Difficulties 1 to {hardest}."))?;
    output::line(&format!("\nSeed {seed}, difficulty {}:\n\n{}", instance.difficulty, instance.prompt))?;
    for tool in &instance.tools {
        output::line(&format!("tool: {tool}"))?;
    }
    output::line(&format!("\nA right response:\n\n{}", solution.response()))
}

fn generate(args: &GenerateArgs) -> Result<()> {
    let tasks = match args.name.as_str() {
        "all" => arges_tasks::all().to_vec(),
        name => vec![find(name)?],
    };
    for number in 0..args.count {
        for task in &tasks {
            let turn = 1 + (number % u64::from(task.max_difficulty())) as u32;
            let difficulty = args.difficulty.unwrap_or(turn);
            let instance = task.generate(args.seed.wrapping_add(number), difficulty);
            if args.solved {
                output::json(&task.conversation(&instance, &task.solve(&instance)))?;
            } else {
                output::json(&instance)?;
            }
        }
    }
    Ok(())
}

/// A line of `verify`.
#[derive(Deserialize)]
struct Answered {
    #[serde(flatten)]
    instance: Instance,
    response: Response,
}

/// What a model said: a whole response, or the turns of an episode.
#[derive(Deserialize)]
#[serde(untagged)]
enum Response {
    Whole(String),
    Turns(Vec<String>),
}

/// Judges one line after the other; the first that is no answered instance ends it.
fn verify(lines: impl BufRead) -> Result<()> {
    for (number, line) in (1..).zip(lines.lines()) {
        let line = line.with_context(|| format!("line {number} of the input cannot be read"))?;
        if line.trim().is_empty() {
            continue;
        }
        let verdict = judge(&line).map_err(|error| anyhow!("line {number} of the input: {error:#}"))?;
        output::json(&verdict)?;
    }
    Ok(())
}

fn judge(line: &str) -> Result<Verdict> {
    let Answered { instance, response } = serde_json::from_str(line)
        .context("not an instance with a `response`, as `arges tasks generate` prints it")?;
    let Some(task) = arges_tasks::find(&instance.task) else {
        bail!("there is no task {:?}", instance.task);
    };
    Ok(match &response {
        Response::Whole(response) => task.verify(&instance, response),
        Response::Turns(turns) => Episode::judge(task, &instance, turns.iter().map(String::as_str)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(response: &str) -> String {
        let mut line = serde_json::to_value(find("addition").unwrap().generate(0, 3)).unwrap();
        line["response"] = response.into();
        line.to_string()
    }

    #[test]
    fn a_line_is_judged_by_its_task() {
        let task = find("addition").unwrap();
        let right = task.solve(&task.generate(0, 3)).response();
        assert_eq!(judge(&answered(&right)).unwrap().reward, 1.0);
        assert_eq!(judge(&answered("Answer: 0")).unwrap().reward, 0.0);
    }

    #[test]
    fn a_wrong_line_is_named_by_its_number() {
        let input = format!("{}\n\n{{\"task\": \"addition\"}}\n", answered("1"));
        let error = verify(input.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("line 3 of the input: not an instance"), "{error}");
        let stranger = answered("1").replace("\"addition\"", "\"stranger\"");
        let error = verify(stranger.as_bytes()).unwrap_err().to_string();
        assert_eq!(error, "line 1 of the input: there is no task \"stranger\"");
    }
}
