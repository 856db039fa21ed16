//! Finding the first bracket that cannot be right.

use super::brackets::{Shape, closer, closers, spaced};
use super::{Drawn, Problem};
use crate::Random;

pub(crate) static TASK: Drawn<DyckErrors> = Drawn::NEW;

/// A sequence that may have an error.
pub(crate) struct DyckErrors {
    symbols: Vec<char>,
}

/// What is wrong with a sequence.
#[derive(Debug, PartialEq)]
enum Finding {
    /// The bracket of this index closes none, or not the last open one.
    Wrong(usize),
    /// Brackets are left open.
    Open,
    Balanced,
}

impl DyckErrors {
    /// The finding, and the open brackets after every symbol that is right.
    fn scan(&self) -> (Finding, Vec<Vec<char>>) {
        let (mut open, mut stacks) = (Vec::new(), Vec::new());
        for (index, symbol) in self.symbols.iter().enumerate() {
            if closer(*symbol).is_some() {
                open.push(*symbol);
            } else if open.pop().and_then(closer) != Some(*symbol) {
                return (Finding::Wrong(index), stacks);
            }
            stacks.push(open.clone());
        }
        (if open.is_empty() { Finding::Balanced } else { Finding::Open }, stacks)
    }
}

impl Problem for DyckErrors {
    const NAME: &'static str = "dyck_errors";
    const SUMMARY: &'static str = "find the first wrong bracket of a sequence, or tell that there is none";
    const MAX_DIFFICULTY: u32 = 10;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let shape = Shape::draw(random, difficulty);
        let (mut symbols, open) = shape.prefix(random);
        let complete = |symbols: &mut Vec<char>| symbols.extend(closers(&open));
        match random.index(5) {
            0 => complete(&mut symbols),
            1 => {}
            2 => {
                // A bracket too many, where nothing is open.
                complete(&mut symbols);
                let extra = shape.other_closer(random, None);
                symbols.push(extra);
            }
            _ => {
                complete(&mut symbols);
                let closing: Vec<usize> =
                    (0..symbols.len()).filter(|index| closer(symbols[*index]).is_none()).collect();
                let place = *random.choose(&closing);
                symbols[place] = shape.other_closer(random, Some(symbols[place]));
            }
        }
        Self { symbols }
    }

    fn prompt(&self) -> String {
        format!(
            "Which is the first wrong bracket?\n{}\nEnd with a line `Answer: N`, where N is its position, counted \
             from 1; or `Answer: open` if all are right so far but some are never closed, or `Answer: balanced` if \
             nothing is wrong.",
            spaced(&self.symbols)
        )
    }

    fn answer(&self) -> String {
        match self.scan().0 {
            Finding::Wrong(index) => (index + 1).to_string(),
            Finding::Open => "open".to_owned(),
            Finding::Balanced => "balanced".to_owned(),
        }
    }

    fn thinking(&self) -> String {
        let (finding, stacks) = self.scan();
        let line = |(index, open): (usize, &Vec<char>)| {
            format!("{} {} : {}", index + 1, self.symbols[index], spaced(open))
        };
        let mut lines: Vec<String> = stacks.iter().enumerate().map(line).collect();
        if let Finding::Wrong(index) = finding {
            lines.push(format!("{} {} : wrong", index + 1, self.symbols[index]));
        }
        lines.join("\n")
    }

    fn wrong_answers(&self) -> Vec<String> {
        let (finding, _) = self.scan();
        let mut wrong = vec!["0".to_owned(), (self.symbols.len() + 1).to_string()];
        match finding {
            Finding::Wrong(index) => wrong.extend([index.to_string(), "open".into(), "balanced".into()]),
            Finding::Open => wrong.push("balanced".into()),
            Finding::Balanced => wrong.push("open".into()),
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_finding_is_told_apart() {
        let scan = |symbols: &str| DyckErrors { symbols: symbols.chars().collect() }.scan().0;
        assert_eq!(scan("([])"), Finding::Balanced);
        assert_eq!(scan("([]"), Finding::Open);
        assert_eq!(scan("([)]"), Finding::Wrong(2));
        assert_eq!(scan("())("), Finding::Wrong(2));
    }

    #[test]
    fn each_finding_is_drawn_at_each_difficulty() {
        for difficulty in 1..=DyckErrors::MAX_DIFFICULTY {
            let mut random = Random::new("test", 0, difficulty);
            let answers: Vec<String> =
                (0..100).map(|_| DyckErrors::draw(&mut random, difficulty).answer()).collect();
            for finding in ["open", "balanced"] {
                let count = answers.iter().filter(|answer| *answer == finding).count();
                assert!((5..50).contains(&count), "{finding} {count} times at difficulty {difficulty}");
            }
        }
    }
}
