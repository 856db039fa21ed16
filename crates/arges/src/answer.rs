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
    /// How it ended; `None` if it was interrupted.
    pub end: Option<Finished>,
}

/// Called with each new token and the text that became certain with it; with no token for the rest at the end.
pub type OnToken<'a> = &'a mut dyn FnMut(Option<u32>, &str) -> Result<()>;

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
                self.text.push_str(&token.text);
                on_token(Some(token.id), &token.text)
            }
            Event::Finished(finished) => {
                self.text.push_str(&finished.text);
                on_token(None, &finished.text)?;
                self.end = Some(finished);
                Ok(())
            }
            Event::Failed(message) => bail!("the model failed: {message}"),
        }
    }
}
