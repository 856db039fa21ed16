//! Functions made of steps: told in English, written in Python, and computed here.

use serde_json::{Value, json};

use crate::Random;
use crate::tasks::language::words::{NOUNS, different};

/// What a function works on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// A list of whole numbers.
    Numbers,
    Text,
}

/// A value between two steps.
#[derive(Clone, Debug, PartialEq)]
enum Data {
    Numbers(Vec<i64>),
    Text(String),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    Add(i64),
    Multiply(i64),
    KeepGreater(i64),
    KeepAtLeast(i64),
    KeepDivisible(i64),
    Take(usize),
    Drop(usize),
    Reverse,
    Sort,
    Distinct,
    RunningSums,
    Replace(char, char),
    Remove(char),
    Rotate(usize),
    ReverseWords,
    Double,
    Capitals,
}

impl Step {
    fn draw(random: &mut Random, kind: Kind) -> Self {
        let letters = ['a', 'e', 'i', 'l', 'n', 'o', 'r', 's', 't'];
        match (kind, random.index(if kind == Kind::Numbers { 10 } else { 7 })) {
            (Kind::Numbers, 0) => Self::Add(random.range(2, 9)),
            (Kind::Numbers, 1) => Self::Multiply(random.range(2, 5)),
            (Kind::Numbers, 2) => Self::KeepGreater(random.range(1, 9)),
            (Kind::Numbers, 3) => Self::KeepAtLeast(random.range(1, 9)),
            (Kind::Numbers, 4) => Self::KeepDivisible(random.range(2, 4)),
            (Kind::Numbers, 5) => Self::Take(random.range(3, 6) as usize),
            (Kind::Numbers, 6) => Self::Drop(random.range(1, 3) as usize),
            (Kind::Numbers, 7) => Self::Sort,
            (Kind::Numbers, 8) => Self::Distinct,
            (Kind::Numbers, _) => *random.choose(&[Self::RunningSums, Self::Reverse]),
            (Kind::Text, 0) => {
                let pair = different(random, &letters, 2);
                Self::Replace(pair[0], pair[1])
            }
            (Kind::Text, 1) => Self::Remove(*random.choose(&letters)),
            (Kind::Text, 2) => Self::Rotate(random.range(1, 4) as usize),
            (Kind::Text, 3) => Self::ReverseWords,
            (Kind::Text, 4) => Self::Double,
            (Kind::Text, 5) => Self::Capitals,
            (Kind::Text, _) => Self::Reverse,
        }
    }

    /// A step that someone may have written in its place.
    fn mistaken(self) -> Self {
        match self {
            Self::Add(n) => Self::Add(n + 1),
            Self::Multiply(n) => Self::Add(n),
            Self::KeepGreater(n) => Self::KeepAtLeast(n),
            Self::KeepAtLeast(n) => Self::KeepGreater(n),
            Self::KeepDivisible(n) => Self::KeepDivisible(n + 1),
            Self::Take(n) => Self::Take(n - 1),
            Self::Drop(n) => Self::Drop(n + 1),
            Self::Reverse => Self::Rotate(1),
            Self::Sort => Self::Reverse,
            Self::Distinct => Self::Sort,
            Self::RunningSums => Self::Multiply(2),
            Self::Replace(from, to) => Self::Replace(to, from),
            Self::Remove(letter) => Self::Replace(letter, ' '),
            Self::Rotate(n) => Self::Rotate(n + 1),
            Self::ReverseWords => Self::Reverse,
            Self::Double => Self::Capitals,
            Self::Capitals => Self::Double,
        }
    }

    /// In English, after "the function should".
    fn told(self) -> String {
        match self {
            Self::Add(n) => format!("add {n} to every number"),
            Self::Multiply(n) => format!("multiply every number by {n}"),
            Self::KeepGreater(n) => format!("keep only the numbers greater than {n}"),
            Self::KeepAtLeast(n) => format!("keep only the numbers that are at least {n}"),
            Self::KeepDivisible(n) => format!("keep only the numbers divisible by {n}"),
            Self::Take(n) => format!("keep only the first {n} numbers, or all if there are fewer"),
            Self::Drop(n) => format!("leave out the first {n} numbers, or all if there are fewer"),
            Self::Reverse => "reverse the order".to_owned(),
            Self::Sort => "sort in ascending order".to_owned(),
            Self::Distinct => "leave out every number that came before".to_owned(),
            Self::RunningSums => {
                "replace every number by the sum of all up to it, itself included".to_owned()
            }
            Self::Replace(from, to) => format!("replace every letter {from} by {to}"),
            Self::Remove(letter) => format!("remove every letter {letter}"),
            Self::Rotate(n) => {
                format!("move the first {n} characters, or all if there are fewer, to the end")
            }
            Self::ReverseWords => "reverse the order of the words, with one space between them".to_owned(),
            Self::Double => "write every character twice".to_owned(),
            Self::Capitals => "turn all letters into capitals".to_owned(),
        }
    }

    /// As an expression of Python over `x`.
    fn python(self) -> String {
        match self {
            Self::Add(n) => format!("[n + {n} for n in x]"),
            Self::Multiply(n) => format!("[n * {n} for n in x]"),
            Self::KeepGreater(n) => format!("[n for n in x if n > {n}]"),
            Self::KeepAtLeast(n) => format!("[n for n in x if n >= {n}]"),
            Self::KeepDivisible(n) => format!("[n for n in x if n % {n} == 0]"),
            Self::Take(n) => format!("x[:{n}]"),
            Self::Drop(n) => format!("x[{n}:]"),
            Self::Reverse => "x[::-1]".to_owned(),
            Self::Sort => "sorted(x)".to_owned(),
            Self::Distinct => "list(dict.fromkeys(x))".to_owned(),
            Self::RunningSums => "[sum(x[:i + 1]) for i in range(len(x))]".to_owned(),
            Self::Replace(from, to) => format!("x.replace(\"{from}\", \"{to}\")"),
            Self::Remove(letter) => format!("x.replace(\"{letter}\", \"\")"),
            Self::Rotate(n) => format!("x[{n}:] + x[:{n}]"),
            Self::ReverseWords => "\" \".join(x.split()[::-1])".to_owned(),
            Self::Double => "\"\".join(c * 2 for c in x)".to_owned(),
            Self::Capitals => "x.upper()".to_owned(),
        }
    }

    fn apply(self, data: Data) -> Data {
        match data {
            Data::Numbers(numbers) => Data::Numbers(self.apply_to_numbers(numbers)),
            Data::Text(text) => Data::Text(self.apply_to_text(&text)),
        }
    }

    fn apply_to_numbers(self, mut numbers: Vec<i64>) -> Vec<i64> {
        match self {
            Self::Add(k) => numbers.iter_mut().for_each(|n| *n += k),
            Self::Multiply(k) => numbers.iter_mut().for_each(|n| *n *= k),
            Self::KeepGreater(k) => numbers.retain(|n| *n > k),
            Self::KeepAtLeast(k) => numbers.retain(|n| *n >= k),
            Self::KeepDivisible(k) => numbers.retain(|n| n % k == 0),
            Self::Take(k) => numbers.truncate(k),
            Self::Drop(k) => drop(numbers.drain(..k.min(numbers.len()))),
            Self::Rotate(k) => {
                let k = k.min(numbers.len());
                numbers.rotate_left(k);
            }
            Self::Reverse => numbers.reverse(),
            Self::Sort => numbers.sort_unstable(),
            Self::Distinct => {
                let mut seen = Vec::new();
                numbers.retain(|n| {
                    let new = !seen.contains(n);
                    seen.push(*n);
                    new
                });
            }
            Self::RunningSums => {
                let mut sum = 0;
                numbers.iter_mut().for_each(|n| {
                    sum += *n;
                    *n = sum;
                });
            }
            _ => {}
        }
        numbers
    }

    fn apply_to_text(self, text: &str) -> String {
        match self {
            Self::Replace(from, to) => text.replace(from, &to.to_string()),
            Self::Remove(letter) => text.replace(letter, ""),
            Self::Rotate(k) => {
                let (start, end) = text.split_at(k.min(text.len()));
                [end, start].concat()
            }
            Self::Reverse => text.chars().rev().collect(),
            Self::ReverseWords => text.split_whitespace().rev().collect::<Vec<_>>().join(" "),
            Self::Double => text.chars().flat_map(|c| [c, c]).collect(),
            Self::Capitals => text.to_uppercase(),
            _ => text.to_owned(),
        }
    }
}

/// A function of steps, which returns the value after the last, or its length.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chain {
    pub(super) kind: Kind,
    pub(super) steps: Vec<Step>,
    returns_length: bool,
}

impl Chain {
    pub(super) fn draw(random: &mut Random, kind: Kind, length: usize) -> Self {
        let mut steps: Vec<Step> = Vec::new();
        while steps.len() < length {
            let step = Step::draw(random, kind);
            let same = |other: &Step| std::mem::discriminant(other) == std::mem::discriminant(&step);
            if !steps.iter().any(same) {
                steps.push(step);
            }
        }
        Self { kind, steps, returns_length: random.chance(1, 5) }
    }

    /// The same with one step mistaken, where that makes a difference for some argument.
    pub(super) fn mistaken(&self, arguments: &[Value]) -> Option<Self> {
        (0..self.steps.len()).rev().find_map(|place| {
            let mut other = self.clone();
            other.steps[place] = other.steps[place].mistaken();
            arguments.iter().any(|argument| other.apply(argument) != self.apply(argument)).then_some(other)
        })
    }

    /// What the function does, a line a step.
    pub(super) fn told(&self) -> String {
        let steps = self.steps.iter().enumerate();
        let lines = steps.map(|(place, step)| format!("{}. {}\n", place + 1, step.told()));
        let returned = match (self.returns_length, self.kind) {
            (false, Kind::Numbers) => "Return the list.",
            (false, Kind::Text) => "Return the text.",
            (true, Kind::Numbers) => "Return how many numbers are left.",
            (true, Kind::Text) => "Return how many characters are left.",
        };
        lines.collect::<String>() + returned
    }

    /// The function as Python.
    pub(super) fn python(&self, name: &str) -> String {
        let steps = self.steps.iter().map(|step| format!("    x = {}\n", step.python()));
        let returned = if self.returns_length { "len(x)" } else { "x" };
        format!("def {name}(x):\n{}    return {returned}\n", steps.collect::<String>())
    }

    /// What the function returns for an argument.
    pub(super) fn apply(&self, argument: &Value) -> Value {
        let data = match argument {
            Value::String(text) => Data::Text(text.clone()),
            other => {
                let numbers = other.as_array().into_iter().flatten();
                Data::Numbers(numbers.filter_map(Value::as_i64).collect())
            }
        };
        match self.steps.iter().fold(data, |data, step| step.apply(data)) {
            Data::Numbers(numbers) if self.returns_length => json!(numbers.len()),
            Data::Numbers(numbers) => json!(numbers),
            Data::Text(text) if self.returns_length => json!(text.len()),
            Data::Text(text) => json!(text),
        }
    }

    /// Arguments to try the function with, the empty one among them.
    pub(super) fn arguments(&self, random: &mut Random, count: usize) -> Vec<Value> {
        let mut arguments = vec![if self.kind == Kind::Text { json!("") } else { json!([]) }];
        while arguments.len() < count {
            let length = random.range(4, 10) as usize;
            arguments.push(match self.kind {
                Kind::Numbers => (0..length).map(|_| random.range(-3, 15)).collect(),
                Kind::Text => {
                    let count = length / 2;
                    json!(different(random, &NOUNS, count).join(" "))
                }
            });
        }
        arguments
    }
}
