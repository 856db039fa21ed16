//! Exact fractions. Every operation is checked: `None` where a number would need more than 127 bits, or for a
//! division by zero.

use std::fmt;

/// A fraction in lowest terms with a positive denominator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Rational {
    numerator: i128,
    denominator: i128,
}

impl Rational {
    pub const ZERO: Self = Self { numerator: 0, denominator: 1 };
    pub const ONE: Self = Self { numerator: 1, denominator: 1 };

    pub fn new(numerator: i128, denominator: i128) -> Option<Self> {
        if denominator == 0 || numerator == i128::MIN || denominator == i128::MIN {
            return None;
        }
        let divisor = greatest_common_divisor(numerator.unsigned_abs(), denominator.unsigned_abs()) as i128;
        let sign = denominator.signum();
        Some(Self { numerator: sign * (numerator / divisor), denominator: denominator.abs() / divisor })
    }

    pub fn numerator(self) -> i128 {
        self.numerator
    }

    pub fn denominator(self) -> i128 {
        self.denominator
    }

    pub fn is_zero(self) -> bool {
        self.numerator == 0
    }

    pub fn is_integer(self) -> bool {
        self.denominator == 1
    }

    pub fn negated(self) -> Self {
        Self { numerator: -self.numerator, ..self }
    }

    pub fn add(self, other: Self) -> Option<Self> {
        let left = self.numerator.checked_mul(other.denominator)?;
        let right = other.numerator.checked_mul(self.denominator)?;
        Self::new(left.checked_add(right)?, self.denominator.checked_mul(other.denominator)?)
    }

    pub fn subtract(self, other: Self) -> Option<Self> {
        self.add(other.negated())
    }

    pub fn multiply(self, other: Self) -> Option<Self> {
        // Reduced crosswise first, so that only results that are too large fail.
        let left = Self::new(self.numerator, other.denominator)?;
        let right = Self::new(other.numerator, self.denominator)?;
        let numerator = left.numerator.checked_mul(right.numerator)?;
        let denominator = left.denominator.checked_mul(right.denominator)?;
        // The smallest number has no negative.
        (numerator != i128::MIN).then_some(Self { numerator, denominator })
    }

    pub fn divide(self, other: Self) -> Option<Self> {
        self.multiply(Self::new(other.denominator, other.numerator)?)
    }

    pub fn to_f64(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }
}

impl From<i64> for Rational {
    fn from(number: i64) -> Self {
        Self { numerator: i128::from(number), denominator: 1 }
    }
}

impl fmt::Display for Rational {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.denominator {
            1 => write!(f, "{}", self.numerator),
            denominator => write!(f, "{}/{denominator}", self.numerator),
        }
    }
}

fn greatest_common_divisor(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fraction(numerator: i128, denominator: i128) -> Rational {
        Rational::new(numerator, denominator).unwrap()
    }

    #[test]
    fn fractions_are_kept_in_lowest_terms() {
        assert_eq!(fraction(6, -4), fraction(-3, 2));
        assert_eq!(fraction(0, -5), Rational::ZERO);
        assert_eq!(fraction(-3, 2).to_string(), "-3/2");
    }

    #[test]
    fn operations_are_exact() {
        let (a, b) = (fraction(1, 6), fraction(3, 4));
        assert_eq!(a.add(b), Some(fraction(11, 12)));
        assert_eq!(a.subtract(b), Some(fraction(-7, 12)));
        assert_eq!(a.multiply(b), Some(fraction(1, 8)));
        assert_eq!(a.divide(b), Some(fraction(2, 9)));
    }

    #[test]
    fn what_has_no_exact_value_is_none() {
        assert_eq!(Rational::ONE.divide(Rational::ZERO), None);
        assert_eq!(fraction(i128::MAX, 1).multiply(Rational::from(2)), None);
        assert_eq!(Rational::new(i128::MIN, 1), None);
        assert_eq!(fraction(-(1 << 64), 1).multiply(fraction(1 << 63, 1)), None);
        assert_eq!(fraction(i128::MAX, 1).add(Rational::ONE), None);
    }
}
