//! The turns of a conversation, and what the user types between them.

use serde_json::{Value, json};

/// Messages so far, as the chat template reads them.
#[derive(Debug, Default)]
pub struct Conversation {
    system: Option<String>,
    turns: Vec<Value>,
}

impl Conversation {
    pub fn new(system: Option<String>) -> Self {
        Self { system, turns: Vec::new() }
    }

    /// Sets or removes the system message and begins anew.
    pub fn set_system(&mut self, system: Option<String>) {
        *self = Self::new(system);
    }

    /// Forgets everything but the system message.
    pub fn reset(&mut self) {
        self.turns.clear();
    }

    pub fn push_user(&mut self, text: &str) {
        self.turns.push(json!({ "role": "user", "content": text }));
    }

    /// Adds an answer, its thinking apart from the rest: templates leave out what was thought in earlier turns.
    pub fn push_assistant(&mut self, reasoning: &str, answer: &str) {
        self.turns.push(json!({ "role": "assistant", "content": answer, "reasoning_content": reasoning }));
    }

    /// Adds a message as it is.
    pub fn push(&mut self, message: Value) {
        self.turns.push(message);
    }

    /// Takes the last turn back.
    pub fn pop(&mut self) {
        self.turns.pop();
    }

    /// All messages, the system's first.
    pub fn messages(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| json!({ "role": "system", "content": text }));
        system.chain(self.turns.iter().cloned()).collect()
    }
}

/// A line that the user typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    Empty,
    Message(&'a str),
    Reset,
    System(Option<&'a str>),
    Help,
    Quit,
    Unknown(&'a str),
}

/// What `/help` says.
pub const HELP: &str = "\
/reset         forget the conversation
/system TEXT   set the system message and begin anew; without TEXT remove it
/quit          leave (or Ctrl-D)
Ctrl-C         stop the answer";

impl<'a> Line<'a> {
    /// Lines that begin with a slash are commands.
    pub fn parse(line: &'a str) -> Line<'a> {
        let line = line.trim();
        if line.is_empty() {
            return Line::Empty;
        }
        let Some(command) = line.strip_prefix('/') else { return Line::Message(line) };
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match (name, rest) {
            ("system", "") => Line::System(None),
            ("system", text) => Line::System(Some(text)),
            ("reset", "") => Line::Reset,
            ("help", "") => Line::Help,
            ("quit" | "exit", "") => Line::Quit,
            _ => Line::Unknown(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_but_for_commands() {
        for (line, expected) in [
            ("  hello there ", Line::Message("hello there")),
            ("", Line::Empty),
            ("   ", Line::Empty),
            ("/reset", Line::Reset),
            ("/system  Be brief. ", Line::System(Some("Be brief."))),
            ("/system", Line::System(None)),
            ("/help", Line::Help),
            ("/quit", Line::Quit),
            ("/exit", Line::Quit),
            ("/quit now", Line::Unknown("/quit now")),
            ("/sytsem x", Line::Unknown("/sytsem x")),
        ] {
            assert_eq!(Line::parse(line), expected, "{line:?}");
        }
    }

    #[test]
    fn a_reset_keeps_the_system_message_and_a_new_one_forgets_the_turns() {
        let mut conversation = Conversation::new(Some("s".into()));
        conversation.push_user("u");
        conversation.push_assistant("t", "a");
        let roles = |conversation: &Conversation| -> Vec<String> {
            conversation.messages().iter().map(|m| m["role"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(roles(&conversation), ["system", "user", "assistant"]);
        assert_eq!(conversation.messages()[2]["reasoning_content"], "t");
        conversation.pop();
        assert_eq!(roles(&conversation), ["system", "user"]);
        conversation.reset();
        assert_eq!(roles(&conversation), ["system"]);
        conversation.push_user("u");
        conversation.set_system(None);
        assert!(conversation.messages().is_empty());
    }
}
