//! Cryptarithms: an addition whose digits are letters.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::puzzle::{Puzzle, worked};
use super::solver::clues::fix_until_unique;
use super::solver::constraints::{Distinct, Linear};
use super::solver::{Problem, values};
use crate::Random;

#[derive(Serialize, Deserialize)]
pub(crate) struct Cryptarithm {
    /// Two words whose sum is the third.
    words: [String; 3],
    /// Letters whose digits are known.
    known: BTreeMap<char, u32>,
}

/// Digits of the two numbers added, of each difficulty.
const LEVELS: [u32; 4] = [2, 3, 4, 5];

/// Additions tried for one that needs no known letter.
const MAX_ADDITIONS: usize = 30;

const LONGEST_WORD: usize = 12;

impl Puzzle for Cryptarithm {
    const NAME: &'static str = "cryptarithm";
    const SUMMARY: &'static str = "find the digits of the letters of an addition";
    const MAX_DIFFICULTY: u32 = LEVELS.len() as u32;

    fn draw(random: &mut Random, difficulty: u32) -> (Self, String) {
        let digits = LEVELS[difficulty as usize - 1];
        let mut best: Option<(Self, String)> = None;
        for _ in 0..MAX_ADDITIONS {
            let (words, digits) = random_words(random, digits);
            let mut puzzle = Self { words, known: BTreeMap::new() };
            let (mut problem, letters) = puzzle.rules();
            let solution = puzzle.assignment(&letters, &digits);
            let fixed = fix_until_unique(&mut problem, &solution, letters.len(), random);
            puzzle.known =
                fixed.into_iter().map(|variable| (letters[variable], solution[variable])).collect();
            if best.as_ref().is_none_or(|(best, _)| puzzle.known.len() < best.known.len()) {
                let pairs: Vec<String> =
                    digits.iter().map(|(letter, digit)| format!("{letter}={digit}")).collect();
                best = Some((puzzle, pairs.join(", ")));
            }
            if best.as_ref().is_some_and(|(best, _)| best.known.is_empty()) {
                break;
            }
        }
        best.expect("the first addition is the best so far")
    }

    fn is_well_formed(&self) -> bool {
        let is_word = |word: &String| {
            (1..=LONGEST_WORD).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_uppercase())
        };
        let [first, second, sum] = &self.words;
        self.words.iter().all(is_word)
            && sum.len() >= first.len().max(second.len())
            && self.letters().len() <= 10
            && self.known.iter().all(|(letter, digit)| self.letters().contains(letter) && *digit <= 9)
    }

    fn prompt(&self) -> String {
        let [first, second, sum] = &self.words;
        let mut prompt = format!(
            "Solve this cryptarithm. Each letter stands for a digit, different letters for different digits, and no \
             number starts with 0.\n\n{first} + {second} = {sum}\n"
        );
        if !self.known.is_empty() {
            let known: Vec<String> =
                self.known.iter().map(|(letter, digit)| format!("{letter}={digit}")).collect();
            prompt += &format!("Known: {}\n", known.join(", "));
        }
        prompt + "\nEnd with a line `Answer:` and the digit of each letter, like `Answer: A=1, B=2`."
    }

    fn check(&self, answer: &str) -> Result<(), String> {
        let digits = parse(answer)?;
        let letters = self.letters();
        if let Some(letter) = letters.iter().find(|letter| !digits.contains_key(letter)) {
            return Err(format!("the letter {letter} has no digit"));
        }
        if let Some(letter) = digits.keys().find(|letter| !letters.contains(letter)) {
            return Err(format!("the letter {letter} is not part of the puzzle"));
        }
        let mut owners = BTreeMap::new();
        for (letter, digit) in &digits {
            if let Some(other) = owners.insert(digit, letter) {
                return Err(format!("the letters {other} and {letter} have the same digit"));
            }
        }
        if let Some((letter, digit)) = self.known.iter().find(|(letter, digit)| digits[letter] != **digit) {
            return Err(format!("the letter {letter} is known to be {digit}"));
        }
        if self.words.iter().any(|word| word.chars().next().is_some_and(|first| digits[&first] == 0)) {
            return Err("a number starts with 0".to_owned());
        }
        let [first, second, sum] = [0, 1, 2].map(|word| {
            self.words[word].chars().fold(0u64, |number, letter| number * 10 + u64::from(digits[&letter]))
        });
        match first + second == sum {
            true => Ok(()),
            false => Err(format!("{first} + {second} is not {sum}")),
        }
    }

    fn thinking(&self, _answer: &str) -> Option<String> {
        let (mut problem, letters) = self.rules();
        for (letter, digit) in &self.known {
            if let Some(variable) = letters.iter().position(|other| other == letter) {
                problem.set_domain(variable, 1 << digit);
            }
        }
        let phrase = |variable: usize, value: u32| match letters.get(variable) {
            Some(letter) => format!("{letter} = {value}"),
            None => format!("carry into column {} from the right = {value}", variable - letters.len() + 2),
        };
        worked(problem.steps(), phrase)
    }
}

/// Random numbers of that many digits with their sum, written in random letters, and the letters' digits.
fn random_words(random: &mut Random, digits: u32) -> ([String; 3], BTreeMap<char, u32>) {
    let low = 10i64.pow(digits - 1);
    let [a, b] = [0; 2].map(|_: i32| random.range(low, 10 * low - 1));
    let letters: Vec<char> =
        random.sample(26, 10).into_iter().map(|letter| (b'A' + letter as u8) as char).collect();
    let mut used = BTreeMap::new();
    let words = [a, b, a + b].map(|number| {
        let digits = number.to_string();
        let letter = |digit: char| {
            let digit = digit.to_digit(10)?;
            let letter = letters[digit as usize];
            used.insert(letter, digit);
            Some(letter)
        };
        digits.chars().filter_map(letter).collect()
    });
    (words, used)
}

impl Cryptarithm {
    /// The letters, each once, in alphabetical order.
    fn letters(&self) -> Vec<char> {
        let mut letters: Vec<char> = self.words.iter().flat_map(|word| word.chars()).collect();
        letters.sort_unstable();
        letters.dedup();
        letters
    }

    /// The letter of a word in a column, counted from the right.
    fn letter(&self, word: usize, column: usize) -> Option<char> {
        self.words[word].chars().rev().nth(column)
    }

    /// The variables are the letters, given beside, then the carry out of each column from the right.
    fn rules(&self) -> (Problem, Vec<char>) {
        let (letters, columns) = (self.letters(), self.words[2].len());
        let mut problem = Problem::new(letters.len() + columns, values(0, 9));
        problem.add(Distinct((0..letters.len()).collect()));
        let variable = |letter: char| letters.iter().position(|other| *other == letter);
        let starts = self.words.iter().filter_map(|word| word.chars().next()).filter_map(variable);
        starts.for_each(|variable| problem.set_domain(variable, values(1, 9)));
        for column in 0..columns {
            let carry = letters.len() + column;
            // Nothing is carried out of the last column.
            problem.set_domain(carry, values(0, u32::from(column + 1 < columns)));
            let mut terms = vec![(-10, carry)];
            terms.extend((column > 0).then(|| (1, carry - 1)));
            for (word, factor) in [(0, 1), (1, 1), (2, -1)] {
                terms.extend(self.letter(word, column).and_then(variable).map(|variable| (factor, variable)));
            }
            problem.add(Linear::new(terms, 0));
        }
        (problem, letters)
    }

    /// The values of the variables for the digits of the letters.
    fn assignment(&self, letters: &[char], digits: &BTreeMap<char, u32>) -> Vec<u32> {
        let mut assignment: Vec<u32> = letters.iter().map(|letter| digits[letter]).collect();
        let mut carry = 0;
        for column in 0..self.words[2].len() {
            let digit = |word| self.letter(word, column).map_or(0, |letter| digits[&letter]);
            carry = (digit(0) + digit(1) + carry) / 10;
            assignment.push(carry);
        }
        assignment
    }
}

/// Reads pairs like `A=1`, separated by commas or spaces.
fn parse(answer: &str) -> Result<BTreeMap<char, u32>, String> {
    let mut digits = BTreeMap::new();
    for pair in answer.split(|c: char| c.is_whitespace() || c == ',').filter(|pair| !pair.is_empty()) {
        let mut parts = pair.chars();
        let (letter, equals, digit, end) = (parts.next(), parts.next(), parts.next(), parts.next());
        let (Some(letter), Some('='), Some(digit), None) =
            (letter, equals, digit.and_then(|c| c.to_digit(10)), end)
        else {
            return Err("the answer has something that is not a pair like A=1".to_owned());
        };
        if digits.insert(letter, digit).is_some() {
            return Err(format!("the letter {letter:?} has two digits"));
        }
    }
    Ok(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send_more_money() -> Cryptarithm {
        Cryptarithm { words: ["SEND", "MORE", "MONEY"].map(str::to_owned), known: BTreeMap::new() }
    }

    #[test]
    fn send_more_money_has_its_one_solution() {
        let puzzle = send_more_money();
        let (problem, letters) = puzzle.rules();
        let found = problem.solutions(2);
        assert!(found.is_unique());
        let digits: BTreeMap<char, u32> =
            letters.iter().copied().zip(found.solutions[0].iter().copied()).collect();
        assert_eq!(digits, parse("D=7 E=5 M=1 N=6 O=0 R=8 S=9 Y=2").unwrap());
        assert_eq!(puzzle.check("S=9, E=5, N=6, D=7, M=1, O=0, R=8, Y=2"), Ok(()));
    }

    #[test]
    fn each_rule_is_checked() {
        let puzzle = send_more_money();
        let reason = |answer: &str| puzzle.check(answer).unwrap_err();
        assert_eq!(reason("S=9 E=5 N=6 D=7 M=1 O=0 R=8"), "the letter Y has no digit");
        assert_eq!(reason("S=9 E=5 N=6 D=7 M=1 O=0 R=8 Y=2 Z=3"), "the letter Z is not part of the puzzle");
        assert_eq!(reason("S=9 E=5 N=6 D=7 M=1 O=0 R=9 Y=2"), "the letters R and S have the same digit");
        assert_eq!(reason("S=9 E=5 N=6 D=7 M=0 O=1 R=8 Y=2"), "a number starts with 0");
        assert_eq!(reason("S=9 E=5 N=6 D=7 M=1 O=0 R=8 Y=3"), "9567 + 1085 is not 10653");
        assert_eq!(reason("S=9 S=9"), "the letter 'S' has two digits");
    }
}
