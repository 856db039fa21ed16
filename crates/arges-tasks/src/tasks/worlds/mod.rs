//! Tasks of several turns: the model acts on a small world through tools, and the world's state or the final answer is
//! judged at the end.
//!
//! Each is a [`Scenario`], drawn from a random stream; [`Played`] makes a [`Task`] of it.

use std::marker::PhantomData;

use serde_json::{Map, Value, json};

use super::language::tools::block;
use crate::episode::{self, World};
use crate::{Instance, Random, Solution, Task, Verdict};

pub(crate) mod booking;
pub(crate) mod calculator;
pub(crate) mod lookup_chain;

/// A world as it was drawn, and what is wanted in it.
pub(crate) trait Scenario: Sized {
    const NAME: &'static str;
    const SUMMARY: &'static str;
    const MAX_DIFFICULTY: u32;
    const RUNS_PROGRAMS: bool = false;

    /// Draws a scenario; `difficulty` is from 1 to [`MAX_DIFFICULTY`](Self::MAX_DIFFICULTY).
    fn draw(random: &mut Random, difficulty: u32) -> Self;

    /// What the model is asked.
    fn prompt(&self) -> String;

    /// The tools at the model's hand, as [`tool`] writes them.
    fn tools(&self) -> Vec<Value>;

    /// The right end, for the instance.
    fn expected(&self) -> Value;

    /// The world at its beginning.
    fn open(self) -> Box<dyn World>;

    /// The way to the answer, in short.
    fn thinking(&self) -> String;

    /// The calls of each turn but the last, and the last turn's text.
    fn solution(&self) -> (Vec<Vec<Value>>, String);

    /// Episodes like [`solution`](Self::solution) that are wrong, and near the right one.
    fn wrong(&self) -> Vec<(Vec<Vec<Value>>, String)>;
}

/// A tool whose arguments are all required, given as `(name, type, description)`.
pub(crate) fn tool(name: &str, description: &str, parameters: &[(&str, &str, &str)]) -> Value {
    let property = |(name, kind, description): &(&str, &str, &str)| {
        ((*name).to_owned(), json!({ "type": kind, "description": description }))
    };
    let properties: Map<String, Value> = parameters.iter().map(property).collect();
    let required: Vec<&str> = parameters.iter().map(|(name, _, _)| *name).collect();
    let mut schema = json!({ "type": "object", "properties": properties });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    json!({ "name": name, "description": description, "parameters": schema })
}

/// A call as the model writes it.
pub(crate) fn call(name: &str, arguments: Value) -> Value {
    json!({ "name": name, "arguments": arguments })
}

/// An argument that is a text; the schema has seen to that.
pub(crate) fn text<'a>(arguments: &'a Map<String, Value>, name: &str) -> &'a str {
    arguments.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// An argument that is a whole number of `i64`.
pub(crate) fn whole(arguments: &Map<String, Value>, name: &str) -> Result<i64, String> {
    let value = arguments.get(name).unwrap_or(&Value::Null);
    // Schemas allow 2.0 for 2; beyond 2^53 not every whole number has a float of its own.
    let float = || value.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9e15).map(|n| n as i64);
    value.as_i64().or_else(float).ok_or_else(|| format!("{name} is too large a number"))
}

/// The task of scenarios of one kind.
pub(crate) struct Played<S>(PhantomData<fn() -> S>);

impl<S: Scenario> Played<S> {
    pub(crate) const NEW: Self = Self(PhantomData);

    fn draw(seed: u64, difficulty: u32) -> S {
        S::draw(&mut Random::new(S::NAME, seed, difficulty), difficulty)
    }

    /// The scenario of an instance. It is drawn again, so that nothing a file says is trusted; none where it is not
    /// what the file says.
    fn scenario(instance: &Instance) -> Option<S> {
        if instance.task != S::NAME || !(1..=S::MAX_DIFFICULTY).contains(&instance.difficulty) {
            return None;
        }
        let scenario = Self::draw(instance.seed, instance.difficulty);
        let same = scenario.prompt() == instance.prompt && scenario.expected() == instance.answer;
        same.then_some(scenario)
    }
}

fn transcript((turns, last): (Vec<Vec<Value>>, String)) -> String {
    let turns: String = turns.iter().map(|calls| block(calls) + "\n").collect();
    turns + &last
}

impl<S: Scenario> Task for Played<S> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn summary(&self) -> &'static str {
        S::SUMMARY
    }

    fn max_difficulty(&self) -> u32 {
        S::MAX_DIFFICULTY
    }

    fn runs_programs(&self) -> bool {
        S::RUNS_PROGRAMS
    }

    fn generate(&self, seed: u64, difficulty: u32) -> Instance {
        let difficulty = difficulty.clamp(1, S::MAX_DIFFICULTY);
        let scenario = Self::draw(seed, difficulty);
        Instance {
            task: S::NAME.to_owned(),
            seed,
            difficulty,
            prompt: scenario.prompt(),
            tools: scenario.tools(),
            answer: scenario.expected(),
            data: json!({}),
        }
    }

    fn world(&self, instance: &Instance) -> Result<Option<Box<dyn World>>, Verdict> {
        match Self::scenario(instance) {
            Some(scenario) => Ok(Some(scenario.open())),
            None => Err(Verdict::wrong(format!("malformed instance: none of {}", S::NAME))),
        }
    }

    fn verify(&self, instance: &Instance, response: &str) -> Verdict {
        episode::replay(self, instance, response)
    }

    fn solve(&self, instance: &Instance) -> Solution {
        let Some(scenario) = Self::scenario(instance) else {
            return Solution::default();
        };
        Solution { thinking: Some(scenario.thinking()), answer: transcript(scenario.solution()) }
    }

    fn conversation(&self, instance: &Instance, solution: &Solution) -> Value {
        instance.line(episode::messages(self, instance, solution.thinking.as_deref(), &solution.answer))
    }

    fn wrong_responses(&self, instance: &Instance) -> Vec<String> {
        let wrong = Self::scenario(instance).map(|scenario| scenario.wrong()).unwrap_or_default();
        wrong.into_iter().map(transcript).collect()
    }
}
