//! The entry functions of the fuzz targets, fed with random bytes by a stable toolchain.

mod entries;

use proptest::collection::vec;
use proptest::prelude::*;

/// Pieces that lead deep into the parsers.
const PIECES: &[&str] = &[
    "\\boxed{",
    "}",
    "{",
    "(",
    ")",
    "[",
    "]",
    "\\{",
    "\\}",
    "\\frac",
    "\\sqrt",
    "\\pi",
    "\\infty",
    "\\cup",
    "\\pm",
    "\\text{",
    "^",
    "_",
    "-",
    "+",
    "*",
    "/",
    "=",
    ",",
    "%",
    "!",
    "|",
    ".",
    " ",
    "\n",
    "0",
    "1",
    "7",
    "12",
    "1,000",
    "0.5",
    "1e9",
    "x",
    "y",
    "i",
    "e",
    "log",
    "\\sin",
    "\\binom",
    "\0",
    "Answer:",
    "<think>",
    "</think>",
    "<tool_calls>",
    "</tool_calls>",
    "\"",
    "\\",
    ":",
    "\"name\":",
    "\"arguments\":",
    "null",
    "r1c1",
    "A=1",
    "ß",
    "\u{1b}",
    "cm",
    "99999999999999999999",
];

fn pieces() -> impl Strategy<Value = Vec<u8>> {
    vec(prop::sample::select(PIECES), 0..40).prop_map(|pieces| pieces.concat().into_bytes())
}

/// Answers of the forms that the grader understands.
const ANSWERS: &[&str] = &[
    "\\boxed{\\frac{1}{\\sqrt{3}-\\sqrt{2}}}",
    "\\boxed{\\{1, -2, \\frac{3}{4}\\}}",
    "\\boxed{(-\\infty, 2] \\cup [3, \\infty)}",
    "\\boxed{\\frac{-1 \\pm \\sqrt{5}}{2}}",
    "\\boxed{x^2 + 2xy_1 - \\pi e^{3}}",
    "The answer is $12.5\\%$.",
    "**Answer:** 3 1/2 cm^2",
    "\\boxed{\\binom{10}{3} \\cdot 5! + |{-3}|}",
    "\\boxed{\\log_2 8 + \\sin^2(\\pi/6)}",
    "6.02e23",
];

/// What a change puts in, and where and how much it takes out, as shares of the text's length.
type Change = (&'static str, f64, f64);

fn changes() -> impl Strategy<Value = Vec<Change>> {
    vec((prop::sample::select(PIECES), 0.0..1.0f64, 0.0..0.2f64), 0..6)
}

fn changed(text: &str, changes: &[Change]) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for (piece, place, share) in changes {
        let start = (place * bytes.len() as f64) as usize;
        let end = bytes.len().min(start + (share * bytes.len() as f64) as usize);
        bytes.splice(start..end, piece.bytes());
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_grader_survives_any_bytes(data in vec(any::<u8>(), 0..200)) {
        entries::grade(&data);
    }

    #[test]
    fn the_grader_survives_any_formula(data in pieces()) {
        entries::grade(&data);
    }

    #[test]
    fn verifiers_survive_any_bytes(data in vec(any::<u8>(), 0..200)) {
        entries::verify(&data);
    }

    #[test]
    fn verifiers_survive_any_markup(task in any::<[u8; 2]>(), data in pieces()) {
        entries::verify(&[task.as_slice(), &data].concat());
    }

    #[test]
    fn the_grader_survives_changed_answers(
        answers in [prop::sample::select(ANSWERS), prop::sample::select(ANSWERS)],
        changes in [changes(), changes()],
    ) {
        let [response, expected] = [0, 1].map(|side| changed(answers[side], &changes[side]));
        entries::grade(&[&response[..], b"\0", &expected].concat());
    }

    #[test]
    fn verifiers_survive_changed_solutions(choice in any::<[u8; 2]>(), changes in changes()) {
        let (task, instance) = entries::chosen(choice);
        let response = changed(&task.solve(instance).response(), &changes);
        entries::verify(&[choice.as_slice(), &response].concat());
    }
}
