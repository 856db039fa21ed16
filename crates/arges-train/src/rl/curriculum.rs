//! What is asked next: tasks and difficulties by how often they are solved, and sources that come in on schedule.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A source of problems.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskConfig {
    /// Name of the task; `arges tasks list` names them. With `prompts`, any other name.
    pub name: String,
    /// File of questions without a verifier, whose answers the reward model judges.
    #[serde(default)]
    pub prompts: Option<PathBuf>,
    /// Lowest and highest difficulty; the task's own range when absent.
    #[serde(default)]
    pub difficulty: Option<[u32; 2]>,
    /// Its share of the prompts, relative to the others' weights.
    #[serde(default = "one")]
    pub weight: f64,
    /// Batch before which it is not asked: reasoning comes first, general tasks later.
    #[serde(default)]
    pub start: u64,
    /// Batches over which its weight then rises from 0 to the whole.
    #[serde(default)]
    pub ramp: u64,
}

fn one() -> f64 {
    1.0
}

/// How pass rates move the weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CurriculumConfig {
    /// Pass rate up to which a difficulty counts as never solved.
    pub low: f64,
    /// Pass rate from which it counts as always solved.
    pub high: f64,
    /// Weight that is left to what is never or always solved, so that it is noticed when this changes; above 0.
    pub explore: f64,
    /// Responses that must have been seen before a pass rate counts.
    pub least: u64,
    /// Responses that a pass rate remembers.
    pub memory: u64,
}

impl Default for CurriculumConfig {
    fn default() -> Self {
        Self { low: 0.0, high: 1.0, explore: 0.05, least: 64, memory: 512 }
    }
}

/// A task at a difficulty, and how it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    pub task: String,
    pub difficulty: u32,
    /// Which source it is of.
    source: usize,
    /// Whether a reward model judges it, by rewards from -1 to 1.
    #[serde(default)]
    pub judged: bool,
    /// Responses seen, as far as they are remembered, and rewards of them.
    seen: f64,
    rewards: f64,
}

impl Cell {
    /// Mean reward of the responses that are remembered; of comparisons the share that was won, a draw counting half.
    pub fn pass_rate(&self) -> Option<f64> {
        (self.seen > 0.0).then(|| self.rewards / self.seen)
    }
}

/// All tasks and difficulties with their pass rates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Curriculum {
    cells: Vec<Cell>,
}

impl Curriculum {
    /// Nothing seen yet. `highest` gives the highest difficulty of a task.
    pub fn new(sources: &[TaskConfig], highest: impl Fn(&str) -> u32) -> Self {
        let cells = sources.iter().enumerate().flat_map(|(source, config)| {
            let highest = highest(&config.name);
            let [low, high] = config.difficulty.unwrap_or([1, highest]);
            (low..=high.min(highest)).map(move |difficulty| Cell {
                task: config.name.clone(),
                difficulty,
                source,
                judged: config.prompts.is_some(),
                seen: 0.0,
                rewards: 0.0,
            })
        });
        Self { cells: cells.collect() }
    }

    /// The cells.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// Takes the rewards of a group of that cell.
    pub fn observe(&mut self, cell: usize, rewards: &[f64], config: &CurriculumConfig) {
        let cell = &mut self.cells[cell];
        cell.seen += rewards.len() as f64;
        let passed = |reward: &f64| if cell.judged { (reward + 1.0) / 2.0 } else { *reward };
        cell.rewards += rewards.iter().map(passed).sum::<f64>();
        let memory = config.memory as f64;
        if cell.seen > memory {
            cell.rewards *= memory / cell.seen;
            cell.seen = memory;
        }
    }

    /// Weight of each cell for the prompts of a batch. A source's weight is shared by those of its difficulties that
    /// teach something; where none does, all are asked.
    pub fn weights(&self, sources: &[TaskConfig], config: &CurriculumConfig, batch: u64) -> Vec<f64> {
        let teaches = |cell: &Cell| {
            let known = cell.seen >= config.least as f64;
            let rate = cell.pass_rate().filter(|_| known);
            rate.is_none_or(|rate| config.low < rate && rate < config.high)
        };
        let factor = |cell: &Cell| if teaches(cell) { 1.0 } else { config.explore };
        let mut totals = vec![0.0; sources.len()];
        self.cells.iter().for_each(|cell| totals[cell.source] += factor(cell));
        let weight = |cell: &Cell| {
            let source = &sources[cell.source];
            let total = totals[cell.source];
            let share = factor(cell) / total;
            // A source that has nothing left to teach gives way to the others.
            let mass = total.min(1.0).max(config.explore);
            source.weight * ramp(source, batch) * share * mass
        };
        self.cells.iter().map(weight).collect()
    }
}

/// How far a source has come in, from 0 to 1.
fn ramp(source: &TaskConfig, batch: u64) -> f64 {
    match batch.checked_sub(source.start) {
        None => 0.0,
        Some(since) if since >= source.ramp => 1.0,
        Some(since) => (since + 1) as f64 / (source.ramp + 1) as f64,
    }
}

/// The place that `draw`, from 0 to below 1, has among weights; the last with a weight where rounding leads past it.
pub fn choose(weights: &[f64], draw: f64) -> usize {
    let mut rest = draw * weights.iter().sum::<f64>();
    let mut chosen = 0;
    for (index, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
        chosen = index;
        rest -= weight;
        if rest < 0.0 {
            break;
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, difficulty: [u32; 2]) -> TaskConfig {
        let (name, difficulty) = (name.to_owned(), Some(difficulty));
        TaskConfig { name, prompts: None, difficulty, weight: 1.0, start: 0, ramp: 0 }
    }

    #[test]
    fn what_is_always_or_never_solved_is_hardly_asked() {
        let (sources, config) = ([source("a", [1, 3]), source("b", [2, 2])], CurriculumConfig::default());
        let mut curriculum = Curriculum::new(&sources, |_| 9);
        let names: Vec<_> =
            curriculum.cells().iter().map(|cell| (cell.task.as_str(), cell.difficulty)).collect();
        assert_eq!(names, [("a", 1), ("a", 2), ("a", 3), ("b", 2)]);
        let third = 1.0 / 3.0;
        assert_eq!(curriculum.weights(&sources, &config, 0), [third, third, third, 1.0]);
        for _ in 0..8 {
            curriculum.observe(0, &[1.0; 8], &config);
            curriculum.observe(1, &[0.0; 8], &config);
            curriculum.observe(2, &[1.0, 0.0], &config);
        }
        let weights = curriculum.weights(&sources, &config, 0);
        assert!(weights[0] < 0.05 && weights[1] == weights[0] && weights[2] > 0.9);
        assert_eq!(weights[3], 1.0);
        // Once it is solved now and then, it is asked again.
        curriculum.observe(1, &[1.0; 8], &config);
        assert!(curriculum.weights(&sources, &config, 0)[1] > 0.4);
    }

    #[test]
    fn comparisons_count_as_won_by_half_where_nothing_was_better() {
        let sources = [TaskConfig { prompts: Some("x.jsonl".into()), ..source("a", [1, 1]) }];
        let config = CurriculumConfig::default();
        let mut curriculum = Curriculum::new(&sources, |_| 1);
        curriculum.observe(0, &[0.0; 64], &config);
        assert_eq!(curriculum.cells()[0].pass_rate(), Some(0.5));
        assert_eq!(curriculum.weights(&sources, &config, 0), [1.0]);
        curriculum.observe(0, &[-1.0, 1.0, -1.0, -1.0], &config);
        assert!(curriculum.cells()[0].pass_rate().unwrap() < 0.5);
    }

    #[test]
    fn a_source_with_nothing_left_to_teach_gives_way() {
        let (sources, config) = ([source("a", [1, 1]), source("b", [1, 1])], CurriculumConfig::default());
        let mut curriculum = Curriculum::new(&sources, |_| 9);
        curriculum.observe(0, &[1.0; 64], &config);
        assert_eq!(curriculum.weights(&sources, &config, 0), [0.05, 1.0]);
        // Nothing is left at all: both are asked alike.
        curriculum.observe(1, &[1.0; 64], &config);
        assert_eq!(curriculum.weights(&sources, &config, 0), [0.05, 0.05]);
    }

    #[test]
    fn old_responses_are_forgotten() {
        let (sources, config) =
            ([source("a", [1, 1])], CurriculumConfig { memory: 10, ..Default::default() });
        let mut curriculum = Curriculum::new(&sources, |_| 9);
        (0..20).for_each(|_| curriculum.observe(0, &[0.0; 10], &config));
        (0..6).for_each(|_| curriculum.observe(0, &[1.0; 10], &config));
        assert!(curriculum.cells()[0].pass_rate().unwrap() > 0.98);
    }

    #[test]
    fn a_later_source_comes_in_gradually() {
        let general = TaskConfig { start: 10, ramp: 3, ..source("b", [1, 1]) };
        let sources = [source("a", [1, 1]), general];
        let curriculum = Curriculum::new(&sources, |_| 9);
        let weight = |batch| curriculum.weights(&sources, &CurriculumConfig::default(), batch)[1];
        assert_eq!([0, 9, 10, 11, 12, 13, 99].map(weight), [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]);
    }

    #[test]
    fn choices_follow_the_weights() {
        assert_eq!([0.0, 0.24, 0.26, 0.999].map(|draw| choose(&[1.0, 0.0, 3.0, 0.0], draw)), [0, 0, 2, 2]);
        assert_eq!(choose(&[0.0, 1.0], 1.0), 1);
    }
}
