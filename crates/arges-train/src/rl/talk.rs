//! From messages to the tokens that the model goes on from. What it sampled is never rendered again: later messages are
//! put behind it as the template puts them behind any answer.

use arges_text::{ChatTemplate, GuardedChat, TextError, Tokenizer};
use serde_json::{Value, json};

/// Stands for an answer while what follows it is rendered.
const ANSWER: &str = "x";

/// Why messages cannot become tokens.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// The tokenizer or the chat template refuses them.
    #[error(transparent)]
    Text(#[from] TextError),
    /// What follows an answer depends on the answer.
    #[error(
        "the chat template cannot go on after an answer: what it writes before changes with what comes after"
    )]
    NotAPrefix,
    /// The tokenizer names no token that ends a turn.
    #[error("the tokenizer has no end token, so that turns cannot be told apart")]
    NoEnd,
}

/// Tokenizer and chat template of a model.
#[derive(Clone)]
pub struct Talk {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /// The token that ends a turn, and its text.
    end: (u32, String),
}

impl Talk {
    /// # Errors
    /// A tokenizer without an end token.
    pub fn new(tokenizer: Tokenizer, template: ChatTemplate) -> Result<Self, TalkError> {
        let end = tokenizer.end_token().ok_or(TalkError::NoEnd)?;
        let end = (end, tokenizer.decode(&[end]));
        Ok(Self { tokenizer, template, end })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The prompt of a conversation.
    ///
    /// # Errors
    /// Messages that the template refuses.
    pub fn prompt(&self, messages: &[Value], tools: &[Value]) -> Result<Vec<u32>, TalkError> {
        let chat = GuardedChat::new(&self.tokenizer, messages, tools)?;
        Ok(chat.encode(&self.render(&chat, chat.messages.len(), true)?)?)
    }

    /// What stands between an answer that ended with the end token and the next one: `messages`, which follow the answer
    /// to `before`.
    ///
    /// # Errors
    /// Messages that the template refuses, and a template that does not only go on.
    pub fn follow(
        &self,
        before: &[Value],
        messages: &[Value],
        tools: &[Value],
    ) -> Result<Vec<u32>, TalkError> {
        let answer = json!({ "role": "assistant", "content": ANSWER });
        let all: Vec<Value> = before.iter().chain([&answer]).chain(messages).cloned().collect();
        let chat = GuardedChat::new(&self.tokenizer, &all, tools)?;
        let answered = self.render(&chat, before.len() + 1, false)?;
        let whole = self.render(&chat, all.len(), true)?;
        let end = answered.rfind(&self.end.1).map(|at| at + self.end.1.len()).ok_or(TalkError::NotAPrefix)?;
        if !whole.starts_with(&answered[..end]) {
            return Err(TalkError::NotAPrefix);
        }
        Ok(chat.encode(&whole[end..])?)
    }

    fn render(&self, chat: &GuardedChat, messages: usize, ask: bool) -> Result<String, TextError> {
        let tools = (!chat.tools.is_empty()).then_some(chat.tools.as_slice());
        self.template.render(&chat.messages[..messages], tools, ask)
    }

    /// The text of an answer, without the token that ends it.
    pub fn text(&self, answer: &[u32]) -> String {
        let answer = answer.strip_suffix(&[self.end.0]).unwrap_or(answer);
        self.tokenizer.decode(answer)
    }

    /// Whether an answer ended by itself.
    pub fn has_ended(&self, answer: &[u32]) -> bool {
        answer.last() == Some(&self.end.0)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn talk() -> Talk {
        let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
        let template = ChatTemplate::from_dir(&nano).unwrap().unwrap_or_else(ChatTemplate::default_m1);
        Talk::new(Tokenizer::from_dir(&nano).unwrap(), template).unwrap()
    }

    #[test]
    fn what_follows_an_answer_is_what_the_template_writes_after_it() {
        let talk = talk();
        let question = json!({ "role": "user", "content": "What is 2 + 2?" });
        let result = json!({ "role": "tool", "name": "f", "content": "4 <end_of_sentence> 5" });
        let tools = [json!({ "name": "f", "description": "d", "parameters": { "type": "object" } })];
        let before = std::slice::from_ref(&question);
        let prompt = talk.prompt(before, &tools).unwrap();
        let follow = talk.follow(before, std::slice::from_ref(&result), &tools).unwrap();
        let answer = json!({ "role": "assistant", "content": ANSWER });
        let whole = talk.prompt(&[question, answer, result], &tools).unwrap();
        let mut told = prompt;
        told.extend(talk.tokenizer.encode(ANSWER).unwrap());
        told.push(talk.end.0);
        told.extend(follow);
        assert_eq!(talk.tokenizer.decode(&told), talk.tokenizer.decode(&whole));
        // A result cannot end a turn: one end for the system's turn if any, the question, the answer, the result.
        let ends = |tokens: &[u32]| tokens.iter().filter(|token| **token == talk.end.0).count();
        assert_eq!(ends(&told), ends(&whole));
    }

    #[test]
    fn the_text_of_an_answer_is_without_its_end() {
        let talk = talk();
        let mut answer = talk.tokenizer.encode("Answer: 4").unwrap();
        assert!(!talk.has_ended(&answer));
        answer.push(talk.end.0);
        assert!(talk.has_ended(&answer));
        assert_eq!(talk.text(&answer), "Answer: 4");
    }
}
