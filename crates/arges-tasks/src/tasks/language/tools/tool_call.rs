//! One call of one of several tools.

use serde_json::{Value, json};

use super::super::{Drawn, Problem};
use super::request::{NO_TOOL_CLAUSE, Request};
use super::tool::Tool;
use super::{block, verdict, wrong_blocks};
use crate::{Instance, Random, Verdict};

pub(crate) static TASK: Drawn<ToolCall> = Drawn::NEW;

/// Tools, and a request for one of them.
pub(crate) struct ToolCall {
    tools: Vec<Tool>,
    request: Request,
    clause: &'static str,
}

impl Problem for ToolCall {
    const NAME: &'static str = "tool_call";
    const SUMMARY: &'static str =
        "call the one tool that does what is asked, with the arguments that are told";
    const MAX_DIFFICULTY: u32 = 10;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let count = 1 + random.index(difficulty as usize);
        let mut tools = Tool::draw_several(random, difficulty, count);
        let request = Request::draw(random, difficulty, &tools[0]);
        random.shuffle(&mut tools);
        let clause = if difficulty >= 3 && random.chance(1, 4) { NO_TOOL_CLAUSE } else { "" };
        Self { tools, request, clause }
    }

    fn prompt(&self) -> String {
        [&self.request.text, self.clause].concat()
    }

    fn answer(&self) -> String {
        block(&[self.request.call()])
    }

    fn visible(&self) -> String {
        self.answer()
    }

    fn thinking(&self) -> String {
        self.request.thought()
    }

    fn wrong_answers(&self) -> Vec<String> {
        wrong_blocks(std::slice::from_ref(&self.request))
    }

    fn tools(&self) -> Vec<Value> {
        self.tools.iter().map(Tool::json).collect()
    }

    fn expected(&self) -> Value {
        json!([self.request.call()])
    }

    fn verify(instance: &Instance, response: &str) -> Verdict {
        verdict::verify(instance, response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Task;

    #[test]
    fn schemas_hold_every_type_and_calls_fit_them() {
        let mut seen = String::new();
        for seed in 0..200 {
            let instance = TASK.generate(seed, 10);
            seen += &json!(instance.tools).to_string();
            assert_eq!(TASK.verify(&instance, &TASK.solve(&instance).response()).reason, "right");
        }
        for kind in ["string", "integer", "number", "boolean", "array", "object"] {
            assert!(seen.contains(&format!("\"type\":\"{kind}\"")), "{kind}");
        }
        for keyword in ["enum", "default", "required", "additionalProperties"] {
            assert!(seen.contains(&format!("\"{keyword}\":")), "{keyword}");
        }
    }

    #[test]
    fn the_request_names_every_string_of_its_call() {
        for seed in 0..200 {
            let instance = TASK.generate(seed, 1 + (seed % 10) as u32);
            let mut values = vec![&instance.answer[0]["arguments"]];
            while let Some(value) = values.pop() {
                match value {
                    Value::Object(fields) => values.extend(fields.values()),
                    Value::Array(items) => values.extend(items),
                    Value::String(text) => {
                        assert!(instance.prompt.contains(text), "{text}: {}", instance.prompt)
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn the_call_is_written_as_chat_templates_write_it() {
        let call = json!({ "name": "f", "arguments": { "a": [1, 2.5], "b": "é\"\n" } });
        let line = r#"{"name": "f", "arguments": {"a": [1, 2.5], "b": "é\"\n"}}"#;
        assert_eq!(block(&[call]), format!("<tool_calls>\n{line}\n</tool_calls>"));
    }
}
