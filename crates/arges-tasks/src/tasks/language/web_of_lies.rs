//! Who says of whom that they lie: a chain of statements with a known start.

use super::{Drawn, Problem, words};
use crate::Random;

pub(crate) static TASK: Drawn<WebOfLies> = Drawn::NEW;

/// People, the first of whom is known, and what each other says of people before.
pub(crate) struct WebOfLies {
    names: Vec<&'static str>,
    first: bool,
    /// What person `i + 1` says.
    claims: Vec<Claim>,
    /// The people in the order of the prompt's sentences.
    order: Vec<usize>,
    asked: Vec<usize>,
}

#[derive(Clone, Copy)]
enum Claim {
    /// That one tells the truth, or lies.
    One(usize, bool),
    /// That two are both truthful, or both liars.
    Both(usize, usize, bool),
    /// That two are of one kind, or not.
    Same(usize, usize, bool),
}

fn verb(truthful: bool) -> &'static str {
    if truthful { "tells the truth" } else { "lies" }
}

impl Claim {
    fn draw(random: &mut Random, difficulty: u32, before: usize) -> Self {
        let (about, truthful) = (random.index(before), random.chance(1, 2));
        if difficulty < 4 || before < 2 || random.chance(1, 2) {
            return Self::One(about, truthful);
        }
        let pair = random.sample(before, 2);
        if random.chance(1, 2) {
            Self::Both(pair[0], pair[1], truthful)
        } else {
            Self::Same(pair[0], pair[1], truthful)
        }
    }

    fn people(self) -> Vec<usize> {
        match self {
            Self::One(about, _) => vec![about],
            Self::Both(a, b, _) | Self::Same(a, b, _) => vec![a, b],
        }
    }

    fn holds(self, truthful: &[bool]) -> bool {
        match self {
            Self::One(about, value) => truthful[about] == value,
            Self::Both(a, b, value) => truthful[a] == value && truthful[b] == value,
            Self::Same(a, b, value) => (truthful[a] == truthful[b]) == value,
        }
    }

    fn text(self, names: &[&str]) -> String {
        match self {
            Self::One(about, value) => format!("{} {}", names[about], verb(value)),
            Self::Both(a, b, true) => format!("{} and {} both tell the truth", names[a], names[b]),
            Self::Both(a, b, false) => format!("{} and {} both lie", names[a], names[b]),
            Self::Same(a, b, true) => {
                format!("either both or none of {} and {} tell the truth", names[a], names[b])
            }
            Self::Same(a, b, false) => {
                format!("exactly one of {} and {} tells the truth", names[a], names[b])
            }
        }
    }
}

impl WebOfLies {
    fn truthful(&self) -> Vec<bool> {
        let mut truthful = vec![self.first];
        for claim in &self.claims {
            truthful.push(claim.holds(&truthful));
        }
        truthful
    }

    /// Whether each person is one of the asked, or is spoken of on the way to them.
    fn needed(&self) -> Vec<bool> {
        let mut needed: Vec<bool> =
            (0..self.names.len()).map(|person| self.asked.contains(&person)).collect();
        for person in (1..needed.len()).rev() {
            if needed[person] {
                self.claims[person - 1].people().into_iter().for_each(|before| needed[before] = true);
            }
        }
        needed
    }
}

impl Problem for WebOfLies {
    const NAME: &'static str = "web_of_lies";
    const SUMMARY: &'static str = "who tells the truth, when each says of others that they lie or not";
    const MAX_DIFFICULTY: u32 = 10;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let level = difficulty as usize;
        let names = words::names(random, 2 + level);
        let count = names.len();
        let claims = (1..count).map(|person| match difficulty {
            // At first a chain without branches.
            1 | 2 => Claim::One(person - 1, random.chance(1, 2)),
            _ => Claim::draw(random, difficulty, person),
        });
        let claims = claims.collect();
        let mut order: Vec<usize> = (0..count).collect();
        if difficulty >= 3 {
            random.shuffle(&mut order);
        }
        let mut asked = vec![count - 1];
        if difficulty >= 3 {
            asked.extend(random.sample(count - 1, 2));
            random.shuffle(&mut asked);
        }
        Self { names, first: random.chance(1, 2), claims, order, asked }
    }

    fn prompt(&self) -> String {
        let sentence = |person: &usize| match person.checked_sub(1) {
            None => format!("{} {}.", self.names[0], verb(self.first)),
            Some(claim) => format!("{} says: {}.", self.names[*person], self.claims[claim].text(&self.names)),
        };
        let story: Vec<String> = self.order.iter().map(sentence).collect();
        let asked: Vec<&str> = self.asked.iter().map(|person| self.names[*person]).collect();
        let verb = if asked.len() == 1 { "Does" } else { "Do" };
        let form = match asked.len() {
            1 => "with `Answer: yes` or `Answer: no`".to_owned(),
            _ => "with a line `Answer: ...`, where ... is yes or no for each, in order, with commas between"
                .to_owned(),
        };
        format!(
            "Everybody here either always tells the truth or always lies.\n{}\n{verb} {} tell the truth? End {form}.",
            story.join("\n"),
            words::enumeration(&asked, "and")
        )
    }

    fn answer(&self) -> String {
        let truthful = self.truthful();
        let word = |person: &usize| if truthful[*person] { "yes" } else { "no" };
        self.asked.iter().map(word).collect::<Vec<_>>().join(", ")
    }

    fn thinking(&self) -> String {
        let (truthful, needed) = (self.truthful(), self.needed());
        let line = |person: usize| match person.checked_sub(1) {
            None => format!("{} {}", self.names[0], verb(self.first)),
            Some(claim) => {
                let claim = self.claims[claim];
                let known =
                    claim.people().into_iter().map(|p| format!("{} {}", self.names[p], verb(truthful[p])));
                let known = known.collect::<Vec<_>>().join(", ");
                let (name, says) = (self.names[person], claim.text(&self.names));
                let holds = if truthful[person] { "yes" } else { "no" };
                format!("{name}: {says}? {known}: {holds}. {name} {}", verb(truthful[person]))
            }
        };
        (0..self.names.len()).filter(|person| needed[*person]).map(line).collect::<Vec<_>>().join("\n")
    }

    fn wrong_answers(&self) -> Vec<String> {
        let truthful = self.truthful();
        let text = |flip: usize| {
            let word = |(place, person): (usize, &usize)| {
                if truthful[*person] != (place == flip) { "yes" } else { "no" }
            };
            self.asked.iter().enumerate().map(word).collect::<Vec<_>>().join(", ")
        };
        (0..self.asked.len()).map(text).chain([String::new(), format!("{}, yes", self.answer())]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_tells_of_the_people_on_the_way_and_no_others() {
        let web = WebOfLies {
            names: vec!["Ann", "Bob", "Cid", "Dora"],
            first: false,
            claims: vec![Claim::One(0, false), Claim::One(0, true), Claim::Same(0, 1, false)],
            order: vec![0, 1, 2, 3],
            asked: vec![3],
        };
        assert_eq!(web.answer(), "yes");
        assert_eq!(
            web.thinking(),
            "Ann lies\n\
             Bob: Ann lies? Ann lies: yes. Bob tells the truth\n\
             Dora: exactly one of Ann and Bob tells the truth? Ann lies, Bob tells the truth: yes. \
             Dora tells the truth"
        );
    }
}
