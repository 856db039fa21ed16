//! Subtraction of two whole numbers.

use std::fmt::Write as _;

use serde_json::json;

use super::columns::{self, Operands, number_of_digits};
use crate::{Instance, Random, Solution, Task, Verdict};

/// The difficulty is the digits of the larger number; from [`NEGATIVE`] on the result may be negative.
pub(crate) struct Subtraction;

const NEGATIVE: u32 = 4;

impl Task for Subtraction {
    fn name(&self) -> &'static str {
        "subtraction"
    }

    fn summary(&self) -> &'static str {
        "subtract two whole numbers; the difficulty is the number of digits"
    }

    fn max_difficulty(&self) -> u32 {
        16
    }

    fn generate(&self, seed: u64, difficulty: u32) -> Instance {
        let difficulty = difficulty.clamp(1, self.max_difficulty());
        let mut random = Random::new(self.name(), seed, difficulty);
        let a = number_of_digits(&mut random, difficulty);
        let digits = 1 + random.below(u64::from(difficulty)) as u32;
        let b = number_of_digits(&mut random, digits);
        let swapped = difficulty >= NEGATIVE && random.chance(1, 3);
        let (a, b) = if swapped { (a.min(b), a.max(b)) } else { (a.max(b), a.min(b)) };
        let answer = a as i64 - b as i64;
        columns::instance(
            self,
            seed,
            difficulty,
            &format!("What is {a} - {b}?"),
            answer,
            json!({ "a": a, "b": b }),
        )
    }

    fn verify(&self, instance: &Instance, response: &str) -> Verdict {
        match expected(self, instance) {
            Ok((_, difference)) => columns::verify(response, difference),
            Err(verdict) => verdict,
        }
    }

    fn solve(&self, instance: &Instance) -> Solution {
        let Ok((Operands { a, b }, difference)) = expected(self, instance) else {
            return Solution::default();
        };
        let mut trace = String::new();
        if a < b {
            let _ = writeln!(trace, "{a} < {b}: -({b}-{a})");
            columns::subtract(&mut trace, b, a);
        } else {
            columns::subtract(&mut trace, a, b);
        }
        columns::solution(&trace, difference)
    }
}

/// The operands and their difference.
fn expected(task: &dyn Task, instance: &Instance) -> Result<(Operands, i64), Verdict> {
    let operands: Operands = instance.read(task)?;
    let difference = i64::try_from(i128::from(operands.a) - i128::from(operands.b));
    Ok((operands, difference.map_err(|_| Verdict::wrong("malformed instance: the difference is too large"))?))
}
