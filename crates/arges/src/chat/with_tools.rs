//! A conversation with a model that has tools, or that another server has.

use std::io::{self, IsTerminal};

use anyhow::{Context as _, Result, bail};
use arges_mcp::agent::{
    Agent, AgentError, ChatEndpoint, Divided, Finished, HttpEndpoint, Observer, RouterEndpoint, ToolCall,
    Turn,
};
use arges_mcp::client::{CallResult, OfferedTool, Toolbox};
use arges_server::{AppState, ServerOptions};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustyline::DefaultEditor;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use super::converse::{Talk, converse};
use super::{CONTEXT, ChatArgs};
use crate::answer::Piece;
use crate::conversation::Conversation;
use crate::failure::OutputClosed;
use crate::loading::Opened;
use crate::output;
use crate::plan::{Context, Needs};
use crate::shown::{Folding, Shown};

/// Characters of arguments and results that are shown.
const SHOWN: usize = 300;

/// Answers `prompt`, or has a conversation.
pub fn run(args: ChatArgs, prompt: Option<String>) -> Result<()> {
    // The servers of the tools are listened to while the user types.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut request = request(&args)?;
    let endpoint: Box<dyn ChatEndpoint> = match &args.agent.endpoint {
        Some(url) => {
            let endpoint = HttpEndpoint::new(url, args.agent.endpoint_key.clone())?;
            let model = match &args.model.model {
                Some(model) => Some(model.clone()),
                None => runtime.block_on(endpoint.first_model())?,
            };
            if let Some(model) = model {
                request["model"] = model.into();
            }
            Box::new(Divided(endpoint))
        }
        None => Box::new(local(&args)?),
    };
    let toolbox = runtime.block_on(args.agent.tools.open())?;
    let mut chat = ToolChat {
        endpoint,
        toolbox,
        request,
        asking: Asking { all: args.agent.yes, always: Vec::new() },
        thinking_budget: args.thinking_budget,
        show_thinking: args.show_thinking,
        conversation: Conversation::new(args.system),
    };
    let result = match prompt {
        Some(prompt) => chat.answer_once(&runtime, &prompt),
        None => converse(&mut chat),
    };
    runtime.block_on(chat.toolbox.close());
    result
}

/// A model that is run here, behind the routes of a server that nobody else reaches.
fn local(args: &ChatArgs) -> Result<RouterEndpoint> {
    let opened = Opened::open(&args.model)?;
    let (tokenizer, template) = (opened.tokenizer()?, opened.chat_template()?);
    let needs = Needs { context: Context::UpTo(CONTEXT), sequences: 1, step_tokens: 2048, logit_rows: 1 };
    let engine = opened.start(&args.model, &args.sizes, needs)?;
    let options = ServerOptions::new(opened.source.name());
    let state = AppState::new(engine, tokenizer, Some(template), options);
    Ok(RouterEndpoint::new(arges_server::router(state)))
}

/// The fields of a request but for its messages. Those that only some servers know are left out where they say what
/// is so anyway.
fn request(args: &ChatArgs) -> Result<Value> {
    let sampling = args.sampling.params(args.temperature)?;
    let mut request = Map::new();
    let mut set = |name: &str, value: Value| request.insert(name.to_owned(), value);
    set("stream", true.into());
    set("max_tokens", args.max_tokens.into());
    set("temperature", sampling.temperature.into());
    set("top_p", sampling.top_p.into());
    let optional = [
        ("top_k", json!(sampling.top_k), sampling.top_k != 0),
        ("min_p", json!(sampling.min_p), sampling.min_p != 0.0),
        ("repetition_penalty", json!(sampling.repetition_penalty), sampling.repetition_penalty != 1.0),
        ("frequency_penalty", json!(sampling.frequency_penalty), sampling.frequency_penalty != 0.0),
        ("presence_penalty", json!(sampling.presence_penalty), sampling.presence_penalty != 0.0),
        ("seed", json!(sampling.seed.map(|seed| seed as i64)), sampling.seed.is_some()),
        ("stop", json!(args.stop.stop), !args.stop.stop.is_empty()),
        ("stop_token_ids", json!(args.stop.stop_token), !args.stop.stop_token.is_empty()),
        ("ignore_eos", json!(true), args.stop.ignore_eos),
        ("min_tokens", json!(args.stop.min_tokens), args.stop.min_tokens != 0),
    ];
    for (name, value, is_needed) in optional {
        if is_needed {
            set(name, value);
        }
    }
    if !sampling.logit_bias.is_empty() {
        let bias = sampling.logit_bias.iter().map(|(id, bias)| (id.to_string(), json!(bias)));
        set("logit_bias", Value::Object(bias.collect()));
    }
    Ok(Value::Object(request))
}

struct ToolChat {
    endpoint: Box<dyn ChatEndpoint>,
    toolbox: Toolbox,
    request: Value,
    asking: Asking,
    thinking_budget: Option<usize>,
    show_thinking: bool,
    conversation: Conversation,
}

impl ToolChat {
    /// The request for the conversation as it stands.
    fn request(&self) -> Value {
        let mut request = self.request.clone();
        request["messages"] = self.conversation.messages().into();
        if let Some(budget) = self.thinking_budget {
            request["thinking_budget"] = budget.into();
        }
        request
    }

    fn folding(&self) -> Folding {
        Folding::new(self.show_thinking, self.thinking_budget)
    }

    fn answer_once(&mut self, runtime: &Runtime, prompt: &str) -> Result<()> {
        self.conversation.push_user(prompt);
        let (request, folding) = (self.request(), self.folding());
        let mut watching = Watching::new(&mut self.asking, folding);
        let turn = answered(&*self.endpoint, &self.toolbox, request, &mut watching);
        let finished = runtime.block_on(turn)?;
        match finished {
            Some(finished) => {
                output::line("")?;
                tell_limit(&finished.last);
                Ok(())
            }
            None => bail!("interrupted"),
        }
    }
}

/// Runs a turn to its answer, or to an interrupt (Ctrl-C).
async fn answered(
    endpoint: &dyn ChatEndpoint,
    toolbox: &Toolbox,
    request: Value,
    watching: &mut Watching<'_>,
) -> Result<Option<Finished>> {
    let agent = Agent::new(endpoint, toolbox);
    let finished = tokio::select! {
        finished = agent.run(request, watching) => finished,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("cannot listen for Ctrl-C")?;
            return Ok(None);
        }
    };
    match finished {
        Ok(finished) => {
            watching.shown.finish()?;
            Ok(Some(finished))
        }
        Err(AgentError::Stopped) => Err(watching.closed.take().unwrap_or_else(|| OutputClosed.into())),
        Err(error) => Err(error.into()),
    }
}

fn tell_limit(last: &Turn) {
    if last.finish_reason.as_deref() == Some("length") {
        eprintln!("[cut off; --max-tokens or --context allows more]");
    }
}

impl Talk for ToolChat {
    fn conversation(&mut self) -> &mut Conversation {
        &mut self.conversation
    }

    fn thinking_budget(&mut self) -> &mut Option<usize> {
        &mut self.thinking_budget
    }

    fn show_thinking(&mut self) -> &mut bool {
        &mut self.show_thinking
    }

    /// What goes wrong is told and the question forgotten.
    fn turn(&mut self, runtime: &Runtime, text: &str) -> Result<()> {
        self.conversation.push_user(text);
        let (request, folding) = (self.request(), self.folding());
        let mut watching = Watching::new(&mut self.asking, folding);
        let turn = answered(&*self.endpoint, &self.toolbox, request, &mut watching);
        let finished = runtime.block_on(turn);
        watching.shown.unfold()?;
        match finished {
            Ok(Some(finished)) => {
                output::line("")?;
                tell_limit(&finished.last);
                finished.messages.into_iter().for_each(|message| self.conversation.push(message));
                Ok(())
            }
            Ok(None) => {
                self.conversation.pop();
                output::line(" [stopped]")
            }
            Err(error) if error.is::<OutputClosed>() => Err(error),
            Err(error) => {
                self.conversation.pop();
                eprintln!("error: {error:#} (/clear begins a new conversation)");
                Ok(())
            }
        }
    }
}

/// Shows what happens, and asks before something is changed.
struct Watching<'a> {
    asking: &'a mut Asking,
    folding: Folding,
    shown: Shown,
    /// Whether the turn has text.
    said: bool,
    /// Why nothing can be shown any more.
    closed: Option<anyhow::Error>,
}

impl<'a> Watching<'a> {
    fn new(asking: &'a mut Asking, folding: Folding) -> Watching<'a> {
        Watching { asking, folding, shown: Shown::new(folding), said: false, closed: None }
    }

    fn show(&mut self, chunk: &Value) -> Result<()> {
        let choice = &chunk["choices"][0];
        let delta = &choice["delta"];
        let reasoning = delta["reasoning_content"].as_str().or_else(|| delta["reasoning"].as_str());
        let text = delta["content"].as_str().unwrap_or_default();
        self.shown.add(&Piece { id: None, reasoning: reasoning.unwrap_or_default(), text })?;
        self.said |= !text.is_empty();
        if choice["finish_reason"] == "tool_calls" {
            self.shown.finish_turn()?;
            self.shown = Shown::new(self.folding);
            // What the tools do begins on a line of its own.
            if std::mem::take(&mut self.said) {
                output::line("")?;
            }
        }
        Ok(())
    }
}

impl Observer for Watching<'_> {
    fn chunk(&mut self, chunk: Value) -> BoxFuture<'_, bool> {
        self.closed = self.show(&chunk).err();
        std::future::ready(self.closed.is_none()).boxed()
    }

    fn may_run(&mut self, call: &ToolCall, tool: &OfferedTool) -> bool {
        self.asking.may_run(call, tool)
    }

    fn started(&mut self, call: &ToolCall) {
        output::remark(&format!("[{} {}]", call.name, shortened(&call.arguments)));
    }

    fn progress(&mut self, call: &ToolCall, message: &str) {
        output::remark(&format!("[{}: {}]", call.name, shortened(message)));
    }

    fn finished(&mut self, call: &ToolCall, result: &CallResult) {
        let failed = if result.is_error { " failed" } else { "" };
        output::remark(&format!("[{}{failed}: {}]", call.name, shortened(&result.text)));
    }
}

/// On one line, and not too long.
fn shortened(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Who decides about calls.
struct Asking {
    all: bool,
    /// Tools about which the user does not want to be asked again.
    always: Vec<String>,
}

impl Asking {
    fn may_run(&mut self, call: &ToolCall, tool: &OfferedTool) -> bool {
        if self.all || tool.allowed || self.always.contains(&tool.name) {
            return true;
        }
        if !io::stdin().is_terminal() {
            output::remark(&format!(
                "[{} is not run: it may change something, and nobody is there to be asked; --yes allows it]",
                tool.name
            ));
            return false;
        }
        output::remark(&format!("\n{} of {} {}", tool.name, tool.server, shortened(&call.arguments)));
        let answer =
            DefaultEditor::new().and_then(|mut editor| editor.readline("run it? [y]es, [n]o, [a]lways: "));
        match answer.as_deref().map(str::trim) {
            Ok("y" | "yes") => true,
            Ok("a" | "always") => {
                self.always.push(tool.name.clone());
                true
            }
            _ => false,
        }
    }
}
