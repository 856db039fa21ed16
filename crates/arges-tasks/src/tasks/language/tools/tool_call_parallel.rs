//! Two calls in one turn, later three.

use serde_json::Value;

use super::super::{Drawn, Problem};
use super::request::Request;
use super::tool::Tool;
use super::{block, verdict, wrong_blocks};
use crate::{Instance, Random, Verdict};

pub(crate) static TASK: Drawn<ToolCallParallel> = Drawn::NEW;

/// Tools, and requests for some of them, of which one may be asked for twice.
pub(crate) struct ToolCallParallel {
    tools: Vec<Tool>,
    requests: Vec<Request>,
}

impl Problem for ToolCallParallel {
    const NAME: &'static str = "tool_call_parallel";
    const SUMMARY: &'static str = "call two or three tools, or one of them again, in one turn";
    const MAX_DIFFICULTY: u32 = 10;

    fn draw(random: &mut Random, difficulty: u32) -> Self {
        let calls = 2 + usize::from(difficulty >= 8 && random.chance(1, 2));
        let count = calls + random.index(difficulty as usize);
        let mut tools = Tool::draw_several(random, difficulty, count);
        let mut requests: Vec<Request> = Vec::new();
        while requests.len() < calls {
            let again = !requests.is_empty() && random.chance(1, 4);
            // The next tool always gives a call that was not there yet; the first one, if it has parameters, may.
            let tool = if again { &tools[0] } else { &tools[requests.len()] };
            let request = Request::draw(random, difficulty, tool);
            if requests.iter().all(|other| other.call() != request.call()) {
                requests.push(request);
            }
        }
        random.shuffle(&mut tools);
        Self { tools, requests }
    }

    fn prompt(&self) -> String {
        let texts: Vec<&str> = self.requests.iter().map(|request| request.text.as_str()).collect();
        texts.join("\n")
    }

    fn answer(&self) -> String {
        block(&self.requests.iter().map(Request::call).collect::<Vec<_>>())
    }

    fn visible(&self) -> String {
        self.answer()
    }

    fn thinking(&self) -> String {
        self.requests.iter().map(Request::thought).collect::<Vec<_>>().join("\n")
    }

    fn wrong_answers(&self) -> Vec<String> {
        wrong_blocks(&self.requests)
    }

    fn tools(&self) -> Vec<Value> {
        self.tools.iter().map(Tool::json).collect()
    }

    fn expected(&self) -> Value {
        self.requests.iter().map(Request::call).collect()
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
    fn the_order_of_calls_does_not_matter() {
        let instance = TASK.generate(1, 3);
        let mut calls = instance.answer.as_array().unwrap().clone();
        calls.reverse();
        assert_eq!(TASK.verify(&instance, &block(&calls)).reward, 1.0);
        calls[0] = calls[1].clone();
        assert_eq!(TASK.verify(&instance, &block(&calls)).reward, 0.0);
    }

    #[test]
    fn too_few_calls_are_told_from_too_many() {
        let instance = TASK.generate(1, 3);
        let calls = instance.answer.as_array().unwrap();
        let reason = |calls: &[Value]| TASK.verify(&instance, &block(calls)).reason;
        assert_eq!(reason(&calls[..1]), "missing call: there are 1, not 2");
        assert_eq!(reason(&[&calls[..], &calls[..1]].concat()), "extra call: there are 3, not 2");
    }
}
