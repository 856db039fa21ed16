//! What a model wrote, told apart as it comes: thinking, content, calls of tools.
//!
//! M1 writes `<think>\n…\n</think>\n` and then its answer, and in the answer calls of tools as
//! `<tool_calls>\n{"name": …, "arguments": {…}}\n…\n</tool_calls>`. The tags are ordinary text of several tokens, so
//! both parsers work on characters. What they give is the same however the text was cut into pieces, and nothing is
//! lost: text that only looks like markup comes out as what it stands in.

mod call;
mod json;
mod tag;
mod thinking;
mod tool_calls;

pub use thinking::{Divided, ThinkingParser};
pub use tool_calls::{AnswerPart, ToolCallParser};

/// Opens the block in which a model thinks.
pub const THINK_OPEN: &str = "<think>";
/// Closes the block in which a model thinks.
pub const THINK_CLOSE: &str = "</think>";
/// Opens a block of calls.
pub const CALLS_OPEN: &str = "<tool_calls>";
/// Closes a block of calls.
pub const CALLS_CLOSE: &str = "</tool_calls>";

/// What ends thinking that the model has not ended itself: a few words, so that what follows is an answer. After a block
/// that says nothing, a model that was taught to think goes on to think outside it.
pub const END_OF_THINKING: &str = "That is enough thinking; now the answer.\n</think>\n";

/// What a prompt ends with where the model is not to think: a block that is over, or the end of one that the prompt has
/// opened.
pub fn without_thinking(prompt: &str) -> String {
    let open = if ThinkingParser::after(prompt).is_thinking() { "" } else { "<think>\n" };
    format!("{open}{END_OF_THINKING}")
}
