//! The vocabulary that problems are told in.

use std::sync::LazyLock;

use crate::Random;

fn list(text: &'static str) -> Vec<&'static str> {
    text.split_whitespace().collect()
}

/// First names.
pub(crate) static NAMES: LazyLock<Vec<&str>> = LazyLock::new(|| list(include_str!("words/names.txt")));
/// Things, in the singular.
pub(crate) static NOUNS: LazyLock<Vec<&str>> = LazyLock::new(|| list(include_str!("words/nouns.txt")));
pub(crate) static ADJECTIVES: LazyLock<Vec<&str>> =
    LazyLock::new(|| list(include_str!("words/adjectives.txt")));
/// Verbs in the past tense that take an object.
pub(crate) static VERBS: LazyLock<Vec<&str>> = LazyLock::new(|| list(include_str!("words/verbs.txt")));

/// Whole numbers from 0 on as words.
pub(crate) const NUMBERS: [&str; 13] =
    ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];

/// `count` different items of a list that has as many.
pub(crate) fn different<T: Copy>(random: &mut Random, items: &[T], count: usize) -> Vec<T> {
    random.sample(items.len(), count).into_iter().map(|place| items[place]).collect()
}

/// `count` different first names.
pub(crate) fn names(random: &mut Random, count: usize) -> Vec<&'static str> {
    different(random, &NAMES, count)
}

/// The items as a list in a sentence: "a, b and c".
pub(crate) fn enumeration(items: &[impl AsRef<str>], last: &str) -> String {
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    match items.split_last() {
        None => String::new(),
        Some((only, [])) => (*only).to_owned(),
        Some((end, rest)) => format!("{} {last} {end}", rest.join(", ")),
    }
}

/// A made-up word of so many syllables.
pub(crate) fn made_up(random: &mut Random, syllables: usize) -> String {
    const ONSETS: [&str; 24] = [
        "b", "br", "d", "dr", "f", "fl", "g", "gr", "h", "k", "kl", "l", "m", "n", "p", "pr", "r", "s", "sk",
        "st", "t", "tr", "v", "z",
    ];
    const VOWELS: [&str; 7] = ["a", "e", "i", "o", "u", "ai", "ou"];
    const ENDS: [&str; 8] = ["", "", "l", "m", "n", "r", "s", "t"];
    (0..syllables)
        .map(|_| [*random.choose(&ONSETS), *random.choose(&VOWELS), *random.choose(&ENDS)].concat())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_stands_twice_in_its_list() {
        for words in [&*NAMES, &*NOUNS, &*ADJECTIVES, &*VERBS] {
            let mut sorted = words.clone();
            sorted.sort_unstable();
            assert!(sorted.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }

    #[test]
    fn lists_in_sentences_have_commas_and_a_last_word() {
        assert_eq!(enumeration(&["a", "b", "c"], "and"), "a, b and c");
        assert_eq!(enumeration(&["a"], "and"), "a");
    }
}
