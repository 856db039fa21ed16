//! Episodes: a model and an instance, in turns. In each turn the model writes; what it calls is run in the instance's
//! [`World`] and the results go back to it; a turn without calls ends the episode and is judged.
//!
//! An instance without a world ends with its first turn, so that everything that trains or evaluates a model can treat
//! all tasks alike:
//!
//! ```
//! # use arges_tasks::{Episode, Step, find};
//! let task = find("lookup_chain").unwrap();
//! let instance = task.generate(1, 1);
//! let mut episode = Episode::begin(task, &instance);
//! let step = episode.step("<tool_calls>\n{\"name\": \"get\", \"arguments\": {\"key\": \"x\"}}\n</tool_calls>");
//! let Step::Results(results) = step else { panic!("calls have results") };
//! assert!(results[0].failed && results[0].message()["role"] == "tool");
//! assert!(matches!(episode.step("Answer: 0"), Step::Done(verdict) if verdict.reward == 0.0));
//! ```

use serde_json::{Map, Value, json};

use crate::response::visible;
use crate::tasks::language::tools::verdict::{conform, has_block, parameters_of, read_block};
use crate::{Instance, Task, Verdict};

/// Longest result that a model is given, in bytes.
const MAX_RESULT: usize = 1 << 13;
const END_OF_CALLS: &str = "</tool_calls>";

/// What an instance's tools act on. The same calls in the same order always do the same.
pub trait World: Send {
    /// Runs a call. Its tool is one of the instance's, and its arguments have been checked against the tool's schema;
    /// they may be hostile all the same. An error is told to the model, which may go on.
    fn call(&mut self, name: &str, arguments: &Map<String, Value>) -> Result<String, String>;

    /// Judges how things stand when the model has ended with `answer`, its last turn's visible text.
    fn judge(&mut self, answer: &str) -> Verdict;

    /// Turns that the model has, the last included.
    fn max_turns(&self) -> usize {
        16
    }
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolResult {
    /// The tool that was called; `tools` where the calls could not be read.
    pub name: String,
    pub content: String,
    /// The call did nothing; the content says why.
    pub failed: bool,
}

impl ToolResult {
    fn new(name: &str, outcome: Result<String, String>) -> Self {
        let failed = outcome.is_err();
        let content = outcome.unwrap_or_else(|error| format!("error: {error}"));
        Self { name: name.to_owned(), content: shortened(content), failed }
    }

    /// The result as a message of a chat.
    pub fn message(&self) -> Value {
        json!({ "role": "tool", "name": self.name, "content": self.content })
    }
}

/// The text, or its beginning where it is too long.
fn shortened(mut text: String) -> String {
    if text.len() > MAX_RESULT {
        text.truncate(text.floor_char_boundary(MAX_RESULT));
        text.push_str("\n[cut off]");
    }
    text
}

/// What follows a turn.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The calls were run; these go to the model, one for each call in its order, and it is its turn again.
    Results(Vec<ToolResult>),
    /// The episode is over.
    Done(Verdict),
}

/// A model at an instance.
pub struct Episode<'a> {
    task: &'a dyn Task,
    instance: &'a Instance,
    /// `None` for an instance of a single turn.
    world: Option<Box<dyn World>>,
    turns: usize,
    verdict: Option<Verdict>,
}

impl<'a> Episode<'a> {
    pub fn begin(task: &'a dyn Task, instance: &'a Instance) -> Self {
        let (world, verdict) = match task.world(instance) {
            Ok(world) => (world, None),
            Err(verdict) => (None, Some(verdict)),
        };
        Self { task, instance, world, turns: 0, verdict }
    }

    /// The messages it begins with. The tools are [`Instance::tools`].
    pub fn messages(&self) -> Vec<Value> {
        vec![json!({ "role": "user", "content": self.instance.prompt })]
    }

    /// Turns that the model has, the last included.
    pub fn max_turns(&self) -> usize {
        self.world.as_ref().map_or(1, |world| world.max_turns())
    }

    /// Takes what the model wrote in its turn, thinking included. After the end the verdict stays as it is.
    pub fn step(&mut self, turn: &str) -> Step {
        if let Some(verdict) = &self.verdict {
            return Step::Done(verdict.clone());
        }
        let (max_turns, instance) = (self.max_turns(), self.instance);
        self.turns += 1;
        let verdict = match (&mut self.world, visible(turn)) {
            (None, _) => self.task.verify(instance, turn),
            (Some(_), None) => Verdict::no_answer(),
            (Some(world), Some(text)) if !has_block(text) => world.judge(text),
            (Some(_), Some(_)) if self.turns >= max_turns => {
                Verdict::wrong(format!("no answer within {max_turns} turns"))
            }
            (Some(world), Some(text)) => return Step::Results(run_calls(world.as_mut(), instance, text)),
        };
        self.verdict = Some(verdict.clone());
        Step::Done(verdict)
    }

    /// Judges an episode by what the model wrote, a text a turn. Its calls are run again.
    pub fn judge<'t>(
        task: &'a dyn Task,
        instance: &'a Instance,
        turns: impl IntoIterator<Item = &'t str>,
    ) -> Verdict {
        let mut episode = Self::begin(task, instance);
        for turn in turns {
            if let Step::Done(verdict) = episode.step(turn) {
                return verdict;
            }
        }
        Verdict::wrong("the episode has no end")
    }
}

fn run_calls(world: &mut dyn World, instance: &Instance, text: &str) -> Vec<ToolResult> {
    let calls = match read_block(text) {
        Ok(calls) => calls,
        Err(fault) => return vec![ToolResult::new("tools", Err(fault.to_string()))],
    };
    let run = |(name, arguments): (String, Map<String, Value>)| {
        let Some(schema) = parameters_of(&instance.tools, &name) else {
            return ToolResult::new("tools", Err("there is no such tool".to_owned()));
        };
        let arguments = Value::Object(arguments);
        let checked = conform(&arguments, schema, "arguments");
        let outcome = match (checked, arguments) {
            (Ok(()), Value::Object(arguments)) => world.call(&name, &arguments),
            (checked, _) => Err(checked.err().unwrap_or_default()),
        };
        ToolResult::new(&name, outcome)
    };
    calls.into_iter().map(|call| (call.name, call.arguments)).map(run).collect()
}

/// Judges a whole episode written down: the model's turns one after the other, without the results, each but the last
/// ending with its block of calls. Its calls are run again.
pub(crate) fn replay(task: &dyn Task, instance: &Instance, transcript: &str) -> Verdict {
    let Some(turns) = split_turns(transcript) else {
        return Verdict::no_answer();
    };
    Episode::judge(task, instance, turns)
}

/// The turns of a transcript; `None` where the thinking of one never ends.
pub(crate) fn split_turns(transcript: &str) -> Option<Vec<&str>> {
    let mut turns = Vec::new();
    let mut rest = transcript;
    loop {
        // Calls that are only thought of end no turn.
        let text = visible(rest)?;
        let start = text.as_ptr().addr() - rest.as_ptr().addr();
        match text.find(END_OF_CALLS) {
            Some(end) => {
                let (turn, after) = rest.split_at(start + end + END_OF_CALLS.len());
                turns.push(turn);
                rest = after;
            }
            None => {
                turns.push(rest);
                return Some(turns);
            }
        }
    }
}

/// The episode of a transcript as the messages of a chat, results included.
pub(crate) fn messages(
    task: &dyn Task,
    instance: &Instance,
    thinking: Option<&str>,
    transcript: &str,
) -> Vec<Value> {
    let mut episode = Episode::begin(task, instance);
    let mut messages = episode.messages();
    for (place, turn) in split_turns(transcript).unwrap_or_default().into_iter().enumerate() {
        messages.push(crate::task::assistant(thinking.filter(|_| place == 0), turn.trim(), true));
        if let Step::Results(results) = episode.step(turn) {
            messages.extend(results.iter().map(ToolResult::message));
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: &str = "<tool_calls>\n{\"name\": \"get\", \"arguments\": {\"key\": \"x\"}}\n</tool_calls>";

    #[test]
    fn turns_end_with_their_calls_and_thoughts_of_calls_end_none() {
        let thought = format!("<think>{CALL}</think>");
        let transcript = format!("{thought}one {CALL}\n{thought}two {CALL}\nAnswer: 3");
        let turns = split_turns(&transcript).unwrap();
        assert_eq!(
            turns,
            [format!("{thought}one {CALL}"), format!("\n{thought}two {CALL}"), "\nAnswer: 3".into()]
        );
        assert_eq!(split_turns(&format!("{CALL}\n<think>hm")), None);
        assert_eq!(split_turns(""), Some(vec![""]));
    }

    #[test]
    fn a_task_of_one_turn_is_judged_by_it() {
        let task = crate::find("addition").unwrap();
        let instance = task.generate(3, 2);
        let mut episode = Episode::begin(task, &instance);
        assert_eq!(episode.max_turns(), 1);
        assert_eq!(episode.step(&task.solve(&instance).response()), Step::Done(Verdict::right()));
        assert_eq!(episode.step("Answer: 0"), Step::Done(Verdict::right()));
    }

    #[test]
    fn calls_that_cannot_be_run_are_answered_and_the_turns_are_counted() {
        let task = crate::find("lookup_chain").unwrap();
        let instance = task.generate(3, 2);
        let mut episode = Episode::begin(task, &instance);
        for (calls, reason) in [
            ("{", "malformed block"),
            ("{\"name\": \"no\", \"arguments\": {}}", "there is no such tool"),
            ("{\"name\": \"get\", \"arguments\": {}}", "arguments has no \"key\""),
            ("{\"name\": \"get\", \"arguments\": {\"key\": 1}}", "arguments.key is no string"),
        ] {
            match episode.step(&format!("<tool_calls>\n{calls}\n</tool_calls>")) {
                Step::Results(results) => {
                    assert!(results[0].failed && results[0].content.contains(reason), "{results:?}");
                }
                Step::Done(verdict) => panic!("{verdict:?}"),
            }
        }
        let turns = (0..).map(|_| episode.step(CALL)).take_while(|step| matches!(step, Step::Results(_)));
        assert_eq!(turns.count(), episode.max_turns() - 5);
    }

    #[test]
    fn long_results_are_cut() {
        let result = ToolResult::new("f", Ok("é".repeat(1 << 20)));
        assert!(result.content.len() < MAX_RESULT + 20 && result.content.ends_with("[cut off]"));
    }
}
