//! Expressions of several operations, worked out one operation at a time.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::columns;
use crate::tasks::expression::{Expression, Operator};
use crate::{Instance, Random, Solution, Task, Verdict};

/// One operation more than the difficulty.
pub(crate) struct ChainedArithmetic;

/// No result on the way is larger, so that each step stays mental arithmetic.
const LARGEST_RESULT: i64 = 999;

#[derive(Serialize, Deserialize)]
struct Data {
    expression: String,
}

impl Task for ChainedArithmetic {
    fn name(&self) -> &'static str {
        "chained_arithmetic"
    }

    fn summary(&self) -> &'static str {
        "work out an expression of several operations; the difficulty is their number, less one"
    }

    fn max_difficulty(&self) -> u32 {
        8
    }

    fn generate(&self, seed: u64, difficulty: u32) -> Instance {
        let difficulty = difficulty.clamp(1, self.max_difficulty());
        let mut random = Random::new(self.name(), seed, difficulty);
        let (expression, value) = random_expression(&mut random, difficulty + 1);
        let question = format!("Work out: {expression}");
        let data = json!({ "expression": expression.to_string() });
        columns::instance(self, seed, difficulty, &question, value, data)
    }

    fn verify(&self, instance: &Instance, response: &str) -> Verdict {
        match expected(self, instance) {
            Ok((_, value)) => columns::verify(response, value),
            Err(verdict) => verdict,
        }
    }

    fn solve(&self, instance: &Instance) -> Solution {
        let Ok((mut expression, value)) = expected(self, instance) else {
            return Solution::default();
        };
        let mut trace = String::new();
        while let Some(step) = reduce(&mut expression) {
            let _ = writeln!(trace, "{step}\n{expression}");
        }
        columns::solution(&trace, value)
    }
}

/// The expression and its value.
fn expected(task: &dyn Task, instance: &Instance) -> Result<(Expression, i64), Verdict> {
    let data: Data = instance.read(task)?;
    let malformed = |reason: String| Verdict::wrong(format!("malformed instance: {reason}"));
    let expression = Expression::parse(&data.expression).map_err(|error| malformed(error.to_string()))?;
    let value = expression.value().filter(|value| value.is_integer());
    let value = value.and_then(|value| i64::try_from(value.numerator()).ok());
    Ok((expression, value.ok_or_else(|| malformed("its value is not a whole number".to_owned()))?))
}

/// A random expression of that many operations, and its value.
fn random_expression(random: &mut Random, operations: u32) -> (Expression, i64) {
    if operations == 0 {
        let number = random.range(2, 20);
        return (Expression::Number(number), number);
    }
    let on_the_left = random.below(u64::from(operations)) as u32;
    let (left, a) = random_expression(random, on_the_left);
    let (right, b) = random_expression(random, operations - 1 - on_the_left);
    let mut choices = vec![Operator::Add, Operator::Subtract, Operator::Multiply];
    random.shuffle(&mut choices);
    let fitting =
        choices.into_iter().find_map(|operator| apply(operator, a, b).map(|value| (operator, value)));
    // Of a sum and a difference of two numbers within the limit, one always is within it too.
    let (operator, value) = fitting.unwrap_or((Operator::Subtract, a - b));
    (Expression::binary(operator, left, right), value)
}

/// The result if it is within the limit.
fn apply(operator: Operator, a: i64, b: i64) -> Option<i64> {
    let value = match operator {
        Operator::Add => a + b,
        Operator::Subtract => a - b,
        Operator::Multiply => a * b,
        Operator::Divide => return None,
    };
    (value.abs() <= LARGEST_RESULT).then_some(value)
}

/// Works out the leftmost operation of two numbers; gives its line, or `None` for a single number.
fn reduce(expression: &mut Expression) -> Option<String> {
    let Expression::Binary(operator, left, right) = expression else {
        return None;
    };
    if let Some(step) = reduce(left).or_else(|| reduce(right)) {
        return Some(step);
    }
    let (operator, left, right) = (*operator, (**left).clone(), (**right).clone());
    let step = Expression::binary(operator, left, right);
    let value = i64::try_from(step.value()?.numerator()).ok()?;
    *expression = Expression::Number(value);
    Some(format!("{step} = {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_shows_each_operation_and_what_is_left() {
        let question =
            |text: &str| Instance { data: json!({ "expression": text }), ..ChainedArithmetic.generate(0, 1) };
        let solution = ChainedArithmetic.solve(&question("2 - (3 + 4) * 5"));
        let trace = "3 + 4 = 7\n2 - 7 * 5\n7 * 5 = 35\n2 - 35\n2 - 35 = -33\n-33";
        assert_eq!(solution.thinking.as_deref(), Some(trace));
        assert_eq!(solution.answer, "Answer: -33");
    }

    #[test]
    fn no_step_passes_the_limit() {
        for seed in 0..200 {
            let instance = ChainedArithmetic.generate(seed, 8);
            let (mut expression, _) = expected(&ChainedArithmetic, &instance).unwrap();
            while reduce(&mut expression).is_some() {
                let large = expression.numbers().into_iter().find(|number| number.abs() > LARGEST_RESULT);
                assert_eq!(large, None);
            }
        }
    }
}
