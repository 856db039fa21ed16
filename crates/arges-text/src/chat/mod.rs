//! Chat templates: a conversation to the text a model was trained on.
//!
//! A checkpoint brings its template as Jinja source, written for Python's Jinja2 as transformers
//! sets it up; `environment` rebuilds that setting. Templates differ in the shape of messages they
//! read, so `probe` finds out by rendering small conversations, and `messages` brings what a client
//! sent into that shape.

mod environment;
mod messages;
mod probe;
mod source;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use minijinja::Environment;
use serde::Serialize;
use serde_json::Value;

use crate::TextError;
use crate::load::parse_json;
use probe::Expectations;

/// The built-in template in M1's turn format.
pub(crate) const M1_TEMPLATE: &str = include_str!("m1.jinja");

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A checkpoint's chat template. Cheap to clone: the compiled template is shared.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token` and the like, which templates may write out.
    special_tokens: BTreeMap<String, String>,
    default: Expectations,
    /// Present where the checkpoint names a separate template for conversations with tools.
    tool_use: Option<Expectations>,
}

/// What a template is rendered with.
#[derive(Serialize)]
struct Context<'a> {
    messages: &'a [Value],
    tools: Option<&'a [Value]>,
    add_generation_prompt: bool,
    #[serde(flatten)]
    special_tokens: &'a BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Reads a checkpoint's template: `chat_template.jinja`, else `chat_template` in
    /// `tokenizer_config.json` (one source, or a list of named ones of which `default` and
    /// `tool_use` are kept). `None` where the checkpoint has none.
    ///
    /// # Errors
    /// A file that cannot be read or is no JSON, or a template that does not parse.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, TextError> {
        source::from_dir(dir)?.map(Self::new).transpose()
    }

    /// The template in the text of a `tokenizer_config.json` that lies in no directory; `origin`
    /// stands for it in errors. `None` where it holds none.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir).
    pub fn from_config_json(origin: &Path, config: &str) -> Result<Option<Self>, TextError> {
        let path = origin.join("tokenizer_config.json");
        source::from_config(&path, parse_json(&path, config)?)?.map(Self::new).transpose()
    }

    /// A template from its Jinja source. `origin` names it in errors.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`] where it does not parse.
    pub fn from_source(origin: &str, template: &str) -> Result<Self, TextError> {
        Self::new(source::Sources {
            origin: origin.to_owned(),
            default: template.to_owned(),
            tool_use: None,
            special_tokens: BTreeMap::new(),
        })
    }

    /// The built-in template in M1's turn format, for checkpoints that bring none.
    pub fn default_m1() -> Self {
        Self::from_source("Arges", M1_TEMPLATE).expect("the built-in template parses")
    }

    /// Renders a conversation.
    ///
    /// `messages` are those of the OpenAI chat API: `role` (`system`, `developer`, `user`,
    /// `assistant`, `tool`, `function`), `content` as a string, a list of parts or null,
    /// `tool_calls` with `arguments` as a string or an object, `reasoning_content` as a string or
    /// null. `tools` may carry the `{"type": "function", "function": …}` wrapper or be bare. With
    /// `add_generation_prompt` the text ends where the assistant's answer begins. Keys keep their
    /// order.
    ///
    /// Text is never dropped because a template reads less than it is given: where a template
    /// reads only the first part of a content the parts are joined, and where it does not read
    /// `tool_calls` or `reasoning_content` they are written into the content in M1's own form, the
    /// latter only after the last question: M1 does not go on from earlier thinking. Results of one
    /// turn's tools go into one `tool` turn where the template names the tool per part, as M1's does.
    ///
    /// # Errors
    /// A message or tool of the wrong shape (named by its position), nesting deeper than 128, a
    /// refusal by the template, or its failure.
    pub fn render(
        &self,
        messages: &[Value],
        tools: Option<&[Value]>,
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        let tools = messages::bare_tools(tools.unwrap_or_default())?;
        let (name, expectations) = match &self.shared.tool_use {
            Some(expectations) if !tools.is_empty() => (TOOL_USE, expectations),
            _ => (DEFAULT, &self.shared.default),
        };
        let messages = messages::shape(messages, expectations)?;
        let context = Context {
            messages: &messages,
            tools: (!tools.is_empty()).then_some(tools.as_slice()),
            add_generation_prompt,
            special_tokens: &self.shared.special_tokens,
        };
        environment::render(&self.shared.environment, name, &context)
    }

    fn new(sources: source::Sources) -> Result<Self, TextError> {
        let mut environment = environment::environment();
        let mut add = |name: &'static str, source: String| {
            environment.add_template_owned(name, source).map_err(|error| TextError::TemplateSyntax {
                origin: sources.origin.clone(),
                reason: environment::explain(&error),
            })
        };
        add(DEFAULT, sources.default)?;
        let has_tool_use = sources.tool_use.is_some();
        sources.tool_use.map(|source| add(TOOL_USE, source)).transpose()?;
        let special_tokens = sources.special_tokens;
        let probe = |name| {
            probe::expectations(&|messages| {
                let context = Context {
                    messages,
                    tools: None,
                    add_generation_prompt: false,
                    special_tokens: &special_tokens,
                };
                environment::render(&environment, name, &context).ok()
            })
        };
        let default = probe(DEFAULT);
        let tool_use = has_tool_use.then(|| probe(TOOL_USE));
        Ok(Self { shared: Arc::new(Shared { environment, special_tokens, default, tool_use }) })
    }
}
