//! What puzzles have in common, and how one becomes a task.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::solver::Step;
use crate::response::final_answer;
use crate::{Instance, Random, Solution, Task, Verdict};

/// Longest answer that is looked at, in bytes.
const MAX_ANSWER: usize = 1 << 14;

/// Steps of a worked solution at most; longer ones are left out.
const MAX_STEPS: usize = 400;

/// A puzzle as it is posed; its own fields are the instance's data.
pub(crate) trait Puzzle: Serialize + DeserializeOwned + 'static {
    const NAME: &'static str;
    const SUMMARY: &'static str;
    const MAX_DIFFICULTY: u32;
    const TASK: PuzzleTask<Self> = PuzzleTask(PhantomData);

    /// A puzzle of that difficulty and its answer as a model is to write it.
    fn draw(random: &mut Random, difficulty: u32) -> (Self, String);

    /// Whether sizes and values are those of a puzzle that can have been drawn.
    fn is_well_formed(&self) -> bool;

    /// The rules, the puzzle, and how to write the answer.
    fn prompt(&self) -> String;

    /// Holds an answer against the rules; says what is wrong with it.
    fn check(&self, answer: &str) -> Result<(), String>;

    /// The way to the answer, a line a step.
    fn thinking(&self, answer: &str) -> Option<String>;
}

/// The task of a kind of puzzle.
pub(crate) struct PuzzleTask<P>(PhantomData<fn() -> P>);

impl<P: Puzzle> PuzzleTask<P> {
    fn puzzle(&self, instance: &Instance) -> Result<P, Verdict> {
        let puzzle: P = instance.read(self)?;
        if puzzle.is_well_formed() { Ok(puzzle) } else { Err(Verdict::wrong("malformed instance")) }
    }
}

impl<P: Puzzle> Task for PuzzleTask<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn summary(&self) -> &'static str {
        P::SUMMARY
    }

    fn max_difficulty(&self) -> u32 {
        P::MAX_DIFFICULTY
    }

    fn generate(&self, seed: u64, difficulty: u32) -> Instance {
        let difficulty = difficulty.clamp(1, P::MAX_DIFFICULTY);
        let (puzzle, answer) = P::draw(&mut Random::new(P::NAME, seed, difficulty), difficulty);
        let data =
            serde_json::to_value(&puzzle).expect("a puzzle's fields are numbers, texts and lists of them");
        let (task, prompt, answer) = (P::NAME.to_owned(), puzzle.prompt(), answer.into());
        Instance { task, seed, difficulty, prompt, tools: Vec::new(), answer, data }
    }

    fn verify(&self, instance: &Instance, response: &str) -> Verdict {
        let puzzle = match self.puzzle(instance) {
            Ok(puzzle) => puzzle,
            Err(verdict) => return verdict,
        };
        match final_answer(response) {
            None => Verdict::no_answer(),
            Some(answer) if answer.len() > MAX_ANSWER => Verdict::wrong("the answer is too long"),
            Some(answer) => Verdict::from_check(puzzle.check(answer)),
        }
    }

    fn solve(&self, instance: &Instance) -> Solution {
        let (Ok(puzzle), Some(answer)) = (self.puzzle(instance), instance.answer.as_str()) else {
            return Solution::default();
        };
        let gap = if answer.contains('\n') { '\n' } else { ' ' };
        let thinking = puzzle.thinking(answer).map(|thinking| thinking.trim_end().to_owned());
        Solution { thinking, answer: format!("Answer:{gap}{answer}") }
    }
}

/// The steps of a search as lines. `phrase` says in words that a variable has a value.
pub(super) fn worked(steps: Option<Vec<Step>>, phrase: impl Fn(usize, u32) -> String) -> Option<String> {
    let line = |step: Step| match step {
        Step::Only { variable, value } => phrase(variable, value),
        Step::Guess { variable, value } => format!("try {}", phrase(variable, value)),
        Step::Wrong { variable, value } => format!("wrong: {}", phrase(variable, value)),
    };
    let steps = steps.filter(|steps| steps.len() <= MAX_STEPS)?;
    Some(steps.into_iter().map(line).collect::<Vec<String>>().join("\n"))
}
