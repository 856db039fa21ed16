//! Closing open brackets, with the stack of open ones as the trace.

use super::brackets::{Shape, closer, closers, is_bracket, spaced};
use super::{Drawn, Problem};
use crate::{Instance, Random};

pub(crate) static TASK: Drawn<DyckCompletion> = Drawn::NEW;

/// The start of a balanced sequence.
pub(crate) struct DyckCompletion {
    symbols: Vec<char>,
    /// What the start leaves open, outermost first; never empty.
    open: Vec<char>,
}

impl Problem for DyckCompletion {
    const NAME: &'static str = "dyck_completion";
    const SUMMARY: &'static str = "close the open brackets of a sequence, in the right order";
    const MAX_DIFFICULTY: u32 = 10;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let shape = Shape::draw(random, difficulty);
        loop {
            let (symbols, open) = shape.prefix(random);
            if !open.is_empty() {
                return Self { symbols, open };
            }
        }
    }

    fn prompt(&self) -> String {
        format!(
            "Which brackets are missing at the end, so that all are closed in the right order?\n{}\n\
             End with a line `Answer: ...`, where ... are the missing brackets.",
            spaced(&self.symbols)
        )
    }

    fn answer(&self) -> String {
        spaced(&closers(&self.open))
    }

    fn thinking(&self) -> String {
        let mut open = Vec::new();
        let lines = self.symbols.iter().map(|symbol| {
            match closer(*symbol) {
                Some(_) => open.push(*symbol),
                None => drop(open.pop()),
            }
            format!("{symbol} : {}", spaced(&open))
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn wrong_answers(&self) -> Vec<String> {
        let right = closers(&self.open);
        let mut wrong = vec![format!("{} )", spaced(&right)), spaced(&right[1..]), spaced(&self.open)];
        let reversed: Vec<char> = right.iter().rev().copied().collect();
        if reversed != right {
            wrong.push(spaced(&reversed));
        }
        wrong
    }

    fn check(instance: &Instance, answer: &str) -> Result<(), String> {
        let expected = instance.answer.as_str().ok_or("malformed instance: its answer is no text")?;
        let symbols = answer.chars().filter(|symbol| !symbol.is_whitespace());
        if let Some(other) = symbols.clone().find(|symbol| !is_bracket(*symbol)) {
            return Err(format!("{other:?} is no bracket"));
        }
        match symbols.eq(expected.chars().filter(|symbol| !symbol.is_whitespace())) {
            true => Ok(()),
            false => Err("these are not the missing brackets".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Task;

    #[test]
    fn the_answer_closes_the_prompts_brackets_with_or_without_spaces() {
        let problem = DyckCompletion { symbols: "([{}<".chars().collect(), open: "([<".chars().collect() };
        assert_eq!(problem.answer(), "> ] )");
        assert_eq!(problem.thinking(), "( : (\n[ : ( [\n{ : ( [ {\n} : ( [\n< : ( [ <");
        let mut instance = TASK.generate(1, 1);
        instance.answer = problem.expected();
        assert_eq!(DyckCompletion::check(&instance, ">])"), Ok(()));
        assert_eq!(DyckCompletion::check(&instance, "> ] ) x").unwrap_err(), "'x' is no bracket");
        assert!(DyckCompletion::check(&instance, "> ]").is_err());
    }
}
