//! Counting the things of a kind, with a running sum as the trace.

use super::{Drawn, Problem, words};
use crate::Random;

pub(crate) static TASK: Drawn<ObjectCounting> = Drawn::NEW;

/// A kind of things, in the plural, and things of that kind in singular and plural.
struct Kind {
    name: &'static str,
    things: [(&'static str, &'static str); 12],
}

const KINDS: [Kind; 6] = [
    Kind {
        name: "fruits",
        things: [
            ("apple", "apples"),
            ("pear", "pears"),
            ("banana", "bananas"),
            ("plum", "plums"),
            ("peach", "peaches"),
            ("mango", "mangos"),
            ("lemon", "lemons"),
            ("cherry", "cherries"),
            ("orange", "oranges"),
            ("kiwi", "kiwis"),
            ("fig", "figs"),
            ("apricot", "apricots"),
        ],
    },
    Kind {
        name: "vegetables",
        things: [
            ("carrot", "carrots"),
            ("onion", "onions"),
            ("potato", "potatoes"),
            ("cabbage", "cabbages"),
            ("turnip", "turnips"),
            ("leek", "leeks"),
            ("radish", "radishes"),
            ("cauliflower", "cauliflowers"),
            ("parsnip", "parsnips"),
            ("artichoke", "artichokes"),
            ("beetroot", "beetroots"),
            ("lettuce", "lettuces"),
        ],
    },
    Kind {
        name: "animals",
        things: [
            ("dog", "dogs"),
            ("cat", "cats"),
            ("goat", "goats"),
            ("rabbit", "rabbits"),
            ("duck", "ducks"),
            ("horse", "horses"),
            ("mouse", "mice"),
            ("pig", "pigs"),
            ("donkey", "donkeys"),
            ("hen", "hens"),
            ("snail", "snails"),
            ("parrot", "parrots"),
        ],
    },
    Kind {
        name: "musical instruments",
        things: [
            ("piano", "pianos"),
            ("violin", "violins"),
            ("flute", "flutes"),
            ("drum", "drums"),
            ("trumpet", "trumpets"),
            ("guitar", "guitars"),
            ("harp", "harps"),
            ("cello", "cellos"),
            ("clarinet", "clarinets"),
            ("trombone", "trombones"),
            ("banjo", "banjos"),
            ("accordion", "accordions"),
        ],
    },
    Kind {
        name: "pieces of furniture",
        things: [
            ("chair", "chairs"),
            ("table", "tables"),
            ("bed", "beds"),
            ("sofa", "sofas"),
            ("wardrobe", "wardrobes"),
            ("desk", "desks"),
            ("bookcase", "bookcases"),
            ("stool", "stools"),
            ("armchair", "armchairs"),
            ("bench", "benches"),
            ("cupboard", "cupboards"),
            ("dresser", "dressers"),
        ],
    },
    Kind {
        name: "tools",
        things: [
            ("hammer", "hammers"),
            ("saw", "saws"),
            ("drill", "drills"),
            ("wrench", "wrenches"),
            ("chisel", "chisels"),
            ("axe", "axes"),
            ("screwdriver", "screwdrivers"),
            ("shovel", "shovels"),
            ("rake", "rakes"),
            ("crowbar", "crowbars"),
            ("trowel", "trowels"),
            ("pickaxe", "pickaxes"),
        ],
    },
];

/// Things somebody has, what happens to them, and the kinds asked for.
pub(crate) struct ObjectCounting {
    /// The things there are at first, all different.
    entries: Vec<Entry>,
    /// Changes of things by their place among the entries; what is taken is there.
    changes: Vec<(usize, i64)>,
    /// Places among the kinds.
    asked: Vec<usize>,
    /// Whether small numbers are words.
    in_words: bool,
}

#[derive(Clone, Copy)]
struct Entry {
    kind: usize,
    thing: usize,
    count: i64,
}

impl Entry {
    fn noun(&self, count: i64) -> &'static str {
        let (one, many) = KINDS[self.kind].things[self.thing];
        if count == 1 { one } else { many }
    }
}

impl ObjectCounting {
    fn number(&self, number: i64) -> String {
        let word = usize::try_from(number)
            .ok()
            .and_then(|number| words::NUMBERS.get(number))
            .filter(|_| self.in_words);
        word.map_or_else(|| number.to_string(), |word| (*word).to_owned())
    }

    /// Every change of a count, from nothing on: the entry, and by how much.
    fn steps(&self) -> impl Iterator<Item = (&Entry, i64)> {
        let first = self.entries.iter().map(|entry| (entry, entry.count));
        first.chain(self.changes.iter().map(|(place, change)| (&self.entries[*place], *change)))
    }

    fn total(&self) -> i64 {
        self.steps().filter(|(entry, _)| self.asked.contains(&entry.kind)).map(|(_, change)| change).sum()
    }
}

impl Problem for ObjectCounting {
    const NAME: &'static str = "object_counting";
    const SUMMARY: &'static str = "count the things of a kind among others, some given away or added later";
    const MAX_DIFFICULTY: u32 = 12;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let level = difficulty as usize;
        let kinds = random.sample(KINDS.len(), 2 + level / 4);
        let mut all: Vec<(usize, usize)> = kinds
            .iter()
            .flat_map(|kind| (0..KINDS[*kind].things.len()).map(|thing| (*kind, thing)))
            .collect();
        random.shuffle(&mut all);
        // One thing of the first kind is always there, so that there is something to count.
        let first = all.iter().position(|(kind, _)| *kind == kinds[0]).unwrap_or(0);
        all.swap(0, first);
        all.truncate(2 + level);
        random.shuffle(&mut all);
        let most = 2 + i64::from(difficulty);
        let entry = |(kind, thing): (usize, usize)| Entry { kind, thing, count: random.range(1, most) };
        let entries: Vec<Entry> = all.into_iter().map(entry).collect();
        let mut counts: Vec<i64> = entries.iter().map(|entry| entry.count).collect();
        let changes = (0..level.saturating_sub(3).div_ceil(2)).map(|_| {
            let place = random.index(counts.len());
            let change = match random.chance(1, 2) && counts[place] > 0 {
                true => -random.range(1, counts[place]),
                false => random.range(1, most),
            };
            counts[place] += change;
            (place, change)
        });
        let changes = changes.collect();
        let asked = kinds[..1 + usize::from(difficulty >= 6 && random.chance(1, 2))].to_vec();
        Self { entries, changes, asked, in_words: difficulty >= 3 && random.chance(1, 2) }
    }

    fn prompt(&self) -> String {
        let count = |entry: &Entry| format!("{} {}", self.number(entry.count), entry.noun(entry.count));
        let have: Vec<String> = self.entries.iter().map(count).collect();
        let mut prompt = format!("I have {}.\n", words::enumeration(&have, "and"));
        for (place, change) in &self.changes {
            let (number, noun) = (self.number(change.abs()), self.entries[*place].noun(change.abs()));
            prompt += &match *change < 0 {
                true => format!("Then I give away {number} {noun}.\n"),
                false => format!("Then I get {number} more {noun}.\n"),
            };
        }
        let kinds: Vec<&str> = self.asked.iter().map(|kind| KINDS[*kind].name).collect();
        let kinds = words::enumeration(&kinds, "and");
        let together = if self.asked.len() > 1 { " together" } else { "" };
        let now = if self.changes.is_empty() { "" } else { " now" };
        prompt + &format!("How many {kinds} do I have{now}{together}? End with a line `Answer: N`.")
    }

    fn answer(&self) -> String {
        self.total().to_string()
    }

    fn thinking(&self) -> String {
        let mut sum = 0;
        let lines = self.steps().map(|(entry, change)| {
            let noun = entry.noun(change.abs());
            if !self.asked.contains(&entry.kind) {
                return format!("{noun}: no");
            }
            let before = sum;
            sum += change;
            let sign = if change < 0 { '-' } else { '+' };
            format!("{noun}: {before} {sign} {} = {sum}", change.abs())
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn wrong_answers(&self) -> Vec<String> {
        let total = self.total();
        [total + 1, total - 1, -total - 1, total * 10 + 1].map(|wrong| wrong.to_string()).to_vec()
    }

    fn check(instance: &crate::Instance, given: &str) -> Result<(), String> {
        super::answer::same_number(instance, given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_sum_takes_the_asked_kind_alone() {
        let entry = |kind, thing, count| Entry { kind, thing, count };
        let problem = ObjectCounting {
            entries: vec![entry(0, 0, 2), entry(2, 0, 1), entry(0, 1, 1)],
            changes: vec![(0, -1), (1, 3)],
            asked: vec![0],
            in_words: true,
        };
        assert_eq!(
            problem.thinking(),
            "apples: 0 + 2 = 2\ndog: no\npear: 2 + 1 = 3\napple: 3 - 1 = 2\ndogs: no"
        );
        assert_eq!(problem.answer(), "2");
        assert!(problem.prompt().starts_with(
            "I have two apples, one dog and one pear.\nThen I give away one apple.\nThen I get three more dogs.\n\
             How many fruits do I have now?"
        ));
    }

    #[test]
    fn a_word_is_a_thing_of_one_kind_only() {
        let mut things: Vec<&str> =
            KINDS.iter().flat_map(|kind| kind.things.iter().map(|thing| thing.0)).collect();
        things.sort_unstable();
        assert!(things.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
