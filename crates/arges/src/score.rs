//! `arges score`: log-probabilities of a text's tokens, and its perplexity.

use anyhow::{Context as _, Result, bail};
use arges_engine::{Engine, Event, GenerateRequest};
use clap::Args;
use serde::Serialize;

use crate::args::{EngineArgs, ModelArgs};
use crate::loading::Opened;
use crate::output;
use crate::plan::{Context, Needs};
use crate::prompt::PromptArgs;

/// Rows of logits of one step.
const LOGIT_ROWS: usize = 256;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ScoreArgs {
    #[command(flatten)]
    prompt: PromptArgs,
    /// Print {"logprobs": [null, …], "perplexity": …, "ids": […]}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sizes: EngineArgs,
}

const EXAMPLES: &str = "\
Scores are natural logarithms of each token's probability given those before it, under the model's own \
distribution (temperature 1, nothing cut off). The first token has none. The perplexity is e to the power \
of their negative mean.

Examples:
  arges score --model DIR \"The capital of France is Paris.\"
  arges score --model DIR --ids @text.ids --json
  arges score --model DIR < book.txt";

/// What `--json` prints.
#[derive(Serialize)]
struct Output {
    /// One a token; the first has none.
    logprobs: Vec<Option<f32>>,
    /// `None` for a single token.
    perplexity: Option<f64>,
    ids: Vec<u32>,
}

pub fn run(args: ScoreArgs) -> Result<()> {
    let opened = Opened::open(&args.model)?;
    let ids = args.prompt.read(|| opened.tokenizer(), opened.config().vocab_size)?;
    let needs = Needs {
        context: Context::Known { prompt: ids.len(), more: 0 },
        sequences: 1,
        step_tokens: 2048,
        logit_rows: LOGIT_ROWS.min(ids.len()),
    };
    let engine = opened.start(&args.model, &args.sizes, needs)?;
    let logprobs = score(&engine, &ids)?;
    let output = Output { perplexity: perplexity(&logprobs), logprobs, ids };
    if args.json {
        return output::json(&output);
    }
    let tokenizer = if opened.has_tokenizer() { Some(opened.tokenizer()?) } else { None };
    output::line(&format!("{:>8} {:>8} {:>12}  token", "position", "id", "logprob"))?;
    for (position, (id, logprob)) in output.ids.iter().zip(&output.logprobs).enumerate() {
        let logprob = logprob.map_or_else(|| "-".to_owned(), |logprob| format!("{logprob:.6}"));
        let token = tokenizer.as_ref().map(|tokenizer| format!("{:?}", tokenizer.decode(&[*id])));
        output::line(&format!("{position:>8} {id:>8} {logprob:>12}  {}", token.unwrap_or_default()))?;
    }
    match output.perplexity {
        Some(perplexity) => {
            output::line(&format!("perplexity {perplexity:.4} over {} tokens", output.ids.len() - 1))
        }
        None => output::line("perplexity: none, a single token has nothing before it"),
    }
}

/// The log-probability of each token but the first.
fn score(engine: &Engine, ids: &[u32]) -> Result<Vec<Option<f32>>> {
    let mut generation = engine.submit(GenerateRequest {
        prompt: ids.to_vec(),
        max_tokens: Some(0),
        prompt_logprobs: Some(0),
        ..GenerateRequest::default()
    })?;
    let mut scores = None;
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Prompt { logprobs, .. } => {
                scores = Some(logprobs.into_iter().map(|token| token.map(|token| token.logprob)).collect());
            }
            Event::Failed(message) | Event::GrammarFailed(message) => bail!("the model failed: {message}"),
            Event::Token(_) | Event::Finished(_) => {}
        }
    }
    scores.context("the engine gave no scores")
}

/// e to the power of the negative mean; `None` without a score.
fn perplexity(logprobs: &[Option<f32>]) -> Option<f64> {
    let scores: Vec<f64> = logprobs.iter().flatten().map(|logprob| f64::from(*logprob)).collect();
    (!scores.is_empty()).then(|| (-scores.iter().sum::<f64>() / scores.len() as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_perplexity_of_a_fair_die_is_its_number_of_sides() {
        let sixth = (1.0f32 / 6.0).ln();
        let perplexity = perplexity(&[None, Some(sixth), Some(sixth)]).unwrap();
        assert!((perplexity - 6.0).abs() < 1e-6, "{perplexity}");
        assert_eq!(super::perplexity(&[None]), None);
    }
}
