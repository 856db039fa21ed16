//! From grammars to masks of tokens.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use llguidance::api::ParserLimits;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use super::{AnswerGrammar, GrammarError};
use crate::{TextError, Tokenizer};

/// Stack of the thread that compiles, in bytes. Compilation recurses as deep as the grammar nests, whose length is
/// limited; what is not touched takes no memory.
const STACK: usize = 256 << 20;
/// Longest reason given for a failure, in characters: llguidance's may hold the whole grammar.
const MAX_REASON: usize = 300;

/// Compiles grammars for one tokenizer.
pub struct GrammarCompiler {
    factory: ParserFactory,
}

impl GrammarCompiler {
    /// A compiler for the tokens of `tokenizer`: a prefix tree of all of them is made, which takes a moment for a
    /// large vocabulary.
    ///
    /// # Errors
    /// [`TextError::Grammar`] where llguidance refuses the vocabulary.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, TextError> {
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie(tokenizer)));
        let factory = ParserFactory::new_simple(&environment);
        let mut factory = factory.map_err(|error| TextError::Grammar { reason: error.to_string() })?;
        factory.quiet();
        // A second of work at the very most, and some tens of megabytes.
        *factory.limits_mut() = ParserLimits {
            initial_lexer_fuel: 1_000_000,
            step_lexer_fuel: 200_000,
            step_max_items: 50_000,
            max_items_in_row: 5_000,
            max_lexer_states: 10_000,
            max_grammar_size: 60_000,
            precompute_large_lexemes: false,
            verbose_errors: false,
        };
        Ok(Self { factory })
    }

    /// Compiles what an answer may be. Takes up to a second of the processor; not for threads that others wait for.
    ///
    /// # Errors
    /// A grammar that is too large, malformed or not supported.
    pub fn compile(&self, answer: &AnswerGrammar) -> Result<Grammar, GrammarError> {
        let grammar = answer.lower()?;
        let compile = || {
            let mut matcher = Matcher::new(self.factory.create_parser(grammar));
            match matcher.get_error() {
                Some(reason) => Err(GrammarError::Invalid(brief(&reason))),
                // The first mask is the one that most often takes too much.
                None => matcher.compute_mask_or_eos().map(|_| matcher).map_err(|error| invalid(&error)),
            }
        };
        let compiled = thread::scope(|scope| {
            let worker = thread::Builder::new().name("arges-grammar".to_owned()).stack_size(STACK);
            let worker = worker.spawn_scoped(scope, compile).map_err(|error| invalid(&error))?;
            worker.join().map_err(|_| GrammarError::Invalid("it cannot be compiled".to_owned()))?
        });
        let matcher = compiled?;
        Ok(Grammar { shared: Arc::new(Shared { answer: answer.clone(), matcher: Mutex::new(matcher) }) })
    }
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarCompiler").finish_non_exhaustive()
    }
}

/// All tokens by their bytes. Special ones stand under bytes that no text has, so that no grammar allows them.
fn trie(tokenizer: &Tokenizer) -> TokTrie {
    let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
    let special = |bytes: &[u8]| [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat();
    let mut words: Vec<Vec<u8>> = ids
        .map(|id| match tokenizer.bytes_of(id) {
            Some(bytes) if tokenizer.is_special(id) => special(bytes),
            Some(bytes) => bytes.to_vec(),
            None => Vec::new(),
        })
        .collect();
    let end = tokenizer.end_token().unwrap_or_else(|| {
        words.push(special(b"<end>"));
        words.len() as u32 - 1
    });
    TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words)
}

/// A compiled grammar. Cheap to clone: what was compiled is shared.
#[derive(Clone)]
pub struct Grammar {
    shared: Arc<Shared>,
}

struct Shared {
    answer: AnswerGrammar,
    /// Before any token. It keeps caches that change as it is used, so everyone gets a copy.
    matcher: Mutex<Matcher>,
}

impl Grammar {
    /// The beginning of an answer.
    pub fn start(&self) -> GrammarState {
        let matcher = self.shared.matcher.lock().unwrap_or_else(PoisonError::into_inner);
        GrammarState { matcher: matcher.deep_clone(), mask: SimpleVob::new() }
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        self.shared.answer == other.shared.answer
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Grammar").field(&self.shared.answer).finish()
    }
}

/// Where an answer is in its grammar.
pub struct GrammarState {
    matcher: Matcher,
    mask: SimpleVob,
}

impl GrammarState {
    /// The tokens that may come next: bit `id % 32` of word `id / 32`. The end token is among them where the answer
    /// may end.
    ///
    /// # Errors
    /// [`GrammarError::TooComplex`].
    pub fn mask(&mut self) -> Result<&[u32], GrammarError> {
        self.mask = self.matcher.compute_mask_or_eos().map_err(|error| too_complex(&error))?;
        Ok(self.mask.as_slice())
    }

    /// Whether `id` was in the mask given last.
    pub fn allows(&self, id: u32) -> bool {
        self.mask.as_slice().get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Goes on with a token that the mask has.
    ///
    /// # Errors
    /// [`GrammarError::TooComplex`], or a token that the mask does not have.
    pub fn accept(&mut self, id: u32) -> Result<(), GrammarError> {
        self.matcher.consume_token(id).map_err(|error| too_complex(&error))
    }

    /// Whether nothing may follow.
    pub fn is_finished(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// Goes back to the beginning.
    ///
    /// # Errors
    /// [`GrammarError::TooComplex`].
    pub fn restart(&mut self) -> Result<(), GrammarError> {
        self.matcher.reset().map_err(|error| too_complex(&error))
    }
}

impl std::fmt::Debug for GrammarState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarState").field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}

fn invalid(error: &dyn std::fmt::Display) -> GrammarError {
    GrammarError::Invalid(brief(&error.to_string()))
}

fn too_complex(error: &dyn std::fmt::Display) -> GrammarError {
    GrammarError::TooComplex(brief(&error.to_string()))
}

/// The first line of a reason, not too long.
fn brief(reason: &str) -> String {
    reason.lines().next().unwrap_or_default().chars().take(MAX_REASON).collect()
}
