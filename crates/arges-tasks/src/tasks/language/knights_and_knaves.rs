//! Knights, who always tell the truth, and knaves, who always lie: who is which?

use super::logic::{Formula, Search, Step, search};
use super::{Drawn, Problem, answer, words};
use crate::{Instance, Random};

pub(crate) static TASK: Drawn<KnightsAndKnaves> = Drawn::NEW;

/// People and what they say; variable `i` of the formulas is whether person `i` is a knight.
pub(crate) struct KnightsAndKnaves {
    names: Vec<&'static str>,
    statements: Vec<Statement>,
    knights: Vec<bool>,
}

struct Statement {
    speaker: usize,
    text: String,
    says: Formula,
}

impl Statement {
    /// The speaker is a knight exactly if what is said holds.
    fn formula(&self) -> Formula {
        Formula::iff(Formula::Var(self.speaker), self.says.clone())
    }

    /// A statement that its speaker, one of `knights` or not, can make.
    fn draw(random: &mut Random, difficulty: u32, names: &[&str], knights: &[bool], speaker: usize) -> Self {
        loop {
            let (text, says) = draw_claim(random, difficulty, names, speaker);
            if says.holds(knights) == knights[speaker] {
                return Self { speaker, text, says };
            }
        }
    }
}

/// Something a person may say of the others, or of all. Simple claims come first with the difficulty.
fn draw_claim(random: &mut Random, difficulty: u32, names: &[&str], speaker: usize) -> (String, Formula) {
    let mut others: Vec<usize> = (0..names.len()).filter(|person| *person != speaker).collect();
    random.shuffle(&mut others);
    let (a, b) = (others[0], *others.get(1).unwrap_or(&speaker));
    let name = |person: usize| if person == speaker { "I" } else { names[person] };
    let be = |person: usize| if person == speaker { "am" } else { "is" };
    let kinds = if names.len() == 2 { 5 } else { (4 + difficulty as usize).min(9) };
    let kind = random.chance(1, 2);
    let word = if kind { "knight" } else { "knave" };
    match random.index(kinds) {
        0 | 1 => (format!("{} is a {word}", name(a)), Formula::literal(a, kind)),
        2 => {
            let says = Formula::Or(vec![Formula::literal(a, kind), Formula::literal(b, kind)]);
            (format!("{} {} a {word} or {} {} a {word}", name(a), be(a), name(b), be(b)), says)
        }
        3 => {
            let says = Formula::And(vec![Formula::literal(a, kind), Formula::literal(b, kind)]);
            (format!("{} and {} are both {word}s", name(a), name(b)), says)
        }
        4 => {
            let count = random.index(names.len() + 1);
            let says = Formula::Exactly(count, (0..names.len()).map(Formula::Var).collect());
            let verb = if count == 1 { "is a knight" } else { "are knights" };
            (format!("exactly {count} of us {verb}"), says)
        }
        5 | 6 => {
            let same = random.chance(1, 2);
            let says = Formula::iff(Formula::Var(a), Formula::literal(b, same));
            let kinds = if same { "of the same kind" } else { "of different kinds" };
            (format!("{} and {} are {kinds}", name(a), name(b)), says)
        }
        7 => {
            let says = Formula::implies(Formula::literal(a, kind), Formula::literal(b, kind));
            (format!("if {} is a {word}, then {} is a {word}", name(a), name(b)), says)
        }
        _ => {
            let says = Formula::And(vec![Formula::literal(a, !kind), Formula::literal(b, !kind)]);
            (format!("neither {} nor {} is a {word}", name(a), name(b)), says)
        }
    }
}

impl KnightsAndKnaves {
    fn search(&self, limit: usize) -> Search {
        let formulas: Vec<Formula> = self.statements.iter().map(Statement::formula).collect();
        search(self.names.len(), &formulas, limit)
    }

    fn listed(&self, knights: &[bool]) -> String {
        let entry = |(name, knight): (&&str, &bool)| format!("{name} {}", role(*knight));
        self.names.iter().zip(knights).map(entry).collect::<Vec<_>>().join(", ")
    }
}

fn role(knight: bool) -> &'static str {
    if knight { "knight" } else { "knave" }
}

impl Problem for KnightsAndKnaves {
    const NAME: &'static str = "knights_and_knaves";
    const SUMMARY: &'static str = "tell knights, who are truthful, from knaves, who lie, by what they say";
    const MAX_DIFFICULTY: u32 = 7;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let names = words::names(random, 1 + difficulty as usize);
        let count = names.len();
        // Draws without a single solution are rare and short.
        loop {
            let knights: Vec<bool> = (0..count).map(|_| random.chance(1, 2)).collect();
            let statement =
                |random: &mut Random, speaker| Statement::draw(random, difficulty, &names, &knights, speaker);
            let statements = (0..count).map(|speaker| statement(random, speaker)).collect();
            let mut puzzle = Self { names: names.clone(), statements, knights: knights.clone() };
            for _ in 0..count {
                if puzzle.search(2).solutions.len() == 1 {
                    return puzzle;
                }
                let speaker = random.index(count);
                puzzle.statements.push(statement(random, speaker));
            }
        }
    }

    fn prompt(&self) -> String {
        let mut prompt = format!(
            "{} are knights or knaves. Knights always tell the truth, knaves always lie.\n",
            words::enumeration(&self.names, "and")
        );
        for (number, statement) in (1..).zip(&self.statements) {
            prompt += &format!("{number}. {} says: {}.\n", self.names[statement.speaker], statement.text);
        }
        let form = self.names.iter().map(|name| format!("{name} ...")).collect::<Vec<_>>().join(", ");
        prompt + &format!("Who is what? End with a line `Answer: {form}`, with knight or knave for each.")
    }

    fn answer(&self) -> String {
        self.listed(&self.knights)
    }

    fn thinking(&self) -> String {
        let line = |step: &Step| match *step {
            Step::Suppose { variable, value } => format!("suppose {} {}", self.names[variable], role(value)),
            Step::Follows { variable, value, formula } => {
                format!("{}: {} {}", formula + 1, self.names[variable], role(value))
            }
            Step::Contradiction { formula } => format!("{}: contradiction", formula + 1),
            Step::Solution => "all hold".to_owned(),
        };
        self.search(1).steps.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn wrong_answers(&self) -> Vec<String> {
        let flipped = (0..self.knights.len()).map(|person| {
            let mut knights = self.knights.clone();
            knights[person] = !knights[person];
            self.listed(&knights)
        });
        let right = self.answer();
        let cut = right.rsplit_once(',').map(|(start, _)| start.to_owned());
        flipped.chain(cut).chain([format!("{right}, {}", self.listed(&self.knights))]).collect()
    }

    fn check(instance: &Instance, given: &str) -> Result<(), String> {
        let expected = instance.answer.as_str().ok_or("malformed instance: its answer is no text")?;
        answer::same_pairs(expected, given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_puzzle_has_one_solution_and_it_is_the_answer() {
        for difficulty in 1..=KnightsAndKnaves::MAX_DIFFICULTY {
            let mut random = Random::new("test", 3, difficulty);
            for _ in 0..50 {
                let puzzle = KnightsAndKnaves::draw(&mut random, difficulty);
                assert_eq!(puzzle.search(usize::MAX).solutions, std::slice::from_ref(&puzzle.knights));
            }
        }
    }
}
