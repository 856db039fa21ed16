//! The game of 24: four numbers, an expression that is 24.

use serde::{Deserialize, Serialize};

use super::numbers;
use super::puzzle::Puzzle;
use crate::Random;
use crate::tasks::expression::{Expression, Operator};

#[derive(Serialize, Deserialize)]
pub(crate) struct GameOf24 {
    numbers: Vec<i64>,
}

const TARGET: i64 = 24;

/// Largest number, and how many ways there are at least and at most, of each difficulty.
const LEVELS: [(i64, usize, usize); 4] = [(6, 20, usize::MAX), (9, 10, usize::MAX), (13, 1, 30), (13, 1, 6)];

impl Puzzle for GameOf24 {
    const NAME: &'static str = "game_of_24";
    const SUMMARY: &'static str = "make 24 of four numbers";
    const MAX_DIFFICULTY: u32 = LEVELS.len() as u32;

    fn draw(random: &mut Random, difficulty: u32) -> (Self, String) {
        let (largest, least, most) = LEVELS[difficulty as usize - 1];
        loop {
            let numbers: Vec<i64> = (0..4).map(|_| random.range(1, largest)).collect();
            let ways = ways(&numbers);
            if (least..=most).contains(&ways.len()) {
                let way: &Vec<Step> = random.choose(&ways);
                let answer = expression(&numbers, way);
                return (Self { numbers }, answer);
            }
        }
    }

    fn is_well_formed(&self) -> bool {
        self.numbers.len() == 4 && self.numbers.iter().all(|number| (1..=100).contains(number))
    }

    fn prompt(&self) -> String {
        let shown: Vec<String> = self.numbers.iter().map(i64::to_string).collect();
        format!(
            "Make 24 of the numbers {}. Use each of them exactly once, and add, subtract, multiply or divide; fractions \
             on the way are allowed.\n{}",
            shown.join(", "),
            numbers::format("(1 + 2 + 3) * 4")
        )
    }

    fn check(&self, answer: &str) -> Result<(), String> {
        numbers::check(answer, &self.numbers, TARGET)
    }

    fn thinking(&self, answer: &str) -> Option<String> {
        numbers::steps(answer, &self.numbers)
    }
}

/// A number on the way, as an unreduced fraction: of four numbers its parts stay small.
type Fraction = (i64, i64);

/// An operation on the numbers at two places of those that are left. They are taken out and the result is put last.
type Step = (Operator, usize, usize);

/// All ways to 24, each as the steps that lead there; sums and products in one order.
fn ways(numbers: &[i64]) -> Vec<Vec<Step>> {
    let mut ways = Vec::new();
    let fractions: Vec<Fraction> = numbers.iter().map(|number| (*number, 1)).collect();
    search(&fractions, &mut Vec::new(), &mut ways);
    ways
}

fn search(left: &[Fraction], steps: &mut Vec<Step>, ways: &mut Vec<Vec<Step>>) {
    if let [(numerator, denominator)] = left {
        if *numerator == TARGET * denominator {
            ways.push(steps.clone());
        }
        return;
    }
    for first in 0..left.len() {
        for second in (0..left.len()).filter(|second| *second != first) {
            for operator in Operator::ALL {
                let is_symmetric = matches!(operator, Operator::Add | Operator::Multiply);
                let Some(result) =
                    apply(operator, left[first], left[second]).filter(|_| !is_symmetric || first < second)
                else {
                    continue;
                };
                let mut next: Vec<Fraction> = left.to_vec();
                replace(&mut next, first, second, result);
                steps.push((operator, first, second));
                search(&next, steps, ways);
                steps.pop();
            }
        }
    }
}

/// The result; `None` for a division by zero.
fn apply(operator: Operator, (a, b): Fraction, (c, d): Fraction) -> Option<Fraction> {
    let (numerator, denominator) = match operator {
        Operator::Add => (a * d + c * b, b * d),
        Operator::Subtract => (a * d - c * b, b * d),
        Operator::Multiply => (a * c, b * d),
        Operator::Divide => (a * d, b * c),
    };
    (denominator != 0).then_some((numerator, denominator))
}

/// Takes the items at two places out and puts another one last.
fn replace<T>(items: &mut Vec<T>, first: usize, second: usize, result: T) {
    items.remove(first.max(second));
    items.remove(first.min(second));
    items.push(result);
}

/// The expression that takes these steps.
fn expression(numbers: &[i64], steps: &[Step]) -> String {
    let mut left: Vec<Expression> = numbers.iter().copied().map(Expression::Number).collect();
    for (operator, first, second) in steps {
        let joined = Expression::binary(*operator, left[*first].clone(), left[*second].clone());
        replace(&mut left, *first, *second, joined);
    }
    left.iter().map(Expression::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_found_is_right() {
        for four in [[3, 3, 8, 8], [1, 5, 5, 5], [4, 6, 1, 1]] {
            let ways = ways(&four);
            assert!(!ways.is_empty());
            for way in ways {
                assert_eq!(numbers::check(&expression(&four, &way), &four, 24), Ok(()));
            }
        }
    }

    #[test]
    fn numbers_without_a_way_have_none() {
        assert!(ways(&[1, 1, 1, 1]).is_empty());
    }
}
