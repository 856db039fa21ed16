//! `arges chat`: a conversation, or one answer.

mod converse;
mod with_tools;

use std::io::{self, IsTerminal};

use anyhow::Result;
use arges_engine::{Engine, FinishReason, GenerateRequest, SamplingParams, StopConditions, Thinking};
use arges_text::{ChatTemplate, GuardedChat, Tokenizer, without_thinking};
use clap::Args;
use tokio::runtime::Runtime;

use crate::answer::Answer;
use crate::args::{EngineArgs, ModelArgs, SamplingArgs, StopArgs, at_least_1};
use crate::conversation::Conversation;
use crate::failure::{OutputClosed, usage};
use crate::loading::Opened;
use crate::output;
use crate::plan::{Context, Needs};
use crate::prompt::stdin_text;
use crate::shown::{Folding, Shown};
use crate::tools::AgentArgs;
use converse::{Talk, converse};

/// Longest conversation where neither a flag nor the model says less.
const CONTEXT: usize = 32_768;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ChatArgs {
    /// Answer this alone; without it, or with -, a conversation at a terminal and else one answer to standard input
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,
    /// System message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 4096, value_parser = at_least_1)]
    max_tokens: usize,
    /// Tokens of thinking at most; then it is closed and the answer follows. 0 is no thinking
    #[arg(long, value_name = "N")]
    thinking_budget: Option<usize>,
    /// Show the thinking as it comes; else a terminal shows how long it is, and /thinking all of it
    #[arg(long)]
    show_thinking: bool,
    /// Divides the logits before a token is drawn; 0 always takes the most likely token (greedy)
    #[arg(short, long, value_name = "T", default_value_t = 1.0, allow_negative_numbers = true)]
    temperature: f32,
    #[command(flatten)]
    agent: AgentArgs,
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
Messages go through the checkpoint's chat template, or one in M1's format where it has none. Sampling \
follows M1's model card: temperature 1, top-p 0.95. On a terminal thinking is folded into one line. \
In a conversation, /help lists the commands, Ctrl-C stops an answer and Ctrl-D leaves.

Examples:
  arges chat \"What is 17 + 25?\"
  arges chat --model DIR
  arges chat --model DIR \"Why is the sky blue?\"
  arges chat --model DIR --system \"Answer in one sentence.\" < question.txt
  arges chat --model DIR --tool calculator --mcp mcp.json
  arges chat --endpoint http://127.0.0.1:8000/v1 --tool clock \"What day is it?\"";

pub fn run(args: ChatArgs) -> Result<()> {
    let sampling = args.sampling.params(args.temperature)?;
    let prompt = match args.prompt.as_deref() {
        None | Some("-") if io::stdin().is_terminal() => None,
        None | Some("-") => Some(stdin_text()?),
        Some(text) => Some(text.to_owned()),
    };
    if prompt.as_deref().is_some_and(|text| text.trim().is_empty()) {
        return Err(usage("the prompt is empty: give a PROMPT, or none for a conversation"));
    }
    if args.agent.is_asked() {
        return with_tools::run(args, prompt);
    }
    let opened = Opened::open(&args.model)?;
    let tokenizer = opened.tokenizer()?;
    let template = opened.chat_template()?;
    let needs = Needs { context: Context::UpTo(CONTEXT), sequences: 1, step_tokens: 2048, logit_rows: 1 };
    let mut chat = Chat {
        engine: opened.start(&args.model, &args.sizes, needs)?,
        tokenizer,
        template,
        sampling,
        stop: args.stop.conditions(),
        max_tokens: args.max_tokens,
        thinking_budget: args.thinking_budget,
        show_thinking: args.show_thinking,
        conversation: Conversation::new(args.system),
    };
    match prompt {
        Some(prompt) => chat.answer_once(&prompt),
        None => converse(&mut chat),
    }
}

struct Chat {
    engine: Engine,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    sampling: SamplingParams,
    stop: StopConditions,
    max_tokens: usize,
    thinking_budget: Option<usize>,
    show_thinking: bool,
    conversation: Conversation,
}

impl Chat {
    fn answer_once(&mut self, prompt: &str) -> Result<()> {
        self.conversation.push_user(prompt);
        let request = self.request()?;
        let mut shown = Shown::new(self.folding());
        let answer = Answer::of(&self.engine, request, &mut |piece| shown.add(&piece))?;
        shown.finish()?;
        output::line("")?;
        self.tell_limit(&answer);
        Ok(())
    }

    fn request(&self) -> Result<GenerateRequest> {
        let guarded = GuardedChat::new(&self.tokenizer, &self.conversation.messages(), &[])?;
        let mut text = self.template.render(&guarded.messages, None, true)?;
        if self.thinking_budget == Some(0) {
            text += &without_thinking(&text);
        }
        Ok(GenerateRequest {
            prompt: guarded.encode(&text)?,
            thinking: Some(Thinking { budget: self.thinking_budget, prompt_end: text }),
            max_tokens: Some(self.max_tokens),
            sampling: self.sampling.clone(),
            stop: self.stop.clone(),
            ..GenerateRequest::default()
        })
    }

    fn folding(&self) -> Folding {
        Folding::new(self.show_thinking, self.thinking_budget)
    }

    /// Says so when an answer was cut off.
    fn tell_limit(&self, answer: &Answer) {
        let Some(end) = &answer.end else { return };
        if end.reason == FinishReason::Length {
            let tokens = end.usage.completion_tokens;
            let flag = if tokens < self.max_tokens { "--context" } else { "--max-tokens" };
            eprintln!("[cut off after {tokens} tokens; {flag} allows more]");
        }
    }
}

impl Talk for Chat {
    fn conversation(&mut self) -> &mut Conversation {
        &mut self.conversation
    }

    fn thinking_budget(&mut self) -> &mut Option<usize> {
        &mut self.thinking_budget
    }

    fn show_thinking(&mut self) -> &mut bool {
        &mut self.show_thinking
    }

    /// One question and its answer. What goes wrong with it is told and the question forgotten.
    fn turn(&mut self, runtime: &Runtime, text: &str) -> Result<()> {
        self.conversation.push_user(text);
        let mut shown = Shown::new(self.folding());
        let answer = self.request().and_then(|request| {
            Answer::interruptible(runtime, &self.engine, request, &mut |piece| shown.add(&piece))
        });
        match answer {
            Ok(answer) => {
                shown.finish()?;
                output::line(if answer.end.is_some() { "" } else { " [stopped]" })?;
                self.tell_limit(&answer);
                self.conversation.push_assistant(&answer.reasoning, &answer.text);
                Ok(())
            }
            Err(error) if error.is::<OutputClosed>() => Err(error),
            Err(error) => {
                self.conversation.pop();
                shown.unfold()?;
                eprintln!("error: {error:#} (/clear begins a new conversation)");
                Ok(())
            }
        }
    }
}
