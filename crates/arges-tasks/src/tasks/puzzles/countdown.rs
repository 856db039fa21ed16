//! Countdown: an expression of all given numbers that hits a target.

use serde::{Deserialize, Serialize};

use super::numbers;
use super::puzzle::Puzzle;
use crate::Random;
use crate::tasks::expression::{Expression, Operator};

#[derive(Serialize, Deserialize)]
pub(crate) struct Countdown {
    numbers: Vec<i64>,
    target: i64,
}

/// How many numbers, the largest of them, and the largest target, of each difficulty.
const LEVELS: [(usize, i64, i64); 6] =
    [(2, 10, 99), (3, 10, 99), (3, 50, 999), (4, 50, 999), (5, 99, 999), (6, 99, 9999)];

impl Puzzle for Countdown {
    const NAME: &'static str = "countdown";
    const SUMMARY: &'static str = "make a target of all the numbers given";
    const MAX_DIFFICULTY: u32 = LEVELS.len() as u32;

    fn draw(random: &mut Random, difficulty: u32) -> (Self, String) {
        let (count, largest, highest) = LEVELS[difficulty as usize - 1];
        loop {
            let numbers: Vec<i64> = (0..count).map(|_| random.range(1, largest)).collect();
            if let Some((expression, target)) = combine(random, &numbers, highest) {
                return (Self { numbers, target }, expression.to_string());
            }
        }
    }

    fn is_well_formed(&self) -> bool {
        (1..=16).contains(&self.numbers.len()) && self.numbers.iter().all(|number| *number >= 0)
    }

    fn prompt(&self) -> String {
        let shown: Vec<String> = self.numbers.iter().map(i64::to_string).collect();
        format!(
            "Make {} of the numbers {}. Use each of them exactly once, and add, subtract, multiply or divide.\n{}",
            self.target,
            shown.join(", "),
            numbers::format("(1 + 2 + 3) * 4")
        )
    }

    fn check(&self, answer: &str) -> Result<(), String> {
        numbers::check(answer, &self.numbers, self.target)
    }

    fn thinking(&self, answer: &str) -> Option<String> {
        numbers::steps(answer, &self.numbers)
    }
}

/// A random expression of all the numbers whose results are all positive whole numbers up to `highest`, and its value;
/// `None` where the draw led nowhere.
fn combine(random: &mut Random, numbers: &[i64], highest: i64) -> Option<(Expression, i64)> {
    let mut left: Vec<(Expression, i64)> =
        numbers.iter().map(|number| (Expression::Number(*number), *number)).collect();
    while left.len() > 1 {
        random.shuffle(&mut left);
        let ((a, x), (b, y)) = (left.pop()?, left.pop()?);
        let choices: Vec<(Operator, i64)> = Operator::ALL
            .into_iter()
            .filter_map(|operator| Some((operator, result(operator, x, y)?)))
            .filter(|(_, value)| (1..=highest).contains(value))
            .collect();
        if choices.is_empty() {
            return None;
        }
        let (operator, value) = *random.choose(&choices);
        left.push((Expression::binary(operator, a, b), value));
    }
    let (expression, target) = left.pop()?;
    (!numbers.contains(&target)).then_some((expression, target))
}

/// The result if it is whole. Multiplying or dividing by one leads nowhere and counts as none.
fn result(operator: Operator, x: i64, y: i64) -> Option<i64> {
    match operator {
        Operator::Add => x.checked_add(y),
        Operator::Subtract => Some(x - y),
        Operator::Multiply => x.checked_mul(y).filter(|_| x != 1 && y != 1),
        Operator::Divide => (y > 1 && x % y == 0).then(|| x / y),
    }
}
