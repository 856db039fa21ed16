//! An answer as it is shown: thinking dimmed on a terminal, calls of tools in a form that people read.

use std::io::{self, IsTerminal};

use anyhow::Result;
use arges_text::{AnswerPart, THINK_CLOSE, THINK_OPEN, ToolCallParser};

use crate::answer::Piece;
use crate::output;

/// Writes an answer to standard output as it comes. Where that is no terminal, the text is the model's own, with its
/// tags.
#[derive(Debug)]
pub struct Shown {
    thinking: Thinking,
    /// `None` where calls are not told apart.
    calls: Option<ToolCallParser>,
    in_call: bool,
}

/// How far thinking has been shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thinking {
    None,
    Open,
    Closed,
}

impl Shown {
    pub fn new() -> Self {
        let calls = io::stdout().is_terminal().then(ToolCallParser::new);
        Self { thinking: Thinking::None, calls, in_call: false }
    }

    /// Shows a piece.
    pub fn add(&mut self, piece: &Piece) -> Result<()> {
        if !piece.reasoning.is_empty() {
            if self.thinking == Thinking::None {
                output::thinking(&format!("{THINK_OPEN}\n"))?;
                self.thinking = Thinking::Open;
            }
            output::thinking(piece.reasoning)?;
        }
        if !piece.text.is_empty() {
            self.close_thinking()?;
        }
        match &mut self.calls {
            Some(calls) => {
                let parts = calls.push(piece.text);
                self.parts(parts)
            }
            None => output::answer(piece.text),
        }
    }

    /// Shows what was held back.
    pub fn finish(&mut self) -> Result<()> {
        let parts = self.calls.as_mut().map(ToolCallParser::finish);
        self.parts(parts.unwrap_or_default())
    }

    /// As [`Self::finish`], for a turn after which the model goes on: thinking alone is closed too.
    pub fn finish_turn(&mut self) -> Result<()> {
        self.finish()?;
        self.close_thinking()
    }

    fn close_thinking(&mut self) -> Result<()> {
        if self.thinking == Thinking::Open {
            self.thinking = Thinking::Closed;
            output::thinking(&format!("\n{THINK_CLOSE}\n"))?;
        }
        Ok(())
    }

    fn parts(&mut self, parts: Vec<AnswerPart>) -> Result<()> {
        for part in parts {
            match part {
                AnswerPart::Content(text) => {
                    if std::mem::take(&mut self.in_call) {
                        output::line("")?;
                    }
                    output::answer(&text)?;
                }
                AnswerPart::CallStart { index, name } => {
                    let gap = if index > 0 || self.in_call { "\n" } else { "" };
                    self.in_call = true;
                    output::answer(&format!("{gap}→ {name} "))?;
                }
                AnswerPart::CallArguments { text, .. } => output::answer(&text)?,
            }
        }
        Ok(())
    }
}
