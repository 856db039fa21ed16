//! Propositional logic: does a conclusion follow, can formulas hold together, and which values make them hold?

use super::logic::{Formula, Search, Step, search};
use super::{Drawn, Problem, answer};
use crate::{Instance, Random};

pub(crate) static TASK: Drawn<PropositionalLogic> = Drawn::NEW;

/// Names of the variables, in their order.
const VARIABLES: [&str; 8] = ["p", "q", "r", "s", "t", "u", "v", "w"];

/// Formulas and what is asked of them.
pub(crate) struct PropositionalLogic {
    variables: usize,
    formulas: Vec<Formula>,
    question: Question,
}

enum Question {
    /// Does this follow from the formulas?
    Follows(Formula),
    /// Is there an assignment that makes the formulas hold?
    Satisfiable,
    /// Which one?
    Assignment,
}

use Formula::{And, Exactly, Iff, Implies, Not, Or, Var};

/// The text of a formula, with brackets around everything below an operator but variables and their negations.
fn text(formula: &Formula) -> String {
    let below = |part: &Formula| match part {
        Var(_) | Not(_) | Exactly(..) => text(part),
        _ => format!("({})", text(part)),
    };
    let join = |parts: &[Formula], word: &str| parts.iter().map(below).collect::<Vec<_>>().join(word);
    match formula {
        Var(variable) => VARIABLES[*variable].to_owned(),
        Not(inner) => format!("not {}", below(inner)),
        And(parts) => join(parts, " and "),
        Or(parts) => join(parts, " or "),
        Implies(premise, conclusion) => format!("{} -> {}", below(premise), below(conclusion)),
        Iff(left, right) => format!("{} <-> {}", below(left), below(right)),
        Exactly(count, parts) => {
            format!("exactly {count} of ({})", parts.iter().map(text).collect::<Vec<_>>().join(", "))
        }
    }
}

/// An assignment as one letter a variable.
fn letters(values: &[bool]) -> String {
    values.iter().map(|value| if *value { 't' } else { 'f' }).collect()
}

/// Reads `p=true, q=false`, in any order, every variable up to the last one once.
fn read_assignment(given: &str) -> Result<String, String> {
    let mut values = [None; VARIABLES.len()];
    let spaced = given.replace(['=', ':'], " ");
    let words: Vec<&str> = answer::words(&spaced).take(2 * VARIABLES.len() + 1).collect();
    for pair in words.chunks(2) {
        let variable = VARIABLES.iter().position(|name| pair[0].eq_ignore_ascii_case(name));
        let value = pair.get(1).map(|word| word.to_ascii_lowercase());
        match (variable, value.as_deref()) {
            (Some(variable), Some(word @ ("true" | "false"))) if values[variable].is_none() => {
                values[variable] = Some(word == "true");
            }
            _ => return Err(format!("{} gives no variable a value", answer::quoted(&pair.join("=")))),
        }
    }
    let given = values.iter().flatten().count();
    match values[..given].iter().copied().collect::<Option<Vec<bool>>>() {
        Some(values) => Ok(letters(&values)),
        None => Err("a variable has no value".to_owned()),
    }
}

/// Draws a formula of two or three variables, more tangled at a higher difficulty.
fn draw_formula(random: &mut Random, difficulty: u32, variables: usize) -> Formula {
    let chosen = random.sample(variables, 3);
    let mut literal = |place: usize| {
        let variable = chosen[place.min(chosen.len() - 1)];
        Formula::literal(variable, random.chance(2, 3))
    };
    let (a, b, c) = (literal(0), literal(1), literal(2));
    let kinds = [4, 4, 6, 6, 8, 8, 10, 10][difficulty as usize - 1];
    match random.index(if chosen.len() < 3 { 4 } else { kinds }) {
        0 => Or(vec![a, b]),
        1 => Formula::implies(a, b),
        2 => Formula::not(And(vec![a, b])),
        3 => Formula::iff(a, b),
        4 => Or(vec![a, b, c]),
        5 => Formula::implies(And(vec![a, b]), c),
        6 => Formula::implies(a, Or(vec![b, c])),
        7 => Exactly(1 + random.index(2), vec![a, b, c]),
        8 => Formula::iff(a, Or(vec![b, c])),
        _ => Or(vec![And(vec![a, b]), c]),
    }
}

impl PropositionalLogic {
    /// All that has to hold: the formulas and, where one asks whether something follows, its contrary.
    fn constraints(&self) -> Vec<Formula> {
        let contrary = match &self.question {
            Question::Follows(conclusion) => Some(Formula::not(conclusion.clone())),
            _ => None,
        };
        self.formulas.iter().cloned().chain(contrary).collect()
    }

    fn search(&self, limit: usize) -> Search {
        search(self.variables, &self.constraints(), limit)
    }

    fn listed(&self, values: &[bool]) -> String {
        let entry = |(name, value): (&&str, &bool)| format!("{name}={value}");
        VARIABLES.iter().zip(values).map(entry).collect::<Vec<_>>().join(", ")
    }

    /// All assignments that make the formulas hold.
    fn right_assignments(&self) -> Vec<String> {
        self.search(usize::MAX).solutions.iter().map(|values| letters(values)).collect()
    }

    /// Formulas that can hold together, and one that cannot hold beside them.
    fn draw_tight(random: &mut Random, difficulty: u32, variables: usize) -> (Vec<Formula>, Formula) {
        let mut formulas = Vec::new();
        loop {
            let formula = draw_formula(random, difficulty, variables);
            if formulas.contains(&formula) {
                continue;
            }
            formulas.push(formula);
            if search(variables, &formulas, 1).solutions.is_empty() {
                let last = formulas.pop();
                return (formulas, last.unwrap_or(Var(0)));
            }
        }
    }

    /// A conclusion that follows from the formulas, or one that does not, whichever `follows` says.
    fn draw_conclusion(
        random: &mut Random,
        (variables, difficulty): (usize, u32),
        formulas: &[Formula],
        follows: bool,
    ) -> Option<Formula> {
        (0..30).map(|_| draw_formula(random, difficulty.min(4), variables)).find(|conclusion| {
            let constraints: Vec<Formula> =
                formulas.iter().cloned().chain([Formula::not(conclusion.clone())]).collect();
            !formulas.contains(conclusion)
                && search(variables, &constraints, 1).solutions.is_empty() == follows
        })
    }
}

impl Problem for PropositionalLogic {
    const NAME: &'static str = "propositional_logic";
    const SUMMARY: &'static str =
        "does a conclusion follow, can formulas hold together, and under which values";
    const MAX_DIFFICULTY: u32 = 8;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let variables = (2 + difficulty as usize / 2 + random.index(2)).min(VARIABLES.len());
        let question = random.index(3);
        let yes = random.chance(1, 2);
        loop {
            let (mut formulas, last) = Self::draw_tight(random, difficulty, variables);
            let question = match question {
                0 => {
                    let size = (variables, difficulty);
                    let half = formulas.len().div_ceil(2) + 1;
                    formulas.truncate(half);
                    match Self::draw_conclusion(random, size, &formulas, yes) {
                        Some(conclusion) => Question::Follows(conclusion),
                        None => continue,
                    }
                }
                1 => {
                    if !yes {
                        formulas.push(last);
                    }
                    Question::Satisfiable
                }
                _ => Question::Assignment,
            };
            random.shuffle(&mut formulas);
            return Self { variables, formulas, question };
        }
    }

    fn prompt(&self) -> String {
        let numbered =
            (1..).zip(&self.formulas).map(|(number, formula)| format!("{number}. {}", text(formula)));
        let formulas = numbered.collect::<Vec<_>>().join("\n");
        match &self.question {
            Question::Follows(conclusion) => format!(
                "Given:\n{formulas}\nDoes this follow?\n{}\nEnd with `Answer: yes` or `Answer: no`.",
                text(conclusion)
            ),
            Question::Satisfiable => format!(
                "{formulas}\nCan all of these be true together? End with `Answer: yes` or `Answer: no`."
            ),
            Question::Assignment => {
                let form: Vec<String> =
                    VARIABLES[..self.variables].iter().map(|name| format!("{name}=...")).collect();
                format!(
                    "{formulas}\nFor which values are all of these true? End with a line `Answer: {}`, with true or \
                     false for each.",
                    form.join(", ")
                )
            }
        }
    }

    fn answer(&self) -> String {
        let solution = self.search(1).solutions.pop();
        match (&self.question, solution) {
            (Question::Follows(_), None) | (Question::Satisfiable, Some(_)) => "yes".to_owned(),
            (Question::Assignment, Some(values)) => self.listed(&values),
            _ => "no".to_owned(),
        }
    }

    fn thinking(&self) -> String {
        let literal = |variable: usize, value: bool| text(&Formula::literal(variable, value));
        let line = |step: &Step| match *step {
            Step::Suppose { variable, value } => format!("suppose {}", literal(variable, value)),
            Step::Follows { variable, value, formula } => {
                format!("{}: {}", formula + 1, literal(variable, value))
            }
            Step::Contradiction { formula } => format!("{}: contradiction", formula + 1),
            Step::Solution => "all hold".to_owned(),
        };
        let contrary = match &self.question {
            Question::Follows(conclusion) => {
                let contrary = text(&Formula::not(conclusion.clone()));
                Some(format!("suppose {}. {contrary}", self.formulas.len() + 1))
            }
            _ => None,
        };
        contrary.into_iter().chain(self.search(1).steps.iter().map(line)).collect::<Vec<_>>().join("\n")
    }

    fn wrong_answers(&self) -> Vec<String> {
        if !matches!(self.question, Question::Assignment) {
            return vec![if self.answer() == "yes" { "no" } else { "yes" }.to_owned(), "p=true".to_owned()];
        }
        let right = self.search(1).solutions.pop().unwrap_or_default();
        let flipped = (0..right.len()).map(|variable| {
            let mut values = right.clone();
            values[variable] = !values[variable];
            values
        });
        let fails = |values: &Vec<bool>| !self.formulas.iter().all(|formula| formula.holds(values));
        let cut = right.iter().take(self.variables - 1).copied().collect();
        flipped.filter(fails).chain([cut]).map(|values| self.listed(&values)).collect()
    }

    fn data(&self) -> serde_json::Value {
        match self.question {
            Question::Assignment => serde_json::json!({ "right": self.right_assignments() }),
            _ => serde_json::json!({}),
        }
    }

    fn check(instance: &Instance, given: &str) -> Result<(), String> {
        let expected = instance.answer.as_str().ok_or("malformed instance: its answer is no text")?;
        let Some(right) = instance.data.get("right") else {
            return answer::same_words(expected, given);
        };
        let values = read_assignment(given)?;
        let right = right.as_array().map_or(&[][..], Vec::as_slice);
        match right.iter().any(|assignment| assignment.as_str() == Some(&values)) {
            true => Ok(()),
            false => Err("not all formulas are true under these values".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Task;

    #[test]
    fn an_assignment_is_read_in_any_order_with_every_variable_once() {
        assert_eq!(read_assignment("q = False, p=true"), Ok("tf".to_owned()));
        assert_eq!(read_assignment("p: true\nq: true"), Ok("tt".to_owned()));
        for wrong in ["q=true", "p=true, p=false", "p", "p=true, x=true", "p=maybe", "p=true q"] {
            assert!(read_assignment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_assignment_that_makes_the_formulas_hold_is_right_and_no_other() {
        let formulas = vec![Or(vec![Var(0), Var(1)]), Formula::implies(Var(0), Formula::not(Var(1)))];
        let problem = PropositionalLogic { variables: 2, formulas, question: Question::Assignment };
        let mut instance = TASK.generate(0, 1);
        (instance.answer, instance.data) = (problem.expected(), problem.data());
        let verdict = |answer| PropositionalLogic::check(&instance, answer).is_ok();
        assert!(verdict("p=true, q=false") && verdict("p=false, q=true"));
        assert!(!verdict("p=true, q=true") && !verdict("p=false, q=false") && !verdict("p=true"));
    }

    #[test]
    fn each_answer_is_drawn_at_each_difficulty() {
        for difficulty in 1..=PropositionalLogic::MAX_DIFFICULTY {
            let mut random = Random::new("test", 0, difficulty);
            let mut counts = [[0; 2]; 2];
            for _ in 0..200 {
                let problem = PropositionalLogic::draw(&mut random, difficulty);
                let kind = match problem.question {
                    Question::Follows(_) => 0,
                    Question::Satisfiable => 1,
                    Question::Assignment => continue,
                };
                counts[kind][usize::from(problem.answer() == "yes")] += 1;
            }
            assert!(counts.as_flattened().iter().all(|count| *count > 15), "{difficulty}: {counts:?}");
        }
    }
}
