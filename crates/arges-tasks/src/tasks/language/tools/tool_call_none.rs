//! Plain answers although there are tools: questions that need none, and requests that no tool can do.

use serde_json::Value;

use super::super::{Drawn, Problem, answer, words};
use super::request::{NO_TOOL_CLAUSE, Request};
use super::tool::Tool;
use super::{block, verdict};
use crate::response::{final_answer, visible};
use crate::{Instance, Random, Verdict};

pub(crate) static TASK: Drawn<ToolCallNone> = Drawn::NEW;

/// Tools that are not to be called.
pub(crate) struct ToolCallNone {
    tools: Vec<Tool>,
    /// A call that a hasty model might make.
    tempting: Value,
    prompt: String,
    thinking: String,
    answer: String,
}

impl ToolCallNone {
    /// A sum.
    fn draw_sum(random: &mut Random, difficulty: u32) -> (String, String, String) {
        let most = 10 * i64::from(difficulty);
        let (a, b) = (random.range(1, most), random.range(1, most));
        let sum = a + b;
        let prompt = format!("What is {a} + {b}? End with a line `Answer: N`.");
        (prompt, format!("no tool: {a} + {b} = {sum}"), sum.to_string())
    }

    /// A word of a note, among whose words are those that tools have parameters for.
    fn draw_recall(random: &mut Random, difficulty: u32, tool: &Tool) -> (String, String, String) {
        let count = 2 + random.index(1 + difficulty as usize / 2);
        let owners = words::names(random, count);
        let colors = words::different(random, &words::ADJECTIVES, count);
        let things = words::different(random, &words::NOUNS, count);
        let notes: Vec<String> = (0..count)
            .map(|place| format!("{} has the {} {}", owners[place], colors[place], things[place]))
            .collect();
        let asked = random.index(count);
        let (owner, thing) = (owners[asked], things[asked]);
        let prompt = format!(
            "Later I want to {}. For now only note: {}. Who has the {thing}? End with a line `Answer: ...`, where \
             ... is the name.",
            tool.action,
            words::enumeration(&notes, "and")
        );
        // One after the other, up to the one that is asked for: whoever is named last is the answer.
        let looked_at: Vec<String> = (0..=asked)
            .map(|place| {
                let verdict = if place == asked { "yes" } else { "no" };
                format!("{} has the {}: {verdict}", owners[place], things[place])
            })
            .collect();
        (prompt, format!("no tool: {thing}? {}", looked_at.join(", ")), owner.to_owned())
    }
}

impl Problem for ToolCallNone {
    const NAME: &'static str = "tool_call_none";
    const SUMMARY: &'static str = "answer without a call, as no tool is needed or none can do what is asked";
    const MAX_DIFFICULTY: u32 = 10;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let count = 1 + random.index(difficulty as usize);
        // The first tool is the one a request is made for; whether it is there decides the answer.
        let mut tools = Tool::draw_several(random, difficulty, count + 1);
        let request = Request::draw(random, difficulty, &tools[0]);
        let (prompt, thinking, answer) = match random.index(if difficulty < 2 { 2 } else { 3 }) {
            0 => Self::draw_sum(random, difficulty),
            1 => Self::draw_recall(random, difficulty, &tools[0]),
            _ => {
                let absent = tools.remove(0);
                // The tool's name first, as in thinking that ends in a call: only then is it looked for.
                let thinking = format!("{}: no tool", absent.name);
                ([&request.text, NO_TOOL_CLAUSE].concat(), thinking, "no tool".to_owned())
            }
        };
        random.shuffle(&mut tools);
        Self { tools, tempting: request.call(), prompt, thinking, answer }
    }

    fn prompt(&self) -> String {
        self.prompt.clone()
    }

    fn answer(&self) -> String {
        self.answer.clone()
    }

    fn thinking(&self) -> String {
        self.thinking.clone()
    }

    fn wrong_answers(&self) -> Vec<String> {
        let call = block(std::slice::from_ref(&self.tempting));
        vec![
            call.clone(),
            format!("{}\n{call}", self.visible()),
            format!("Answer: {} {}", self.answer, self.answer),
            format!("Answer: not {}", self.answer),
            "Done.".to_owned(),
        ]
    }

    fn tools(&self) -> Vec<Value> {
        self.tools.iter().map(Tool::json).collect()
    }

    fn verify(instance: &Instance, response: &str) -> Verdict {
        match (visible(response), final_answer(response)) {
            (Some(visible), _) if verdict::has_block(visible) => Verdict::wrong("extra call: none is needed"),
            (_, Some(given)) => {
                let expected =
                    instance.answer.as_str().ok_or("malformed instance: its answer is no text".to_owned());
                Verdict::from_check(expected.and_then(|expected| answer::same_words(expected, given)))
            }
            _ => Verdict::no_answer(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Task;

    #[test]
    fn a_right_answer_with_a_call_earns_nothing() {
        for seed in 0..50 {
            let instance = TASK.generate(seed, 4);
            let answer = TASK.solve(&instance).response();
            assert_eq!(TASK.verify(&instance, &answer).reward, 1.0);
            let called =
                format!("{answer}\n<tool_calls>\n{{\"name\": \"f\", \"arguments\": {{}}}}\n</tool_calls>");
            assert_eq!(TASK.verify(&instance, &called).reason, "extra call: none is needed");
        }
    }

    #[test]
    fn the_tool_a_request_would_need_is_not_there() {
        let mut refused = 0;
        for seed in 0..100 {
            let instance = TASK.generate(seed, 5);
            if instance.answer == "no tool" {
                refused += 1;
                let problem = ToolCallNone::redraw(&instance).unwrap();
                let wanted = &problem.tempting["name"];
                assert!(instance.tools.iter().all(|tool| tool["name"] != *wanted));
            }
        }
        assert!(refused > 15, "{refused}");
    }
}
