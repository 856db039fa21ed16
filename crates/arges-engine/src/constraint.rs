//! An answer that has to keep to a grammar, which begins where the thinking ends.

use arges_text::THINK_OPEN;
use arges_text::grammar::{GrammarError, GrammarState};

use crate::text::TextStream;

/// Follows a sequence to the beginning of its answer, and the answer through its grammar.
pub(crate) struct Constraint {
    stage: Stage,
    grammar: GrammarState,
    /// The tokens that open thinking.
    think: Vec<u32>,
    /// Words of a mask.
    mask: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The model either opens thinking, of which so many tokens are there, or begins its answer, which those tokens
    /// may be as well.
    Opening {
        matched: usize,
        answering: bool,
    },
    Thinking,
    Answering,
}

/// What a constraint says of the next token.
#[derive(Debug)]
pub(crate) enum Allowed<'a> {
    /// All but end tokens: the answer is still to come.
    Thinking,
    /// The tokens of a mask.
    Mask(&'a [u32]),
}

impl Constraint {
    pub fn new(grammar: GrammarState, text: &TextStream) -> Self {
        // Always with a line break, as the model was taught.
        let think = text.tokenizer().encode(&format!("{THINK_OPEN}\n")).unwrap_or_default();
        let stage = match () {
            () if text.is_thinking() => Stage::Thinking,
            () if text.is_answering() || think.is_empty() => Stage::Answering,
            () => Stage::Opening { matched: 0, answering: true },
        };
        Self { stage, grammar, think, mask: Vec::new() }
    }

    /// Whether the answer has not begun, so that a token may have to be cut where it does.
    pub fn is_thinking(&self) -> bool {
        self.stage == Stage::Thinking
    }

    /// Whether the answer is complete.
    pub fn is_finished(&self) -> bool {
        self.stage == Stage::Answering && self.grammar.is_finished()
    }

    /// What may come next.
    pub fn allowed(&mut self) -> Result<Allowed<'_>, GrammarError> {
        match self.stage {
            Stage::Thinking => Ok(Allowed::Thinking),
            Stage::Answering => self.grammar.mask().map(Allowed::Mask),
            Stage::Opening { matched, answering } => {
                self.mask.clear();
                if answering {
                    self.mask.extend_from_slice(self.grammar.mask()?);
                }
                let next = self.think[matched] as usize;
                let length = self.mask.len().max(next / 32 + 1);
                self.mask.resize(length, 0);
                self.mask[next / 32] |= 1 << (next % 32);
                Ok(Allowed::Mask(&self.mask))
            }
        }
    }

    /// Notes a token, which `text` has already taken.
    pub fn accept(&mut self, id: u32, text: &TextStream) -> Result<(), GrammarError> {
        match self.stage {
            Stage::Thinking => {
                if text.is_answering() && !text.lacks_line_break() {
                    self.stage = Stage::Answering;
                }
            }
            Stage::Answering => self.grammar.accept(id)?,
            Stage::Opening { matched, answering } => {
                let answering = answering && self.grammar.allows(id);
                if answering {
                    self.grammar.accept(id)?;
                }
                if id != self.think[matched] {
                    self.stage = Stage::Answering;
                } else if matched + 1 < self.think.len() {
                    self.stage = Stage::Opening { matched: matched + 1, answering };
                } else {
                    self.grammar.restart()?;
                    self.stage = Stage::Thinking;
                }
            }
        }
        Ok(())
    }
}
