//! Records to samples: token ids, and which of them are learned.

use arges_text::{ChatTemplate, GuardedChat, TextError, Tokenizer};
use serde_json::Value;

use super::{EncodeError, Record};

/// Marks a document's begin and end, where the tokenizer has them.
const BEGIN_OF_DOCUMENT: &str = "<begin_of_document>";
const END_OF_DOCUMENT: &str = "<end_of_document>";

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
    begin: Option<u32>,
    end: Option<u32>,
}

impl Encoder {
    /// `vocab_size` is that of the model, which may be larger than the tokenizer's.
    pub fn new(tokenizer: Tokenizer, template: ChatTemplate, vocab_size: usize) -> Self {
        let (begin, end) = (tokenizer.id_of(BEGIN_OF_DOCUMENT), tokenizer.id_of(END_OF_DOCUMENT));
        Self { tokenizer, template, vocab_size, begin, end }
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
        for token in self.tokenizer.special_tokens() {
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
        let guarded = GuardedChat::new(&self.tokenizer, messages, tools)?;
        let conversation =
            Conversation { template: &self.template, messages: &guarded.messages, tools: &guarded.tools };
        let rounds = conversation.rounds(answers_only)?;
        rounds.iter().map(|round| Ok(self.round(round, &guarded, answers_only)?)).collect()
    }

    /// A rendered conversation is tokenised in the pieces that generation would see: a prompt, an answer, the next
    /// prompt.
    fn round(&self, round: &Round, guarded: &GuardedChat, answers_only: bool) -> Result<Sample, TextError> {
        let mut sample = Sample { tokens: Vec::new(), learn: Vec::new() };
        let mut end = 0;
        for answer in &round.answers {
            sample.push(&guarded.encode(&round.text[end..answer.start])?, !answers_only);
            let tokens = guarded.encode(&round.text[answer.start..answer.end])?;
            let turn = self.end_of_turn(&tokens);
            sample.push(&tokens[..turn], answer.learn || !answers_only);
            sample.push(&tokens[turn..], !answers_only);
            end = answer.end;
        }
        sample.push(&guarded.encode(&round.text[end..])?, !answers_only);
        Ok(sample)
    }

    /// How many tokens of an answer the model writes: up to the one that ends its turn. Templates put a line break
    /// after it.
    fn end_of_turn(&self, tokens: &[u32]) -> usize {
        let end = self.tokenizer.end_token();
        tokens.iter().rposition(|token| Some(*token) == end).map_or(tokens.len(), |place| place + 1)
    }
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
