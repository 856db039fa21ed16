//! Problems that are not learned from.

use std::collections::BTreeMap;

use super::collect::FIRST_EVALUATION_GROUP;
use super::{Event, LOOK, RlError, RlRun};
use crate::data::mix;
use crate::rl::metrics::{Values, pass_at};
use crate::rl::rollout::Job;

/// Sets the samples of evaluations apart from others.
const SAMPLES: u64 = 0x6576_616c;

impl RlRun {
    /// Has every problem answered and tells pass@1, and pass@k where there are several responses. Training's own
    /// rollouts go on meanwhile.
    pub(super) fn evaluate(&mut self, tell: &mut dyn FnMut(Event)) -> Result<(), RlError> {
        let Some(evaluation) = self.config.evaluation.clone() else { return Ok(()) };
        // What a reward model judges is neither right nor wrong.
        let cells = self.place.curriculum.cells().iter().filter(|cell| !cell.judged);
        let cells: Vec<(String, u32)> = cells.map(|cell| (cell.task.clone(), cell.difficulty)).collect();
        let mut problems = Vec::new();
        for (task, difficulty) in &cells {
            problems.extend((0..evaluation.problems).map(|seed| (task.clone(), *difficulty, seed)));
        }
        for (group, (task, difficulty, seed)) in (0..).zip(&problems) {
            for member in 0..evaluation.samples as u32 {
                self.rollouts.submit(Job {
                    group: FIRST_EVALUATION_GROUP + group,
                    member,
                    task: task.clone(),
                    difficulty: *difficulty,
                    seed: *seed,
                    sampling_seed: mix(&[self.config.seed, group, u64::from(member), SAMPLES]),
                    window: self.window().tokens,
                    greedy: evaluation.samples == 1,
                });
            }
        }
        let mut rewards: Vec<Vec<f64>> = vec![Vec::new(); problems.len()];
        let mut awaited = problems.len() * evaluation.samples;
        while awaited > 0 {
            let Some(played) = self.rollouts.next(LOOK) else { continue };
            let Some(problem) = played.job.group.checked_sub(FIRST_EVALUATION_GROUP) else {
                self.take(played, tell)?;
                continue;
            };
            awaited -= 1;
            // A response that is lost is none that is right.
            let reward = match played.outcome {
                Ok(trajectory) => trajectory.reward,
                Err(error) => {
                    tell(Event::Lost { reason: error.to_string() });
                    0.0
                }
            };
            rewards[problem as usize].push(reward);
        }
        let values = summary(&problems, &rewards, evaluation.samples);
        self.write_metrics(values.clone())?;
        tell(Event::Evaluated { step: self.step(), values });
        // The time it took is none of the next batch.
        self.clock = std::time::Instant::now();
        self.engine_stats = self.policy.engine().stats();
        Ok(())
    }
}

/// Means over all problems, over those of each task, and of each difficulty where a task has several.
fn summary(problems: &[(String, u32, u64)], rewards: &[Vec<f64>], samples: usize) -> Values {
    let mut groups: BTreeMap<String, Vec<&[f64]>> = BTreeMap::new();
    for ((task, difficulty, _), rewards) in problems.iter().zip(rewards) {
        for name in ["eval".to_owned(), format!("eval/{task}"), format!("eval/{task}/{difficulty}")] {
            groups.entry(name).or_default().push(rewards);
        }
    }
    let mut values = Values::new();
    for (name, problems) in groups {
        let mean = |of: &dyn Fn(&[f64]) -> f64| {
            problems.iter().map(|rewards| of(rewards)).sum::<f64>() / problems.len() as f64
        };
        values
            .push((format!("{name}/pass@1"), mean(&|rewards| rewards.iter().sum::<f64>() / samples as f64)));
        if samples > 1 {
            let right = |rewards: &[f64]| rewards.iter().filter(|reward| **reward >= 1.0).count();
            let at_k = |rewards: &[f64]| pass_at(samples, right(rewards), samples);
            values.push((format!("{name}/pass@{samples}"), mean(&at_k)));
        }
    }
    values
}
