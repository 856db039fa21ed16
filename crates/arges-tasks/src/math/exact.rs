//! Exact values: sums of rational multiples of √r · iᵏ · πᵐ · eⁿ with different squarefree r. Two such sums are equal
//! only if their terms are (for π and e together that is unproven, but no counterexample can be written down).

use std::collections::BTreeMap;

use crate::rational::Rational;

/// Terms of a sum at most; what grows larger has no exact value here.
const MAX_TERMS: usize = 16;

/// Largest number whose squares are taken out of a root.
const MAX_RADICAND: u64 = 1_000_000_000_000;

/// What it costs to find the divisors of a number.
const FACTORING: usize = 100;

/// Operations left before the work counts as too much.
#[derive(Debug)]
pub(super) struct Budget(pub usize);

impl Budget {
    /// `None` once it is used up.
    fn spend(&mut self, operations: usize) -> Option<()> {
        self.0 = self.0.checked_sub(operations)?;
        Some(())
    }
}

/// What a term is a multiple of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Unit {
    /// Squarefree.
    radicand: u64,
    imaginary: bool,
    pi: i32,
    e: i32,
}

const ONE: Unit = Unit { radicand: 1, imaginary: false, pi: 0, e: 0 };

impl Unit {
    /// The product as a rational multiple of a unit.
    fn multiply(self, other: Self) -> Option<(Self, Rational)> {
        let common = common_divisor(self.radicand, other.radicand);
        let radicand = (self.radicand / common).checked_mul(other.radicand / common)?;
        let factor = Rational::from(i64::try_from(common).ok()?);
        let both = self.imaginary && other.imaginary;
        let unit = Self {
            radicand: Some(radicand).filter(|radicand| *radicand <= MAX_RADICAND)?,
            imaginary: self.imaginary != other.imaginary,
            pi: self.pi.checked_add(other.pi)?,
            e: self.e.checked_add(other.e)?,
        };
        Some((unit, if both { factor.negated() } else { factor }))
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Exact(BTreeMap<Unit, Rational>);

impl Exact {
    pub fn rational(value: Rational) -> Self {
        Self::term(ONE, value)
    }

    pub fn pi() -> Self {
        Self::term(Unit { pi: 1, ..ONE }, Rational::ONE)
    }

    pub fn e() -> Self {
        Self::term(Unit { e: 1, ..ONE }, Rational::ONE)
    }

    pub fn i() -> Self {
        Self::term(Unit { imaginary: true, ..ONE }, Rational::ONE)
    }

    fn term(unit: Unit, value: Rational) -> Self {
        Self(if value.is_zero() { BTreeMap::new() } else { BTreeMap::from([(unit, value)]) })
    }

    pub fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    /// The value, where it is rational.
    pub fn as_rational(&self) -> Option<Rational> {
        match self.0.len() {
            0 => Some(Rational::ZERO),
            1 => self.0.get(&ONE).copied(),
            _ => None,
        }
    }

    pub fn negated(&self) -> Self {
        Self(self.0.iter().map(|(unit, value)| (*unit, value.negated())).collect())
    }

    pub fn add(&self, other: &Self, budget: &mut Budget) -> Option<Self> {
        budget.spend(other.0.len())?;
        let mut sum = self.clone();
        for (unit, value) in &other.0 {
            sum.add_term(*unit, *value)?;
        }
        (sum.0.len() <= MAX_TERMS).then_some(sum)
    }

    fn add_term(&mut self, unit: Unit, value: Rational) -> Option<()> {
        let total = self.0.get(&unit).copied().unwrap_or(Rational::ZERO).add(value)?;
        if total.is_zero() {
            self.0.remove(&unit);
        } else {
            self.0.insert(unit, total);
        }
        Some(())
    }

    pub fn multiply(&self, other: &Self, budget: &mut Budget) -> Option<Self> {
        budget.spend(self.0.len() * other.0.len() + 1)?;
        let mut product = Self(BTreeMap::new());
        for (unit, value) in &self.0 {
            for (other_unit, other_value) in &other.0 {
                let (unit, factor) = unit.multiply(*other_unit)?;
                product.add_term(unit, value.multiply(*other_value)?.multiply(factor)?)?;
            }
        }
        (product.0.len() <= MAX_TERMS).then_some(product)
    }

    /// One by this. Of a sum, roots are cleared by multiplying with conjugates.
    pub fn inverse(&self, budget: &mut Budget) -> Option<Self> {
        let (mut numerator, mut denominator) = (Self::rational(Rational::ONE), self.clone());
        while denominator.0.len() > 1 {
            budget.spend(FACTORING * denominator.0.len())?;
            let conjugate = denominator.conjugate()?;
            numerator = numerator.multiply(&conjugate, budget)?;
            denominator = denominator.multiply(&conjugate, budget)?;
        }
        let (unit, value) = denominator.0.into_iter().next()?;
        // The unit's own inverse but for a rational factor: √r · √r = r, i · i = -1.
        let inverse = Unit { pi: unit.pi.checked_neg()?, e: unit.e.checked_neg()?, ..unit };
        let (_, factor) = unit.multiply(inverse)?;
        numerator.multiply(&Self::term(inverse, Rational::ONE.divide(value.multiply(factor)?)?), budget)
    }

    /// The sum with the sign of one root changed wherever it is, the root being one that some terms have and others
    /// have not; `None` if there is none.
    fn conjugate(&self) -> Option<Self> {
        let flipped = |has: &dyn Fn(&Unit) -> bool| {
            let flip =
                |(unit, value): (&Unit, &Rational)| (*unit, if has(unit) { value.negated() } else { *value });
            Self(self.0.iter().map(flip).collect())
        };
        let splits = |has: &dyn Fn(&Unit) -> bool| self.0.keys().any(has) && !self.0.keys().all(has);
        if splits(&|unit| unit.imaginary) {
            return Some(flipped(&|unit| unit.imaginary));
        }
        let primes = self.0.keys().flat_map(|unit| prime_divisors(unit.radicand));
        let prime = primes.into_iter().find(|prime| splits(&|unit| unit.radicand % prime == 0))?;
        Some(flipped(&|unit| unit.radicand % prime == 0))
    }

    pub fn power(&self, exponent: i32, budget: &mut Budget) -> Option<Self> {
        let base = if exponent < 0 { self.inverse(budget)? } else { self.clone() };
        let (mut result, mut square, mut rest) =
            (Self::rational(Rational::ONE), base, exponent.unsigned_abs());
        while rest > 0 {
            if rest % 2 == 1 {
                result = result.multiply(&square, budget)?;
            }
            rest /= 2;
            if rest > 0 {
                square = square.multiply(&square, budget)?;
            }
        }
        Some(result)
    }

    /// The square root of a rational number; of a negative one with i.
    pub fn square_root(value: Rational, budget: &mut Budget) -> Option<Self> {
        budget.spend(FACTORING)?;
        // √(p/q) = √(p q) / q
        let product = value.numerator().unsigned_abs().checked_mul(value.denominator().unsigned_abs())?;
        let (outside, radicand) = split_square(product)?;
        let unit = Unit { radicand, imaginary: value.numerator() < 0, ..ONE };
        Some(Self::term(unit, Rational::new(i128::from(outside), value.denominator())?))
    }
}

/// The root of a rational number that is a perfect power.
pub(super) fn perfect_root(value: Rational, index: u32) -> Option<Rational> {
    let root = |number: i128| {
        let near = (number.unsigned_abs() as f64).powf(1.0 / f64::from(index)).round() as i128;
        let signed = if number < 0 { -near } else { near };
        (signed.checked_pow(index) == Some(number)).then_some(signed)
    };
    if value.numerator() < 0 && index.is_multiple_of(2) {
        return None;
    }
    Rational::new(root(value.numerator())?, root(value.denominator())?)
}

/// The number as outside² · inside with a squarefree inside.
fn split_square(number: u128) -> Option<(u64, u64)> {
    let whole = (number as f64).sqrt().round() as u128;
    if whole.checked_mul(whole) == Some(number) {
        return Some((u64::try_from(whole).ok()?, u64::from(number != 0)));
    }
    let mut rest = u64::try_from(number).ok().filter(|number| *number <= MAX_RADICAND)?;
    let (mut outside, mut inside) = (1, 1);
    let mut divisor = 2;
    while divisor * divisor <= rest && divisor <= 10_000 {
        while rest % (divisor * divisor) == 0 {
            rest /= divisor * divisor;
            outside *= divisor;
        }
        if rest % divisor == 0 {
            rest /= divisor;
            inside *= divisor;
        }
        divisor += 1;
    }
    // Without divisors up to 10⁴ and below 10¹² it has at most two prime factors left: it is a square or squarefree.
    let root = rest.isqrt();
    if root * root == rest { Some((outside * root, inside)) } else { Some((outside, inside * rest)) }
}

/// The prime divisors of a squarefree number up to a bound; what is left counts as one.
fn prime_divisors(mut number: u64) -> Vec<u64> {
    let mut divisors = Vec::new();
    let mut divisor = 2;
    while divisor * divisor <= number && divisor <= 10_000 {
        if number.is_multiple_of(divisor) {
            divisors.push(divisor);
            number /= divisor;
        }
        divisor += 1;
    }
    divisors.extend((number > 1).then_some(number));
    divisors
}

fn common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: i64) -> Exact {
        Exact::rational(Rational::from(value))
    }

    fn root(value: i64) -> Exact {
        Exact::square_root(Rational::from(value), &mut Budget(1000)).unwrap()
    }

    #[test]
    fn squares_are_taken_out_of_roots() {
        for (number, parts) in [
            (0, (0, 0)),
            (1, (1, 1)),
            (12, (2, 3)),
            (72, (6, 2)),
            (49, (7, 1)),
            (2 * 99_991 * 99_991, (99_991, 2)),
        ] {
            assert_eq!(split_square(number), Some(parts), "{number}");
        }
        assert_eq!(split_square(10u128.pow(30) + 1), None);
    }

    #[test]
    fn sums_of_roots_multiply_and_invert_exactly() {
        let budget = &mut Budget(10_000);
        let sum = root(2).add(&root(3), budget).unwrap().add(&Exact::i(), budget).unwrap();
        let inverse = sum.inverse(budget).unwrap();
        assert_eq!(sum.multiply(&inverse, budget), Some(number(1)));
        assert_eq!(root(2).multiply(&root(6), budget), number(2).multiply(&root(3), budget));
        assert_eq!(root(-4).power(2, budget), Some(number(-4)));
        assert_eq!(
            Exact::pi().power(-2, budget).unwrap().multiply(&Exact::pi(), budget),
            Exact::pi().inverse(budget)
        );
        assert_eq!(number(0).inverse(budget), None);
    }

    #[test]
    fn perfect_roots_are_rational() {
        assert_eq!(perfect_root(Rational::from(-27), 3), Some(Rational::from(-3)));
        assert_eq!(perfect_root(Rational::new(16, 81).unwrap(), 4), Rational::new(2, 3));
        assert_eq!(perfect_root(Rational::from(-16), 4), None);
        assert_eq!(perfect_root(Rational::from(2), 3), None);
    }

    #[test]
    fn work_ends_with_the_budget() {
        let sum = root(2).add(&root(3), &mut Budget(10)).unwrap();
        assert_eq!(sum.power(40, &mut Budget(10)), None);
    }
}
