//! The prompt of `generate` and `score`: text, token ids, or standard input.

use std::io::{self, IsTerminal, Read};

use anyhow::{Context, Result};
use arges_text::Tokenizer;
use clap::Args;

use crate::failure::usage;

/// Where the prompt comes from.
#[derive(Debug, Args)]
pub struct PromptArgs {
    /// The text; from standard input, without its last line break, if it is - or missing
    #[arg(value_name = "TEXT", conflicts_with = "ids")]
    pub text: Option<String>,
    /// Token ids instead of a text: 1,2,3, or @FILE with ids separated by commas or white space
    #[arg(long, value_name = "IDS|@FILE")]
    pub ids: Option<String>,
}

impl PromptArgs {
    /// The prompt's token ids; at least one.
    ///
    /// # Errors
    /// No prompt or an empty one, ids that are none, a file that cannot be read, or text without a tokenizer.
    pub fn read(&self, tokenizer: impl FnOnce() -> Result<Tokenizer>, vocab_size: usize) -> Result<Vec<u32>> {
        let ids = match &self.ids {
            Some(ids) => self.read_ids(ids)?,
            None => {
                let tokenizer = tokenizer()?;
                tokenizer.encode(&self.read_text()?)?
            }
        };
        if ids.is_empty() {
            return Err(usage("the prompt is empty: give a TEXT, or --ids with at least one token id"));
        }
        match ids.iter().find(|id| **id as usize >= vocab_size) {
            Some(id) => Err(usage(format!(
                "token id {id} is not in the model's vocabulary: ids go from 0 to {}",
                vocab_size - 1
            ))),
            None => Ok(ids),
        }
    }

    fn read_ids(&self, ids: &str) -> Result<Vec<u32>> {
        let Some(file) = ids.strip_prefix('@') else { return parse_ids(ids) };
        let text = match file {
            "-" => io::read_to_string(io::stdin()).context("cannot read standard input"),
            file => {
                std::fs::read_to_string(file).with_context(|| format!("cannot read token ids from {file}"))
            }
        };
        parse_ids(&text?)
    }

    fn read_text(&self) -> Result<String> {
        match self.text.as_deref() {
            Some("-") => stdin_text(),
            Some(text) => Ok(text.to_owned()),
            None if io::stdin().is_terminal() => {
                Err(usage("there is no prompt: give a TEXT, --ids, or something on standard input"))
            }
            None => stdin_text(),
        }
    }
}

/// Standard input without its last line break, which is the shell's.
pub fn stdin_text() -> Result<String> {
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
    let mut text = String::from_utf8(bytes).context("standard input is not UTF-8 text")?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// Ids separated by commas or white space, perhaps in brackets as JSON has them.
fn parse_ids(text: &str) -> Result<Vec<u32>> {
    let text = text.trim();
    let text = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    text.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .map(|word| word.parse().map_err(|_| usage(format!("`{word}` is not a token id"))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_may_be_separated_by_commas_white_space_or_both() {
        for text in ["1,2,30", "1 2\n30\n", "[1, 2, 30]", " 1,2 ,30, "] {
            assert_eq!(parse_ids(text).unwrap(), [1, 2, 30], "{text:?}");
        }
        assert_eq!(parse_ids("").unwrap(), [0u32; 0]);
        for wrong in ["1,x", "-1", "4294967296", "[1,2"] {
            assert!(parse_ids(wrong).is_err(), "{wrong}");
        }
    }
}
