//! Numbers of the calculator: whole ones exact as long as they fit 128 bits, all others in double precision.

use std::fmt;

/// A number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    Whole(i128),
    Real(f64),
}

use Number::{Real, Whole};

impl Number {
    pub fn real(self) -> f64 {
        match self {
            Whole(number) => number as f64,
            Real(number) => number,
        }
    }

    /// The exact result where there is one, else that of double precision.
    fn either(
        self,
        other: Number,
        exact: impl Fn(i128, i128) -> Option<i128>,
        rounded: impl Fn(f64, f64) -> f64,
    ) -> Number {
        if let (Whole(left), Whole(right)) = (self, other)
            && let Some(number) = exact(left, right)
        {
            return Whole(number);
        }
        Real(rounded(self.real(), other.real()))
    }

    pub fn plus(self, other: Number) -> Number {
        self.either(other, i128::checked_add, |left, right| left + right)
    }

    pub fn minus(self, other: Number) -> Number {
        self.either(other, i128::checked_sub, |left, right| left - right)
    }

    pub fn times(self, other: Number) -> Number {
        self.either(other, i128::checked_mul, |left, right| left * right)
    }

    /// Whole if it comes out even. `None` by zero.
    pub fn over(self, other: Number) -> Option<Number> {
        let even = |left: i128, right: i128| {
            left.checked_rem(right).filter(|rest| *rest == 0).and_then(|_| left.checked_div(right))
        };
        (other.real() != 0.0).then(|| self.either(other, even, |left, right| left / right))
    }

    /// The rest of a division, with the sign of the divisor. `None` by zero.
    pub fn modulo(self, other: Number) -> Option<Number> {
        let exact = |left: i128, right: i128| {
            let rest = left.checked_rem(right)?;
            Some(if rest != 0 && (rest < 0) != (right < 0) { rest + right } else { rest })
        };
        (other.real() != 0.0)
            .then(|| self.either(other, exact, |left, right| left - right * (left / right).floor()))
    }

    pub fn power(self, exponent: Number) -> Number {
        let exact = |base: i128, exponent: i128| base.checked_pow(u32::try_from(exponent).ok()?);
        self.either(exponent, exact, f64::powf)
    }

    pub fn negated(self) -> Number {
        Whole(0).minus(self)
    }

    /// A real that is whole and small enough to be exact, as a whole number.
    pub fn settled(self) -> Number {
        match self {
            Real(number) if number.fract() == 0.0 && number.abs() < 2f64.powi(53) => Whole(number as i128),
            other => other,
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Whole(number) => write!(f, "{number}"),
            Real(number) if number.abs() >= 1e16 || (*number != 0.0 && number.abs() < 1e-5) => {
                write!(f, "{number:e}")
            }
            Real(number) => write!(f, "{number}"),
        }
    }
}
