//! Things that change hands. The trace keeps everybody's thing after every exchange, in the order of the people.

use super::{Drawn, Problem, answer, words};
use crate::{Instance, Random};

pub(crate) static TASK: Drawn<GoodsExchange> = Drawn::NEW;

/// People with a thing each, and exchanges between them.
pub(crate) struct GoodsExchange {
    names: Vec<&'static str>,
    goods: Vec<&'static str>,
    exchanges: Vec<(Party, Party)>,
}

/// One side of an exchange.
#[derive(Clone, Copy)]
enum Party {
    Person(usize),
    /// Whoever has the thing.
    Owner(usize),
}

impl Party {
    /// The person, when person `i` has thing `held[i]`.
    fn person(self, held: &[usize]) -> usize {
        match self {
            Self::Person(person) => person,
            Self::Owner(thing) => held.iter().position(|held| *held == thing).unwrap_or(0),
        }
    }
}

impl GoodsExchange {
    fn name(&self, party: Party) -> String {
        match party {
            Party::Person(person) => self.names[person].to_owned(),
            Party::Owner(thing) => format!("whoever has the {}", self.goods[thing]),
        }
    }

    /// What everybody has, at first and after every exchange.
    fn states(&self) -> Vec<Vec<usize>> {
        let mut held: Vec<usize> = (0..self.names.len()).collect();
        let mut states = vec![held.clone()];
        for (one, other) in &self.exchanges {
            let people = (one.person(&held), other.person(&held));
            held.swap(people.0, people.1);
            states.push(held.clone());
        }
        states
    }

    fn last(&self) -> Vec<usize> {
        self.states().pop().unwrap_or_default()
    }

    fn listed(&self, held: &[usize]) -> String {
        let entry = |(name, thing): (&&str, &usize)| format!("{name} {}", self.goods[*thing]);
        self.names.iter().zip(held).map(entry).collect::<Vec<_>>().join(", ")
    }
}

impl Problem for GoodsExchange {
    const NAME: &'static str = "goods_exchange";
    const SUMMARY: &'static str = "who has what after people have exchanged their things";
    const MAX_DIFFICULTY: u32 = 12;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let count = 2 + difficulty.div_ceil(2) as usize;
        let names = words::names(random, count);
        let goods = words::different(random, &words::NOUNS, count);
        let mut problem = Self { names, goods, exchanges: Vec::new() };
        let mut held: Vec<usize> = (0..count).collect();
        for _ in 0..1 + difficulty as usize + random.index(2) {
            let people = random.sample(count, 2);
            let party = |random: &mut Random, person: usize| match difficulty >= 4 && random.chance(1, 3) {
                true => Party::Owner(held[person]),
                false => Party::Person(person),
            };
            problem.exchanges.push((party(random, people[0]), party(random, people[1])));
            held.swap(people[0], people[1]);
        }
        problem
    }

    fn prompt(&self) -> String {
        let have: Vec<String> = self
            .names
            .iter()
            .zip(&self.goods)
            .map(|(name, thing)| format!("{name} has the {thing}"))
            .collect();
        let mut prompt = format!("{}.\n", words::enumeration(&have, "and"));
        for (place, (one, other)) in self.exchanges.iter().enumerate() {
            let start = if place == 0 { "First" } else { "Then" };
            prompt += &format!("{start} {} swaps with {}.\n", self.name(*one), self.name(*other));
        }
        let form = self.names.iter().map(|name| format!("{name} ...")).collect::<Vec<_>>().join(", ");
        prompt
            + &format!("Who has what in the end? End with a line `Answer: {form}`, with the thing for each.")
    }

    fn answer(&self) -> String {
        self.listed(&self.last())
    }

    fn thinking(&self) -> String {
        let states = self.states();
        let lines = states
            .iter()
            .map(|held| held.iter().map(|thing| self.goods[*thing]).collect::<Vec<_>>().join(" "));
        [self.names.join(" ")].into_iter().chain(lines).collect::<Vec<_>>().join("\n")
    }

    fn wrong_answers(&self) -> Vec<String> {
        let right = self.last();
        let swapped = (1..right.len()).map(|place| {
            let mut held = right.clone();
            held.swap(place - 1, place);
            self.listed(&held)
        });
        swapped.chain([self.listed(&right[..right.len() - 1])]).collect()
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
    fn the_owner_of_a_thing_is_who_has_it_at_that_time() {
        let problem = GoodsExchange {
            names: vec!["Ann", "Bob", "Cid"],
            goods: vec!["ball", "cup", "pen"],
            exchanges: vec![(Party::Person(0), Party::Person(1)), (Party::Owner(0), Party::Person(2))],
        };
        assert_eq!(problem.thinking(), "Ann Bob Cid\nball cup pen\ncup ball pen\ncup pen ball");
        assert_eq!(problem.answer(), "Ann cup, Bob pen, Cid ball");
    }
}
