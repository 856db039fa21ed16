//! Tokens to text: thinking, and an answer up to a stop string.

use arges_text::{Detokenizer, Divided, StopStrings, ThinkingParser, Tokenizer};

use crate::request::StopCause;

/// Text that became certain, and the stop string that ended it.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub reasoning: String,
    pub answer: String,
    pub stop: Option<StopCause>,
}

/// Turns a sequence's tokens into text.
pub(crate) struct TextStream {
    tokenizer: Tokenizer,
    detokenizer: Detokenizer,
    /// `None` where thinking is not told apart.
    thinking: Option<ThinkingParser>,
    stops: Option<StopStrings>,
}

impl TextStream {
    pub fn new(tokenizer: Tokenizer, thinking: Option<ThinkingParser>, stops: Vec<String>) -> Self {
        let stops = (!stops.is_empty()).then(|| StopStrings::new(stops));
        Self { detokenizer: Detokenizer::new(tokenizer.clone()), tokenizer, thinking, stops }
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether the text so far ends within thinking.
    pub fn is_thinking(&self) -> bool {
        self.thinking.as_ref().is_some_and(ThinkingParser::is_thinking)
    }

    /// Whether what follows is of the answer.
    pub fn is_answering(&self) -> bool {
        self.thinking.as_ref().is_none_or(ThinkingParser::is_answering)
    }

    /// Whether thinking has just ended, and the line break after it has not come.
    pub fn lacks_line_break(&self) -> bool {
        self.thinking.as_ref().is_some_and(ThinkingParser::just_closed)
    }

    /// Text that a token makes certain.
    pub fn push(&mut self, id: u32, looks_for_stops: bool) -> Piece {
        let text = self.detokenizer.push(id);
        let Divided { reasoning, answer } = divide(&mut self.thinking, text);
        match &mut self.stops {
            Some(stops) if looks_for_stops => {
                let found = stops.push(&answer);
                Piece { reasoning, answer: found.text, stop: found.stopped.map(StopCause::Text) }
            }
            _ => Piece { reasoning, answer, stop: None },
        }
    }

    /// The text still held back.
    pub fn finish(&mut self) -> Piece {
        let rest = self.detokenizer.finish();
        let Divided { mut reasoning, mut answer } = divide(&mut self.thinking, rest);
        if let Some(thinking) = &mut self.thinking {
            let last = thinking.finish();
            reasoning += &last.reasoning;
            answer += &last.answer;
        }
        let Some(stops) = &mut self.stops else { return Piece { reasoning, answer, stop: None } };
        let found = stops.push(&answer);
        match found.stopped {
            Some(index) => Piece { reasoning, answer: found.text, stop: Some(StopCause::Text(index)) },
            None => Piece { reasoning, answer: found.text + &stops.finish(), stop: None },
        }
    }

    /// The tokens to write instead of `id`, if that would end thinking and begin the answer at once: what goes beyond
    /// the end of the block and a line break is left out.
    pub fn cut_at_answer(&self, id: u32) -> Option<Vec<u32>> {
        let mut thinking = self.thinking.clone().filter(ThinkingParser::is_thinking)?;
        let text = self.detokenizer.clone().push(id);
        let beyond = thinking.push(&text).answer;
        if beyond.is_empty() {
            return None;
        }
        let kept = self.tokenizer.encode(text.strip_suffix(&beyond)?).ok()?;
        (!kept.is_empty()).then_some(kept)
    }
}

fn divide(thinking: &mut Option<ThinkingParser>, text: String) -> Divided {
    match thinking {
        Some(thinking) => thinking.push(&text),
        None => Divided { reasoning: String::new(), answer: text },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arges_text::train::{TokenizerTraining, train_tokenizer};

    /// A tokenizer in which a bracket and what follows it may be one token.
    fn tokenizer() -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        let texts = [">{ >\n\n >{ </think>{ </think".repeat(20)];
        train_tokenizer(texts.into_iter(), &TokenizerTraining::new(266)).unwrap().write(dir.path()).unwrap();
        Tokenizer::from_dir(dir.path()).unwrap()
    }

    #[test]
    fn a_token_that_ends_thinking_and_begins_the_answer_is_cut_between_them() {
        let tokenizer = tokenizer();
        let single = |text: &str| match tokenizer.encode(text).unwrap()[..] {
            [id] => id,
            ref ids => panic!("{text:?} is {ids:?}"),
        };
        let joined = single(">{");
        let mut stream =
            TextStream::new(tokenizer.clone(), Some(ThinkingParser::after("<think>")), Vec::new());
        assert_eq!(stream.cut_at_answer(joined), None);
        for id in tokenizer.encode("hm</think").unwrap() {
            stream.push(id, false);
        }
        assert_eq!(stream.cut_at_answer(joined), Some(vec![u32::from(b'>')]));
        assert_eq!(stream.cut_at_answer(u32::from(b'>')), None);
        stream.push(u32::from(b'>'), false);
        assert!(stream.is_answering() && stream.lacks_line_break());
        assert_eq!(stream.cut_at_answer(joined), None);
    }
}
