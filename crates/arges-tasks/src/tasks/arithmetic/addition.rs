//! Addition of two whole numbers.

use serde_json::json;

use super::columns::{self, Operands, number_of_digits};
use crate::{Instance, Random, Solution, Task, Verdict};

/// The larger number has as many digits as the difficulty says, the other up to as many.
pub(crate) struct Addition;

impl Task for Addition {
    fn name(&self) -> &'static str {
        "addition"
    }

    fn summary(&self) -> &'static str {
        "add two whole numbers; the difficulty is the number of digits"
    }

    fn max_difficulty(&self) -> u32 {
        16
    }

    fn generate(&self, seed: u64, difficulty: u32) -> Instance {
        let difficulty = difficulty.clamp(1, self.max_difficulty());
        let mut random = Random::new(self.name(), seed, difficulty);
        let mut numbers = [difficulty, 1 + random.below(u64::from(difficulty)) as u32]
            .map(|digits| number_of_digits(&mut random, digits));
        random.shuffle(&mut numbers);
        let [a, b] = numbers;
        let answer = (a + b) as i64;
        columns::instance(
            self,
            seed,
            difficulty,
            &format!("What is {a} + {b}?"),
            answer,
            json!({ "a": a, "b": b }),
        )
    }

    fn verify(&self, instance: &Instance, response: &str) -> Verdict {
        match expected(self, instance) {
            Ok((_, sum)) => columns::verify(response, sum),
            Err(verdict) => verdict,
        }
    }

    fn solve(&self, instance: &Instance) -> Solution {
        let Ok((Operands { a, b }, sum)) = expected(self, instance) else {
            return Solution::default();
        };
        let mut trace = String::new();
        columns::add(&mut trace, a, b);
        columns::solution(&trace, sum)
    }
}

/// The operands and their sum.
fn expected(task: &dyn Task, instance: &Instance) -> Result<(Operands, i64), Verdict> {
    let operands: Operands = instance.read(task)?;
    let sum = operands.a.checked_add(operands.b).and_then(|sum| i64::try_from(sum).ok());
    Ok((operands, sum.ok_or_else(|| Verdict::wrong("malformed instance: the sum is too large"))?))
}
