//! Records to samples: token ids, and which of them are learned.

use arges_text::{ChatTemplate, TextError, Tokenizer};
use serde_json::{Map, Value};

use super::{EncodeError, Record};

/// Marks a document's begin and end, where the tokenizer has them.
const BEGIN_OF_DOCUMENT: &str = "<begin_of_document>";
const END_OF_DOCUMENT: &str = "<end_of_document>";

/// Characters that text hardly ever holds: Unicode sets them aside for private use.
const PRIVATE_USE: [std::ops::RangeInclusive<char>; 2] = ['\u{fdd0}'..='\u{fdef}', '\u{e000}'..='\u{f8ff}'];

/// A sequence to train on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Whether each token is to be predicted. The first never is: nothing stands before it.
    pub learn: Vec<bool>,
}

impl Sample {
    /// Tokens that are predicted.
    pub fn targets(&self) -> usize {
        self.learn.iter().skip(1).filter(|learn| **learn).count()
    }

    /// The sample in pieces of at most `length` tokens. A piece begins with the last token of the one before, so that
    /// every token but the very first is predicted once.
    pub fn split(self, length: usize) -> Vec<Self> {
        if self.tokens.len() <= length {
            return vec![self];
        }
        let starts = (0..self.tokens.len() - 1).step_by(length - 1);
        let piece = |start: usize| {
            let end = (start + length).min(self.tokens.len());
            Self { tokens: self.tokens[start..end].to_vec(), learn: self.learn[start..end].to_vec() }
        };
        starts.map(piece).collect()
    }

    fn push(&mut self, tokens: &[u32], learn: bool) {
        self.tokens.extend_from_slice(tokens);
        self.learn.resize(self.tokens.len(), learn);
    }
}

/// Tokenizer and chat template of a model.
pub struct Encoder {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    vocab_size: usize,
    /// The special tokens as they are written.
    specials: Vec<String>,
    begin: Option<u32>,
    end: Option<u32>,
}

impl Encoder {
    /// `vocab_size` is that of the model, which may be larger than the tokenizer's.
    pub fn new(tokenizer: Tokenizer, template: ChatTemplate, vocab_size: usize) -> Self {
        let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let special = |id: u32| tokenizer.is_special(id).then(|| tokenizer.token_bytes(id)).flatten();
        let specials = ids.filter_map(|id| String::from_utf8(special(id)?).ok());
        let specials = specials.filter(|token| !token.is_empty()).collect();
        let (begin, end) = (tokenizer.id_of(BEGIN_OF_DOCUMENT), tokenizer.id_of(END_OF_DOCUMENT));
        Self { tokenizer, template, vocab_size, specials, begin, end }
    }

    /// The samples of a record. A text is one, learned whole. A conversation is one too, unless its template writes
    /// earlier turns otherwise than the last (M1's leaves out earlier thinking): then there is one for each question
    /// whose answers the later ones do not show as they were written. With `answers_only` only what the assistant
    /// wrote is learned, its thinking, its calls and the token that ends its turn included; otherwise all.
    ///
    /// # Errors
    /// A record that tokenizer or template refuse.
    pub fn samples(&self, record: &Record, answers_only: bool) -> Result<Vec<Sample>, EncodeError> {
        let samples = match record {
            Record::Text(text) if text.is_empty() => Vec::new(),
            Record::Text(text) => vec![self.text(text)?],
            Record::Conversation { messages, tools } => self.conversation(messages, tools, answers_only)?,
        };
        let mut tokens = samples.iter().flat_map(|sample| &sample.tokens);
        match tokens.find(|token| **token as usize >= self.vocab_size) {
            Some(&token) => Err(EncodeError::Vocabulary { token, vocab_size: self.vocab_size }),
            None => Ok(samples),
        }
    }

    fn text(&self, text: &str) -> Result<Sample, TextError> {
        let mut tokens: Vec<u32> = self.begin.into_iter().collect();
        for piece in self.without_specials(text) {
            tokens.append(&mut self.tokenizer.encode(piece)?);
        }
        tokens.extend(self.end);
        let learn = vec![true; tokens.len()];
        Ok(Sample { tokens, learn })
    }

    /// The text in pieces, cut within every special token that it spells, so that text stays text.
    fn without_specials<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let inside = |token: &String| token.chars().next().map_or(1, char::len_utf8);
        let mut cuts: Vec<usize> = Vec::new();
        for token in &self.specials {
            cuts.extend(text.match_indices(token.as_str()).map(|(at, _)| at + inside(token)));
        }
        cuts.sort_unstable();
        cuts.dedup();
        let ends = cuts.iter().copied().chain([text.len()]);
        ends.scan(0, |start, end| Some(&text[std::mem::replace(start, end)..end])).collect()
    }

    fn conversation(
        &self,
        messages: &[Value],
        tools: &[Value],
        answers_only: bool,
    ) -> Result<Vec<Sample>, EncodeError> {
        let messages: Vec<Value> = messages.iter().cloned().map(read_arguments).collect();
        let guard = Guard::new(&self.specials, &messages, tools);
        let messages: Vec<Value> = messages.iter().map(|message| guard.hide(message)).collect();
        let tools: Vec<Value> = tools.iter().map(|tool| guard.hide(tool)).collect();
        let conversation = Conversation { template: &self.template, messages: &messages, tools: &tools };
        let rounds = conversation.rounds(answers_only)?;
        rounds.iter().map(|round| Ok(self.round(round, &guard, answers_only)?)).collect()
    }

    /// A rendered conversation is tokenised in the pieces that generation would see: a prompt, an answer, the next
    /// prompt.
    fn round(&self, round: &Round, guard: &Guard, answers_only: bool) -> Result<Sample, TextError> {
        let mut sample = Sample { tokens: Vec::new(), learn: Vec::new() };
        let mut end = 0;
        for answer in &round.answers {
            sample.push(&self.encode(&round.text[end..answer.start], guard)?, !answers_only);
            let tokens = self.encode(&round.text[answer.start..answer.end], guard)?;
            let turn = self.end_of_turn(&tokens);
            sample.push(&tokens[..turn], answer.learn || !answers_only);
            sample.push(&tokens[turn..], !answers_only);
            end = answer.end;
        }
        sample.push(&self.encode(&round.text[end..], guard)?, !answers_only);
        Ok(sample)
    }

    /// How many tokens of an answer the model writes: up to the one that ends its turn. Templates put a line break
    /// after it.
    fn end_of_turn(&self, tokens: &[u32]) -> usize {
        let end = self.tokenizer.end_token();
        tokens.iter().rposition(|token| Some(*token) == end).map_or(tokens.len(), |place| place + 1)
    }

    fn encode(&self, text: &str, guard: &Guard) -> Result<Vec<u32>, TextError> {
        let Some(mark) = guard.mark else { return self.tokenizer.encode(text) };
        let mut tokens = Vec::new();
        for piece in text.split(mark) {
            tokens.append(&mut self.tokenizer.encode(piece)?);
        }
        Ok(tokens)
    }
}

/// Keeps special tokens that someone wrote in a message apart from those that the template writes: a character that
/// stands nowhere else is put into them, and text is cut there before it is tokenised.
struct Guard<'a> {
    specials: &'a [String],
    /// `None` where there is nothing to hide.
    mark: Option<char>,
}

impl<'a> Guard<'a> {
    fn new(specials: &'a [String], messages: &[Value], tools: &[Value]) -> Self {
        let values = || messages.iter().chain(tools);
        let spelled =
            values().any(|value| any_string(value, &|s| specials.iter().any(|t| s.contains(t.as_str()))));
        let unused = |mark: &char| !values().any(|value| any_string(value, &|text| text.contains(*mark)));
        Self { specials, mark: spelled.then(|| PRIVATE_USE.into_iter().flatten().find(unused)).flatten() }
    }

    /// The value with the mark put into every special token of its strings.
    fn hide(&self, value: &Value) -> Value {
        let Some(mark) = self.mark else { return value.clone() };
        match value {
            Value::String(text) => Value::String(self.hide_in(text, mark)),
            Value::Array(items) => items.iter().map(|item| self.hide(item)).collect(),
            Value::Object(fields) => {
                let hidden = |(name, value): (&String, &Value)| (self.hide_in(name, mark), self.hide(value));
                Value::Object(fields.iter().map(hidden).collect())
            }
            other => other.clone(),
        }
    }

    fn hide_in(&self, text: &str, mark: char) -> String {
        self.specials.iter().filter(|token| token.chars().count() > 1).fold(text.to_owned(), |text, token| {
            let first = token.chars().next().map_or(0, char::len_utf8);
            text.replace(token.as_str(), &format!("{}{mark}{}", &token[..first], &token[first..]))
        })
    }
}

/// Whether a string somewhere in a value, or a name of a field, has a property.
fn any_string(value: &Value, holds: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => holds(text),
        Value::Array(items) => items.iter().any(|item| any_string(item, holds)),
        Value::Object(fields) => fields.iter().any(|(name, value)| holds(name) || any_string(value, holds)),
        _ => false,
    }
}

/// The message with the arguments of its calls as objects. Templates are given those that are JSON in a string as
/// what they spell, and `\u003c` spells the begin of many a special token.
fn read_arguments(mut message: Value) -> Value {
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        if let Some(arguments) = call.pointer_mut("/function/arguments")
            && let Some(Ok(read)) = arguments.as_str().map(serde_json::from_str::<Map<String, Value>>)
        {
            *arguments = Value::Object(read);
        }
    }
    message
}

struct Conversation<'a> {
    template: &'a ChatTemplate,
    messages: &'a [Value],
    tools: &'a [Value],
}

/// An answer as it is written when nothing comes after it.
struct Written {
    message: usize,
    /// Where it begins in the text: all before is its prompt.
    start: usize,
    text: String,
    learned: bool,
}

/// A conversation up to some point, rendered, with the answers in it.
struct Round {
    text: String,
    answers: Vec<Answer>,
}

/// Bytes of an answer in its text, and whether it is learned here.
struct Answer {
    start: usize,
    end: usize,
    learn: bool,
}

impl Conversation<'_> {
    fn render(&self, messages: usize, ask: bool) -> Result<String, TextError> {
        let tools = (!self.tools.is_empty()).then_some(self.tools);
        self.template.render(&self.messages[..messages], tools, ask)
    }

    fn is(&self, message: usize, role: &str) -> bool {
        self.messages[message]["role"] == role
    }

    /// Each answer is learned once, in the longest beginning of the conversation that shows it as it was written.
    /// Where not only answers are learned, the whole conversation is a round in any case.
    fn rounds(&self, answers_only: bool) -> Result<Vec<Round>, EncodeError> {
        let answers = (0..self.messages.len()).filter(|message| self.is(*message, "assistant"));
        let mut answers = answers.map(|message| self.written(message)).collect::<Result<Vec<_>, _>>()?;
        let mut rounds = Vec::new();
        for end in (1..=self.messages.len()).rev().filter(|end| self.may_end(*end, answers_only)) {
            let wanted = |answer: &Written| answer.message < end && !answer.learned;
            let whole = end == self.messages.len() && !answers_only;
            if !whole && !answers.iter().any(wanted) {
                continue;
            }
            let round = self.round(end, &mut answers)?;
            if whole || round.answers.iter().any(|answer| answer.learn) {
                rounds.push(round);
            }
        }
        if let Some(Written { message, .. }) = answers.iter().find(|answer| !answer.learned) {
            return Err(EncodeError::NotAPrefix { message: *message });
        }
        rounds.reverse();
        Ok(rounds)
    }

    fn written(&self, message: usize) -> Result<Written, EncodeError> {
        let (prompt, text) = (self.render(message, true)?, self.render(message + 1, false)?);
        match text.starts_with(&prompt) {
            true => Ok(Written { message, start: prompt.len(), text, learned: false }),
            false => Err(EncodeError::NotAPrefix { message }),
        }
    }

    /// Whether a round may end there: before a question, after an answer, or with the conversation, but not with a
    /// question that only answers could follow.
    fn may_end(&self, end: usize, answers_only: bool) -> bool {
        match end == self.messages.len() {
            true => !answers_only || !self.is(end - 1, "user"),
            false => self.is(end - 1, "assistant") || (self.is(end, "user") && !self.is(end - 1, "user")),
        }
    }

    /// The conversation up to `end`; answers that it shows as they were written are learned from then on.
    fn round(&self, end: usize, answers: &mut [Written]) -> Result<Round, TextError> {
        let mut round = Round { text: self.render(end, false)?, answers: Vec::new() };
        for answer in answers.iter_mut().filter(|answer| answer.message < end) {
            let free = round.answers.last().is_none_or(|before| before.end <= answer.start);
            if free && round.text.starts_with(&answer.text) {
                let learn = !std::mem::replace(&mut answer.learned, true);
                round.answers.push(Answer { start: answer.start, end: answer.text.len(), learn });
            }
        }
        Ok(round)
    }
}

#[cfg(test)]
mod tests;
