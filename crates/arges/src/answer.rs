//! Follows one generation to its end.

use anyhow::{Result, bail};
use arges_engine::{Engine, Event, Finished, GenerateRequest};
use tokio::runtime::Runtime;

/// What a generation gave.
#[derive(Debug, Default)]
pub struct Answer {
    /// The new tokens, an end token included.
    pub ids: Vec<u32>,
    /// Their text; empty without a tokenizer.
    pub text: String,
    /// What was thought, where that is told apart from the text.
    pub reasoning: String,
    /// How it ended; `None` if it was interrupted.
    pub end: Option<Finished>,
}

/// What became certain with a token, or with none at the end.
#[derive(Debug)]
pub struct Piece<'a> {
    pub id: Option<u32>,
    pub text: &'a str,
    /// Thinking, where that is told apart; it comes before the text.
    pub reasoning: &'a str,
}

/// Called with each new token, and once more at the end.
pub type OnToken<'a> = &'a mut dyn FnMut(Piece) -> Result<()>;

impl Answer {
    /// Runs a request to its end.
    ///
    /// # Errors
    /// A request that the engine refuses or fails, and those of `on_token`.
    pub fn of(engine: &Engine, request: GenerateRequest, on_token: OnToken) -> Result<Answer> {
        let mut generation = engine.submit(request)?;
        let mut answer = Answer::default();
        while let Some(event) = generation.blocking_next() {
            answer.take(event, on_token)?;
        }
        Ok(answer)
    }

    /// Runs a request to its end or to an interrupt (Ctrl-C), which ends the answer alone.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn interruptible(
        runtime: &Runtime,
        engine: &Engine,
        request: GenerateRequest,
        on_token: OnToken,
    ) -> Result<Answer> {
        runtime.block_on(async {
            let mut generation = engine.submit(request)?;
            let mut answer = Answer::default();
            // One listener for the whole answer: an interrupt between two events is not missed.
            let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
            loop {
                let event = tokio::select! {
                    event = generation.next() => event,
                    interrupted = &mut interrupt => {
                        interrupted?;
                        None
                    }
                };
                let Some(event) = event else { return Ok(answer) };
                answer.take(event, on_token)?;
            }
        })
    }

    fn take(&mut self, event: Event, on_token: OnToken) -> Result<()> {
        match event {
            Event::Prompt { .. } => Ok(()),
            Event::Token(token) => {
                self.ids.push(token.id);
                self.add(Some(token.id), &token.text, &token.reasoning, on_token)
            }
            Event::Finished(finished) => {
                self.add(None, &finished.text, &finished.reasoning, on_token)?;
                self.end = Some(finished);
                Ok(())
            }
            Event::Failed(message) | Event::GrammarFailed(message) => bail!("the model failed: {message}"),
        }
    }

    fn add(&mut self, id: Option<u32>, text: &str, reasoning: &str, on_token: OnToken) -> Result<()> {
        self.text.push_str(text);
        self.reasoning.push_str(reasoning);
        on_token(Piece { id, text, reasoning })
    }
}
