//! Expressions of whole numbers, `+`, `-`, `*`, `/` and parentheses: parsed, and valued exactly. There is no sign in
//! front of a number: a number of an expression is one that was given.

use std::fmt;

use crate::rational::Rational;

/// Numbers of an expression at most; they bound its depth.
const MAX_NUMBERS: usize = 64;
/// Parentheses within each other at most.
const MAX_NESTING: usize = 64;
/// Bytes of an expression at most.
const MAX_LENGTH: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
}

impl Operator {
    pub const ALL: [Self; 4] = [Self::Add, Self::Subtract, Self::Multiply, Self::Divide];

    pub fn symbol(self) -> char {
        match self {
            Self::Add => '+',
            Self::Subtract => '-',
            Self::Multiply => '*',
            Self::Divide => '/',
        }
    }

    /// The result, where it exists and is not too large.
    pub fn apply(self, left: Rational, right: Rational) -> Option<Rational> {
        match self {
            Self::Add => left.add(right),
            Self::Subtract => left.subtract(right),
            Self::Multiply => left.multiply(right),
            Self::Divide => left.divide(right),
        }
    }

    /// Products bind closer than sums.
    fn precedence(self) -> u8 {
        match self {
            Self::Add | Self::Subtract => 1,
            Self::Multiply | Self::Divide => 2,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expression {
    /// Negative only where it stands for a result.
    Number(i64),
    Binary(Operator, Box<Self>, Box<Self>),
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum ExpressionError {
    #[error("the expression is longer than {MAX_LENGTH} bytes")]
    TooLong,
    #[error("the expression has more than {MAX_NUMBERS} numbers")]
    TooManyNumbers,
    #[error("the expression is nested deeper than {MAX_NESTING} parentheses")]
    TooDeep,
    #[error("the expression has a number that is too large")]
    TooLarge,
    #[error("unexpected {0:?} in the expression")]
    Unexpected(char),
    #[error("the expression ends too early")]
    Ends,
}

impl Expression {
    pub fn binary(operator: Operator, left: Self, right: Self) -> Self {
        Self::Binary(operator, Box::new(left), Box::new(right))
    }

    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        if text.len() > MAX_LENGTH {
            return Err(ExpressionError::TooLong);
        }
        let chars: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).map(plain).collect();
        let mut parser = Parser { chars: &chars, numbers: 0, nesting: 0 };
        let expression = parser.sum()?;
        parser.chars.first().map_or(Ok(expression), |c| Err(ExpressionError::Unexpected(*c)))
    }

    /// The exact value; `None` where it divides by zero or grows too large.
    pub fn value(&self) -> Option<Rational> {
        match self {
            Self::Number(number) => Some(Rational::from(*number)),
            Self::Binary(operator, left, right) => operator.apply(left.value()?, right.value()?),
        }
    }

    /// The numbers, from left to right.
    pub fn numbers(&self) -> Vec<i64> {
        match self {
            Self::Number(number) => vec![*number],
            Self::Binary(_, left, right) => [left.numbers(), right.numbers()].concat(),
        }
    }

    fn precedence(&self) -> u8 {
        match self {
            Self::Number(number) if *number < 0 => 0,
            Self::Number(_) => 3,
            Self::Binary(operator, ..) => operator.precedence(),
        }
    }
}

/// Only the parentheses it needs.
impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Binary(operator, left, right) => {
                let own = operator.precedence();
                parenthesized(f, left, left.precedence() < own)?;
                write!(f, " {} ", operator.symbol())?;
                parenthesized(f, right, right.precedence() <= own)
            }
        }
    }
}

fn parenthesized(f: &mut fmt::Formatter<'_>, expression: &Expression, needed: bool) -> fmt::Result {
    if needed { write!(f, "({expression})") } else { write!(f, "{expression}") }
}

/// Typographic signs as plain ones.
fn plain(c: char) -> char {
    match c {
        '×' | '·' | '⋅' | '∗' => '*',
        '÷' | '∕' => '/',
        '−' | '–' => '-',
        _ => c,
    }
}

struct Parser<'a> {
    chars: &'a [char],
    numbers: usize,
    nesting: usize,
}

impl Parser<'_> {
    fn take(&mut self, operators: [Operator; 2]) -> Option<Operator> {
        let first = *self.chars.first()?;
        let found = operators.into_iter().find(|operator| operator.symbol() == first)?;
        self.chars = &self.chars[1..];
        Some(found)
    }

    fn sum(&mut self) -> Result<Expression, ExpressionError> {
        let mut left = self.product()?;
        while let Some(operator) = self.take([Operator::Add, Operator::Subtract]) {
            left = Expression::binary(operator, left, self.product()?);
        }
        Ok(left)
    }

    fn product(&mut self) -> Result<Expression, ExpressionError> {
        let mut left = self.factor()?;
        while let Some(operator) = self.take([Operator::Multiply, Operator::Divide]) {
            left = Expression::binary(operator, left, self.factor()?);
        }
        Ok(left)
    }

    fn factor(&mut self) -> Result<Expression, ExpressionError> {
        let (first, rest) = self.chars.split_first().ok_or(ExpressionError::Ends)?;
        if first.is_ascii_digit() {
            return self.number();
        }
        if *first != '(' {
            return Err(ExpressionError::Unexpected(*first));
        }
        self.chars = rest;
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(ExpressionError::TooDeep);
        }
        let inner = self.sum()?;
        self.nesting -= 1;
        match self.chars.split_first() {
            Some((')', rest)) => self.chars = rest,
            Some((c, _)) => return Err(ExpressionError::Unexpected(*c)),
            None => return Err(ExpressionError::Ends),
        }
        Ok(inner)
    }

    fn number(&mut self) -> Result<Expression, ExpressionError> {
        self.numbers += 1;
        if self.numbers > MAX_NUMBERS {
            return Err(ExpressionError::TooManyNumbers);
        }
        let length = self.chars.iter().take_while(|c| c.is_ascii_digit()).count();
        let (digits, rest) = self.chars.split_at(length);
        self.chars = rest;
        let number = digits.iter().collect::<String>().parse().map_err(|_| ExpressionError::TooLarge)?;
        Ok(Expression::Number(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Option<Rational> {
        Expression::parse(text).unwrap().value()
    }

    #[test]
    fn values_are_exact_and_follow_precedence() {
        assert_eq!(value("8 / (3 - 8 / 3)"), Some(Rational::from(24)));
        assert_eq!(value("10 - 2 - 3 * 2"), Some(Rational::from(2)));
        assert_eq!(value("2 × 3 ÷ 4"), Rational::new(3, 2));
        assert_eq!(value("1 / (2 - 2)"), None);
    }

    #[test]
    fn expressions_are_written_with_the_parentheses_they_need() {
        for text in ["1 - (2 - 3) * 4", "(1 + 2) * 3 / (4 * 5)", "1 + 2 - 3", "1 - (2 + 3)"] {
            assert_eq!(Expression::parse(text).unwrap().to_string(), text);
        }
        let difference =
            Expression::binary(Operator::Subtract, Expression::Number(1), Expression::Number(-2));
        assert_eq!(difference.to_string(), "1 - (-2)");
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        use ExpressionError as E;
        let refused = |text: &str| Expression::parse(text).unwrap_err();
        assert_eq!(refused(""), E::Ends);
        assert_eq!(refused("1 + "), E::Ends);
        assert_eq!(refused("-1"), E::Unexpected('-'));
        assert_eq!(refused("2 ^ 3"), E::Unexpected('^'));
        assert_eq!(refused("(1))"), E::Unexpected(')'));
        assert_eq!(refused(&"(".repeat(4000)), E::TooDeep);
        assert_eq!(refused(&"1+".repeat(2000)), E::TooManyNumbers);
        assert_eq!(refused("99999999999999999999"), E::TooLarge);
        assert_eq!(refused(&" ".repeat(1 << 20)), E::TooLong);
    }
}
