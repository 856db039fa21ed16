//! Written arithmetic in columns, as worked traces: the ones first, one column a line, so that each line needs no more
//! than two digits and a carry. Numbers are spelled digit by digit before they are used, since a tokenizer cuts them
//! into pieces of its own.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::response::final_answer;
use crate::{Instance, Random, Solution, Task, Verdict};

/// The data of a task with two operands.
#[derive(Debug, Clone, Copy, serde::Serialize, Deserialize)]
pub(super) struct Operands {
    pub a: u64,
    pub b: u64,
}

/// A number of exactly that many digits; zero counts as one of one digit.
pub(super) fn number_of_digits(random: &mut Random, digits: u32) -> u64 {
    let low = if digits == 1 { 0 } else { 10u64.pow(digits - 1) };
    low + random.below(10u64.pow(digits) - low)
}

/// The digits from the ones up, at least `width` of them.
fn digits(mut number: u64, width: usize) -> Vec<u8> {
    let mut digits = Vec::new();
    while number > 0 || digits.is_empty() {
        digits.push((number % 10) as u8);
        number /= 10;
    }
    digits.resize(digits.len().max(width), 0);
    digits
}

/// Digits from the ones up, written from the front with spaces between.
fn spaced(digits: &[u8]) -> String {
    let digits: Vec<String> = digits.iter().rev().map(u8::to_string).collect();
    digits.join(" ")
}

/// Adds a line that spells a number, padded with zeros in front.
fn spell(trace: &mut String, number: u64, width: usize) {
    let _ = writeln!(trace, "{number}: {}", spaced(&digits(number, width)));
}

/// Adds the columns of a + b; a line `3+5+1=09` is digit + digit + carry, the sum in two digits.
pub(super) fn add(trace: &mut String, a: u64, b: u64) -> u64 {
    let width = digits(a.max(b), 1).len();
    spell(trace, a, width);
    spell(trace, b, width);
    let mut carry = 0;
    for (x, y) in digits(a, width).into_iter().zip(digits(b, width)) {
        let sum = x + y + carry;
        let _ = writeln!(trace, "{x}+{y}+{carry}={sum:02}");
        carry = sum / 10;
    }
    let _ = writeln!(trace, "carry {carry}");
    conclude(trace, a + b)
}

/// Adds the columns of a - b for a >= b; a line `3-5-0+10=8` is digit - digit - borrow, and ten where it borrows.
pub(super) fn subtract(trace: &mut String, a: u64, b: u64) -> u64 {
    let width = digits(a, 1).len();
    spell(trace, a, width);
    spell(trace, b, width);
    let mut borrow = 0;
    for (x, y) in digits(a, width).into_iter().zip(digits(b, width)) {
        let borrows = x < y + borrow;
        let (ten, text) = if borrows { (10, "+10") } else { (0, "") };
        let _ = writeln!(trace, "{x}-{y}-{borrow}{text}={}", x + ten - y - borrow);
        borrow = u8::from(borrows);
    }
    conclude(trace, a - b)
}

/// Adds the columns of a times one digit; a line `8*5+1=41` is digit * digit + carry, in two digits.
pub(super) fn multiply_by_digit(trace: &mut String, a: u64, digit: u8) -> u64 {
    let _ = writeln!(trace, "{a}*{digit}");
    spell(trace, a, 1);
    let mut carry = 0;
    for x in digits(a, 1) {
        let product = x * digit + carry;
        let _ = writeln!(trace, "{x}*{digit}+{carry}={product:02}");
        carry = product / 10;
    }
    let _ = writeln!(trace, "carry {carry}");
    conclude(trace, a * u64::from(digit))
}

/// Adds the product of a and b: a row for each digit of b from the ones up, shifted, and added to those before.
pub(super) fn multiply(trace: &mut String, a: u64, b: u64) -> u64 {
    let mut total = 0;
    for (place, digit) in digits(b, 1).into_iter().enumerate() {
        let row = multiply_by_digit(trace, a, digit);
        let shifted = row * 10u64.pow(place as u32);
        if place == 0 {
            total = shifted;
            continue;
        }
        let _ = writeln!(trace, "shift {place}: {shifted}\n{total}+{shifted}");
        total = add(trace, total, shifted);
    }
    total
}

/// Adds the line of the result: its digits from the front, then the number.
fn conclude(trace: &mut String, result: u64) -> u64 {
    let _ = writeln!(trace, "{} = {result}", spaced(&digits(result, 1)));
    result
}

/// The instance of a question whose answer is one whole number.
pub(super) fn instance(
    task: &dyn Task,
    seed: u64,
    difficulty: u32,
    question: &str,
    answer: i64,
    data: serde_json::Value,
) -> Instance {
    let prompt = format!("{question}\nEnd with a line `Answer: N`, where N is a whole number in digits.");
    let (task, tools) = (task.name().to_owned(), Vec::new());
    Instance { task, seed, difficulty, prompt, tools, answer: answer.into(), data }
}

/// Judges a response by the number it ends in.
pub(super) fn verify(response: &str, expected: i64) -> Verdict {
    let Some(answer) = final_answer(response) else {
        return Verdict::no_answer();
    };
    Verdict::from_check(match whole_number(answer) {
        Some(number) if number == i128::from(expected) => Ok(()),
        Some(number) => Err(format!("the answer is {number}, {expected} is right")),
        None => Err("the answer is not a whole number".to_owned()),
    })
}

/// A whole number in digits, with or without a sign and commas between groups of three digits.
pub(crate) fn whole_number(text: &str) -> Option<i128> {
    let text = text.trim().trim_end_matches('.');
    let (negative, digits) = match text.strip_prefix(['-', '\u{2212}']) {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let groups_of_three = |text: &str| {
        let mut groups = text.split(',');
        groups.next().is_some_and(|first| (1..=3).contains(&first.len()))
            && groups.all(|group| group.len() == 3)
    };
    if digits.len() > 40 || (digits.contains(',') && !groups_of_three(digits)) {
        return None;
    }
    let digits: String = digits.chars().filter(|c| *c != ',').collect();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: i128 = digits.parse().ok()?;
    Some(if negative { -number } else { number })
}

/// The solution with its trace.
pub(super) fn solution(trace: &str, answer: i64) -> Solution {
    Solution { thinking: Some(trace.trim_end().to_owned()), answer: format!("Answer: {answer}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_addition_is_worked_from_the_ones_up() {
        let mut trace = String::new();
        assert_eq!(add(&mut trace, 97, 1005), 1102);
        let expected =
            "97: 0 0 9 7\n1005: 1 0 0 5\n7+5+0=12\n9+0+1=10\n0+0+1=01\n0+1+0=01\ncarry 0\n1 1 0 2 = 1102\n";
        assert_eq!(trace, expected);
    }

    #[test]
    fn a_subtraction_borrows() {
        let mut trace = String::new();
        assert_eq!(subtract(&mut trace, 1003, 7), 996);
        let expected =
            "1003: 1 0 0 3\n7: 0 0 0 7\n3-7-0+10=6\n0-0-1+10=9\n0-0-1+10=9\n1-0-1=0\n9 9 6 = 996\n";
        assert_eq!(trace, expected);
    }

    #[test]
    fn a_multiplication_adds_shifted_rows() {
        let mut trace = String::new();
        assert_eq!(multiply(&mut trace, 86, 27), 2322);
        let rows = "86*7\n86: 8 6\n6*7+0=42\n8*7+4=60\ncarry 6\n6 0 2 = 602\n\
                    86*2\n86: 8 6\n6*2+0=12\n8*2+1=17\ncarry 1\n1 7 2 = 172\nshift 1: 1720\n602+1720\n";
        assert!(trace.starts_with(rows), "{trace}");
        assert!(trace.ends_with("2 3 2 2 = 2322\n"), "{trace}");
    }

    #[test]
    fn whole_numbers_are_read_strictly() {
        for (text, number) in
            [("12", 12), ("-7", -7), ("1,234,567", 1_234_567), ("\u{2212}5.", -5), ("007", 7)]
        {
            assert_eq!(whole_number(text), Some(number), "{text}");
        }
        for text in ["", "-", "1.5", "1,23", ",123", "1e3", "12 or 13", "--1", "٣"] {
            assert_eq!(whole_number(text), None, "{text}");
        }
        assert_eq!(whole_number(&"9".repeat(1000)), None);
    }
}
