//! What a description must fulfil beyond the types of its fields.

use super::super::objective::Anchor;
use super::RlConfig;
use crate::config::ComputeType;

type Checked = Result<(), (String, String)>;

/// A field and what is wrong with it, unless the condition holds.
fn require(condition: bool, field: impl Into<String>, reason: impl Into<String>) -> Checked {
    if condition { Ok(()) } else { Err((field.into(), reason.into())) }
}

fn at_least_1(field: &str, value: u64) -> Checked {
    require(value > 0, field, "must be at least 1")
}

fn positive(field: &str, value: f64) -> Checked {
    require(value.is_finite() && value > 0.0, field, "must be a number above 0")
}

fn not_negative(field: &str, value: f64) -> Checked {
    require(value.is_finite() && value >= 0.0, field, "must be a number from 0")
}

impl RlConfig {
    pub(super) fn check(&self) -> Checked {
        require(!self.run.as_os_str().is_empty(), "run", "a directory is needed")?;
        at_least_1("batches", self.batches)?;
        not_negative("balance_loss", self.balance_loss)?;
        if let Some(peak) = self.peak_tflops {
            positive("peak_tflops", peak)?;
        }
        require(
            self.model.new.is_none(),
            "model.new",
            "has nothing to learn from: rewards need a model that answers",
        )?;
        require(self.model.from.is_some(), "model.from", "is missing")?;
        require(
            self.model.head == ComputeType::F32,
            "model.head",
            "must be f32: log-probabilities are those of the sampler",
        )?;
        if let Some(lora) = &self.lora {
            at_least_1("lora.rank", lora.rank as u64)?;
            require(!lora.targets.is_empty(), "lora.targets", "names no matrices")?;
        }
        self.check_objective()?;
        self.check_rollout()?;
        self.check_optimizer()?;
        self.check_windows()?;
        self.check_tasks()?;
        self.check_reward_model()?;
        at_least_1("checkpoint.every", self.checkpoint.every)?;
        at_least_1("checkpoint.shard_bytes", self.checkpoint.shard_bytes)?;
        if let Some(evaluation) = &self.evaluation {
            at_least_1("evaluation.every", evaluation.every)?;
            let problems = (1..=1 << 32).contains(&evaluation.problems);
            require(problems, "evaluation.problems", "must be from 1 to 2^32, the seeds kept for it")?;
            at_least_1("evaluation.samples", evaluation.samples as u64)?;
        }
        Ok(())
    }

    fn check_objective(&self) -> Checked {
        let (given, objective) = (&self.objective, self.objective.objective());
        not_negative("objective.is_min", objective.is_min)?;
        let above = objective.is_max > 0.0 && objective.is_max >= objective.is_min;
        require(above, "objective.is_max", "must be above 0 and not below `objective.is_min`")?;
        require(
            objective.is_min < 1.0 || objective.is_max == objective.is_min,
            "objective.is_min",
            "is absolute: from 1 on it keeps every token that has become less likely at the weight of one that has not",
        )?;
        require(
            given.mask_low.is_some() == given.mask_high.is_some(),
            if given.mask_low.is_some() { "objective.mask_high" } else { "objective.mask_low" },
            "is missing beside the other end of the mask",
        )?;
        if let Some(mask) = objective.mask {
            require((0.0..=1.0).contains(&mask.low), "objective.mask_low", "must be from 0 to 1")?;
            not_negative("objective.mask_high", mask.high)?;
        }
        if let Some(most) = objective.rollout_correction {
            positive("objective.rollout_correction", most)?;
            let old = objective.anchor == Anchor::Old;
            require(
                old,
                "objective.rollout_correction",
                "goes with anchor `old`: to `rollout` the ratio corrects itself",
            )?;
        }
        match &self.advantage.overlong {
            Some(overlong) => at_least_1("advantage.overlong.buffer", overlong.buffer as u64),
            None => Ok(()),
        }
    }

    fn check_rollout(&self) -> Checked {
        let rollout = &self.rollout;
        at_least_1("rollout.prompts", rollout.prompts as u64)?;
        require(
            rollout.responses > 1,
            "rollout.responses",
            "must be at least 2: responses are held against each other",
        )?;
        at_least_1("rollout.concurrency", rollout.concurrency as u64)?;
        at_least_1("rollout.max_turns", rollout.max_turns as u64)?;
        let enough = rollout.step_tokens >= rollout.concurrency;
        require(enough, "rollout.step_tokens", "must be at least `rollout.concurrency`")?;
        if let Some(repetition) = rollout.repetition {
            at_least_1("rollout.repetition.tokens", repetition.tokens as u64)?;
            let probability = (0.0..1.0).contains(&repetition.probability);
            require(probability, "rollout.repetition.probability", "must be from 0 to below 1")?;
        }
        at_least_1("update.updates", self.update.updates as u64)?;
        let responses = rollout.prompts * rollout.responses;
        require(
            self.update.updates <= responses,
            "update.updates",
            format!("must be at most the {responses} responses of a batch"),
        )?;
        require(
            (2..=1 << 30).contains(&self.update.max_tokens),
            "update.max_tokens",
            "must be from 2 to 2^30",
        )?;
        require(self.update.max_sequences != Some(0), "update.max_sequences", "must be at least 1")
    }

    fn check_prompts(&self, index: usize) -> Checked {
        let task = &self.task[index];
        let field = |name: &str| format!("task[{index}].{name}");
        require(!task.name.is_empty(), field("name"), "is empty")?;
        let others = self.task.iter().filter(|other| other.name == task.name).count();
        let new = arges_tasks::find(&task.name).is_none() && others == 1;
        require(new, field("name"), "is that of another task: beside `prompts` it is one of your own")?;
        require(task.difficulty.is_none(), field("difficulty"), "is none of a file of prompts")?;
        positive(&field("weight"), task.weight)?;
        require(self.reward_model.is_some(), "reward_model", "is missing: a file of prompts has no verifier")
    }

    fn check_reward_model(&self) -> Checked {
        let Some(settings) = &self.reward_model else { return Ok(()) };
        let judges = self.task.iter().any(|task| task.prompts.is_some());
        require(judges, "reward_model", "has nothing to judge: no `[[task]]` has `prompts`")?;
        let verified = self.task.iter().any(|task| task.prompts.is_none());
        require(
            verified || self.evaluation.is_none(),
            "evaluation",
            "has nothing to ask: answers to files of prompts are neither right nor wrong",
        )?;
        require(!settings.model.is_empty(), "reward_model.model", "is empty")?;
        let one_key = settings.api_key_file.is_none() || settings.api_key_env.is_none();
        require(one_key, "reward_model.api_key_env", "stands beside `api_key_file`: give one of them")?;
        at_least_1("reward_model.concurrency", settings.concurrency as u64)?;
        at_least_1("reward_model.max_tokens", settings.max_tokens as u64)?;
        let seconds = |value: f64| (0.0..1e9).contains(&value);
        require(
            seconds(settings.timeout) && settings.timeout > 0.0,
            "reward_model.timeout",
            "must be a number of seconds above 0",
        )?;
        require(seconds(settings.pause), "reward_model.pause", "must be a number of seconds from 0")?;
        let watch = settings.length_bias;
        require(watch.window >= 2, "reward_model.length_bias.window", "must be at least 2")?;
        require(
            (0.0..=1.0).contains(&watch.threshold),
            "reward_model.length_bias.threshold",
            "must be from 0 to 1",
        )
    }

    fn check_optimizer(&self) -> Checked {
        let optimizer = &self.optimizer;
        positive("optimizer.learning_rate", optimizer.learning_rate)?;
        require((0.0..1.0).contains(&optimizer.beta1), "optimizer.beta1", "must be from 0 to below 1")?;
        require((0.0..1.0).contains(&optimizer.beta2), "optimizer.beta2", "must be from 0 to below 1")?;
        positive("optimizer.eps", optimizer.eps)?;
        not_negative("optimizer.weight_decay", optimizer.weight_decay)?;
        not_negative("optimizer.clip", optimizer.clip)
    }

    fn check_windows(&self) -> Checked {
        require(!self.window.is_empty(), "window", "is missing: give at least one `[[window]]`")?;
        let mut before = 0;
        for (index, window) in self.window.iter().enumerate() {
            let field = |name: &str| format!("window[{index}].{name}");
            require(window.tokens > before, field("tokens"), "must be more than in the window before it")?;
            require(
                window.tokens < self.update.max_tokens,
                field("tokens"),
                "must be less than `update.max_tokens`: a prompt stands before the response",
            )?;
            if let Some(clip) = window.clip {
                not_negative(&field("clip"), clip)?;
            }
            if let Some(is_max) = window.is_max {
                let above = is_max > 0.0 && is_max >= self.objective.objective().is_min;
                require(above, field("is_max"), "must be above 0 and not below `objective.is_min`")?;
            }
            before = window.tokens;
        }
        let rule = &self.window_rule;
        at_least_1("window_rule.batches", rule.batches as u64)?;
        not_negative("window_rule.tolerance", rule.tolerance)?;
        require((0.0..=1.0).contains(&rule.near), "window_rule.near", "must be from 0 to 1")
    }

    fn check_tasks(&self) -> Checked {
        require(!self.task.is_empty(), "task", "is missing: give at least one `[[task]]`")?;
        for (index, task) in self.task.iter().enumerate() {
            let field = |name: &str| format!("task[{index}].{name}");
            if task.prompts.is_some() {
                self.check_prompts(index)?;
                continue;
            }
            let known = arges_tasks::find(&task.name).map(|task| task.max_difficulty());
            let reason = format!("there is no task {:?}; `arges tasks list` names them", task.name);
            require(known.is_some(), field("name"), reason)?;
            positive(&field("weight"), task.weight)?;
            let [low, high] = task.difficulty.unwrap_or([1, 1]);
            let highest = known.unwrap_or(1);
            require(
                1 <= low && low <= high && low <= highest,
                field("difficulty"),
                format!("must be two numbers from 1 to {highest}, the lower first"),
            )?;
        }
        require(
            self.task.iter().any(|task| task.start == 0),
            "task",
            "has no source that is there from the start: give one `start = 0`",
        )?;
        let curriculum = &self.curriculum;
        positive("curriculum.explore", curriculum.explore)?;
        let rates = 0.0 <= curriculum.low && curriculum.low < curriculum.high && curriculum.high <= 1.0;
        require(rates, "curriculum.low", "and `curriculum.high` must be from 0 to 1, the lower first")?;
        at_least_1("curriculum.least", curriculum.least)?;
        at_least_1("curriculum.memory", curriculum.memory)
    }
}
