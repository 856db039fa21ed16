//! Tokens to a tree, by recursive descent of bounded depth.

use super::lexer::{Function, Token, tokens};
use crate::rational::Rational;

/// Brackets, signs and powers within each other at most.
const MAX_NESTING: usize = 40;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// With the number of its decimals.
    Number(Rational, usize),
    Constant(Constant),
    Variable(String),
    Sum(Vec<(Sign, Node)>),
    /// The factors that are inverted are marked.
    Product(Vec<(bool, Node)>),
    Power(Box<Node>, Box<Node>),
    /// The index, and what it is the root of.
    Root(Box<Node>, Box<Node>),
    Binomial(Box<Node>, Box<Node>),
    Factorial(Box<Node>),
    Absolute(Box<Node>),
    Percent(Box<Node>),
    /// The base of a logarithm where it is given, and the argument.
    Function(Function, Option<Box<Node>>, Box<Node>),
    Equation(Box<Node>, Box<Node>),
    Collection(Collection),
    Union(Vec<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Constant {
    Pi,
    Euler,
    Imaginary,
    Infinity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    Plus,
    Minus,
    PlusMinus,
}

/// Several values: a set in `{}`, a tuple or an interval in round or square brackets, or a list in none.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Collection {
    pub brackets: Option<(char, char)>,
    pub items: Vec<Node>,
}

/// The tree of a plain answer; `None` for what is not understood.
pub(super) fn parse(answer: &str) -> Option<Node> {
    let mut parser = Parser { tokens: tokens(answer)?, at: 0, nesting: 0 };
    let mut items = parser.list()?;
    if parser.at < parser.tokens.len() {
        return None;
    }
    if items.len() == 1 { items.pop() } else { Some(Node::Collection(Collection { brackets: None, items })) }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    nesting: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn take(&mut self, token: &Token) -> bool {
        let found = self.peek() == Some(token);
        self.at += usize::from(found);
        found
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        self.nesting += 1;
        let parsed = if self.nesting <= MAX_NESTING { parse(self) } else { None };
        self.nesting -= 1;
        parsed
    }

    /// Items with commas between them.
    fn list(&mut self) -> Option<Vec<Node>> {
        self.nested(|parser| {
            let mut items = vec![parser.item()?];
            while parser.take(&Token::Comma) {
                items.push(parser.item()?);
            }
            Some(items)
        })
    }

    /// Equations or expressions, joined to a union.
    fn item(&mut self) -> Option<Node> {
        let first = self.equation()?;
        let mut parts = vec![first];
        while self.take(&Token::Union) {
            parts.push(self.equation()?);
        }
        if parts.len() == 1 { parts.pop() } else { Some(Node::Union(parts)) }
    }

    /// Of several equations in a row, the first side and the last.
    fn equation(&mut self) -> Option<Node> {
        let left = self.sum()?;
        let mut right = None;
        while self.take(&Token::Equals) {
            right = Some(self.sum()?);
        }
        Some(match right {
            Some(right) => Node::Equation(Box::new(left), Box::new(right)),
            None => left,
        })
    }

    fn sign(&mut self) -> Option<Sign> {
        let sign = match self.peek()? {
            Token::Plus => Sign::Plus,
            Token::Minus => Sign::Minus,
            Token::PlusMinus => Sign::PlusMinus,
            _ => return None,
        };
        self.at += 1;
        Some(sign)
    }

    fn sum(&mut self) -> Option<Node> {
        let first = self.sign().unwrap_or(Sign::Plus);
        let mut terms = vec![(first, self.product()?)];
        while let Some(sign) = self.sign() {
            terms.push((sign, self.product()?));
        }
        Some(if terms.len() == 1 && first == Sign::Plus { terms.pop()?.1 } else { Node::Sum(terms) })
    }

    fn product(&mut self) -> Option<Node> {
        let mut factors = vec![(false, self.signed()?)];
        loop {
            let inverse = if self.take(&Token::Times) {
                false
            } else if self.peek() == Some(&Token::Over) {
                self.at += 1;
                if self.unit() {
                    continue;
                }
                true
            } else if self.unit() {
                continue;
            } else if self.peek().is_some_and(starts_factor) {
                factors.push((false, self.power()?));
                continue;
            } else {
                break;
            };
            factors.push((inverse, self.signed()?));
        }
        Some(if factors.len() == 1 { factors.pop()?.1 } else { Node::Product(factors) })
    }

    /// Skips a unit of measure and its power.
    fn unit(&mut self) -> bool {
        if !self.take(&Token::Unit) {
            return false;
        }
        if self.take(&Token::Power) {
            let grouped = self.take(&Token::OpenGroup);
            self.at += usize::from(matches!(self.peek(), Some(Token::Number { .. })));
            if grouped {
                self.take(&Token::CloseGroup);
            }
        }
        true
    }

    fn signed(&mut self) -> Option<Node> {
        if self.take(&Token::Minus) {
            return self.nested(|parser| Some(Node::Sum(vec![(Sign::Minus, parser.signed()?)])));
        }
        self.power()
    }

    fn power(&mut self) -> Option<Node> {
        let mut base = self.primary()?;
        if self.take(&Token::Factorial) {
            base = Node::Factorial(Box::new(base));
        }
        if self.take(&Token::Percent) {
            base = Node::Percent(Box::new(base));
        }
        if self.take(&Token::Power) {
            let exponent = self.nested(Self::signed)?;
            return Some(Node::Power(Box::new(base), Box::new(exponent)));
        }
        Some(base)
    }

    fn primary(&mut self) -> Option<Node> {
        let token = self.peek()?.clone();
        self.at += 1;
        Some(match token {
            Token::Number { whole, decimals } => return self.number(&whole, decimals.as_deref()),
            Token::Variable(name) => Node::Variable(self.subscripted(name)?),
            Token::Pi => Node::Constant(Constant::Pi),
            Token::Euler => Node::Constant(Constant::Euler),
            Token::Imaginary => Node::Constant(Constant::Imaginary),
            Token::Infinity => Node::Constant(Constant::Infinity),
            Token::EmptySet => Node::Collection(Collection { brackets: Some(('{', '}')), items: Vec::new() }),
            Token::Frac => return self.fraction(),
            Token::Binom => Node::Binomial(Box::new(self.argument()?), Box::new(self.argument()?)),
            Token::Sqrt => return self.root(),
            Token::Function(function) => return self.function(function),
            Token::Bar => {
                let inside = self.nested(Self::sum)?;
                if !self.take(&Token::Bar) {
                    return None;
                }
                Node::Absolute(Box::new(inside))
            }
            Token::Open(open) => return self.bracketed(open),
            Token::OpenGroup => return self.bracketed('{').map(without_single),
            _ => return None,
        })
    }

    /// What follows an opening bracket, up to the closing one.
    fn bracketed(&mut self, open: char) -> Option<Node> {
        if open == '{' && self.take(&Token::Close('}')) {
            return Some(Node::Collection(Collection { brackets: Some(('{', '}')), items: Vec::new() }));
        }
        let mut items = self.list()?;
        let close = match self.peek()? {
            Token::Close(close) => *close,
            Token::CloseGroup => '}',
            _ => return None,
        };
        self.at += 1;
        if (open == '{') != (close == '}') {
            return None;
        }
        match (open, items.len()) {
            ('(', 1) if close == ')' => items.pop(),
            ('[', 1) if close == ']' => items.pop(),
            ('{', _) | (_, 2..) => {
                Some(Node::Collection(Collection { brackets: Some((open, close)), items }))
            }
            _ => None,
        }
    }

    /// A number, and the fraction of a mixed number after it.
    fn number(&mut self, whole: &str, decimals: Option<&str>) -> Option<Node> {
        let number = Node::Number(rational(whole, decimals.unwrap_or(""))?, decimals.map_or(0, str::len));
        if decimals.is_some() {
            return Some(number);
        }
        let before = self.at;
        let fraction = match &self.tokens[self.at..] {
            [Token::Frac, ..] => {
                self.at += 1;
                self.fraction()
            }
            [Token::Number { decimals: None, .. }, Token::Over, Token::Number { decimals: None, .. }, ..] => {
                let parts = (self.whole_number()?, self.at += 1, self.whole_number()?);
                Some(Node::Product(vec![(false, parts.0), (true, parts.2)]))
            }
            _ => None,
        };
        match fraction {
            Some(Node::Product(parts))
                if parts.iter().all(|(_, part)| matches!(part, Node::Number(_, 0))) =>
            {
                Some(Node::Sum(vec![(Sign::Plus, number), (Sign::Plus, Node::Product(parts))]))
            }
            _ => {
                self.at = before;
                Some(number)
            }
        }
    }

    fn whole_number(&mut self) -> Option<Node> {
        match self.peek()? {
            Token::Number { whole, decimals: None } => {
                let number = Node::Number(rational(whole, "")?, 0);
                self.at += 1;
                Some(number)
            }
            _ => None,
        }
    }

    fn fraction(&mut self) -> Option<Node> {
        let (numerator, denominator) = (self.argument()?, self.argument()?);
        Some(Node::Product(vec![(false, numerator), (true, denominator)]))
    }

    /// The argument of a command: a group, or a single sign; of a number its first digit.
    fn argument(&mut self) -> Option<Node> {
        match self.peek()? {
            Token::Number { whole, decimals: None } if whole.len() > 1 => {
                let (first, rest) = whole.split_at(1);
                let (first, rest) = (rational(first, "")?, rest.to_owned());
                self.tokens[self.at] = Token::Number { whole: rest, decimals: None };
                Some(Node::Number(first, 0))
            }
            Token::Number { .. } => self.whole_number(),
            _ => self.nested(Self::primary),
        }
    }

    /// After the sign of a root: its index in square brackets, and what it is the root of.
    fn root(&mut self) -> Option<Node> {
        let mut index = Node::Number(Rational::from(2), 0);
        if self.take(&Token::Open('[')) {
            index = self.nested(Self::sum)?;
            if !self.take(&Token::Close(']')) {
                return None;
            }
        }
        Some(Node::Root(Box::new(index), Box::new(self.nested(Self::primary)?)))
    }

    /// After the name of a function: the base of a logarithm, a power of the whole, the argument.
    fn function(&mut self, function: Function) -> Option<Node> {
        let base = match self.take(&Token::Subscript) {
            true => Some(Box::new(self.nested(Self::primary)?)),
            false => None,
        };
        let exponent = match self.take(&Token::Power) {
            true => Some(Box::new(self.nested(Self::primary)?)),
            false => None,
        };
        // `\sin^{-1}` is the inverse function, which is not understood, and no power.
        if matches!(exponent.as_deref(), Some(Node::Sum(terms)) if terms.len() == 1) {
            return None;
        }
        let argument = Box::new(self.nested(Self::power)?);
        let value = Node::Function(function, base, argument);
        Some(match exponent {
            Some(exponent) => Node::Power(Box::new(value), exponent),
            None => value,
        })
    }

    /// A variable's name with its index, which is a number or a letter.
    fn subscripted(&mut self, name: String) -> Option<String> {
        if !self.take(&Token::Subscript) {
            return Some(name);
        }
        let grouped = self.take(&Token::OpenGroup);
        let index = match self.peek()? {
            Token::Number { whole, decimals: None } => whole.clone(),
            Token::Variable(index) => index.clone(),
            _ => return None,
        };
        self.at += 1;
        (!grouped || self.take(&Token::CloseGroup)).then(|| format!("{name}_{index}"))
    }
}

/// Whether the token may follow a factor as another one, without a sign between them.
fn starts_factor(token: &Token) -> bool {
    use Token as T;
    matches!(
        token,
        T::Variable(_)
            | T::Pi
            | T::Euler
            | T::Imaginary
            | T::Frac
            | T::Binom
            | T::Sqrt
            | T::Function(_)
            | T::Open('(')
            | T::OpenGroup
    )
}

/// Braces around a single thing hold it together; they make no set of it.
fn without_single(node: Node) -> Node {
    match node {
        Node::Collection(mut collection) if collection.items.len() == 1 => collection.items.remove(0),
        node => node,
    }
}

/// The value of decimal digits.
fn rational(whole: &str, decimals: &str) -> Option<Rational> {
    let digits = format!("0{whole}{decimals}");
    Rational::new(digits.parse().ok()?, 10i128.checked_pow(decimals.len() as u32)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_no_tree() {
        for text in [
            "",
            "1 2",
            "(1",
            "1)",
            "[1)",
            "1 +",
            "\\frac{1}",
            "x \\le 3",
            "{}",
            "\\sqrt[3",
            "Tuesday",
            "1,,2",
            "|1",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        for open in ["(", "{", "-", "\\sqrt{", "x^", "\\frac{1}{", "|", "\\sin "] {
            assert_eq!(parse(&open.repeat(200)), None, "{open}");
            assert_eq!(parse(&format!("{}1", open.repeat(60))), None, "{open}");
        }
    }
}
