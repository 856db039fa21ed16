//! A conversation at a terminal: what the user types, line after line.

use anyhow::{Context as _, Result};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Editor, Helper};
use tokio::runtime::Runtime;

use crate::conversation::{Conversation, HELP, Line, goes_on};
use crate::output;

/// A conversation that a user has.
pub trait Talk {
    /// What was said.
    fn conversation(&mut self) -> &mut Conversation;

    /// Tokens of thinking at most; `None` is as many as it takes.
    fn thinking_budget(&mut self) -> &mut Option<usize>;

    /// Whether thinking is shown as it comes.
    fn show_thinking(&mut self) -> &mut bool;

    /// One question and its answer.
    fn turn(&mut self, runtime: &Runtime, text: &str) -> Result<()>;
}

/// Takes what the user types, until there is no more.
pub fn converse(talk: &mut impl Talk) -> Result<()> {
    let mut editor: Editor<SeveralLines, DefaultHistory> =
        Editor::new().context("cannot read from the terminal")?;
    editor.set_helper(Some(SeveralLines));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot listen for Ctrl-C")?;
    eprintln!("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.");
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error).context("cannot read from the terminal"),
        };
        // What fails is only that the line cannot be called up again.
        let _ = editor.add_history_entry(line.trim());
        match Line::parse(&line) {
            Line::Empty => {}
            Line::Message(text) => talk.turn(&runtime, &text)?,
            Line::Retry => match talk.conversation().take_question() {
                Some(text) => talk.turn(&runtime, &text)?,
                None => eprintln!("nothing has been asked yet"),
            },
            Line::Clear => talk.conversation().reset(),
            Line::System(text) => talk.conversation().set_system(text.map(str::to_owned)),
            Line::Budget(None) => eprintln!("{}", budget_in_words(*talk.thinking_budget())),
            Line::Budget(Some(budget)) => {
                *talk.thinking_budget() = budget;
                eprintln!("{}", budget_in_words(budget));
            }
            Line::Thinking(None) => show_thinking(&talk.conversation().thinking())?,
            Line::Thinking(Some(shows)) => *talk.show_thinking() = shows,
            Line::Help => eprintln!("{HELP}"),
            Line::Unknown(line) => eprintln!("{line} is no command; /help lists them"),
            Line::Quit => return Ok(()),
        }
    }
}

fn show_thinking(text: &str) -> Result<()> {
    if text.is_empty() {
        eprintln!("nothing was thought for the last answer");
        return Ok(());
    }
    output::thinking(&format!("{text}\n"))
}

fn budget_in_words(budget: Option<usize>) -> String {
    match budget {
        None => "thinking takes as many tokens as it needs".to_owned(),
        Some(0) => "no thinking".to_owned(),
        Some(tokens) => format!("{tokens} tokens of thinking at most"),
    }
}

/// Has the editor ask for more lines where a message goes on.
struct SeveralLines;

impl Validator for SeveralLines {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        let more = goes_on(context.input());
        Ok(if more { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Completer for SeveralLines {
    type Candidate = String;
}

impl Hinter for SeveralLines {
    type Hint = String;
}

impl Highlighter for SeveralLines {}

impl Helper for SeveralLines {}
