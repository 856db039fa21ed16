//! A store of names, each of which tells the next, until one holds a number.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{Played, Scenario, call, text, tool};
use crate::episode::World;
use crate::response::final_answer;
use crate::tasks::arithmetic::columns::whole_number;
use crate::tasks::language::answer::quoted;
use crate::tasks::language::words::{NOUNS, different, enumeration};
use crate::{Random, Verdict};

pub(crate) static TASK: Played<LookupChain> = Played::NEW;

/// Chains of keys, each ending in a number, and other entries that lead elsewhere.
pub(crate) struct LookupChain {
    chains: Vec<(Vec<&'static str>, i64)>,
    others: Vec<(&'static str, String)>,
}

impl LookupChain {
    fn entries(&self) -> HashMap<&'static str, String> {
        let chain = |(keys, number): &(Vec<&'static str>, i64)| {
            let values = keys[1..].iter().map(|key| (*key).to_owned()).chain([number.to_string()]);
            keys.iter().copied().zip(values).collect::<Vec<_>>()
        };
        self.chains.iter().flat_map(chain).chain(self.others.iter().cloned()).collect()
    }

    fn total(&self) -> i64 {
        self.chains.iter().map(|(_, number)| number).sum()
    }
}

impl Scenario for LookupChain {
    const NAME: &'static str = "lookup_chain";
    const SUMMARY: &'static str =
        "with a tool, follow entries of a store from one to the next, and add what is at their ends";
    const MAX_DIFFICULTY: u32 = 8;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let (count, length) = (difficulty.div_ceil(3) as usize, 1 + difficulty as usize);
        let words = different(random, &NOUNS, count * length + 6);
        let (keys, others) = words.split_at(count * length);
        let chains = keys.chunks(length).map(|keys| (keys.to_vec(), random.range(2, 99))).collect();
        let (targets, numbers) = (&others[3..], others[..3].iter());
        let leads = targets.iter().map(|key| (*key, (*random.choose(keys)).to_owned())).collect::<Vec<_>>();
        let others = numbers.map(|key| (*key, random.range(100, 999).to_string())).chain(leads).collect();
        Self { chains, others }
    }

    fn prompt(&self) -> String {
        let starts: Vec<String> = self.chains.iter().map(|(keys, _)| format!("\"{}\"", keys[0])).collect();
        let wanted = match starts.len() {
            1 => "Which number does the chain end with?".to_owned(),
            _ => "What is the sum of the numbers that the chains end with?".to_owned(),
        };
        format!(
            "A store holds entries: a key, and a value that is another key or a number. Begin with the key{} {} and \
             follow the values with the tool `get` until there is a number. {wanted} End with a line `Answer: N`.",
            if starts.len() == 1 { "" } else { "s" },
            enumeration(&starts, "and"),
        )
    }

    fn tools(&self) -> Vec<Value> {
        vec![tool("get", "The value of a key", &[("key", "string", "the key")])]
    }

    fn expected(&self) -> Value {
        json!(self.total())
    }

    fn open(self) -> Box<dyn World> {
        let keys = self.chains.iter().map(|(keys, _)| keys.len()).sum::<usize>();
        Box::new(Store { entries: self.entries(), total: self.total(), max_turns: 2 * keys + 4 })
    }

    fn thinking(&self) -> String {
        "Get the first keys, then what they tell, until there are numbers.".to_owned()
    }

    fn solution(&self) -> (Vec<Vec<Value>>, String) {
        let length = self.chains[0].0.len();
        let get = |place: usize| {
            self.chains.iter().map(|(keys, _)| call("get", json!({ "key": keys[place] }))).collect()
        };
        ((0..length).map(get).collect(), format!("Answer: {}", self.total()))
    }

    fn wrong(&self) -> Vec<(Vec<Vec<Value>>, String)> {
        let (turns, _) = self.solution();
        let last = |text: String| (turns.clone(), text);
        let endless = vec![turns[0].clone(); 100];
        vec![
            last(format!("Answer: {}", self.total() + 1)),
            last(format!("Answer: {}", self.chains[0].0[1])),
            last(format!("Answer: {0} or {0}", self.total())),
            last(String::new()),
            (endless, format!("Answer: {}", self.total())),
        ]
    }
}

struct Store {
    entries: HashMap<&'static str, String>,
    total: i64,
    max_turns: usize,
}

impl World for Store {
    fn call(&mut self, _name: &str, arguments: &Map<String, Value>) -> Result<String, String> {
        let key = text(arguments, "key");
        self.entries.get(key).cloned().ok_or_else(|| format!("there is no key {}", quoted(key)))
    }

    fn judge(&mut self, answer: &str) -> Verdict {
        judge_number(answer, self.total.into())
    }

    fn max_turns(&self) -> usize {
        self.max_turns
    }
}

/// Whether the final answer is that number, and nothing else.
pub(super) fn judge_number(answer: &str, expected: i128) -> Verdict {
    let Some(answer) = final_answer(answer) else {
        return Verdict::no_answer();
    };
    match whole_number(answer) {
        Some(number) if number == expected => Verdict::right(),
        Some(number) => Verdict::wrong(format!("the answer is {expected}, not {number}")),
        None => Verdict::wrong(format!("no whole number: {}", quoted(answer))),
    }
}
