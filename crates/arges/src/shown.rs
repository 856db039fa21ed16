//! An answer as it is shown: on a terminal thinking folded into a line or dimmed, calls of tools in a form that people
//! read.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::Result;
use arges_text::{AnswerPart, THINK_CLOSE, THINK_OPEN, ToolCallParser};

use crate::answer::Piece;
use crate::output;

/// Writes an answer to standard output as it comes. Where that is no terminal, the text is the model's own, with its
/// tags.
#[derive(Debug)]
pub struct Shown {
    thinking: Thinking,
    folding: Folding,
    /// The line that stands for thinking, while there is one.
    status: Option<Status>,
    /// `None` where calls are not told apart.
    calls: Option<ToolCallParser>,
    in_call: bool,
}

/// How thinking is shown.
#[derive(Debug, Clone, Copy)]
pub struct Folding {
    folds: bool,
    budget: Option<usize>,
}

impl Folding {
    /// Folded into a line that counts its tokens, unless all of it is to be seen or nobody sees the line.
    pub fn new(show_thinking: bool, budget: Option<usize>) -> Self {
        Self { folds: !show_thinking && io::stdout().is_terminal(), budget }
    }
}

/// Thinking while it is folded.
#[derive(Debug)]
struct Status {
    started: Instant,
    drawn: Instant,
    tokens: usize,
}

/// Time between two drawings of the line.
const REDRAW: Duration = Duration::from_millis(80);

impl Status {
    fn new() -> Self {
        let now = Instant::now();
        Self { started: now, drawn: now, tokens: 0 }
    }

    fn running(&self, budget: Option<usize>) -> String {
        let of = budget.map(|budget| format!(" of {budget}")).unwrap_or_default();
        format!("thinking … {}{of} tokens, {} s", self.tokens, self.started.elapsed().as_secs())
    }

    fn ended(&self) -> String {
        format!("thought for {} tokens, {} s", self.tokens, self.started.elapsed().as_secs())
    }
}

/// How far thinking has been shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thinking {
    None,
    Open,
    Closed,
}

impl Shown {
    pub fn new(folding: Folding) -> Self {
        let calls = io::stdout().is_terminal().then(ToolCallParser::new);
        Self { thinking: Thinking::None, folding, status: None, calls, in_call: false }
    }

    /// Shows a piece.
    pub fn add(&mut self, piece: &Piece) -> Result<()> {
        if self.folding.folds {
            self.fold(piece)?;
        } else if !piece.reasoning.is_empty() {
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

    /// Counts thinking instead of showing it.
    fn fold(&mut self, piece: &Piece) -> Result<()> {
        if !piece.reasoning.is_empty() && self.thinking == Thinking::None {
            self.thinking = Thinking::Open;
            self.status = Some(Status::new());
        }
        let Some(status) = &mut self.status else { return Ok(()) };
        // A token may be half a character, or held back as the beginning of a tag.
        let is_token = piece.id.is_some() || !piece.reasoning.is_empty();
        if piece.text.is_empty() && is_token {
            status.tokens += 1;
            if status.tokens == 1 || status.drawn.elapsed() >= REDRAW {
                status.drawn = Instant::now();
                output::status(&status.running(self.folding.budget))?;
            }
        }
        Ok(())
    }

    /// Ends the line that stands for thinking.
    pub fn unfold(&mut self) -> Result<()> {
        match self.status.take() {
            Some(status) => {
                output::status(&status.ended())?;
                output::line("")
            }
            None => Ok(()),
        }
    }

    /// Shows what was held back.
    pub fn finish(&mut self) -> Result<()> {
        self.unfold()?;
        let parts = self.calls.as_mut().map(ToolCallParser::finish);
        self.parts(parts.unwrap_or_default())
    }

    /// As [`Self::finish`], for a turn after which the model goes on: thinking alone is closed too.
    pub fn finish_turn(&mut self) -> Result<()> {
        self.finish()?;
        self.close_thinking()
    }

    fn close_thinking(&mut self) -> Result<()> {
        self.unfold()?;
        if self.thinking == Thinking::Open {
            self.thinking = Thinking::Closed;
            if self.folding.folds {
                return Ok(());
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stands_for_thinking_until_there_is_an_answer() {
        let mut shown = Shown {
            thinking: Thinking::None,
            folding: Folding { folds: true, budget: Some(2048) },
            status: None,
            calls: None,
            in_call: false,
        };
        let piece = |reasoning, text| Piece { id: Some(1), reasoning, text };
        shown.add(&piece("", "")).unwrap();
        assert!(shown.status.is_none());
        for reasoning in ["One", "", " two"] {
            shown.add(&piece(reasoning, "")).unwrap();
        }
        let status = shown.status.as_ref().unwrap();
        assert_eq!(status.running(Some(2048)), "thinking … 3 of 2048 tokens, 0 s");
        assert_eq!(status.running(None), "thinking … 3 tokens, 0 s");
        assert_eq!(status.ended(), "thought for 3 tokens, 0 s");
        shown.add(&piece("", "Three")).unwrap();
        assert!(shown.status.is_none() && shown.thinking == Thinking::Closed);
    }
}
