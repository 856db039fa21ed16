//! Solved instances of tasks, made on the fly.

use arges_tasks::Task;
use serde_json::Value;

use super::{Record, mix};

/// Training takes seeds from here up and evaluation those below 2^32, so that no instance it is evaluated on was
/// trained on as such. (A task with few possible problems may still give the same one for two seeds.)
pub const FIRST_TRAINING_SEED: u64 = 1 << 63;

/// An endless sequence of conversations.
pub struct TaskRecords {
    tasks: Vec<&'static dyn Task>,
    difficulty: Option<[u32; 2]>,
    thinking: f64,
    /// Key of the choices; `None` gives the instances of evaluation.
    key: Option<u64>,
}

impl TaskRecords {
    /// Tasks by name, or `all`; names were checked with the configuration.
    pub fn new(names: &[String], difficulty: Option<[u32; 2]>, thinking: f64, key: Option<u64>) -> Self {
        let tasks = match names.iter().any(|name| name == "all") {
            true => arges_tasks::all().to_vec(),
            false => names.iter().filter_map(|name| arges_tasks::find(name)).collect(),
        };
        Self { tasks, difficulty, thinking, key }
    }

    /// The conversation at a position. In training, task and difficulty are drawn; in evaluation they take turns, so
    /// that few instances cover all.
    pub fn read(&self, position: u64) -> Record {
        let (task, draw, seed) = self.choose(position);
        let task = self.tasks[task as usize];
        let [low, high] = self.difficulty.unwrap_or([1, u32::MAX]);
        let high = high.min(task.max_difficulty());
        let low = low.min(high);
        let difficulty = low + (draw % u64::from(high - low + 1)) as u32;
        let instance = task.generate(seed, difficulty);
        let mut solution = task.solve(&instance);
        if !self.shows_thinking(position) {
            solution.thinking = None;
        }
        conversation(task.conversation(&instance, &solution))
    }

    /// Which task a position has, a number that decides its difficulty, and the seed of its instance.
    fn choose(&self, position: u64) -> (u64, u64, u64) {
        let count = self.tasks.len() as u64;
        match self.key {
            Some(key) => {
                let draw = |purpose: u64| mix(&[key, position, purpose]);
                (draw(0) % count, draw(1), draw(2) | FIRST_TRAINING_SEED)
            }
            None => (position % count, position / count, position),
        }
    }

    fn shows_thinking(&self, position: u64) -> bool {
        let draw = mix(&[self.key.unwrap_or(0), position, 3]);
        ((draw >> 11) as f64) < self.thinking * (1u64 << 53) as f64
    }
}

fn conversation(mut line: Value) -> Record {
    let mut list = |name: &str| match line.get_mut(name).map(Value::take) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    Record::Conversation { messages: list("messages"), tools: list("tools") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(key: Option<u64>, thinking: f64) -> TaskRecords {
        TaskRecords::new(&["addition".to_owned(), "countdown".to_owned()], Some([1, 3]), thinking, key)
    }

    #[test]
    fn a_position_gives_the_same_conversation_every_time_and_another_one_than_the_next() {
        let (some, same) = (records(Some(1), 1.0), records(Some(1), 1.0));
        for position in [0, 1, 2, 1 << 40] {
            assert_eq!(some.read(position), same.read(position));
            assert_ne!(some.read(position), some.read(position + 1));
            assert_ne!(some.read(position), records(Some(2), 1.0).read(position));
        }
    }

    #[test]
    fn the_share_of_solutions_with_thinking_is_the_one_asked_for() {
        let count = |thinking: f64| {
            let records = TaskRecords::new(&["addition".to_owned()], None, thinking, Some(3));
            let shown = |record: &Record| match record {
                Record::Conversation { messages, .. } => messages[1].get("reasoning_content").is_some(),
                Record::Text(_) => false,
            };
            (0..200).filter(|position| shown(&records.read(*position))).count()
        };
        assert_eq!(count(0.0), 0);
        assert_eq!(count(1.0), 200);
        assert!((70..130).contains(&count(0.5)), "{}", count(0.5));
    }

    #[test]
    fn training_draws_no_seed_of_evaluation() {
        let evaluation = records(None, 1.0);
        let Record::Conversation { messages, .. } = evaluation.read(2) else { panic!("a conversation") };
        let task = arges_tasks::find("addition").unwrap();
        assert_eq!(messages[0]["content"], task.generate(2, 2).prompt);
        let training = records(Some(5), 1.0);
        for position in 0..1000 {
            assert!(training.choose(position).2 >= FIRST_TRAINING_SEED);
            assert!(evaluation.choose(position).2 < 1 << 32);
        }
    }
}
