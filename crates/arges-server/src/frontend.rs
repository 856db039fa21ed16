//! Text to token ids: what turns a request body into prompts, without the engine.

use std::sync::{Arc, OnceLock};

use arges_text::grammar::{AnswerGrammar, Grammar, GrammarCompiler, GrammarError};
use arges_text::{ChatTemplate, GuardedChat, TextError, Tokenizer};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::error::ApiError;
use crate::extract::ReadBody;
use crate::options::ServerOptions;

/// Tokenizer, template and limits. Its work takes a processor for up to seconds and runs on blocking threads.
#[derive(Debug)]
pub(crate) struct Frontend {
    pub options: ServerOptions,
    pub tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    /// Longest prompt and answer together, in tokens.
    pub max_context: usize,
    /// Bytes of the longest token; 0 where the vocabulary is empty.
    longest_token: usize,
    /// Made when the first grammar is asked for.
    grammars: OnceLock<Result<GrammarCompiler, String>>,
    workers: Arc<Semaphore>,
}

impl Frontend {
    pub fn new(
        options: ServerOptions,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        max_context: usize,
    ) -> Frontend {
        let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let longest_token = ids.filter_map(|id| tokenizer.token_bytes(id)).map(|bytes| bytes.len()).max();
        Frontend {
            workers: Arc::new(Semaphore::new(options.text_workers.max(1))),
            options,
            tokenizer,
            template,
            max_context,
            longest_token: longest_token.unwrap_or(0),
            grammars: OnceLock::new(),
        }
    }

    /// Runs `work` on the body on a blocking thread, at most `text_workers` at a time, so that neither the
    /// sockets nor the engine wait for a long prompt to be tokenised.
    pub async fn run<T: Send + 'static>(
        self: &Arc<Frontend>,
        body: ReadBody,
        work: impl FnOnce(&Frontend, &[u8]) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let frontend = Arc::clone(self);
        let turn = Arc::clone(&self.workers).acquire_owned().await.map_err(|_| ApiError::shutting_down())?;
        // The turn and the body move with the work: it goes on when the client hangs up meanwhile.
        let work = move || {
            let _turn = turn;
            work(&frontend, &body.bytes)
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| ApiError::internal(format!("The request could not be prepared: {error}.")))?
    }

    /// A conversation of the request field `param` in which no one can spell special tokens.
    ///
    /// # Errors
    /// 400 for one that cannot be guarded.
    pub fn guard(
        &self,
        param: &'static str,
        messages: &[Value],
        tools: &[Value],
    ) -> Result<GuardedChat, ApiError> {
        GuardedChat::new(&self.tokenizer, messages, tools)
            .map_err(|error| ApiError::invalid_param(param, format!("The conversation is refused: {error}.")))
    }

    /// Renders a conversation of the request field `param` to the prompt's text.
    ///
    /// # Errors
    /// 400 for a conversation or tools that the template cannot render, or where there is no template.
    pub fn render(&self, param: &'static str, chat: &GuardedChat, open: bool) -> Result<String, ApiError> {
        let Some(template) = &self.template else {
            let message = "This model has no chat template; use /v1/completions.";
            return Err(ApiError::unsupported(param, message));
        };
        let tools = (!chat.tools.is_empty()).then_some(&chat.tools[..]);
        template.render(&chat.messages, tools, open).map_err(|error| match &error {
            TextError::Message { index, reason } => {
                let at = format!("{param}[{index}]");
                ApiError::invalid_param(at.clone(), format!("{at}: {reason}."))
            }
            TextError::Tool { index, reason } => {
                let at = format!("tools[{index}]");
                ApiError::invalid_param(at.clone(), format!("{at}: {reason}."))
            }
            _ => ApiError::invalid_param(param, format!("The conversation cannot be rendered: {error}.")),
        })
    }

    /// Compiles what an answer has to keep to.
    ///
    /// # Errors
    /// A grammar that is malformed, too large or not supported.
    pub fn compile(&self, answer: &AnswerGrammar) -> Result<Grammar, GrammarError> {
        let compiler = self
            .grammars
            .get_or_init(|| GrammarCompiler::new(&self.tokenizer).map_err(|error| error.to_string()));
        compiler.as_ref().map_err(|error| GrammarError::Invalid(error.clone()))?.compile(answer)
    }

    /// Tokenises a prompt of the request field `param`.
    ///
    /// # Errors
    /// 400 for text that is empty or too long for the context.
    pub fn encode(&self, text: &str, param: &'static str) -> Result<Vec<u32>, ApiError> {
        self.encode_with(text, param, |text| self.tokenizer.encode(text))
    }

    /// As [`Self::encode`], by `encode`.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_with(
        &self,
        text: &str,
        param: &'static str,
        encode: impl FnOnce(&str) -> Result<Vec<u32>, TextError>,
    ) -> Result<Vec<u32>, ApiError> {
        if text.is_empty() {
            return Err(ApiError::invalid_param(param, "The prompt is empty."));
        }
        // Said before megabytes are tokenised in vain: every token covers at most `longest_token` bytes.
        let least_tokens = text.len().div_ceil(self.longest_token.max(1));
        if least_tokens > self.max_context {
            return Err(self.too_long(param, &format!("at least {least_tokens}")));
        }
        let ids = encode(text).map_err(|error| {
            ApiError::invalid_param(param, format!("The prompt cannot be tokenised: {error}."))
        })?;
        self.check_length(&ids, param)?;
        Ok(ids)
    }

    /// # Errors
    /// 400 for a prompt without tokens, or with more than fit.
    pub fn check_length(&self, ids: &[u32], param: &'static str) -> Result<(), ApiError> {
        if ids.is_empty() {
            return Err(ApiError::invalid_param(param, "The prompt is empty."));
        }
        if ids.len() > self.max_context {
            return Err(self.too_long(param, &ids.len().to_string()));
        }
        Ok(())
    }

    fn too_long(&self, param: &'static str, tokens: &str) -> ApiError {
        let max = self.max_context;
        ApiError::context_length(
            param,
            format!("The model's context is {max} tokens, but the prompt has {tokens}. Shorten the prompt."),
        )
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A frontend over a synthetic tokenizer of 512 ids and its template.
    pub fn frontend(max_context: usize) -> Frontend {
        let dir = tempfile::tempdir().unwrap();
        arges_text::synthetic::write_tokenizer(dir.path(), 512).unwrap();
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let template = ChatTemplate::from_dir(dir.path()).unwrap();
        Frontend::new(ServerOptions::new("served"), tokenizer, template, max_context)
    }
}
