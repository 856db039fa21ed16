//! Multiplication of two whole numbers.

use serde_json::json;

use super::columns::{self, Operands, number_of_digits};
use crate::{Instance, Random, Solution, Task, Verdict};

/// The difficulty is the digits of both numbers together, less one: 1×1, 2×1, 2×2, 3×2, … 5×4.
pub(crate) struct Multiplication;

impl Task for Multiplication {
    fn name(&self) -> &'static str {
        "multiplication"
    }

    fn summary(&self) -> &'static str {
        "multiply two whole numbers; the difficulty is the digits of both, less one"
    }

    fn max_difficulty(&self) -> u32 {
        8
    }

    fn generate(&self, seed: u64, difficulty: u32) -> Instance {
        let difficulty = difficulty.clamp(1, self.max_difficulty());
        let mut random = Random::new(self.name(), seed, difficulty);
        let short = difficulty.div_ceil(2);
        let mut numbers = [difficulty + 1 - short, short].map(|digits| number_of_digits(&mut random, digits));
        random.shuffle(&mut numbers);
        let [a, b] = numbers;
        let answer = (a * b) as i64;
        columns::instance(
            self,
            seed,
            difficulty,
            &format!("What is {a} * {b}?"),
            answer,
            json!({ "a": a, "b": b }),
        )
    }

    fn verify(&self, instance: &Instance, response: &str) -> Verdict {
        match expected(self, instance) {
            Ok((_, product)) => columns::verify(response, product),
            Err(verdict) => verdict,
        }
    }

    fn solve(&self, instance: &Instance) -> Solution {
        let Ok((Operands { a, b }, product)) = expected(self, instance) else {
            return Solution::default();
        };
        let mut trace = String::new();
        columns::multiply(&mut trace, a.max(b), a.min(b));
        columns::solution(&trace, product)
    }
}

/// The operands and their product.
fn expected(task: &dyn Task, instance: &Instance) -> Result<(Operands, i64), Verdict> {
    let operands: Operands = instance.read(task)?;
    let product = operands.a.checked_mul(operands.b).and_then(|product| i64::try_from(product).ok());
    Ok((operands, product.ok_or_else(|| Verdict::wrong("malformed instance: the product is too large"))?))
}
