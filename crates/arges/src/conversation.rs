//! The turns of a conversation, and what the user types between them.

use serde_json::{Value, json};

/// Messages so far, as the chat template reads them.
#[derive(Debug, Default)]
pub struct Conversation {
    system: Option<String>,
    turns: Vec<Value>,
    /// The last question, and how many turns there were before it.
    question: Option<(String, usize)>,
}

impl Conversation {
    pub fn new(system: Option<String>) -> Self {
        Self { system, ..Self::default() }
    }

    /// Sets or removes the system message and begins anew.
    pub fn set_system(&mut self, system: Option<String>) {
        *self = Self::new(system);
    }

    /// Forgets everything but the system message.
    pub fn reset(&mut self) {
        self.turns.clear();
        self.question = None;
    }

    pub fn push_user(&mut self, text: &str) {
        self.question = Some((text.to_owned(), self.turns.len()));
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

    /// Takes the last question and what followed it back, so that it can be asked again.
    pub fn take_question(&mut self) -> Option<String> {
        let (text, before) = self.question.take()?;
        self.turns.truncate(before);
        Some(text)
    }

    /// What was thought for the last question.
    pub fn thinking(&self) -> String {
        let before = self.question.as_ref().map_or(0, |(_, before)| *before);
        let thought = self
            .turns
            .iter()
            .skip(before)
            .filter_map(|turn| turn["reasoning_content"].as_str().or_else(|| turn["reasoning"].as_str()));
        thought.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n\n")
    }

    /// All messages, the system's first.
    pub fn messages(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| json!({ "role": "system", "content": text }));
        system.chain(self.turns.iter().cloned()).collect()
    }
}

/// What the user typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    Empty,
    Message(String),
    Clear,
    Retry,
    System(Option<&'a str>),
    /// Tokens of thinking at most; `Some(None)` is as many as it takes, `None` asks what is set.
    Budget(Option<Option<usize>>),
    /// Whether to show thinking from now on; `None` asks for the last.
    Thinking(Option<bool>),
    Help,
    Quit,
    Unknown(&'a str),
}

/// What `/help` says.
pub const HELP: &str = "\
/retry           answer the last question once more
/clear           forget the conversation
/system TEXT     set the system message and begin anew; without TEXT remove it
/thinking        show what was thought for the last answer; `on` and `off`: as it comes, or folded
/budget N        tokens of thinking at most: 0 is none, `none` no limit; without N say what it is
/quit            leave (or Ctrl-D)
Ctrl-C           stop the answer
\\ at the end     go on in another line; or put several lines between two \"\"\"";

/// Begins and ends a message of several lines.
const FENCE: &str = "\"\"\"";

/// Whether more lines belong to what was typed so far.
pub fn goes_on(input: &str) -> bool {
    match input.trim_start().strip_prefix(FENCE) {
        Some(rest) => !rest.trim_end().ends_with(FENCE),
        None => input.ends_with('\\'),
    }
}

impl<'a> Line<'a> {
    /// What begins with a slash is a command.
    pub fn parse(line: &'a str) -> Line<'a> {
        let line = line.trim();
        if let Some(text) = line.strip_prefix(FENCE) {
            let text = text.strip_suffix(FENCE).unwrap_or(text).trim_matches('\n');
            return if text.trim().is_empty() { Line::Empty } else { Line::Message(text.to_owned()) };
        }
        if line.is_empty() {
            return Line::Empty;
        }
        let Some(command) = line.strip_prefix('/') else {
            return Line::Message(line.replace("\\\n", "\n"));
        };
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match (name, rest) {
            ("system", "") => Line::System(None),
            ("system", text) => Line::System(Some(text)),
            ("clear" | "reset", "") => Line::Clear,
            ("retry", "") => Line::Retry,
            ("budget", "") => Line::Budget(None),
            ("budget", "none") => Line::Budget(Some(None)),
            ("budget", tokens) => {
                tokens.parse().map_or(Line::Unknown(line), |tokens| Line::Budget(Some(Some(tokens))))
            }
            ("thinking", "") => Line::Thinking(None),
            ("thinking", "on") => Line::Thinking(Some(true)),
            ("thinking", "off") => Line::Thinking(Some(false)),
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
            ("  hello there ", Line::Message("hello there".to_owned())),
            ("one\\\n two", Line::Message("one\n two".to_owned())),
            ("\"\"\"\n/one\n  two\n\"\"\"", Line::Message("/one\n  two".to_owned())),
            ("\"\"\"\n\"\"\"", Line::Empty),
            ("/retry", Line::Retry),
            ("/clear", Line::Clear),
            ("/budget", Line::Budget(None)),
            ("/budget 512", Line::Budget(Some(Some(512)))),
            ("/budget none", Line::Budget(Some(None))),
            ("/budget -1", Line::Unknown("/budget -1")),
            ("/thinking", Line::Thinking(None)),
            ("/thinking on", Line::Thinking(Some(true))),
            ("", Line::Empty),
            ("   ", Line::Empty),
            ("/reset", Line::Clear),
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
    fn a_message_goes_on_after_a_backslash_and_within_a_fence() {
        for (input, expected) in [
            ("hello", false),
            ("hello \\", true),
            ("hello \\\nthere", false),
            ("\"\"\"", true),
            ("\"\"\"one\ntwo", true),
            ("\"\"\"one\ntwo\"\"\"", false),
        ] {
            assert_eq!(goes_on(input), expected, "{input:?}");
        }
    }

    #[test]
    fn a_question_can_be_asked_again_whatever_came_of_it() {
        let mut conversation = Conversation::default();
        assert_eq!(conversation.take_question(), None);
        conversation.push_user("a");
        conversation.push_assistant("t", "b");
        assert_eq!(conversation.thinking(), "t");
        conversation.push_user("c");
        assert_eq!(conversation.thinking(), "");
        // It failed.
        conversation.pop();
        assert_eq!(conversation.take_question().as_deref(), Some("c"));
        assert_eq!(conversation.messages().len(), 2);
        conversation.push_user("c");
        conversation.push(json!({ "role": "assistant", "content": "", "reasoning_content": "u" }));
        conversation.push(json!({ "role": "tool", "content": "r" }));
        conversation.push_assistant("v", "d");
        assert_eq!(conversation.thinking(), "u\n\nv");
        assert_eq!(conversation.take_question().as_deref(), Some("c"));
        assert_eq!(conversation.messages().len(), 2);
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
