//! What a task is, and what it hands out.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::World;

/// A kind of problem with a generator, a verifier and a solver.
pub trait Task: Send + Sync {
    /// The name: snake_case, the same as its file's.
    fn name(&self) -> &'static str;

    /// What it asks, in one line.
    fn summary(&self) -> &'static str;

    /// Difficulties go from 1 to this.
    fn max_difficulty(&self) -> u32;

    /// The instance of a seed and difficulty, always the same. A difficulty outside of 1 to
    /// [`max_difficulty`](Self::max_difficulty) counts as the nearest one within.
    fn generate(&self, seed: u64, difficulty: u32) -> Instance;

    /// Judges a response, which may begin with `<think>…</think>`. It parses, it never evaluates; the time it takes
    /// grows no faster than the response's length. An instance that is not of this task earns 0.
    fn verify(&self, instance: &Instance, response: &str) -> Verdict;

    /// A worked solution that earns 1 from [`verify`](Self::verify); an empty answer where the instance is not of
    /// this task.
    fn solve(&self, instance: &Instance) -> Solution;

    /// The world of an instance of several turns, or why it has none; `None` for tasks of a single turn. A response to
    /// an instance with a world is all the model's turns, one after the other (see [`Episode`](crate::Episode)).
    fn world(&self, _instance: &Instance) -> Result<Option<Box<dyn World>>, Verdict> {
        Ok(None)
    }

    /// Whether judging runs programs in the sandbox, which takes a tenth of a second rather than microseconds.
    fn runs_programs(&self) -> bool {
        false
    }

    /// The solved instance as a line of fine-tuning data: `{"messages": [user, assistant, …], "tools": […]}`, the
    /// assistant's thinking as `reasoning_content`, its calls as `tool_calls`, their results as messages of the role
    /// `tool`. Fields without content are left out.
    fn conversation(&self, instance: &Instance, solution: &Solution) -> Value {
        instance.conversation(solution)
    }

    /// Responses that are wrong for certain, close to the right one: what a verifier is tested with. As given here,
    /// the solution with one digit changed; tasks where that may still be right, or without digits, write their own.
    fn wrong_responses(&self, instance: &Instance) -> Vec<String> {
        let answer = self.solve(instance).answer;
        let digits = answer.char_indices().filter_map(|(at, c)| c.to_digit(10).map(|digit| (at, digit)));
        let changed =
            |(at, digit): (usize, u32)| format!("{}{}{}", &answer[..at], (digit + 1) % 10, &answer[at + 1..]);
        digits.map(changed).collect()
    }
}

/// One problem of a task; as JSON, one line of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// The task's name.
    pub task: String,
    pub seed: u64,
    pub difficulty: u32,
    /// What the model is asked.
    pub prompt: String,
    /// Tools at the model's hand, as `{"name", "description", "parameters"}`; most tasks have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Value>,
    /// A right answer. Where several are right, it is one of them.
    pub answer: Value,
    /// What the verifier needs to know of the problem.
    pub data: Value,
}

impl Instance {
    /// The instance's data as its task's own type, or why it is none.
    pub fn read<T: DeserializeOwned>(&self, task: &dyn Task) -> Result<T, Verdict> {
        if self.task != task.name() {
            return Err(Verdict::wrong(format!("the instance is of {}, not of {}", self.task, task.name())));
        }
        T::deserialize(&self.data).map_err(|error| Verdict::wrong(format!("malformed instance: {error}")))
    }

    fn conversation(&self, solution: &Solution) -> Value {
        let assistant = assistant(solution.thinking.as_deref(), &solution.answer, !self.tools.is_empty());
        self.line(vec![json!({ "role": "user", "content": self.prompt }), assistant])
    }

    /// A line of fine-tuning data.
    pub(crate) fn line(&self, messages: Vec<Value>) -> Value {
        let mut line = json!({ "messages": messages });
        if !self.tools.is_empty() {
            line["tools"] = json!(self.tools);
        }
        line
    }
}

/// The message of a model's turn; calls are looked for where the model has tools.
pub(crate) fn assistant(thinking: Option<&str>, turn: &str, has_tools: bool) -> Value {
    let (content, calls) = if has_tools { split_tool_calls(turn) } else { (turn, Vec::new()) };
    let mut assistant = Map::new();
    assistant.insert("role".to_owned(), json!("assistant"));
    assistant.insert("content".to_owned(), json!(content));
    if let Some(thinking) = thinking {
        assistant.insert("reasoning_content".to_owned(), json!(thinking));
    }
    if !calls.is_empty() {
        assistant.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    Value::Object(assistant)
}

/// The text before a `<tool_calls>` block, and the calls in it, one JSON object a line, in OpenAI's form.
fn split_tool_calls(answer: &str) -> (&str, Vec<Value>) {
    let Some((content, block)) = answer.split_once("<tool_calls>") else {
        return (answer, Vec::new());
    };
    let block = block.split("</tool_calls>").next().unwrap_or(block);
    let calls = block.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    (content.trim_end(), calls.map(|call| json!({ "type": "function", "function": call })).collect())
}

/// What a response earned, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// From 0, wrong, to 1, right.
    pub reward: f64,
    /// In words, for logs.
    pub reason: String,
    /// The judge itself failed, for want of a sandbox say: the reward is 0 and tells nothing about the response.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unjudged: bool,
}

impl Verdict {
    /// Reward 1.
    pub fn right() -> Self {
        Self { reward: 1.0, reason: "right".to_owned(), unjudged: false }
    }

    /// Reward 0.
    pub fn wrong(reason: impl Into<String>) -> Self {
        Self { reward: 0.0, reason: reason.into(), unjudged: false }
    }

    /// No reward, since the judge failed.
    pub fn unjudged(reason: impl Into<String>) -> Self {
        Self { reward: 0.0, reason: reason.into(), unjudged: true }
    }

    /// Reward 0 for a response whose thinking never ends.
    pub fn no_answer() -> Self {
        Self::wrong("the response has no answer: its thinking never ends")
    }

    /// Reward 1, or 0 with the reason.
    pub fn from_check(check: Result<(), String>) -> Self {
        check.map_or_else(Self::wrong, |()| Self::right())
    }
}

/// A worked solution.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Solution {
    /// The way to the answer, as a model would think it.
    pub thinking: Option<String>,
    /// The visible text; for tool tasks it is or ends with a `<tool_calls>` block.
    pub answer: String,
}

impl Solution {
    /// The solution as a model would write it: `<think>\n…\n</think>\n` before the answer.
    pub fn response(&self) -> String {
        match &self.thinking {
            Some(thinking) => format!("<think>\n{thinking}\n</think>\n{}", self.answer),
            None => self.answer.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(tools: Vec<Value>) -> Instance {
        let (task, prompt) = ("t".to_owned(), "p".to_owned());
        Instance { task, seed: 0, difficulty: 1, prompt, tools, answer: json!(1), data: json!({}) }
    }

    #[test]
    fn a_conversation_holds_thinking_calls_and_tools() {
        let answer =
            "One moment.\n<tool_calls>\n{\"name\":\"f\",\"arguments\":{\"b\":1,\"a\":2}}\n</tool_calls>";
        let solution = Solution { thinking: Some("hm".to_owned()), answer: answer.to_owned() };
        let line = instance(vec![json!({ "name": "f" })]).conversation(&solution);
        let expected = json!({
            "messages": [
                { "role": "user", "content": "p" },
                { "role": "assistant", "content": "One moment.", "reasoning_content": "hm",
                  "tool_calls": [{ "type": "function", "function": { "name": "f", "arguments": { "b": 1, "a": 2 } } }] }
            ],
            "tools": [{ "name": "f" }]
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_conversation_without_tools_leaves_the_text_as_it_is() {
        let solution = Solution { thinking: None, answer: "<tool_calls>{}</tool_calls>".to_owned() };
        let line = instance(Vec::new()).conversation(&solution);
        assert_eq!(line["messages"][1], json!({ "role": "assistant", "content": solution.answer }));
        assert_eq!(line.get("tools"), None);
    }

    #[test]
    fn a_response_is_the_thinking_and_then_the_answer() {
        let solution = Solution { thinking: Some("a".to_owned()), answer: "b".to_owned() };
        assert_eq!(solution.response(), "<think>\na\n</think>\nb");
    }
}
