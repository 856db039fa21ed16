//! What holds for the grader whatever it is given.

use std::time::{Duration, Instant};

use arges_tasks::math::{Grade, grade};
use proptest::prelude::*;

/// Numbers, variables and what joins them, as LaTeX.
fn formula() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        (0..40u32).prop_map(|n| n.to_string()),
        "[xyab]",
        Just("\\pi".to_owned()),
        "[1-9]\\.[0-9]{1,2}"
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        let pair = (inner.clone(), inner.clone());
        prop_oneof![
            pair.clone().prop_map(|(a, b)| format!("({a} + {b})")),
            pair.clone().prop_map(|(a, b)| format!("({a} - {b})")),
            pair.clone().prop_map(|(a, b)| format!("{a} \\cdot {b}")),
            pair.prop_map(|(a, b)| format!("\\frac{{{a}}}{{{b}}}")),
            inner.clone().prop_map(|a| format!("\\sqrt{{{a}}}")),
            (inner, 0..4u32).prop_map(|(a, n)| format!("({a})^{n}")),
        ]
    })
}

fn boxed(answer: &str) -> String {
    format!("\\boxed{{{answer}}}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_answer_is_never_another_than_itself_rewritten(a in formula()) {
        for rewritten in [format!("{a} + 0"), format!("({a}) \\cdot 1"), format!("0 + {a}"), format!("\\left({a}\\right)")] {
            prop_assert_ne!(grade(&boxed(&rewritten), &a), Grade::Wrong, "{}", rewritten);
        }
    }

    #[test]
    fn one_more_is_never_right(a in formula()) {
        prop_assert_ne!(grade(&boxed(&format!("{a} + 1")), &a), Grade::Right);
    }

    #[test]
    fn sums_and_products_may_be_turned_around(a in formula(), b in formula()) {
        prop_assert_ne!(grade(&boxed(&format!("{a} + {b}")), &format!("{b} + {a}")), Grade::Wrong);
        prop_assert_ne!(grade(&boxed(&format!("({a})({b})")), &format!("({b})({a})")), Grade::Wrong);
    }

    #[test]
    fn fractions_are_what_their_parts_say(a in -50i64..50, b in 1i64..50, k in 1i64..20) {
        let (plain, latex) = (format!("{}/{}", a * k, b * k), format!("\\frac{{{a}}}{{{b}}}"));
        prop_assert_eq!(grade(&boxed(&plain), &latex), Grade::Right);
        prop_assert_eq!(grade(&boxed(&format!("{}/{b}", a + 1)), &latex), Grade::Wrong);
    }
}

#[test]
fn hostile_answers_are_never_right_and_take_no_time() {
    const MEGABYTE: usize = 1 << 20;
    let mut hostile = vec![
        "\0\u{1b}[2J".to_owned(),
        "9".repeat(60),
        format!("2^{{{}}}", "9^".repeat(30) + "9"),
        format!("({})^{{64}}", "(x+y+\\sqrt{2}+\\sqrt{3}+\\pi)^{64}".repeat(40)),
        "170!^{64}".to_owned(),
        (0..200).map(|n| format!("\\sqrt{{{}}}+", 999_999_000_000u64 + n)).collect::<String>() + "1",
        (0..60)
            .map(|n| format!("\\frac{{1}}{{\\sqrt{{{}}}+\\pi}},", 999_999_000_000u64 + n))
            .collect::<String>()
            + "1",
    ];
    for piece in [
        "(",
        "{",
        "\\boxed{",
        "\\frac",
        "\\sqrt{",
        "-",
        "^",
        "1,",
        "answer is ",
        "answer:",
        "|",
        "\\{",
        "x",
        "ß",
        "!",
    ] {
        hostile.push(piece.repeat(MEGABYTE / piece.len()));
        hostile.push(piece.repeat(1990 / piece.len()));
    }
    for answer in &hostile {
        for (response, expected) in
            [(boxed(answer), "5"), (answer.clone(), "5"), (boxed("5"), answer.as_str())]
        {
            let started = Instant::now();
            let start: String = answer.chars().take(30).collect();
            assert_ne!(grade(&response, expected), Grade::Right, "{start:?}");
            assert!(started.elapsed() < Duration::from_secs(5), "{start:?}: {:?}", started.elapsed());
        }
    }
    let pair = hostile.iter().filter(|answer| answer.len() <= 2000);
    for answer in pair {
        let started = Instant::now();
        grade(&boxed(&format!("{answer} + 0")), answer);
        assert!(started.elapsed() < Duration::from_secs(5), "{answer:?}: {:?}", started.elapsed());
    }
}
