//! Facts hidden in a long text: one is asked for, several are, or one of many that are alike, by its number.

use serde_json::{Value, json};

use super::{Drawn, Problem, words};
use crate::{Instance, Random};

pub(crate) static TASK: Drawn<Needle> = Drawn::NEW;

/// Characters of the shortest and of the longest prompt that is made.
const SHORTEST: usize = 256;
const LONGEST: usize = 1 << 26;

const INTRODUCTION: &str = "Some sentences of this text give codes.\n\n";

/// A text with hidden facts.
pub(crate) struct Needle {
    /// About how long the prompt is.
    characters: usize,
    text: String,
    facts: Vec<Fact>,
    question: Question,
}

/// An instance of the task `needle` whose prompt has about so many characters, which are all ASCII: from 256 to
/// 64 Mi, the nearest otherwise. Its difficulty is that of the longest prompts that are no longer.
pub fn needle_of_length(seed: u64, characters: usize) -> Instance {
    let characters = characters.clamp(SHORTEST, LONGEST);
    let difficulty = (1..=Needle::MAX_DIFFICULTY).rev().find(|level| characters_of(*level) <= characters);
    let problem = Needle::of_length(seed, characters);
    Instance {
        task: Needle::NAME.to_owned(),
        seed,
        difficulty: difficulty.unwrap_or(1),
        prompt: problem.prompt(),
        tools: Vec::new(),
        answer: problem.expected(),
        data: problem.data(),
    }
}

/// Characters of a difficulty: twice as many with every second one.
fn characters_of(difficulty: u32) -> usize {
    let doubled = SHORTEST << ((difficulty - 1) / 2);
    if difficulty % 2 == 1 { doubled } else { doubled + doubled / 2 }
}

/// "The code of the {key} is {value}."
struct Fact {
    key: String,
    value: u32,
}

enum Question {
    /// The codes of these facts, in this order.
    Codes(Vec<usize>),
    /// The code that the key of a fact was given by its so-manieth fact, counted from 1.
    Nth { fact: usize, number: usize },
}

impl Fact {
    fn sentence(&self) -> String {
        format!("The code of the {} is {}.", self.key, self.value)
    }
}

impl Needle {
    fn of_length(seed: u64, characters: usize) -> Self {
        if let Some(difficulty) = (1..=Self::MAX_DIFFICULTY).find(|level| characters_of(*level) == characters)
        {
            return Drawn::draw(seed, difficulty);
        }
        // A stream of its own for each length; difficulties are far below.
        let length = u32::try_from(characters).unwrap_or(u32::MAX);
        Self::draw_of_length(&mut Random::new(Self::NAME, seed, length), characters)
    }

    fn draw_of_length(random: &mut Random, characters: usize) -> Self {
        let (facts, question) = Self::draw_facts(random, characters);
        let mut needle = Self { characters, text: String::new(), facts, question };
        let rest = INTRODUCTION.len() + needle.question().len() + 1;
        needle.fill(random, characters.saturating_sub(rest));
        needle
    }

    /// The facts that were asked for, in order.
    fn asked(&self) -> Vec<usize> {
        match &self.question {
            Question::Codes(facts) => facts.clone(),
            Question::Nth { fact, .. } => vec![*fact],
        }
    }

    fn question(&self) -> String {
        match &self.question {
            Question::Codes(facts) => {
                let keys: Vec<String> =
                    facts.iter().map(|fact| format!("the {}", self.facts[*fact].key)).collect();
                match &keys[..] {
                    [key] => format!("What is the code of {key}? End with a line `Answer: N`."),
                    _ => format!(
                        "What are the codes of {}? End with a line `Answer: ...`, the codes in this order with \
                         commas between.",
                        words::enumeration(&keys, "and")
                    ),
                }
            }
            Question::Nth { fact, number } => format!(
                "The {} is given several codes. What is the {} of them? End with a line `Answer: N`.",
                self.facts[*fact].key,
                ordinal(*number)
            ),
        }
    }

    /// Draws facts for a text of so many characters, and what is asked about them.
    fn draw_facts(random: &mut Random, characters: usize) -> (Vec<Fact>, Question) {
        // Facts take a third of a short text, and grow slowly in number with a longer one.
        let room = (characters / 130).clamp(1, 4 + characters.ilog2() as usize);
        let count = 1 + random.index(room);
        let mut facts: Vec<Fact> = Vec::new();
        while facts.len() < count {
            let (adjective, noun) = (random.choose(&words::ADJECTIVES), random.choose(&words::NOUNS));
            let (key, value) = (format!("{adjective} {noun}"), random.range(1000, 9999) as u32);
            // Codes and keys stand for themselves, so that one cannot be taken for another.
            if facts.iter().all(|fact| fact.key != key && fact.value != value) {
                facts.push(Fact { key, value });
            }
        }
        let question = match random.index(3) {
            0 if count > 1 => {
                // Some of the facts get one key.
                let alike = 2 + random.index(count - 1);
                let mut places = random.sample(count, alike);
                places.sort_unstable();
                let key = facts[places[0]].key.clone();
                places.iter().for_each(|place| facts[*place].key.clone_from(&key));
                let number = 1 + random.index(alike);
                Question::Nth { fact: places[number - 1], number }
            }
            1 if count > 1 => {
                let asked = (2 + random.index(count - 1)).min(6);
                Question::Codes(random.sample(count, asked))
            }
            _ => Question::Codes(vec![random.index(count)]),
        };
        (facts, question)
    }

    /// Adds filler with the facts' sentences in their order, each at a random depth.
    fn fill(&mut self, random: &mut Random, characters: usize) {
        let sentences: Vec<String> = self.facts.iter().map(Fact::sentence).collect();
        let hidden: usize = sentences.iter().map(|sentence| sentence.len() + 1).sum();
        let filler = characters.saturating_sub(hidden);
        let mut depths: Vec<usize> = sentences.iter().map(|_| random.index(filler + 1)).collect();
        depths.sort_unstable();
        self.text.reserve(characters + 128);
        let mut written = 0;
        for (sentence, depth) in sentences.iter().zip(depths) {
            while written < depth {
                written += self.push_filler(random);
            }
            self.text += sentence;
            self.text.push(' ');
        }
        while written < filler {
            written += self.push_filler(random);
        }
        self.text.pop();
    }

    /// Adds a sentence that holds no code, and returns its length.
    fn push_filler(&mut self, random: &mut Random) -> usize {
        const PLACES: [&str; 12] = [
            "in the garden",
            "near the harbor",
            "at the market",
            "behind the mill",
            "on the hill",
            "by the river",
            "under the bridge",
            "in the attic",
            "along the road",
            "across the square",
            "inside the hall",
            "at home",
        ];
        const TIMES: [&str; 10] = [
            "before noon",
            "in spring",
            "last week",
            "at dusk",
            "on Monday",
            "all day",
            "in the rain",
            "once more",
            "after lunch",
            "in silence",
        ];
        // One draw for all choices: texts may be millions of characters long.
        let mut dice = random.below(u64::MAX);
        let mut roll = |words: &[&'static str]| {
            let count = words.len() as u64;
            let word = words[(dice % count) as usize];
            dice /= count;
            word
        };
        let before = self.text.len();
        let parts = [
            roll(&words::NAMES),
            " ",
            roll(&words::VERBS),
            " the ",
            roll(&words::ADJECTIVES),
            " ",
            roll(&words::NOUNS),
            " ",
            roll(&PLACES),
            " ",
            roll(&TIMES),
            ". ",
        ];
        parts.iter().for_each(|part| self.text += part);
        self.text.len() - before
    }
}

impl Problem for Needle {
    const NAME: &'static str = "needle";
    const SUMMARY: &'static str = "find codes in a long text: one, several, or the n-th of a thing with many";
    const MAX_DIFFICULTY: u32 = 25;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        Self::draw_of_length(random, characters_of(difficulty))
    }

    fn redraw(instance: &Instance) -> Option<Self> {
        let characters = usize::try_from(instance.data.get("characters")?.as_u64()?).ok()?;
        (SHORTEST..=LONGEST).contains(&characters).then(|| Self::of_length(instance.seed, characters))
    }

    fn prompt(&self) -> String {
        [INTRODUCTION, &self.text, "\n\n", &self.question()].concat()
    }

    fn answer(&self) -> String {
        let codes: Vec<String> =
            self.asked().iter().map(|fact| self.facts[*fact].value.to_string()).collect();
        codes.join(", ")
    }

    fn thinking(&self) -> String {
        match &self.question {
            Question::Codes(facts) => {
                facts.iter().map(|fact| self.facts[*fact].sentence()).collect::<Vec<_>>().join("\n")
            }
            Question::Nth { fact, number } => {
                let alike = self.facts.iter().filter(|other| other.key == self.facts[*fact].key);
                let line = |(number, fact): (usize, &Fact)| format!("{number}: {}", fact.sentence());
                (1..=*number).zip(alike).map(line).collect::<Vec<_>>().join("\n")
            }
        }
    }

    fn wrong_answers(&self) -> Vec<String> {
        let asked = self.asked();
        let codes = |facts: &[usize]| {
            facts.iter().map(|fact| self.facts[*fact].value.to_string()).collect::<Vec<_>>().join(", ")
        };
        let others = (0..self.facts.len()).filter(|fact| asked != [*fact]).map(|fact| codes(&[fact]));
        let fixed = [codes(&asked[1..]), format!("{}0", self.answer()), format!("{}, 1000", self.answer())];
        let mut wrong: Vec<String> = others.chain(fixed).collect();
        if asked.len() > 1 {
            wrong.push(codes(&asked.iter().rev().copied().collect::<Vec<_>>()));
        }
        wrong
    }

    fn data(&self) -> Value {
        json!({ "characters": self.characters })
    }
}

/// 1st, 2nd, 3rd, 4th and so on.
fn ordinal(number: usize) -> String {
    let ending = match (number % 100, number % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Task;

    #[test]
    fn a_prompt_is_about_as_long_as_was_asked_for() {
        for characters in [256, 300, 1000, 12_345, 200_000, 1 << 20] {
            for seed in 0..4 {
                let instance = needle_of_length(seed, characters);
                let length = instance.prompt.len();
                assert!(length.abs_diff(characters) < 150, "{length}, not {characters}");
                assert!(instance.prompt.is_ascii());
            }
        }
    }

    #[test]
    fn an_instance_of_any_length_is_solved_and_verified_like_others() {
        for characters in [SHORTEST, 1000, 777_777, 3 << 20] {
            let instance = needle_of_length(3, characters);
            let solution = TASK.solve(&instance);
            assert_eq!(TASK.verify(&instance, &solution.response()).reward, 1.0);
            assert_eq!(TASK.verify(&instance, "Answer: 1").reward, 0.0);
        }
    }

    #[test]
    fn every_kind_of_question_is_asked_and_answered_from_the_text() {
        let mut kinds = [0; 3];
        for seed in 0..60 {
            let needle = Needle::of_length(seed, 5000);
            let asked = needle.asked();
            match &needle.question {
                Question::Codes(facts) => kinds[usize::from(facts.len() > 1)] += 1,
                Question::Nth { fact, number } => {
                    kinds[2] += 1;
                    let (_, rest) = needle.text.split_once(&needle.facts[*fact].sentence()).unwrap();
                    let before = &needle.text[..needle.text.len() - rest.len()];
                    let alike = format!("The code of the {} is ", needle.facts[*fact].key);
                    assert_eq!(before.matches(&alike).count(), *number);
                }
            }
            for fact in asked {
                assert_eq!(needle.text.matches(&needle.facts[fact].sentence()).count(), 1);
            }
        }
        assert!(kinds.iter().all(|count| *count > 5), "{kinds:?}");
    }

    #[test]
    fn ordinals_have_their_endings() {
        assert_eq!(
            [1, 2, 3, 4, 11, 12, 13, 21, 102, 111].map(ordinal).join(" "),
            "1st 2nd 3rd 4th 11th 12th 13th 21st 102nd 111th"
        );
    }
}
