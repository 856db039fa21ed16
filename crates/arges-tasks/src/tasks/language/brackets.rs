//! Brackets, as the two dyck tasks draw them.

use crate::Random;

/// The kinds of brackets, as (opening, closing).
const KINDS: [(char, char); 4] = [('(', ')'), ('[', ']'), ('{', '}'), ('<', '>')];

/// The closing bracket that belongs to `open`.
pub(super) fn closer(open: char) -> Option<char> {
    KINDS.iter().find(|kind| kind.0 == open).map(|kind| kind.1)
}

/// Whether `symbol` is one of the brackets.
pub(super) fn is_bracket(symbol: char) -> bool {
    KINDS.iter().any(|kind| kind.0 == symbol || kind.1 == symbol)
}

/// How the brackets of a difficulty look.
pub(super) struct Shape {
    kinds: usize,
    length: usize,
    max_depth: usize,
}

impl Shape {
    pub(super) fn draw(random: &mut Random, difficulty: u32) -> Self {
        let level = difficulty as usize;
        Self {
            kinds: (1 + level.div_ceil(2)).min(KINDS.len()),
            length: 2 * level + 1 + random.index(2 * level + 2),
            max_depth: 2 + level,
        }
    }

    /// Draws the start of a balanced sequence, and the brackets it leaves open.
    pub(super) fn prefix(&self, random: &mut Random) -> (Vec<char>, Vec<char>) {
        let (mut symbols, mut open) = (Vec::new(), Vec::new());
        while symbols.len() < self.length {
            let close = open.len() >= self.max_depth || random.chance(45, 100);
            match open.pop_if(|_| close).and_then(closer) {
                Some(closing) => symbols.push(closing),
                None => {
                    let (opening, _) = *random.choose(&KINDS[..self.kinds]);
                    open.push(opening);
                    symbols.push(opening);
                }
            }
        }
        (symbols, open)
    }

    /// A closing bracket other than `right`.
    pub(super) fn other_closer(&self, random: &mut Random, right: Option<char>) -> char {
        let closers = KINDS[..self.kinds].iter().map(|kind| kind.1);
        let others: Vec<char> = closers.filter(|closing| Some(*closing) != right).collect();
        *random.choose(&others)
    }
}

/// The brackets that close those of `open`, in order.
pub(super) fn closers(open: &[char]) -> Vec<char> {
    open.iter().rev().copied().filter_map(closer).collect()
}

/// Symbols with spaces between them; a dash for none.
pub(super) fn spaced(symbols: &[char]) -> String {
    if symbols.is_empty() {
        return "-".to_owned();
    }
    let symbols: Vec<String> = symbols.iter().map(char::to_string).collect();
    symbols.join(" ")
}
