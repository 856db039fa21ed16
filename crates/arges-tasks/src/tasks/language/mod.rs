//! Tasks in words: logic told as statements, things that are counted, sorted, swapped and timed, facts hidden in
//! long texts, and calls of tools.
//!
//! Each is a [`Problem`]: drawn from a random stream, shown as a prompt, answered in one line, and explained in short
//! regular steps that a small model can learn. [`Drawn`] makes a [`Task`] of it.

use std::marker::PhantomData;

use serde_json::Value;

use crate::response::final_answer;
use crate::{Instance, Random, Solution, Task, Verdict};

pub(crate) mod answer;
pub(crate) mod boolean_expressions;
mod brackets;
pub(crate) mod dyck_completion;
pub(crate) mod dyck_errors;
pub(crate) mod goods_exchange;
pub(crate) mod knights_and_knaves;
mod logic;
pub(crate) mod needle;
pub(crate) mod object_counting;
pub(crate) mod propositional_logic;
pub(crate) mod shortest_path;
pub(crate) mod time_sequence;
pub(crate) mod tools;
pub(crate) mod web_of_lies;
pub(crate) mod word_sorting;
pub(crate) mod words;
pub(crate) mod zebra;
mod zebra_clues;

/// Longest final answer that is looked at, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// A problem as it was drawn.
pub(crate) trait Problem: Sized {
    const NAME: &'static str;
    const SUMMARY: &'static str;
    const MAX_DIFFICULTY: u32;

    /// Draws a problem; `difficulty` is from 1 to [`MAX_DIFFICULTY`](Self::MAX_DIFFICULTY).
    fn draw(random: &mut Random, difficulty: u32) -> Self;

    /// The problem of an instance of this task, as its seed and difficulty give it.
    fn redraw(instance: &Instance) -> Option<Self> {
        let difficulty = instance.difficulty;
        (1..=Self::MAX_DIFFICULTY).contains(&difficulty).then(|| Drawn::draw(instance.seed, difficulty))
    }

    /// What the model is asked.
    fn prompt(&self) -> String;

    /// The right answer, or one of them, as the model writes it.
    fn answer(&self) -> String;

    /// The way to the answer, a short line a step.
    fn thinking(&self) -> String;

    /// Answers that are wrong, and near the right one.
    fn wrong_answers(&self) -> Vec<String>;

    /// The visible text of the solution.
    fn visible(&self) -> String {
        format!("Answer: {}", self.answer())
    }

    /// The tools at the model's hand.
    fn tools(&self) -> Vec<Value> {
        Vec::new()
    }

    /// The answer as the instance holds it.
    fn expected(&self) -> Value {
        Value::String(self.answer())
    }

    /// What the verifier needs to know beside the expected answer.
    fn data(&self) -> Value {
        Value::Object(serde_json::Map::new())
    }

    /// Whether judging runs programs in the sandbox.
    fn runs_programs() -> bool {
        false
    }

    /// Judges a final answer, or says what is wrong with it. As given here, it has to be the expected one, word by
    /// word.
    fn check(instance: &Instance, answer: &str) -> Result<(), String> {
        let expected = instance.answer.as_str().ok_or("malformed instance: its answer is no text")?;
        answer::same_words(expected, answer)
    }

    /// Judges a response. As given here, it is the final answer that counts.
    fn verify(instance: &Instance, response: &str) -> Verdict {
        match final_answer(response) {
            None => Verdict::no_answer(),
            Some(answer) if answer.len() > MAX_ANSWER => Verdict::wrong("the answer is too long"),
            Some(answer) => Verdict::from_check(Self::check(instance, answer)),
        }
    }
}

/// The task that draws problems of one kind.
pub(crate) struct Drawn<P>(PhantomData<fn() -> P>);

impl<P: Problem> Drawn<P> {
    pub(crate) const NEW: Self = Self(PhantomData);

    fn draw(seed: u64, difficulty: u32) -> P {
        let difficulty = difficulty.clamp(1, P::MAX_DIFFICULTY);
        P::draw(&mut Random::new(P::NAME, seed, difficulty), difficulty)
    }

    /// The problem an instance was made of. It is drawn again, so that nothing a file says is trusted; none where
    /// that gives another prompt.
    fn problem(instance: &Instance) -> Option<P> {
        if instance.task != P::NAME {
            return None;
        }
        P::redraw(instance).filter(|problem| problem.prompt() == instance.prompt)
    }
}

impl<P: Problem> Task for Drawn<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn summary(&self) -> &'static str {
        P::SUMMARY
    }

    fn max_difficulty(&self) -> u32 {
        P::MAX_DIFFICULTY
    }

    fn runs_programs(&self) -> bool {
        P::runs_programs()
    }

    fn generate(&self, seed: u64, difficulty: u32) -> Instance {
        let problem = Self::draw(seed, difficulty);
        Instance {
            task: P::NAME.to_owned(),
            seed,
            difficulty: difficulty.clamp(1, P::MAX_DIFFICULTY),
            prompt: problem.prompt(),
            tools: problem.tools(),
            answer: problem.expected(),
            data: problem.data(),
        }
    }

    fn verify(&self, instance: &Instance, response: &str) -> Verdict {
        match instance.task == P::NAME {
            true => P::verify(instance, response),
            false => Verdict::wrong(format!("the instance is of {}, not of {}", instance.task, P::NAME)),
        }
    }

    fn solve(&self, instance: &Instance) -> Solution {
        let solution = |p: P| Solution { thinking: Some(p.thinking()), answer: p.visible() };
        Self::problem(instance).map(solution).unwrap_or_default()
    }

    fn wrong_responses(&self, instance: &Instance) -> Vec<String> {
        Self::problem(instance).map(|problem| problem.wrong_answers()).unwrap_or_default()
    }
}
