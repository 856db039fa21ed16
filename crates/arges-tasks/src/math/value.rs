//! The value of a tree at a point: exact where it can be, and approximate.

use super::exact::{Budget, Exact, perfect_root};
use super::lexer::Function;
use super::parser::{Constant, Node, Sign};
use crate::rational::Rational;

/// Largest power that is worked out exactly.
const MAX_POWER: i128 = 128;

/// A complex number in floating point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Approximate {
    pub re: f64,
    pub im: f64,
}

impl Approximate {
    const fn real(re: f64) -> Self {
        Self { re, im: 0.0 }
    }

    pub fn magnitude(self) -> f64 {
        self.re.hypot(self.im)
    }

    fn is_finite(self) -> bool {
        self.re.is_finite() && self.im.is_finite()
    }

    fn is_real(self) -> bool {
        self.im.abs() <= 1e-12 * self.magnitude()
    }

    pub fn minus(self, other: Self) -> Self {
        Self { re: self.re - other.re, im: self.im - other.im }
    }

    fn plus(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }

    fn times(self, other: Self) -> Self {
        Self { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }

    fn inverse(self) -> Self {
        let square = self.re * self.re + self.im * self.im;
        Self { re: self.re / square, im: -self.im / square }
    }

    /// The principal value of a power.
    fn power(self, exponent: Self) -> Self {
        if exponent == Self::real(0.0) {
            return Self::real(1.0);
        }
        if self.magnitude() == 0.0 {
            return Self::real(if exponent.re > 0.0 { 0.0 } else { f64::NAN });
        }
        let (length, angle) = (self.magnitude().ln(), self.im.atan2(self.re));
        let power = Self { re: length, im: angle }.times(exponent);
        let scale = power.re.exp();
        Self { re: scale * power.im.cos(), im: scale * power.im.sin() }
    }
}

/// A value; the exact form is missing where there is none or it is too large.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub exact: Option<Exact>,
    pub approximate: Approximate,
}

/// Where expressions are evaluated: what the variables are, which of the signs `±` stands for, and how much work is
/// left.
pub(super) struct Point<'a> {
    pub round: u64,
    pub plus: bool,
    pub budget: &'a mut Budget,
}

impl Point<'_> {
    /// The value; `None` where it has none, as by a division by zero, or the tree is no expression.
    pub fn value(&mut self, node: &Node) -> Option<Value> {
        let value = match node {
            Node::Number(number, _) => rational(*number),
            Node::Constant(constant) => constant_value(*constant)?,
            Node::Variable(name) => rational(variable_value(name, self.round)),
            Node::Sum(terms) => self.sum(terms)?,
            Node::Product(factors) => self.product(factors)?,
            Node::Power(base, exponent) => {
                let (base, exponent) = (self.value(base)?, self.value(exponent)?);
                self.power(&base, &exponent)?
            }
            Node::Root(index, radicand) => {
                let (index, radicand) = (self.value(index)?, self.value(radicand)?);
                self.root(&index, &radicand)?
            }
            Node::Binomial(n, k) => binomial(whole(&self.value(n)?)?, whole(&self.value(k)?)?)?,
            Node::Factorial(n) => factorial(whole(&self.value(n)?)?)?,
            Node::Absolute(inside) => absolute(&self.value(inside)?),
            Node::Percent(inside) => {
                let inside = self.value(inside)?;
                self.times(&inside, &rational(Rational::new(1, 100)?))
            }
            Node::Function(function, base, argument) => {
                self.function(*function, base.as_deref(), argument)?
            }
            Node::Equation(..) | Node::Collection(_) | Node::Union(_) => return None,
        };
        value.approximate.is_finite().then_some(value)
    }

    fn times(&mut self, a: &Value, b: &Value) -> Value {
        let exact = a.exact.as_ref().zip(b.exact.as_ref()).and_then(|(a, b)| a.multiply(b, self.budget));
        Value { exact, approximate: a.approximate.times(b.approximate) }
    }

    fn sum(&mut self, terms: &[(Sign, Node)]) -> Option<Value> {
        let mut total = rational(Rational::ZERO);
        for (sign, term) in terms {
            let mut value = self.value(term)?;
            if *sign == Sign::Minus || (*sign == Sign::PlusMinus && !self.plus) {
                value.exact = value.exact.map(|exact| exact.negated());
                value.approximate = Approximate::real(0.0).minus(value.approximate);
            }
            let exact = total.exact.zip(value.exact).and_then(|(a, b)| a.add(&b, self.budget));
            total = Value { exact, approximate: total.approximate.plus(value.approximate) };
        }
        Some(total)
    }

    fn product(&mut self, factors: &[(bool, Node)]) -> Option<Value> {
        let mut product = rational(Rational::ONE);
        for (inverse, factor) in factors {
            let mut value = self.value(factor)?;
            if *inverse {
                value = self.inverse(&value)?;
            }
            product = self.times(&product, &value);
        }
        Some(product)
    }

    fn inverse(&mut self, value: &Value) -> Option<Value> {
        if value.exact.as_ref().is_some_and(Exact::is_zero) || value.approximate.magnitude() == 0.0 {
            return None;
        }
        let exact = value.exact.as_ref().and_then(|exact| exact.inverse(self.budget));
        Some(Value { exact, approximate: value.approximate.inverse() })
    }

    fn power(&mut self, base: &Value, exponent: &Value) -> Option<Value> {
        let fraction = exponent.exact.as_ref().and_then(Exact::as_rational);
        let small = fraction.filter(|fraction| {
            fraction.numerator().abs() <= MAX_POWER && (1..=MAX_POWER).contains(&fraction.denominator())
        });
        let approximate = base.approximate.power(exponent.approximate);
        let Some((numerator, denominator)) = small.map(|small| (small.numerator(), small.denominator()))
        else {
            return Some(Value { exact: None, approximate });
        };
        let is_zero = base.exact.as_ref().is_some_and(Exact::is_zero);
        if is_zero && numerator < 0 {
            return None;
        }
        let rooted = match denominator {
            1 => base.exact.clone(),
            index => exact_root(base, index as u32, self.budget),
        };
        let exact = rooted.and_then(|rooted| rooted.power(numerator as i32, self.budget));
        Some(Value { exact, approximate })
    }

    /// The principal root; of a negative number with an odd index the real one.
    fn root(&mut self, index: &Value, radicand: &Value) -> Option<Value> {
        let index =
            u32::try_from(whole(index)?).ok().filter(|index| (2..=MAX_POWER as u32).contains(index))?;
        let inverse = Approximate::real(1.0 / f64::from(index));
        let approximate = if index % 2 == 1 && radicand.approximate.is_real() && radicand.approximate.re < 0.0
        {
            Approximate::real(-radicand.approximate.re.abs().powf(inverse.re))
        } else {
            radicand.approximate.power(inverse)
        };
        Some(Value { exact: exact_root(radicand, index, self.budget), approximate })
    }

    fn function(&mut self, function: Function, base: Option<&Node>, argument: &Node) -> Option<Value> {
        let x = self.value(argument)?.approximate;
        let base = match base {
            Some(base) => Some(self.value(base)?.approximate).filter(|base| base.is_real()),
            None => None,
        };
        if !x.is_real() {
            return None;
        }
        let value = match (function, base) {
            (Function::Sin, None) => x.re.sin(),
            (Function::Cos, None) => x.re.cos(),
            (Function::Tan, None) => x.re.tan(),
            (Function::Exp, None) => x.re.exp(),
            (Function::Ln, None) => x.re.ln(),
            (Function::Log, None) => x.re.log10(),
            (Function::Log, Some(base)) => x.re.ln() / base.re.ln(),
            _ => return None,
        };
        Some(Value { exact: None, approximate: Approximate::real(value) })
    }
}

fn rational(value: Rational) -> Value {
    Value { exact: Some(Exact::rational(value)), approximate: Approximate::real(value.to_f64()) }
}

fn constant_value(constant: Constant) -> Option<Value> {
    let (exact, approximate) = match constant {
        Constant::Pi => (Exact::pi(), Approximate::real(std::f64::consts::PI)),
        Constant::Euler => (Exact::e(), Approximate::real(std::f64::consts::E)),
        Constant::Imaginary => (Exact::i(), Approximate { re: 0.0, im: 1.0 }),
        Constant::Infinity => return None,
    };
    Some(Value { exact: Some(exact), approximate })
}

/// A fraction that depends on the name and the round; in every other round it is negative.
fn variable_value(name: &str, round: u64) -> Rational {
    let mixed = name.bytes().fold(round.wrapping_mul(0x9e37_79b9_7f4a_7c15), |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
    });
    let (numerator, denominator) = (2 + i128::from(mixed >> 32) % 89, 1 + i128::from(mixed & 0xffff) % 7);
    let value = Rational::new(numerator, denominator).unwrap_or(Rational::ONE);
    if round % 2 == 1 { value.negated() } else { value }
}

/// The root of a rational value.
fn exact_root(radicand: &Value, index: u32, budget: &mut Budget) -> Option<Exact> {
    let radicand = radicand.exact.as_ref()?.as_rational()?;
    match index {
        2 => Exact::square_root(radicand, budget),
        index => perfect_root(radicand, index).map(Exact::rational),
    }
}

/// A value that is a whole number.
fn whole(value: &Value) -> Option<i128> {
    let value = value.exact.as_ref()?.as_rational()?;
    value.is_integer().then(|| value.numerator())
}

fn absolute(value: &Value) -> Value {
    let magnitude = Approximate::real(value.approximate.magnitude());
    let is_real = value.approximate.is_real();
    let exact = value.exact.as_ref().filter(|_| is_real);
    let negative = value.approximate.re < 0.0;
    Value {
        exact: exact.map(|exact| if negative { exact.negated() } else { exact.clone() }),
        approximate: magnitude,
    }
}

fn factorial(n: i128) -> Option<Value> {
    let n = u8::try_from(n).ok().filter(|n| *n <= 170)?;
    let exact =
        (1..=i128::from(n)).try_fold(1i128, i128::checked_mul).and_then(|product| Rational::new(product, 1));
    let approximate = (1..=n).map(f64::from).product();
    Some(Value { exact: exact.map(Exact::rational), approximate: Approximate::real(approximate) })
}

fn binomial(n: i128, k: i128) -> Option<Value> {
    if !(0..=n).contains(&k) || n > 1000 {
        return None;
    }
    let k = k.min(n - k);
    let mut result = Some(1i128);
    let mut approximate = 1.0;
    for step in 1..=k {
        result = result.and_then(|result| result.checked_mul(n - k + step)).map(|product| product / step);
        approximate *= (n - k + step) as f64 / step as f64;
    }
    let exact = result.and_then(|result| Rational::new(result, 1)).map(Exact::rational);
    Some(Value { exact, approximate: Approximate::real(approximate) })
}
