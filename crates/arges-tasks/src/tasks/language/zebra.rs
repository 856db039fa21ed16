//! Houses in a row: who lives where with what? Puzzles are made so that short deductions from single clues lead to
//! the only solution, and the trace is these deductions.

use super::zebra_clues::{Clue, Possible};
use super::{Drawn, Problem, answer, words};
use crate::{Instance, Random};

pub(crate) static TASK: Drawn<Zebra> = Drawn::NEW;

/// What tells the houses' people apart: how one of them is called by it, and the values.
struct Attribute {
    name: &'static str,
    /// Text before and after a value, which make it a person.
    person: (&'static str, &'static str),
    values: [&'static str; 8],
}

const ATTRIBUTES: [Attribute; 5] = [
    Attribute {
        name: "door colours",
        person: ("the one with the ", " door"),
        values: ["red", "blue", "green", "white", "black", "yellow", "brown", "grey"],
    },
    Attribute {
        name: "pets",
        person: ("the owner of the ", ""),
        values: ["cat", "dog", "horse", "parrot", "snail", "goat", "zebra", "rabbit"],
    },
    Attribute {
        name: "drinks",
        person: ("the one who drinks ", ""),
        values: ["tea", "milk", "coffee", "water", "juice", "cocoa", "wine", "beer"],
    },
    Attribute {
        name: "jobs",
        person: ("the ", ""),
        values: ["baker", "doctor", "farmer", "judge", "miner", "nurse", "pilot", "tailor"],
    },
    Attribute {
        name: "instruments",
        person: ("the one who plays the ", ""),
        values: ["flute", "harp", "drum", "cello", "guitar", "organ", "violin", "trumpet"],
    },
];

/// Houses and attributes of a difficulty, names among the attributes.
const SIZES: [(usize, usize); 10] =
    [(2, 2), (3, 2), (3, 3), (4, 2), (4, 3), (4, 4), (5, 3), (5, 4), (5, 5), (6, 6)];

/// A puzzle. Item `attribute * houses + value` is a value of an attribute.
pub(crate) struct Zebra {
    houses: usize,
    /// How each item is written, and how it is spoken of.
    items: Vec<(&'static str, String)>,
    /// The kinds of things, in the plural.
    kinds: Vec<&'static str>,
    clues: Vec<Clue>,
    /// The house of each item.
    solution: Vec<usize>,
}

impl Zebra {
    /// The deductions as lines, and what is possible after them.
    fn deduce(&self) -> (Vec<String>, Possible) {
        let mut possible = Possible::new(self.houses, self.items.len());
        let mut lines = Vec::new();
        loop {
            let mut moved = false;
            for (number, clue) in (1..).zip(&self.clues) {
                let changed = possible.apply(*clue);
                self.note(&number.to_string(), &changed, &possible, &mut lines);
                moved |= !changed.is_empty();
                if changed.is_empty() {
                    continue;
                }
                let changed = possible.apply_different();
                self.note("one each", &changed, &possible, &mut lines);
            }
            if !moved || possible.is_solved() {
                return (lines, possible);
            }
        }
    }

    /// Adds a line that says why and which items have which houses left.
    fn note(&self, why: &str, changed: &[usize], possible: &Possible, lines: &mut Vec<String>) {
        if !changed.is_empty() {
            let item = |item: &usize| {
                let houses: Vec<String> =
                    possible.houses(*item).map(|house| (house + 1).to_string()).collect();
                format!("{} {}", self.items[*item].0, houses.join("/"))
            };
            lines.push(format!("{why}: {}", changed.iter().map(item).collect::<Vec<_>>().join(", ")));
        }
    }

    fn clue_text(&self, clue: Clue) -> String {
        let person = |item: usize| self.items[item].1.as_str();
        match clue {
            Clue::At(a, house) => format!("{} lives in house {}", person(a), house + 1),
            Clue::NotAt(a, house) => format!("{} does not live in house {}", person(a), house + 1),
            Clue::Same(a, b) => format!("{} is {}", person(a), person(b)),
            Clue::Different(a, b) => format!("{} is not {}", person(a), person(b)),
            Clue::DirectlyLeft(a, b) => format!("{} lives directly left of {}", person(a), person(b)),
            Clue::Beside(a, b) => format!("{} lives next to {}", person(a), person(b)),
            Clue::Left(a, b) => format!("{} lives somewhere left of {}", person(a), person(b)),
        }
    }

    /// The items of each house, with the attributes in their order.
    fn rows(&self) -> Vec<Vec<&'static str>> {
        let row = |house: usize| {
            let inside = |item: &usize| self.solution[*item] == house;
            (0..self.items.len()).filter(inside).map(|item| self.items[item].0).collect()
        };
        (0..self.houses).map(row).collect()
    }
}

fn listed(rows: &[Vec<&str>]) -> String {
    let row = |(number, row): (usize, &Vec<&str>)| format!("{number}: {}", row.join(" "));
    (1..).zip(rows).map(row).collect::<Vec<_>>().join(", ")
}

impl Problem for Zebra {
    const NAME: &'static str = "zebra";
    const SUMMARY: &'static str = "who lives in which house with what, by clues (Einstein's riddle)";
    const MAX_DIFFICULTY: u32 = SIZES.len() as u32;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let (houses, attributes) = SIZES[difficulty as usize - 1];
        let names = words::names(random, houses);
        let mut items: Vec<(&str, String)> = names.into_iter().map(|name| (name, name.to_owned())).collect();
        let mut kinds = vec!["names"];
        for place in random.sample(ATTRIBUTES.len(), attributes - 1) {
            let Attribute { name, person, values } = &ATTRIBUTES[place];
            kinds.push(name);
            let values = words::different(random, values, houses);
            items.extend(values.iter().map(|value| (*value, format!("{}{value}{}", person.0, person.1))));
        }
        let mut solution = Vec::new();
        for _ in 0..attributes {
            solution.extend(random.sample(houses, houses));
        }
        let clues = Clue::draw_enough(random, houses, &solution);
        Self { houses, items, kinds, clues, solution }
    }

    fn prompt(&self) -> String {
        let mut prompt = format!(
            "There are {} houses in a row, numbered from 1 on the left. In each lives one person, and they differ \
             in everything told here.\n",
            self.houses
        );
        for (kind, items) in self.kinds.iter().zip(self.items.chunks(self.houses)) {
            // In alphabetical order, which tells nothing.
            let mut values: Vec<&str> = items.iter().map(|item| item.0).collect();
            values.sort_unstable();
            prompt += &format!("{kind}: {}\n", values.join(", "));
        }
        for (number, clue) in (1..).zip(&self.clues) {
            let text = self.clue_text(*clue);
            let start = text[..1].to_uppercase();
            prompt += &format!("{number}. {start}{}.\n", &text[1..]);
        }
        let form: Vec<String> = (1..=self.houses).map(|house| format!("{house}: ...")).collect();
        prompt
            + &format!(
                "Who lives where with what? End with a line `Answer: {}`, with all values of each house, spaces \
                 between.",
                form.join(", ")
            )
    }

    fn answer(&self) -> String {
        listed(&self.rows())
    }

    fn thinking(&self) -> String {
        self.deduce().0.join("\n")
    }

    fn wrong_answers(&self) -> Vec<String> {
        let rows = self.rows();
        let swapped = (0..self.kinds.len()).map(|kind| {
            let mut rows = rows.clone();
            let (first, second) = (rows[0][kind], rows[1][kind]);
            (rows[0][kind], rows[1][kind]) = (second, first);
            listed(&rows)
        });
        swapped.chain([listed(&rows[1..]), listed(&rows[..self.houses - 1])]).collect()
    }

    fn check(instance: &Instance, given: &str) -> Result<(), String> {
        let expected = instance.answer.as_str().ok_or("malformed instance: its answer is no text")?;
        let (expected, given) = (read_rows(expected), read_rows(given));
        if given.len() != expected.len() {
            return Err(format!("{} houses are told of, not {}", given.len(), expected.len()));
        }
        match expected.iter().zip(&given).find(|(expected, given)| expected != given) {
            None => Ok(()),
            Some((expected, _)) => Err(format!("what is told of house {} is not so", expected.0)),
        }
    }
}

/// The houses' numbers with their values in alphabetical order, ascending.
fn read_rows(text: &str) -> Vec<(String, Vec<String>)> {
    const MAX_WORDS: usize = 128;
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    let spaced = text.chars().map(|c| if matches!(c, ':' | '|') { ' ' } else { c }).collect::<String>();
    for word in answer::words(&spaced).filter(|word| !word.eq_ignore_ascii_case("house")).take(MAX_WORDS) {
        match rows.last_mut() {
            Some(last) if !word.starts_with(|c: char| c.is_ascii_digit()) => {
                last.1.push(word.to_ascii_lowercase())
            }
            _ => rows.push((word.to_owned(), Vec::new())),
        }
    }
    rows.iter_mut().for_each(|row| row.1.sort_unstable());
    rows.sort_unstable();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Task;

    #[test]
    fn values_of_a_house_may_be_in_any_order_and_houses_too() {
        let mut instance = TASK.generate(0, 2);
        instance.answer = "1: Ann red, 2: Bob blue".into();
        let check = |given: &str| Zebra::check(&instance, given);
        assert_eq!(check("House 1: red, Ann\nHouse 2: Bob, blue"), Ok(()));
        assert_eq!(check("2: Bob blue; 1: Ann red."), Ok(()));
        for wrong in
            ["1: Ann red", "1: Ann blue, 2: Bob red", "1: Ann red red, 2: Bob blue", "1: 2: Ann red", ""]
        {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn deductions_from_single_clues_lead_to_the_solution() {
        for difficulty in 1..=Zebra::MAX_DIFFICULTY {
            for seed in 0..20 {
                let puzzle = Zebra::draw(&mut Random::new("test", seed, difficulty), difficulty);
                let (_, possible) = puzzle.deduce();
                let houses: Vec<Vec<usize>> =
                    (0..puzzle.items.len()).map(|item| possible.houses(item).collect()).collect();
                let solution: Vec<Vec<usize>> = puzzle.solution.iter().map(|house| vec![*house]).collect();
                assert_eq!(houses, solution, "seed {seed} of difficulty {difficulty}");
            }
        }
    }

    #[test]
    fn no_value_is_also_a_name_or_belongs_to_two_attributes() {
        let mut values: Vec<&str> = ATTRIBUTES.iter().flat_map(|attribute| attribute.values).collect();
        values.extend(words::NAMES.iter());
        values.sort_unstable();
        assert!(values.windows(2).all(|pair| !pair[0].eq_ignore_ascii_case(pair[1])));
    }
}
