//! Puzzles that ask for an expression of given numbers with a given value.

use std::fmt::Write as _;

use crate::rational::Rational;
use crate::tasks::expression::Expression;

/// Checks that the expression uses exactly the numbers, each once, and has the value of the target. `= target` may
/// follow it.
pub(super) fn check(answer: &str, numbers: &[i64], target: i64) -> Result<(), String> {
    let text = match answer.split_once('=') {
        Some((text, value)) if value.trim() == target.to_string() => text,
        Some(_) => return Err(format!("what follows the equals sign is not {target}")),
        None => answer,
    };
    let expression = Expression::parse(text).map_err(|error| error.to_string())?;
    let (mut used, mut given) = (expression.numbers(), numbers.to_vec());
    used.sort_unstable();
    given.sort_unstable();
    if used != given {
        return Err("the expression does not use exactly the numbers given, each once".to_owned());
    }
    match expression.value() {
        Some(value) if value == Rational::from(target) => Ok(()),
        Some(value) => Err(format!("the expression is {value}, not {target}")),
        None => Err("the expression divides by zero".to_owned()),
    }
}

/// The expression worked out, an operation a line, with the numbers that are left after each.
pub(super) fn steps(answer: &str, numbers: &[i64]) -> Option<String> {
    let expression = Expression::parse(answer).ok()?;
    let mut left: Vec<Rational> = numbers.iter().copied().map(Rational::from).collect();
    let mut lines = String::new();
    work(&expression, &mut left, &mut lines)?;
    Some(lines)
}

fn work(expression: &Expression, left: &mut Vec<Rational>, lines: &mut String) -> Option<Rational> {
    let (operator, first, second) = match expression {
        Expression::Number(number) => return Some(Rational::from(*number)),
        Expression::Binary(operator, first, second) => (*operator, first, second),
    };
    let (first, second) = (work(first, left, lines)?, work(second, left, lines)?);
    let value = operator.apply(first, second)?;
    for used in [first, second] {
        left.remove(left.iter().position(|number| *number == used)?);
    }
    left.push(value);
    let shown: Vec<String> = left.iter().map(Rational::to_string).collect();
    let (first, symbol, second) = (operand(first), operator.symbol(), operand(second));
    let _ = writeln!(lines, "{first} {symbol} {second} = {value} (left: {})", shown.join(" "));
    Some(value)
}

/// A number as part of an expression.
fn operand(number: Rational) -> String {
    if number.is_integer() && number.numerator() >= 0 { number.to_string() } else { format!("({number})") }
}

/// How an answer that is an expression is written.
pub(super) fn format(example: &str) -> String {
    format!(
        "End with a line `Answer:` and the expression, with + - * / and parentheses, like `Answer: {example}`."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_must_use_exactly_the_given_numbers() {
        let check = |answer: &str| check(answer, &[8, 3, 8, 3], 24);
        assert_eq!(check("8 / (3 - 8 / 3)"), Ok(()));
        assert_eq!(check("8/(3-8/3) = 24"), Ok(()));
        for wrong in [
            "24",
            "8 * 3",
            "8 + 8 + 8",
            "8 * 3 + 8 - 8",
            "(8 - 8) / (3 - 3)",
            "8 * 3 = 23",
            "8 / (3 - 8 / 3) = ",
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn steps_show_what_is_left() {
        let expected =
            "8 / 3 = 8/3 (left: 8 3 8/3)\n3 - (8/3) = 1/3 (left: 8 1/3)\n8 / (1/3) = 24 (left: 24)\n";
        assert_eq!(steps("8 / (3 - 8 / 3)", &[8, 3, 8, 3]).as_deref(), Some(expected));
    }
}
