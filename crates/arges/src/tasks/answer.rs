//! `arges tasks answer`: has a model respond to instances.

use std::collections::VecDeque;
use std::io::{self, BufRead};

use anyhow::{Context as _, Result, anyhow};
use arges_engine::{Engine, Event, GenerateRequest, Generation, SamplingParams, StopConditions};
use arges_tasks::Instance;
use arges_text::{ChatTemplate, Tokenizer};
use clap::Args;
use serde::Serialize;
use serde_json::json;

use crate::args::{EngineArgs, ModelArgs, SamplingArgs, at_least_1};
use crate::loading::Opened;
use crate::output;
use crate::plan::{Context, Needs};

/// Longest prompt and response where neither a flag nor the model says less.
const CONTEXT: usize = 32_768;

#[derive(Debug, Args)]
pub struct AnswerArgs {
    /// Tokens of a response at most
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
    response: String,
}

/// Answers instances from standard input, in order.
pub fn run(args: &AnswerArgs) -> Result<()> {
    let sampling = args.sampling.params(args.temperature)?;
    let opened = Opened::open(&args.model)?;
    let needs = Needs {
        context: Context::UpTo(CONTEXT),
        sequences: args.parallel,
        step_tokens: 2048,
        logit_rows: args.parallel,
    };
    let examinee = Examinee {
        tokenizer: opened.tokenizer()?,
        template: opened.chat_template()?,
        engine: opened.start(&args.model, &args.sizes, needs)?,
        sampling,
        max_tokens: args.max_tokens,
    };
    let mut running: VecDeque<(Instance, Generation)> = VecDeque::new();
    for (number, line) in (1..).zip(io::stdin().lock().lines()) {
        let line = line.with_context(|| format!("line {number} of the input cannot be read"))?;
        if line.trim().is_empty() {
            continue;
        }
        let instance: Instance = serde_json::from_str(&line)
            .map_err(|error| anyhow!("line {number} of the input is no instance of a task: {error}"))?;
        let generation = examinee.ask(&instance).with_context(|| format!("line {number} of the input"))?;
        running.push_back((instance, generation));
        // A few more wait, so that the engine always has a full batch.
        if running.len() >= 2 * args.parallel
            && let Some(first) = running.pop_front()
        {
            write_answer(first)?;
        }
    }
    running.into_iter().try_for_each(write_answer)
}

struct Examinee {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    engine: Engine,
    sampling: SamplingParams,
    max_tokens: usize,
}

impl Examinee {
    fn ask(&self, instance: &Instance) -> Result<Generation> {
        let messages = [json!({ "role": "user", "content": instance.prompt })];
        let tools = (!instance.tools.is_empty()).then_some(instance.tools.as_slice());
        let prompt = self.template.render(&messages, tools, true)?;
        let request = GenerateRequest {
            prompt: self.tokenizer.encode(&prompt)?,
            max_tokens: Some(self.max_tokens),
            sampling: self.sampling.clone(),
            stop: StopConditions::default(),
            ..GenerateRequest::default()
        };
        Ok(self.engine.submit(request)?)
    }
}

fn write_answer((instance, mut generation): (Instance, Generation)) -> Result<()> {
    let mut response = String::new();
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Prompt { .. } => {}
            Event::Token(token) => response.push_str(&token.text),
            Event::Finished(finished) => response.push_str(&finished.text),
            Event::Failed(message) | Event::GrammarFailed(message) => {
                anyhow::bail!("the model failed: {message}")
            }
        }
    }
    output::json(&Answered { instance, response })
}
