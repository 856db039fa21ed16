use super::{Grade, grade};

/// Grades an answer within a box against an expected one.
fn boxed(answer: &str, expected: &str) -> Grade {
    grade(&format!("<think>\n\\boxed{{0}}\n</think>\nSo it is $\\boxed{{{answer}}}$."), expected)
}

fn all(grade: Grade, pairs: &[(&str, &str)]) {
    for (answer, expected) in pairs {
        assert_eq!(boxed(answer, expected), grade, "{answer:?} for {expected:?}");
    }
}

#[test]
fn numbers_are_compared_by_value() {
    all(
        Grade::Right,
        &[
            ("12", "12"),
            ("12.0", "12"),
            ("+12", "12"),
            ("-\\frac{1}{2}", "-0.5"),
            ("\\dfrac{2}{4}", "1/2"),
            ("\\frac12", "0.5"),
            ("-1/3", "\\frac{-1}{3}"),
            ("3\\frac{1}{2}", "3.5"),
            ("3 1/2", "\\frac{7}{2}"),
            ("1,234,567", "1234567"),
            ("10{,}000", "10000"),
            ("50\\%", "0.5"),
            ("12.5%", "\\frac{1}{8}"),
            ("2^{10}", "1024"),
            ("1.5e3", "1500"),
            ("5!", "120"),
            ("\\binom{5}{2}", "10"),
            ("|{-3}|", "3"),
            (".5", "0.50"),
            ("\u{2212}5", "-5"),
            ("6.02 \\times 10^{23}", "602000000000000000000000"),
            ("1.2E-3", "\\frac{3}{2500}"),
            ("-1\\frac{1}{4}", "-1.25"),
            ("2^{100}", "1267650600228229401496703205376"),
        ],
    );
    all(Grade::Wrong, &[("13", "12"), ("\\frac{1}{3}", "0.5"), ("-5", "5"), ("1,235", "1234"), ("120", "5")]);
}

#[test]
fn radicals_and_constants_are_compared_exactly() {
    all(
        Grade::Right,
        &[
            ("\\sqrt{12}", "2\\sqrt{3}"),
            ("\\frac{1}{\\sqrt{2}}", "\\frac{\\sqrt{2}}{2}"),
            ("\\frac{1}{\\sqrt{3}-\\sqrt{2}}", "\\sqrt{3}+\\sqrt{2}"),
            ("2^{1/2}", "\\sqrt 2"),
            ("\\sqrt[3]{27}", "3"),
            ("\\sqrt{3+2\\sqrt{2}}", "1+\\sqrt{2}"),
            ("4^{\\frac{3}{2}}", "8"),
            ("\\frac{\\pi}{2}", "0.5π"),
            ("2\\pi + \\pi", "3\\pi"),
            ("(1+i)^2", "2i"),
            ("\\sqrt{-4}", "2i"),
            ("e^2", "e \\cdot e"),
            ("\\log_2 8", "3"),
            ("\\sin(\\pi/6)", "1/2"),
            ("\\sqrt[3]{2}\\sqrt[3]{4}", "2"),
        ],
    );
    all(
        Grade::Wrong,
        &[
            ("\\sqrt{2}", "\\sqrt{3}"),
            ("\\pi", "22/7"),
            ("2i", "-2i"),
            ("\\sqrt{2}+1", "\\sqrt{2}"),
            ("\\ln 2", "1"),
        ],
    );
}

#[test]
fn expressions_of_variables_are_compared_as_identities() {
    all(
        Grade::Right,
        &[
            ("x^2+2x+1", "(x+1)^2"),
            ("(x-1)(x+1)", "x^2 - 1"),
            ("\\frac{x^2-1}{x-1}", "x+1"),
            ("2ab", "b \\cdot 2a"),
            ("y = 3x + 2", "3x+2"),
            ("f(x) = x^2", "x^2"),
            ("x_1 + x_2", "x_2 + x_{1}"),
            ("\\theta/2", "\\frac{\\theta}{2}"),
            ("2x + 3y = 6", "6 = 3y + 2x"),
        ],
    );
    all(
        Grade::Wrong,
        &[("x^2+1", "(x+1)^2"), ("2x", "2y"), ("\\sqrt{x^2}", "x"), ("x+1", "5"), ("a^2", "a^3")],
    );
}

#[test]
fn sets_do_not_mind_order_and_tuples_do() {
    all(
        Grade::Right,
        &[
            ("\\{1, 2\\}", "\\{2, 1\\}"),
            ("1, 2", "2,1"),
            ("1 \\text{ and } 2", "\\{1,2\\}"),
            ("x = 1, x = 2", "1, 2"),
            ("x = 1 or x = 2", "2, 1"),
            ("1, 2, and 3", "1,2,3"),
            ("\\{5\\}", "5"),
            ("(1, \\frac{1}{2})", "(1, 0.5)"),
            ("\\left[ 0, 1 \\right)", "[0,1)"),
            ("(-\\infty, 2)", "(-\\infty,2)"),
            ("(0,1) \\cup (2,3)", "(2,3)\\cup(0,1)"),
            ("1 \\pm \\sqrt{2}", "1+\\sqrt{2}, 1-\\sqrt{2}"),
            ("\\pm 2", "\\{-2, 2\\}"),
            ("\\frac{-1 \\pm \\sqrt{5}}{2}", "\\frac{-1+\\sqrt{5}}{2}, \\frac{-1-\\sqrt{5}}{2}"),
            ("\\emptyset", "\\{\\}"),
            ("(1,2), (3,4)", "(3,4),(1,2)"),
            ("1, 2", "(1, 2)"),
        ],
    );
    all(
        Grade::Wrong,
        &[
            ("\\{1, 2, 3\\}", "\\{1, 2\\}"),
            ("\\{1\\}", "\\{1, 2\\}"),
            ("(2, 1)", "(1, 2)"),
            ("(0, 1)", "[0, 1]"),
            ("(-\\infty, 2)", "(\\infty, 2)"),
            ("(0,1)", "(0,1) \\cup (2,3)"),
            ("1", "1, 2"),
            ("\\pm 2", "2"),
            ("\\infty", "5"),
        ],
    );
    all(Grade::Unknown, &[("\\{1, 2\\}", "(1, 2)")]);
}

#[test]
fn units_and_dollars_do_not_count() {
    all(
        Grade::Right,
        &[
            ("12 \\text{ cm}", "12"),
            ("12 cm^2", "12\\text{ cm}^2"),
            ("\\$5.50", "5.5"),
            ("90^\\circ", "90"),
            ("90\\degree", "90"),
            ("90 degrees", "90^{\\circ}"),
            ("30 miles per hour", "30"),
            ("5 \\text{ m/s}", "5"),
        ],
    );
}

#[test]
fn words_are_right_or_unknown() {
    all(
        Grade::Right,
        &[
            ("\\text{Tuesday}", "Tuesday"),
            ("yes", "\\text{Yes}"),
            ("\\text{(C)}", "C"),
            ("(C)", "C"),
            ("x > 3", "x>3"),
        ],
    );
    all(Grade::Wrong, &[("No", "yes"), ("B", "\\text{C}")]);
    all(Grade::Unknown, &[("Monday", "Tuesday"), ("x \\ge 3", "[3, \\infty)"), ("act", "cat")]);
}

#[test]
fn what_is_too_large_or_too_small_to_tell_is_unknown() {
    all(
        Grade::Unknown,
        &[
            ("100! + 1", "100!"),
            ("2^{1000}", "2^{1000} + 1"),
            ("10^{10^{10}}", "5"),
            ("2^{-2000}", "0"),
            ("3^{-200}", "3^{-201}"),
            ("-(2^{64}) \\cdot 2^{63}", "-2^{127} + 1"),
        ],
    );
    all(Grade::Wrong, &[("2^{100}", "2^{100}+1"), ("2^{1000}", "3^{600}"), ("3^{-200}", "1")]);
}

#[test]
fn what_may_be_another_way_to_say_it_is_unknown() {
    all(
        Grade::Unknown,
        &[
            ("5 m", "5"),
            ("-3.5", "-3.5 s"),
            ("\\sin^{-1}(1/2)", "\\frac{\\pi}{6}"),
            ("50", "50\\%"),
            ("1.414", "\\sqrt{2}"),
            ("\\pi", "3.14"),
            ("0.33", "\\frac{1}{3}"),
            ("x = 5", "y = 5"),
        ],
    );
    all(
        Grade::Wrong,
        &[("1.415", "\\sqrt{2}"), ("51", "50\\%"), ("0.5", "\\frac{1}{3}"), ("6 m", "5"), ("5x", "5")],
    );
}

#[test]
fn a_response_without_an_answer_is_wrong_and_one_that_hides_it_unknown() {
    assert_eq!(grade("<think>\n\\boxed{5}", "5"), Grade::Wrong);
    assert_eq!(grade("", "5"), Grade::Wrong);
    assert_eq!(grade("It is 5, I think.\nOr perhaps not.", "5"), Grade::Unknown);
    assert_eq!(grade("Work.\nThe answer is 5.", "\\boxed{5}"), Grade::Right);
    assert_eq!(grade("5", "$5$"), Grade::Right);
}
