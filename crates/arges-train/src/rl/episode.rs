//! A problem in turns: what the model wrote goes in; results of its calls, or a verdict, come out.

use arges_tasks::{Instance, Task, Verdict};
use serde_json::{Value, json};

/// What follows a turn of the model.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Messages for the model, whose turn it is again.
    Messages(Vec<Value>),
    /// The episode is over.
    Done(Verdict),
}

/// A model at an instance.
pub struct Episode<'a> {
    task: &'a dyn Task,
    instance: &'a Instance,
}

impl<'a> Episode<'a> {
    /// The beginning.
    pub fn begin(task: &'a dyn Task, instance: &'a Instance) -> Self {
        Self { task, instance }
    }

    /// The messages it begins with.
    pub fn messages(&self) -> Vec<Value> {
        vec![json!({ "role": "user", "content": self.instance.prompt })]
    }

    /// Takes what the model wrote in its turn, thinking included. It may block while programs run.
    pub fn step(&mut self, turn: &str) -> Next {
        Next::Done(self.task.verify(self.instance, turn))
    }
}

/// The highest difficulty of a task; `None` where there is no such task.
pub fn highest_difficulty(task: &str) -> Option<u32> {
    arges_tasks::find(task).map(Task::max_difficulty)
}
