//! Putting words in alphabetical order. The trace sorts by letters: it names the first letter of each word, gathers the
//! words by it, those that share one by their second, and so on, until every group is a single word.

use super::{Drawn, Problem, words};
use crate::Random;

pub(crate) static TASK: Drawn<WordSorting> = Drawn::NEW;

/// Words to sort.
pub(crate) struct WordSorting {
    words: Vec<String>,
    /// From the last to the first.
    backwards: bool,
}

impl WordSorting {
    fn sorted(&self) -> Vec<&str> {
        let mut sorted: Vec<&str> = self.words.iter().map(String::as_str).collect();
        sorted.sort_unstable();
        if self.backwards {
            sorted.reverse();
        }
        sorted
    }

    /// Adds a line of the words, each with its letter number `length`, one for each group of words that share so many
    /// letters, in order, and those for the groups within.
    fn group(&self, group: &[&str], length: usize, lines: &mut Vec<String>) {
        // Shorter words come before all that begin with them; a dot stands for the missing letter.
        let prefix = |word: &str| word.get(..length).map_or_else(|| format!("{word}."), str::to_owned);
        let letter = |word: &&str| format!("{word} {}", word.get(length - 1..length).unwrap_or("."));
        lines.push(group.iter().map(letter).collect::<Vec<_>>().join(", "));
        let mut prefixes: Vec<String> = group.iter().map(|word| prefix(word)).collect();
        prefixes.sort_unstable();
        prefixes.dedup();
        if self.backwards {
            prefixes.reverse();
        }
        for wanted in prefixes {
            let inner: Vec<&str> = group.iter().copied().filter(|word| prefix(word) == wanted).collect();
            lines.push(format!("{wanted}: {}", inner.join(" ")));
            if inner.len() > 1 {
                self.group(&inner, length + 1, lines);
            }
        }
    }
}

/// Draws words, of which more begin alike at a higher difficulty.
fn draw_words(random: &mut Random, difficulty: u32) -> Vec<String> {
    let count = 2 + difficulty as usize + random.index(2);
    let mut drawn: Vec<String> = Vec::new();
    while drawn.len() < count {
        let word = match random.index(20) as u32 {
            // Made-up words, some with the beginning of another.
            roll if roll < difficulty => match drawn.last() {
                Some(last) if random.chance(1, 2) => {
                    let shared = 1 + random.index(last.len().min(4));
                    last[..shared].to_owned() + &words::made_up(random, 1)
                }
                _ => words::made_up(random, 2),
            },
            _ => (*random.choose(&words::NOUNS)).to_owned(),
        };
        if !drawn.contains(&word) {
            drawn.push(word);
        }
    }
    random.shuffle(&mut drawn);
    drawn
}

impl Problem for WordSorting {
    const NAME: &'static str = "word_sorting";
    const SUMMARY: &'static str = "put words in alphabetical order";
    const MAX_DIFFICULTY: u32 = 16;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let backwards = difficulty >= 6 && random.chance(1, 3);
        Self { words: draw_words(random, difficulty), backwards }
    }

    fn prompt(&self) -> String {
        format!(
            "Sort these words in {} order: {}\nEnd with a line `Answer: ...`, where ... are the sorted words with \
             spaces between.",
            if self.backwards { "reverse alphabetical" } else { "alphabetical" },
            self.words.join(" ")
        )
    }

    fn answer(&self) -> String {
        self.sorted().join(" ")
    }

    fn thinking(&self) -> String {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let mut lines = Vec::new();
        self.group(&words, 1, &mut lines);
        lines.join("\n")
    }

    fn wrong_answers(&self) -> Vec<String> {
        let sorted = self.sorted();
        let swapped = (1..sorted.len()).map(|place| {
            let mut words = sorted.clone();
            words.swap(place - 1, place);
            words.join(" ")
        });
        swapped.chain([sorted[1..].join(" "), format!("{} {}", sorted.join(" "), sorted[0])]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_ends_in_single_words_in_their_order() {
        let words = ["cart", "bee", "car", "apple", "cat"].map(str::to_owned).to_vec();
        let problem = WordSorting { words, backwards: false };
        assert_eq!(
            problem.thinking(),
            "cart c, bee b, car c, apple a, cat c\na: apple\nb: bee\nc: cart car cat\ncart a, car a, cat a\n\
             ca: cart car cat\ncart r, car r, cat t\ncar: cart car\ncart t, car .\ncar.: car\ncart: cart\n\
             cat: cat"
        );
        assert_eq!(problem.answer(), "apple bee car cart cat");
    }

    #[test]
    fn single_words_of_every_trace_are_the_answer() {
        for seed in 0..200 {
            let difficulty = 1 + seed % WordSorting::MAX_DIFFICULTY;
            let problem = WordSorting::draw(&mut Random::new("test", seed.into(), difficulty), difficulty);
            let thinking = problem.thinking();
            let groups = thinking.lines().filter_map(|line| line.split_once(": ")).map(|(_, words)| words);
            let single: Vec<&str> = groups.filter(|words| !words.contains(' ')).collect();
            assert_eq!(single.join(" "), problem.answer());
        }
    }
}
