//! Standard output, for results alone.

use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use serde::Serialize;

use crate::failure::output_error;

/// Writes text as it is and makes it visible at once.
pub fn write(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(output_error)
}

/// Writes what a model said. On a terminal without its control characters, which could do there what they like.
pub fn answer(text: &str) -> Result<()> {
    if io::stdout().is_terminal() { write(&printable(text)) } else { write(text) }
}

/// Writes what a model thought: on a terminal as [`answer`], but dimmed.
pub fn thinking(text: &str) -> Result<()> {
    if io::stdout().is_terminal() { write(&dimmed(&printable(text))) } else { write(text) }
}

/// Writes a line over the one before it, dimmed. For a terminal alone.
pub fn status(text: &str) -> Result<()> {
    write(&format!("\r\x1b[2K{}", dimmed(text)))
}

/// The text in faint letters, and after it again in normal ones.
fn dimmed(text: &str) -> String {
    format!("\x1b[2m{text}\x1b[22m")
}

/// The text with U+FFFD for control characters but line breaks and tabs.
fn printable(text: &str) -> String {
    let is_hidden = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    text.chars().map(|c| if is_hidden(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Writes a remark to standard error. What it tells of came from a model or a tool: as [`answer`].
pub fn remark(text: &str) {
    eprintln!("{}", if io::stderr().is_terminal() { printable(text) } else { text.to_owned() });
}

/// Writes a line.
pub fn line(text: &str) -> Result<()> {
    write(&format!("{text}\n"))
}

/// Writes a value as one line of JSON.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_cannot_steer_the_terminal() {
        assert_eq!(printable("a\tb\nü\x1b[2J\r\x07\u{9b}"), "a\tb\nü\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}");
    }
}
