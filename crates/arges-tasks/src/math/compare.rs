//! Whether two answers are the same.

use super::Grade;
use super::exact::{Budget, Exact};
use super::parser::{Collection, Constant, Node, Sign};
use super::value::{Point, Value};

/// Work on a pair of answers at most, in products of terms.
const MAX_WORK: usize = 200_000;

/// Items of a collection that are compared at most.
const MAX_ITEMS: usize = 32;

/// Points at which expressions of variables are compared.
const ROUNDS: u64 = 6;

/// Points at which they must be found equal.
const ENOUGH_ROUNDS: usize = 2;

/// Approximate values within this of each other, relative to their size, count as equal.
const NEAR: f64 = 1e-10;

/// Approximate values larger than this are never known to be equal: whole numbers would be that differ by one.
const LARGE: f64 = 1e9;

/// Approximate values further than this from each other, relative to their size or to 1, are different.
const FAR: f64 = 1e-7;

/// Letters that may be units of measure.
const UNIT_LETTERS: &[&str] = &["A", "C", "F", "J", "K", "L", "N", "V", "W", "g", "h", "l", "m", "s"];

/// Whether an answer is the expected one.
pub(super) fn compare(answer: &Node, expected: &Node) -> Grade {
    Comparison { budget: Budget(MAX_WORK) }.nodes(answer, expected)
}

struct Comparison {
    budget: Budget,
}

impl Comparison {
    fn nodes(&mut self, answer: &Node, expected: &Node) -> Grade {
        if let (Node::Equation(al, ar), Node::Equation(el, er)) = (answer, expected) {
            return self.equations([al, ar], [el, er]);
        }
        let (answer, expected) = (value_side(answer), value_side(expected));
        if has_two_signs(answer) || has_two_signs(expected) {
            return self.sets(&self.alternatives(answer), &self.alternatives(expected));
        }
        match (answer, expected) {
            (Node::Collection(answer), Node::Collection(expected)) => self.collections(answer, expected),
            (Node::Union(_), _) | (_, Node::Union(_)) => self.sets(&parts(answer), &parts(expected)),
            (Node::Collection(collection), single) => self.collection_and_single(collection, single, true),
            (single, Node::Collection(collection)) => self.collection_and_single(collection, single, false),
            _ => self.expressions(answer, expected),
        }
    }

    /// Equal if one side is the same variable and the other the same value, or if both are the same equation up to
    /// its sign.
    fn equations(&mut self, answer: [&Node; 2], expected: [&Node; 2]) -> Grade {
        let values = self.nodes(answer[1], expected[1]);
        if is_name(answer[0]) && is_name(expected[0]) {
            return match values {
                Grade::Right if answer[0] != expected[0] => Grade::Unknown,
                grade => grade,
            };
        }
        let difference = |[left, right]: [&Node; 2]| {
            Node::Sum(vec![(Sign::Plus, left.clone()), (Sign::Minus, right.clone())])
        };
        let [left, right] = expected;
        let either =
            [expected, [right, left]].map(|sides| self.expressions(&difference(answer), &difference(sides)));
        if either.contains(&Grade::Right) { Grade::Right } else { Grade::Unknown }
    }

    /// The two values of an expression with `±`, as expressions; otherwise the items or the expression itself.
    fn alternatives(&self, node: &Node) -> Vec<Node> {
        match node {
            Node::Collection(Collection { brackets: None | Some(('{', '}')), items }) => {
                items.iter().flat_map(|item| self.alternatives(value_side(item))).collect()
            }
            node if has_two_signs(node) => {
                [Sign::Plus, Sign::Minus].map(|sign| with_sign(node, sign)).to_vec()
            }
            node => vec![node.clone()],
        }
    }

    fn collections(&mut self, answer: &Collection, expected: &Collection) -> Grade {
        let is_set = |collection: &Collection| matches!(collection.brackets, None | Some(('{', '}')));
        match (answer.brackets, expected.brackets) {
            _ if is_set(answer) && is_set(expected) => self.sets(&answer.items, &expected.items),
            // A set in place of a tuple, or the other way round: a slip, unless the values differ too.
            (Some(_), Some(_)) if is_set(answer) != is_set(expected) => {
                match self.ordered(answer, expected) {
                    Grade::Wrong => Grade::Wrong,
                    Grade::Right | Grade::Unknown => Grade::Unknown,
                }
            }
            (Some(a), Some(b)) if a != b => Grade::Wrong,
            // Without brackets around one of them the values decide.
            _ => self.ordered(answer, expected),
        }
    }

    /// Item by item.
    fn ordered(&mut self, answer: &Collection, expected: &Collection) -> Grade {
        if answer.items.len() != expected.items.len() {
            return Grade::Wrong;
        }
        let mut result = Grade::Right;
        for (answer, expected) in answer.items.iter().zip(&expected.items) {
            match self.nodes(answer, expected) {
                Grade::Wrong => return Grade::Wrong,
                Grade::Unknown => result = Grade::Unknown,
                Grade::Right => {}
            }
        }
        result
    }

    /// Each item of one is among those of the other, and the other way round.
    fn sets(&mut self, answer: &[Node], expected: &[Node]) -> Grade {
        if answer.len() > MAX_ITEMS || expected.len() > MAX_ITEMS {
            return Grade::Unknown;
        }
        let grades: Vec<Vec<Grade>> = answer
            .iter()
            .map(|answer| expected.iter().map(|expected| self.nodes(answer, expected)).collect())
            .collect();
        let best = |grades: &mut dyn Iterator<Item = Grade>| {
            grades.fold(Grade::Wrong, |best, grade| match (best, grade) {
                (Grade::Right, _) | (_, Grade::Right) => Grade::Right,
                (Grade::Unknown, _) | (_, Grade::Unknown) => Grade::Unknown,
                _ => Grade::Wrong,
            })
        };
        let rows = grades.iter().map(|row| best(&mut row.iter().copied()));
        let columns = (0..expected.len()).map(|column| best(&mut grades.iter().map(|row| row[column])));
        rows.chain(columns).fold(Grade::Right, |worst, grade| match (worst, grade) {
            (Grade::Wrong, _) | (_, Grade::Wrong) => Grade::Wrong,
            (Grade::Unknown, _) | (_, Grade::Unknown) => Grade::Unknown,
            _ => Grade::Right,
        })
    }

    /// A set of one value is that value.
    fn collection_and_single(
        &mut self,
        collection: &Collection,
        single: &Node,
        collection_answers: bool,
    ) -> Grade {
        match &collection.items[..] {
            [item] if collection_answers => self.nodes(item, single),
            [item] => self.nodes(single, item),
            _ => Grade::Wrong,
        }
    }

    fn expressions(&mut self, answer: &Node, expected: &Node) -> Grade {
        if let (Some(answer), Some(expected)) = (infinity(answer), infinity(expected)) {
            return if answer == expected { Grade::Right } else { Grade::Wrong };
        }
        if infinity(answer).is_some() || infinity(expected).is_some() {
            return Grade::Wrong;
        }
        match self.values(answer, expected) {
            Grade::Wrong
                if self.is_rounded(answer, expected)
                    || self.lacks_percent(answer, expected)
                    || self.lacks_unit(answer, expected) =>
            {
                Grade::Unknown
            }
            grade => grade,
        }
    }

    /// Compares at several points: one at which they differ is enough, equal they must be at more.
    fn values(&mut self, answer: &Node, expected: &Node) -> Grade {
        let mut equal = 0;
        for round in 0..ROUNDS {
            let (Some(answer), Some(expected)) = (self.value(answer, round), self.value(expected, round))
            else {
                continue;
            };
            match same_value(&answer, &expected, &mut self.budget) {
                Some(true) => equal += 1,
                Some(false) => return Grade::Wrong,
                None => {}
            }
        }
        if equal >= ENOUGH_ROUNDS { Grade::Right } else { Grade::Unknown }
    }

    fn value(&mut self, node: &Node, round: u64) -> Option<Value> {
        Point { round, plus: true, budget: &mut self.budget }.value(node)
    }

    /// Whether one is a decimal number that is the other, rounded.
    fn is_rounded(&mut self, answer: &Node, expected: &Node) -> bool {
        let places = match (decimal_places(answer), decimal_places(expected)) {
            (Some(a), Some(b)) => a.min(b),
            (Some(places), None) | (None, Some(places)) => places,
            (None, None) => return false,
        };
        let (Some(a), Some(b)) = (self.value(answer, 0), self.value(expected, 0)) else {
            return false;
        };
        let distance = a.approximate.minus(b.approximate).magnitude();
        distance <= 0.5000001 * 10f64.powi(-(places as i32))
    }

    /// Whether they are the same but for a percent sign.
    fn lacks_percent(&mut self, answer: &Node, expected: &Node) -> bool {
        match (answer, expected) {
            (Node::Percent(_), Node::Percent(_)) => false,
            (Node::Percent(inside), other) | (other, Node::Percent(inside)) => {
                self.values(inside, other) == Grade::Right
            }
            _ => false,
        }
    }

    /// Whether they are the same but for a letter at the end of one that may be a unit of measure.
    fn lacks_unit(&mut self, answer: &Node, expected: &Node) -> bool {
        match (without_unit(answer), without_unit(expected)) {
            (Some(quantity), None) => self.values(&quantity, expected) == Grade::Right,
            (None, Some(quantity)) => self.values(answer, &quantity) == Grade::Right,
            _ => false,
        }
    }
}

/// What stands before a last factor that is a letter and may be a unit of measure, as in `5 m`.
fn without_unit(node: &Node) -> Option<Node> {
    match node {
        Node::Product(factors) => match &factors[..] {
            [quantity @ .., (false, Node::Variable(name))] if UNIT_LETTERS.contains(&name.as_str()) => {
                Some(Node::Product(quantity.to_vec()))
            }
            _ => None,
        },
        Node::Sum(terms) => match &terms[..] {
            [(sign, term)] => Some(Node::Sum(vec![(*sign, without_unit(term)?)])),
            _ => None,
        },
        _ => None,
    }
}

/// Whether two values are the same; `None` where they are too near to tell.
fn same_value(a: &Value, b: &Value, budget: &mut Budget) -> Option<bool> {
    let exact = a.exact.as_ref().zip(b.exact.as_ref());
    if let Some(difference) = exact.and_then(|(a, b)| a.add(&b.negated(), budget)) {
        return Some(Exact::is_zero(&difference));
    }
    let distance = a.approximate.minus(b.approximate).magnitude();
    let size = a.approximate.magnitude().max(b.approximate.magnitude());
    if distance > FAR * size.max(1.0) {
        return Some(false);
    }
    // Two zeros may be values too small for floating point.
    (size > 0.0 && size <= LARGE && distance <= NEAR * size).then_some(true)
}

/// The right side of an equation whose left side is a name, as in `x = 5` and `f(x) = 5`; otherwise the whole.
fn value_side(node: &Node) -> &Node {
    match node {
        Node::Equation(left, right) if is_name(left) => right,
        node => node,
    }
}

fn is_name(node: &Node) -> bool {
    match node {
        Node::Variable(_) => true,
        Node::Product(factors) => match &factors[..] {
            [(false, Node::Variable(function)), (false, Node::Variable(_))] => {
                ["f", "g", "h", "p", "q", "F", "G", "P", "Q"].contains(&function.as_str())
            }
            _ => false,
        },
        _ => false,
    }
}

/// The parts of a union; anything else is its own part.
fn parts(node: &Node) -> Vec<Node> {
    match node {
        Node::Union(parts) => parts.clone(),
        node => vec![node.clone()],
    }
}

/// The sign of ∞ where the expression is that alone; `Some(true)` for +∞.
fn infinity(node: &Node) -> Option<bool> {
    match node {
        Node::Constant(Constant::Infinity) => Some(true),
        Node::Sum(terms) => match &terms[..] {
            [(Sign::Plus, term)] => infinity(term),
            [(Sign::Minus, term)] => infinity(term).map(|positive| !positive),
            _ => None,
        },
        _ => None,
    }
}

/// The decimals of a number that stands alone, perhaps with a sign or as a percentage. There is at least one.
fn decimal_places(node: &Node) -> Option<usize> {
    match node {
        Node::Number(_, places) => Some(*places).filter(|places| *places > 0),
        Node::Percent(inside) => decimal_places(inside).map(|places| places + 2),
        Node::Sum(terms) => match &terms[..] {
            [(_, term)] => decimal_places(term),
            _ => None,
        },
        _ => None,
    }
}

/// Whether `±` is part of the expression, of a set's items or of a list's.
fn has_two_signs(node: &Node) -> bool {
    match node {
        Node::Sum(terms) => terms.iter().any(|(sign, term)| *sign == Sign::PlusMinus || has_two_signs(term)),
        Node::Product(factors) => factors.iter().any(|(_, factor)| has_two_signs(factor)),
        Node::Power(a, b) | Node::Root(a, b) => has_two_signs(a) || has_two_signs(b),
        Node::Collection(Collection { brackets: None | Some(('{', '}')), items }) => {
            items.iter().any(|item| has_two_signs(value_side(item)))
        }
        _ => false,
    }
}

/// The expression with `±` replaced by one of its signs.
fn with_sign(node: &Node, sign: Sign) -> Node {
    let replaced = |node: &Node| Box::new(with_sign(node, sign));
    match node {
        Node::Sum(terms) => {
            let replace = |(old, term): &(Sign, Node)| {
                (if *old == Sign::PlusMinus { sign } else { *old }, with_sign(term, sign))
            };
            Node::Sum(terms.iter().map(replace).collect())
        }
        Node::Product(factors) => Node::Product(
            factors.iter().map(|(inverse, factor)| (*inverse, with_sign(factor, sign))).collect(),
        ),
        Node::Power(a, b) => Node::Power(replaced(a), replaced(b)),
        Node::Root(a, b) => Node::Root(replaced(a), replaced(b)),
        node => node.clone(),
    }
}
