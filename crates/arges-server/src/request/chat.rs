//! A conversation to be answered.

use arges_engine::Thinking;
use arges_text::grammar::{AnswerGrammar, Format, Grammar, ToolShape};
use arges_text::without_thinking;
use serde_json::Value;

use super::fields::Settings;
use super::format::not_enforceable;
use super::messages;
use super::tools::Tools;
use crate::error::ApiError;
use crate::frontend::Frontend;
use crate::job::{Job, Prompt};

/// Bytes of the prompt's end in which an open block of thinking is looked for.
const PROMPT_END: usize = 64;

/// A conversation and how to answer it. Messages and tools are in OpenAI's shape, which templates read.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    /// The field the messages came from, for error messages.
    pub messages_param: &'static str,
    pub messages: Vec<Value>,
    pub tools: Tools,
    /// What the answer has to be, and the field that says so.
    pub format: Option<(&'static str, Format)>,
    /// Tokens of thinking at most; 0 is none.
    pub thinking_budget: Option<usize>,
    /// Whether a new turn of the assistant begins.
    pub add_generation_prompt: bool,
    pub settings: Settings,
    pub max_tokens: Option<usize>,
    pub logprobs: Option<usize>,
}

impl ChatRequest {
    /// Checks, renders and tokenises the conversation, and compiles what the answer has to keep to.
    ///
    /// # Errors
    /// 400 with the field at fault.
    pub fn prepare(self, frontend: &Frontend) -> Result<Job, ApiError> {
        let param = self.messages_param;
        messages::check(param, &self.messages)?;
        let rendered = self.render(frontend)?;
        let prompt_end = end_of(&rendered.text).to_owned();
        let thinking = Some(Thinking { prompt_end, budget: self.thinking_budget });
        Ok(Job {
            prompt_param: param,
            prompts: vec![Prompt { ids: rendered.ids, echo: None }],
            grammar: self.grammar(frontend)?,
            thinking,
            parse_calls: self.tools.may_be_called(),
            settings: self.settings,
            max_tokens: self.max_tokens,
            logprobs: self.logprobs,
        })
    }

    /// The prompt alone.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn prompt(&self, frontend: &Frontend) -> Result<Vec<u32>, ApiError> {
        messages::check(self.messages_param, &self.messages)?;
        Ok(self.render(frontend)?.ids)
    }

    fn render(&self, frontend: &Frontend) -> Result<Rendered, ApiError> {
        let param = self.messages_param;
        let guarded = frontend.guard(param, &self.messages, self.tools.shown())?;
        let mut text = frontend.render(param, &guarded, self.add_generation_prompt)?;
        if self.thinking_budget == Some(0) {
            text += &without_thinking(&text);
        }
        let ids = frontend.encode_with(&text, param, |text| guarded.encode(text))?;
        Ok(Rendered { ids, text })
    }

    fn grammar(&self, frontend: &Frontend) -> Result<Option<Grammar>, ApiError> {
        let calls = self.tools.grammar(self.format.is_some());
        let answer = AnswerGrammar { format: self.format.as_ref().map(|(_, format)| format.clone()), calls };
        if answer == AnswerGrammar::default() {
            return Ok(None);
        }
        frontend.compile(&answer).map(Some).map_err(|error| {
            let fails = |tool: &ToolShape| frontend.compile(&AnswerGrammar::call_of(tool.clone())).is_err();
            let tools = answer.calls.iter().flat_map(|calls| &calls.tools);
            let param = match (tools.clone().find(|tool| fails(tool)), &self.format) {
                (Some(tool), _) => self.tools.path_of(&tool.name),
                (None, Some((param, _))) => String::from(*param),
                (None, None) => "tools".to_owned(),
            };
            not_enforceable(&param, &error)
        })
    }
}

struct Rendered {
    text: String,
    ids: Vec<u32>,
}

/// The last bytes of a text, whole characters.
fn end_of(text: &str) -> &str {
    let start = (text.len().saturating_sub(PROMPT_END)..).find(|at| text.is_char_boundary(*at));
    &text[start.unwrap_or(0)..]
}
