//! Reading answers: what is looser than byte for byte, and is still one meaning only.

use crate::Instance;

/// Reads an answer as words: letters of either case, digits and signs within; commas, semicolons, arrows, line
/// breaks and spaces stand between them. A full stop at the end is no part of a word.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    let between = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | '→');
    text.trim_end_matches('.').split(between).filter(|word| !matches!(*word, "" | "->" | "=>"))
}

/// Whether `given` has the words of `expected` in their order.
pub(super) fn same_words(expected: &str, given: &str) -> Result<(), String> {
    let (mut expected, mut given) = (words(expected), words(given));
    for place in 1_usize.. {
        match (expected.next(), given.next()) {
            (None, None) => break,
            (Some(want), Some(word)) if want.eq_ignore_ascii_case(word) => {}
            (Some(want), Some(word)) => {
                return Err(format!("word {place} is {}, not {want}", quoted(word)));
            }
            (Some(want), None) => return Err(format!("word {place} is missing: {want}")),
            (None, Some(word)) => return Err(format!("word {place} is too much: {}", quoted(word))),
        }
    }
    Ok(())
}

/// Whether `given` says of the same things the same as `expected`, in any order: "Ann knight, Bob knave". Words like
/// "is" and "has" between may be there or not.
pub(super) fn same_pairs(expected: &str, given: &str) -> Result<(), String> {
    let pairs = |text: &str| {
        let words = words(text).map(|word| word.trim_end_matches([':', '.']).to_ascii_lowercase());
        let words = words.filter(|word| !["", "-", "is", "has", "a", "an", "the", "and"].contains(&&**word));
        let words: Vec<String> = words.take(MAX_PAIRS * 2).collect();
        let mut pairs: Vec<(String, String)> =
            words.chunks(2).map(|pair| (pair[0].clone(), pair.get(1).cloned().unwrap_or_default())).collect();
        pairs.sort_unstable();
        pairs
    };
    let (expected, given) = (pairs(expected), pairs(given));
    if let Some((name, value)) = given.iter().find(|pair| !expected.contains(pair)) {
        return Err(format!("{} {} is not so", quoted(name), quoted(value)));
    }
    match given == expected {
        true => Ok(()),
        false => Err(format!("{} things are told of, not {}", given.len(), expected.len())),
    }
}

/// Most pairs that are read of an answer.
const MAX_PAIRS: usize = 64;

/// Whether `given` is the whole number the instance expects, and nothing else.
pub(super) fn same_number(instance: &Instance, given: &str) -> Result<(), String> {
    let number = |text: &str| text.trim_end_matches('.').trim().parse::<i64>().ok();
    let expected =
        instance.answer.as_str().and_then(number).ok_or("malformed instance: its answer is no number")?;
    match number(given) {
        Some(given) if given == expected => Ok(()),
        Some(given) => Err(format!("it is not {given}")),
        None => Err(format!("{} is no whole number", quoted(given))),
    }
}

/// A piece of a response for a verdict's reason: control characters escaped, cut to a readable length.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_and_case_do_not_matter_but_every_word_does() {
        assert_eq!(same_words("a, B c", "A b\n c."), Ok(()));
        assert_eq!(same_words("A -> B", "a → b"), Ok(()));
        assert_eq!(same_words("a b", "a b c").unwrap_err(), "word 3 is too much: \"c\"");
        assert_eq!(same_words("a b", "a").unwrap_err(), "word 2 is missing: b");
        assert_eq!(same_words("a b", "a-b").unwrap_err(), "word 1 is \"a-b\", not a");
    }

    #[test]
    fn pairs_may_be_in_any_order_but_each_is_there_once() {
        let expected = "Ann knight, Bob knave";
        assert_eq!(same_pairs(expected, "Bob is a knave and Ann is a knight."), Ok(()));
        assert_eq!(same_pairs(expected, "ann: knight\nbob: knave"), Ok(()));
        for wrong in
            ["Ann knight", "Ann knight, Bob knave, Bob knave", "Ann knight, Bob", "knight Ann, Bob knave"]
        {
            assert!(same_pairs(expected, wrong).is_err(), "{wrong}");
        }
        assert!(same_pairs(expected, &"Ann knight, ".repeat(100_000)).is_err());
    }

    #[test]
    fn a_quoted_piece_is_short_and_has_no_control_characters() {
        let text = quoted(&"\u{1b}é".repeat(1000));
        assert!(text.chars().count() < 600 && !text.contains('\u{1b}'));
    }
}
