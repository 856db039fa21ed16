//! Arithmetic with numbers too long to work out without the calculator at hand.

use serde_json::{Map, Value, json};

use super::lookup_chain::judge_number;
use super::{Played, Scenario, call, text, tool};
use crate::episode::World;
use crate::tasks::arithmetic::columns::whole_number;
use crate::tasks::language::answer::quoted;
use crate::{Random, Verdict};

pub(crate) static TASK: Played<Calculator> = Played::NEW;

/// What the calculator can show, in digits.
const MAX_DIGITS: u32 = 36;

#[derive(Clone, Copy, PartialEq)]
enum Operation {
    Add,
    Subtract,
    Multiply,
}

impl Operation {
    const ALL: [Self; 3] = [Self::Add, Self::Subtract, Self::Multiply];

    fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Subtract => "subtract",
            Self::Multiply => "multiply",
        }
    }

    fn apply(self, a: i128, b: i128) -> Option<i128> {
        let result = match self {
            Self::Add => a.checked_add(b),
            Self::Subtract => a.checked_sub(b),
            Self::Multiply => a.checked_mul(b),
        };
        result.filter(|value| value.unsigned_abs() < 10_u128.pow(MAX_DIGITS))
    }
}

/// A number, and what is done to it step by step.
pub(crate) struct Calculator {
    start: i128,
    steps: Vec<(Operation, i128)>,
}

impl Calculator {
    /// The value after each step.
    fn values(&self) -> Vec<i128> {
        let next = |value: &mut i128, (operation, operand): &(Operation, i128)| {
            *value = operation.apply(*value, *operand)?;
            Some(*value)
        };
        self.steps.iter().scan(self.start, next).collect()
    }

    fn result(&self) -> i128 {
        self.values().last().copied().unwrap_or(self.start)
    }
}

impl Scenario for Calculator {
    const NAME: &'static str = "calculator";
    const SUMMARY: &'static str = "work out a chain of operations on long numbers with a calculator's tools";
    const MAX_DIFFICULTY: u32 = 6;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        // At most 8 + 4 * 6 digits, and one more for each addition.
        let digits = 2 + difficulty;
        let low = 10_i64.pow(digits - 1);
        let number = |random: &mut Random| i128::from(random.range(low, 10 * low - 1));
        let start = number(random);
        let mut steps = Vec::new();
        let mut products = 0;
        for _ in 0..difficulty.div_ceil(2) + 1 {
            let operation = match random.index(3) {
                2 if products == 3 => Operation::Add,
                kind => Operation::ALL[kind],
            };
            products += u32::from(operation == Operation::Multiply);
            steps.push((operation, number(random)));
        }
        Self { start, steps }
    }

    fn prompt(&self) -> String {
        let step = |(operation, operand): &(Operation, i128)| match operation {
            Operation::Add => format!(" Add {operand}."),
            Operation::Subtract => format!(" Subtract {operand}."),
            Operation::Multiply => format!(" Multiply by {operand}."),
        };
        format!(
            "Start with {}.{} What is the result? Use the tools for every step, and end with a line `Answer: N`.",
            self.start,
            self.steps.iter().map(step).collect::<String>()
        )
    }

    fn tools(&self) -> Vec<Value> {
        let operands = [("a", "string", "a whole number in digits"), ("b", "string", "another one")];
        [("add", "a + b"), ("subtract", "a - b"), ("multiply", "a * b")]
            .map(|(name, description)| tool(name, description, &operands))
            .to_vec()
    }

    fn expected(&self) -> Value {
        json!(self.result().to_string())
    }

    fn open(self) -> Box<dyn World> {
        Box::new(Desk { result: self.result(), max_turns: 2 * self.steps.len() + 4 })
    }

    fn thinking(&self) -> String {
        let names: Vec<&str> = self.steps.iter().map(|(operation, _)| operation.name()).collect();
        format!("In order: {}.", names.join(", "))
    }

    fn solution(&self) -> (Vec<Vec<Value>>, String) {
        let before = [self.start].into_iter().chain(self.values());
        let turn = |((operation, operand), value): (&(Operation, i128), i128)| {
            vec![call(operation.name(), json!({ "a": value.to_string(), "b": operand.to_string() }))]
        };
        (self.steps.iter().zip(before).map(turn).collect(), format!("Answer: {}", self.result()))
    }

    fn wrong(&self) -> Vec<(Vec<Vec<Value>>, String)> {
        let (turns, _) = self.solution();
        let result = self.result();
        let mut answers = vec![format!("Answer: {}", result + 1), format!("Answer: {result}0")];
        answers.extend([format!("Answer: {result} + 0"), String::new()]);
        answers.into_iter().map(|answer| (turns.clone(), answer)).collect()
    }
}

struct Desk {
    result: i128,
    max_turns: usize,
}

impl World for Desk {
    fn call(&mut self, name: &str, arguments: &Map<String, Value>) -> Result<String, String> {
        let number = |argument| {
            let text = text(arguments, argument);
            whole_number(text).filter(|number| number.unsigned_abs() < 10_u128.pow(MAX_DIGITS)).ok_or_else(
                || format!("{argument} is no whole number of up to {MAX_DIGITS} digits: {}", quoted(text)),
            )
        };
        let (a, b) = (number("a")?, number("b")?);
        let operation = Operation::ALL.into_iter().find(|operation| operation.name() == name);
        let operation = operation.ok_or("there is no such operation")?;
        let result = operation.apply(a, b);
        result
            .map(|value| value.to_string())
            .ok_or_else(|| format!("the result has over {MAX_DIGITS} digits"))
    }

    fn judge(&mut self, answer: &str) -> Verdict {
        judge_number(answer, self.result)
    }

    fn max_turns(&self) -> usize {
        self.max_turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_operands_are_refused() {
        let mut desk = Desk { result: 1, max_turns: 2 };
        let mut call = |name: &str, a: &str, b: &str| {
            let Value::Object(arguments) = json!({ "a": a, "b": b }) else { unreachable!("an object") };
            desk.call(name, &arguments)
        };
        let nines = "9".repeat(36);
        assert_eq!(call("add", "12", "-30"), Ok("-18".to_owned()));
        assert_eq!(call("multiply", "1,000", "7"), Ok("7000".to_owned()));
        for (name, a, b) in [
            ("multiply", nines.as_str(), nines.as_str()),
            ("add", &nines, "1"),
            ("add", "__import__('os')", "1"),
            ("add", "", "1"),
            ("add", "1e9", "1"),
            ("add", &"9".repeat(1 << 20), "1"),
            ("divide", "1", "0"),
        ] {
            let error = call(name, a, b).unwrap_err();
            assert!(error.len() < 200, "{error}");
        }
    }
}
