//! Arithmetic expressions: read and worked out in one descent.
//!
//! `sum = product (('+' | '-') product)*`, `product = signed (('*' | '/' | '%') signed)*`,
//! `signed = ('-' | '+')* power`, `power = atom ('^' signed)?`, `atom = number | name | name '(' sum, … ')' | '(' sum ')'`.

use thiserror::Error;

use super::number::Number;
use super::number::Number::{Real, Whole};

/// Parentheses, signs and powers within each other at most, so that the stack is not used up.
const DEPTH: usize = 100;

/// An expression that has no value.
#[derive(Debug, Error, PartialEq)]
pub enum ExpressionError {
    #[error("expected {expected} at {}", place(.rest))]
    Expected { expected: &'static str, rest: String },
    #[error("there is no function or constant {name:?}")]
    Unknown { name: String },
    #[error("{name} takes {expected}, not {given} arguments")]
    Arguments { name: &'static str, expected: &'static str, given: usize },
    #[error("division by zero")]
    DivisionByZero,
    #[error("{what} is not a real number that can be told")]
    NotReal { what: String },
    #[error("the expression is nested too deeply")]
    TooDeep,
}

fn place(rest: &str) -> String {
    if rest.is_empty() {
        "the end".to_owned()
    } else {
        format!("{:?}", rest.chars().take(20).collect::<String>())
    }
}

/// The value of an expression. `**` is a power too, and `×`, `÷` and `−` are what they look like.
pub fn evaluate(text: &str) -> Result<Number, ExpressionError> {
    let text = text.replace("**", "^").replace(['×', '·'], "*").replace('÷', "/").replace('−', "-");
    let mut reader = Reader { rest: text.trim_start(), depth: 0 };
    let number = reader.sum()?;
    if !reader.rest.is_empty() {
        return Err(reader.expected("an operator or the end"));
    }
    if number.real().is_finite() {
        Ok(number)
    } else {
        Err(ExpressionError::NotReal { what: "the result".into() })
    }
}

struct Reader<'a> {
    rest: &'a str,
    depth: usize,
}

type Worked = Result<Number, ExpressionError>;

impl Reader<'_> {
    fn sum(&mut self) -> Worked {
        let mut number = self.product()?;
        loop {
            number = match self.take(&['+', '-']) {
                Some('+') => number.plus(self.product()?),
                Some(_) => number.minus(self.product()?),
                None => return Ok(number),
            };
        }
    }

    fn product(&mut self) -> Worked {
        let mut number = self.signed()?;
        loop {
            let by_zero = ExpressionError::DivisionByZero;
            number = match self.take(&['*', '/', '%']) {
                Some('*') => number.times(self.signed()?),
                Some('/') => number.over(self.signed()?).ok_or(by_zero)?,
                Some(_) => number.modulo(self.signed()?).ok_or(by_zero)?,
                None => return Ok(number),
            };
        }
    }

    fn signed(&mut self) -> Worked {
        self.deeper(|reader| match reader.take(&['-', '+']) {
            Some('-') => Ok(reader.signed()?.negated()),
            Some(_) => reader.signed(),
            None => reader.power(),
        })
    }

    fn power(&mut self) -> Worked {
        let base = self.atom()?;
        match self.take(&['^']) {
            Some(_) => Ok(base.power(self.signed()?)),
            None => Ok(base),
        }
    }

    fn atom(&mut self) -> Worked {
        match self.rest.chars().next() {
            Some('(') => {
                self.take(&['(']);
                let number = self.deeper(Self::sum)?;
                self.close()?;
                Ok(number)
            }
            Some(c) if c.is_ascii_digit() || c == '.' => self.number(),
            Some(c) if c.is_alphabetic() => self.name(),
            _ => Err(self.expected("a number, a name or a parenthesis")),
        }
    }

    fn number(&mut self) -> Worked {
        let bytes = self.rest.as_bytes();
        let mut end = 0;
        let digits = |mut end: usize| {
            while bytes.get(end).is_some_and(|byte| byte.is_ascii_digit() || *byte == b'_') {
                end += 1;
            }
            end
        };
        end = digits(end);
        if bytes.get(end) == Some(&b'.') {
            end = digits(end + 1);
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let after = digits(end + 1 + sign);
            if after > end + 1 + sign {
                end = after;
            }
        }
        let text = self.rest[..end].replace('_', "");
        let number = match text.parse() {
            Ok(whole) => Whole(whole),
            Err(_) => Real(text.parse().map_err(|_| self.expected("a number"))?),
        };
        self.skip(end);
        Ok(number)
    }

    fn name(&mut self) -> Worked {
        let end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let name = self.rest[..end].to_ascii_lowercase();
        self.skip(end);
        if self.take(&['(']).is_none() {
            return match name.as_str() {
                "pi" => Ok(Real(std::f64::consts::PI)),
                "e" => Ok(Real(std::f64::consts::E)),
                _ => Err(ExpressionError::Unknown { name }),
            };
        }
        let mut arguments = Vec::new();
        if !self.rest.starts_with(')') {
            arguments.push(self.deeper(Self::sum)?);
            while self.take(&[',']).is_some() {
                arguments.push(self.deeper(Self::sum)?);
            }
        }
        self.close()?;
        function(&name, &arguments)
    }

    fn close(&mut self) -> Result<(), ExpressionError> {
        self.take(&[')']).map(|_| ()).ok_or_else(|| self.expected("a closing parenthesis"))
    }

    fn take(&mut self, wanted: &[char]) -> Option<char> {
        let c = self.rest.chars().next().filter(|c| wanted.contains(c))?;
        self.skip(c.len_utf8());
        Some(c)
    }

    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest[bytes..].trim_start();
    }

    fn deeper(&mut self, read: impl FnOnce(&mut Self) -> Worked) -> Worked {
        if self.depth == DEPTH {
            return Err(ExpressionError::TooDeep);
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn expected(&self, expected: &'static str) -> ExpressionError {
        ExpressionError::Expected { expected, rest: self.rest.to_owned() }
    }
}

type RealFunction = fn(f64) -> f64;

/// Functions of one real number.
const REAL: [(&str, RealFunction); 14] = [
    ("sqrt", f64::sqrt),
    ("cbrt", f64::cbrt),
    ("exp", f64::exp),
    ("ln", f64::ln),
    ("log", f64::log10),
    ("log10", f64::log10),
    ("log2", f64::log2),
    ("sin", f64::sin),
    ("cos", f64::cos),
    ("tan", f64::tan),
    ("asin", f64::asin),
    ("acos", f64::acos),
    ("atan", f64::atan),
    ("round", f64::round),
];

fn function(name: &str, arguments: &[Number]) -> Worked {
    if let Some((name, function)) = REAL.iter().find(|(known, _)| *known == name) {
        let number = one(name, arguments)?;
        if matches!((*name, number), ("round", Whole(_))) {
            return Ok(number);
        }
        let result = Real(function(number.real()));
        return if result.real().is_nan() {
            Err(ExpressionError::NotReal { what: format!("{name}({number})") })
        } else {
            Ok(result.settled())
        };
    }
    match (name, arguments) {
        ("abs", _) => {
            let number = one("abs", arguments)?;
            Ok(if number.real() < 0.0 { number.negated() } else { number })
        }
        ("floor" | "ceil", _) => match one("floor and ceil", arguments)? {
            Real(number) => Ok(Real(if name == "floor" { number.floor() } else { number.ceil() }).settled()),
            whole => Ok(whole),
        },
        ("factorial", _) => factorial(one("factorial", arguments)?),
        ("min" | "max", []) => {
            Err(ExpressionError::Arguments { name: "min and max", expected: "one or more", given: 0 })
        }
        ("min", numbers) => Ok(numbers
            .iter()
            .copied()
            .reduce(|a, b| if b.real() < a.real() { b } else { a })
            .unwrap_or(Whole(0))),
        ("max", numbers) => Ok(numbers
            .iter()
            .copied()
            .reduce(|a, b| if b.real() > a.real() { b } else { a })
            .unwrap_or(Whole(0))),
        _ => Err(ExpressionError::Unknown { name: name.to_owned() }),
    }
}

fn one(name: &'static str, arguments: &[Number]) -> Worked {
    match arguments {
        [number] => Ok(*number),
        _ => Err(ExpressionError::Arguments { name, expected: "one", given: arguments.len() }),
    }
}

/// From 171 on it is beyond double precision.
fn factorial(number: Number) -> Worked {
    match number {
        Whole(number @ 0..=170) => {
            Ok((1..=number).fold(Whole(1), |product, factor| product.times(Whole(factor))))
        }
        _ => Err(ExpressionError::NotReal { what: format!("factorial({number})") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> String {
        evaluate(text).map_or_else(|error| error.to_string(), |number| number.to_string())
    }

    #[test]
    fn expressions_have_their_values() {
        for (text, expected) in [
            ("17 + 25", "42"),
            ("2 + 3 * 4 - 1", "13"),
            ("(2 + 3) * 4", "20"),
            ("2 ^ 3 ^ 2", "512"),
            ("-2 ^ 2", "-4"),
            ("2 ^ -1", "0.5"),
            ("2**10", "1024"),
            ("7 / 2", "3.5"),
            ("8 / 2", "4"),
            ("-7 % 3", "2"),
            ("7.5 % 2", "1.5"),
            ("6 × 7 − 2 ÷ 2", "41"),
            ("123456789123456789 * 987654321987654321", "121932631356500531347203169112635269"),
            ("2 ^ 126", "85070591730234615865843651857942052864"),
            ("0.1 + 0.2", "0.30000000000000004"),
            ("1e3 + 1_000", "2000"),
            ("sqrt(16) + abs(-3)", "7"),
            ("round(2.5) + floor(-0.5) + ceil(0.2)", "3"),
            ("max(1, 2.5, 2) * min(4, 3)", "7.5"),
            ("factorial(5)", "120"),
            ("cos(pi)", "-1"),
            ("2 * e", "5.43656365691809"),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_much(text in "[0-9a-z+*/^%(),. -]{0,60}") {
            let _ = evaluate(&text);
        }

        #[test]
        fn whole_numbers_are_exact(a in proptest::num::i64::ANY, b in proptest::num::i64::ANY, c in 1..i64::MAX) {
            let (wide_a, wide_b, wide_c) = (i128::from(a), i128::from(b), i128::from(c));
            let expected = wide_a * wide_b - wide_c + wide_a.rem_euclid(wide_c);
            proptest::prop_assert_eq!(value(&format!("({a}) * ({b}) - {c} + ({a}) % {c}")), expected.to_string());
        }
    }

    #[test]
    fn a_wrong_expression_says_what_is_wrong() {
        for (text, expected) in [
            ("", "expected a number, a name or a parenthesis at the end"),
            ("2 +", "expected a number, a name or a parenthesis at the end"),
            ("2 3", "expected an operator or the end at \"3\""),
            ("(2", "expected a closing parenthesis at the end"),
            (".", "expected a number at \".\""),
            ("1 / 0", "division by zero"),
            ("1 % 0", "division by zero"),
            ("sqrt(-1)", "sqrt(-1) is not a real number that can be told"),
            ("9 ^ 9 ^ 9", "the result is not a real number that can be told"),
            ("foo(1)", "there is no function or constant \"foo\""),
            ("import", "there is no function or constant \"import\""),
            ("sqrt(1, 2)", "sqrt takes one, not 2 arguments"),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
        assert_eq!(evaluate(&"(".repeat(100_000)), Err(ExpressionError::TooDeep));
        assert_eq!(evaluate(&"-".repeat(100_000)), Err(ExpressionError::TooDeep));
        assert_eq!(evaluate(&"2^".repeat(100_000)), Err(ExpressionError::TooDeep));
    }
}
