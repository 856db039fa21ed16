//! `arges generate`: continues a text or a list of token ids.

use anyhow::Result;
use arges_engine::GenerateRequest;
use clap::Args;
use serde::Serialize;

use crate::answer::{Answer, Piece};
use crate::args::{EngineArgs, ModelArgs, SamplingArgs, StopArgs, at_least_1};
use crate::loading::Opened;
use crate::output;
use crate::plan::{Context, Needs};
use crate::prompt::PromptArgs;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct GenerateArgs {
    #[command(flatten)]
    prompt: PromptArgs,
    /// Tokens to generate at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256, value_parser = at_least_1)]
    max_tokens: usize,
    /// Divides the logits before a token is drawn; 0 always takes the most likely token (greedy)
    #[arg(short, long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Print {"ids": […], "text": …} with the new tokens at the end instead of text as it comes; the text is null
    /// for a model without a tokenizer
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    stop: StopArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sizes: EngineArgs,
}

const EXAMPLES: &str = "\
The text is continued as it stands, without a chat template; `arges chat` answers questions. The default \
is greedy: the same prompt gives the same tokens.

Examples:
  arges generate --model DIR \"Once upon a time\" --max-tokens 100
  arges generate --model DIR --temperature 0.8 --seed 1 < story.txt
  arges generate --model DIR --ids 276,422,77 --json
  arges generate --model DIR --ids @prompt.ids --stop-token 2";

/// What `--json` prints.
#[derive(Serialize)]
struct Output<'a> {
    ids: &'a [u32],
    text: Option<&'a str>,
}

pub fn run(args: GenerateArgs) -> Result<()> {
    let sampling = args.sampling.params(args.temperature)?;
    let opened = Opened::open(&args.model)?;
    let prompt = args.prompt.read(|| opened.tokenizer(), opened.config().vocab_size)?;
    let needs = Needs {
        context: Context::Known { prompt: prompt.len(), more: args.max_tokens },
        sequences: 1,
        step_tokens: 2048,
        logit_rows: 1,
    };
    let engine = opened.start(&args.model, &args.sizes, needs)?;
    let request = GenerateRequest {
        prompt,
        max_tokens: Some(args.max_tokens),
        sampling,
        stop: args.stop.conditions(),
        ..GenerateRequest::default()
    };
    if args.json {
        let answer = Answer::of(&engine, request, &mut |_| Ok(()))?;
        let text = opened.has_tokenizer().then_some(answer.text.as_str());
        return output::json(&Output { ids: &answer.ids, text });
    }
    if opened.has_tokenizer() {
        Answer::of(&engine, request, &mut |piece| output::answer(piece.text))?;
    } else {
        let mut separator = "";
        let mut write_id = |piece: Piece| {
            let Some(id) = piece.id else { return Ok(()) };
            output::write(&format!("{}{id}", std::mem::replace(&mut separator, ",")))
        };
        Answer::of(&engine, request, &mut write_id)?;
    }
    output::line("")
}
