//! Is a free-form mathematical answer the expected one?
//!
//! The answer is the last `\boxed{…}` of a response or the final answer it states, in LaTeX or plain text. Understood
//! are integers, decimals, fractions, mixed numbers, percentages, radicals, π, e, i, powers, factorials, polynomials
//! and other expressions of variables, sets, lists, tuples, intervals and their unions, equations `x = …`, and units
//! of measure, which do not count. Values are compared exactly where they are sums of rational multiples of radicals
//! and powers of π and e; expressions of variables at several rational points. Nothing is evaluated as code, and
//! length, nesting and work are bounded.
//!
//! [`Grade::Unknown`] is not [`Grade::Wrong`]: it says that the grader cannot tell, as for an answer in words, a
//! rounded value in place of an exact one, or `50` in place of `50%`.

mod compare;
mod exact;
mod extract;
mod lexer;
mod parser;
mod value;

use serde::{Deserialize, Serialize};

pub use extract::stated_answer;

/// Longest answer that is looked at, in bytes.
const MAX_ANSWER: usize = 2000;

/// What an answer is found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// The expected answer, perhaps written in another way.
    Right,
    /// Certainly another answer, or none at all.
    Wrong,
    /// Not understood, or open to several readings.
    Unknown,
}

/// Grades the answer that a response states. `expected` is an answer, perhaps within `\boxed{…}` or `$…$`.
pub fn grade(response: &str, expected: &str) -> Grade {
    let Some(visible) = crate::response::visible(response).filter(|visible| !visible.is_empty()) else {
        return Grade::Wrong;
    };
    match stated_answer(visible) {
        Some(answer) => grade_answer(answer, stated_answer(expected).unwrap_or(expected)),
        None => Grade::Unknown,
    }
}

/// Grades an answer that stands alone.
fn grade_answer(answer: &str, expected: &str) -> Grade {
    if answer.len() > MAX_ANSWER || expected.len() > MAX_ANSWER {
        return Grade::Unknown;
    }
    let (answer, expected) = (lexer::plain(answer), lexer::plain(expected));
    if lexer::same_text(&answer, &expected) {
        return Grade::Right;
    }
    if let (Some(answer), Some(expected)) = (truth(&answer), truth(&expected)) {
        return if answer == expected { Grade::Right } else { Grade::Wrong };
    }
    let (Some(answer_tree), Some(expected_tree)) = (parser::parse(&answer), parser::parse(&expected)) else {
        return Grade::Unknown;
    };
    match compare::compare(&answer_tree, &expected_tree) {
        // As products of letters, words are the same in any order.
        Grade::Right if is_word(&answer) && is_word(&expected) => Grade::Unknown,
        grade => grade,
    }
}

fn is_word(answer: &str) -> bool {
    answer.len() > 1 && answer.chars().all(char::is_alphabetic)
}

/// The truth value that an answer in words states.
fn truth(answer: &str) -> Option<bool> {
    match lexer::bare_text(answer).to_ascii_lowercase().as_str() {
        "yes" | "true" => Some(true),
        "no" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
