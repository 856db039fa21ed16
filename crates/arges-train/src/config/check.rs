//! What a configuration must fulfil beyond the types of its fields.

use std::collections::HashSet;
use std::path::Path;

use arges_model::Dialect;

use super::{
    ComputeType, ConfigError, DataConfig, DataKind, NewModel, OptimizerConfig, ScheduleKind, TrainConfig,
};

type Checked = Result<(), (String, String)>;

/// A field and what is wrong with it, unless the condition holds.
fn require(condition: bool, field: impl Into<String>, reason: impl Into<String>) -> Checked {
    if condition { Ok(()) } else { Err((field.into(), reason.into())) }
}

impl TrainConfig {
    pub(super) fn check(&self, file: &Path) -> Result<(), ConfigError> {
        self.check_fields().map_err(|(field, reason)| ConfigError::Field {
            file: file.to_owned(),
            field,
            reason,
        })
    }

    fn check_fields(&self) -> Checked {
        require(!self.run.as_os_str().is_empty(), "run", "a directory is needed")?;
        require(self.steps > 0, "steps", "must be at least 1")?;
        let coefficient = self.balance_loss.is_none_or(|c| c.is_finite() && c >= 0.0);
        require(coefficient, "balance_loss", "must be a number from 0")?;
        self.check_model()?;
        check_optimizer(&self.optimizer)?;
        self.check_schedule()?;
        self.check_batch()?;
        require(self.checkpoint.every > 0, "checkpoint.every", "must be at least 1")?;
        require(self.checkpoint.shard_bytes > 0, "checkpoint.shard_bytes", "must be at least 1")?;
        check_sources("data", &self.data)?;
        if let Some(evaluation) = &self.evaluation {
            require(evaluation.every > 0, "evaluation.every", "must be at least 1")?;
            let documents = (1..=1 << 32).contains(&evaluation.documents);
            require(documents, "evaluation.documents", "must be from 1 to 2^32, the seeds kept for it")?;
            check_sources("evaluation.data", &evaluation.data)?;
        }
        Ok(())
    }

    fn check_model(&self) -> Checked {
        match (&self.model.from, &self.model.new) {
            (Some(_), Some(_)) => {
                return require(
                    false,
                    "model.new",
                    "does not go with `model.from`: one of them is the start",
                );
            }
            (None, None) => {
                return require(false, "model.from", "is missing; a new model has `[model.new]` instead");
            }
            (None, Some(new)) => {
                check_new_model(new)?;
                require(self.lora.is_none(), "lora", "adapts a checkpoint and needs `model.from`")?;
            }
            (Some(_), None) => {}
        }
        require(
            self.model.head == ComputeType::F32 || self.model.compute == ComputeType::Bf16,
            "model.head",
            "bf16 goes with `compute = \"bf16\"`",
        )?;
        if let Some(lora) = &self.lora {
            require(lora.rank > 0, "lora.rank", "must be at least 1")?;
            require(lora.alpha.is_finite() && lora.alpha > 0.0, "lora.alpha", "must be a number above 0")?;
            require(!lora.targets.is_empty(), "lora.targets", "names no matrices")?;
        }
        Ok(())
    }

    fn check_schedule(&self) -> Checked {
        let schedule = &self.schedule;
        let ratio = (0.0..=1.0).contains(&schedule.min_lr_ratio);
        require(ratio, "schedule.min_lr_ratio", "must be from 0 to 1")?;
        require(
            schedule.warmup_steps <= self.steps,
            "schedule.warmup_steps",
            format!("must be at most `steps`, {}", self.steps),
        )?;
        let Some(decay) = schedule.decay_steps else { return Ok(()) };
        require(decay > 0, "schedule.decay_steps", "must be at least 1")?;
        let fits = schedule.kind != ScheduleKind::Wsd || decay <= self.steps - schedule.warmup_steps;
        let field = "schedule.decay_steps";
        require(fits, field, "and `schedule.warmup_steps` together are more than `steps`")?;
        require(schedule.kind != ScheduleKind::Constant, field, "goes with cosine and wsd, not with constant")
    }

    fn check_batch(&self) -> Checked {
        const MOST_TOKENS: usize = 1 << 30;
        let batch = &self.batch;
        let tokens = (2..=MOST_TOKENS).contains(&batch.max_tokens);
        require(
            tokens,
            "batch.max_tokens",
            "must be from 2 to 2^30: a sequence of one token has nothing to predict",
        )?;
        require(
            (2..=batch.max_tokens).contains(&batch.sequence_length()),
            "batch.sequence_length",
            format!("must be from 2 to `batch.max_tokens`, {}", batch.max_tokens),
        )?;
        require(
            (1..=batch.max_tokens).contains(&batch.max_sequences()),
            "batch.max_sequences",
            format!("must be from 1 to `batch.max_tokens`, {}", batch.max_tokens),
        )?;
        require(batch.accumulation > 0, "batch.accumulation", "must be at least 1")
    }
}

fn check_new_model(new: &NewModel) -> Checked {
    let known = Dialect::ALL.map(Dialect::model_type);
    let reason = format!("{:?} is none of {}", new.dialect, known.join(", "));
    require(known.contains(&new.dialect.as_str()), "model.new.dialect", reason)?;
    require(
        new.attention.is_none() || new.softmax_every.is_none(),
        "model.new.attention",
        "does not go with `model.new.softmax_every`",
    )
}

fn check_optimizer(optimizer: &OptimizerConfig) -> Checked {
    let OptimizerConfig { learning_rate, beta1, beta2, eps, weight_decay, clip } = *optimizer;
    let positive = |x: f64| x.is_finite() && x > 0.0;
    let not_negative = |x: f64| x.is_finite() && x >= 0.0;
    require(positive(learning_rate), "optimizer.learning_rate", "must be a number above 0")?;
    require((0.0..1.0).contains(&beta1), "optimizer.beta1", "must be from 0 to below 1")?;
    require((0.0..1.0).contains(&beta2), "optimizer.beta2", "must be from 0 to below 1")?;
    require(positive(eps), "optimizer.eps", "must be a number above 0")?;
    require(not_negative(weight_decay), "optimizer.weight_decay", "must be a number from 0")?;
    require(not_negative(clip), "optimizer.clip", "must be a number from 0")
}

fn check_sources(list: &str, sources: &[DataConfig]) -> Checked {
    require(!sources.is_empty(), list, format!("is missing: give at least one `[[{list}]]`"))?;
    let mut names = HashSet::new();
    for (index, source) in sources.iter().enumerate() {
        check_source(source).map_err(|(field, reason)| (format!("{list}[{index}].{field}"), reason))?;
        let name = source.display_name();
        let reason = "is empty, or the path gives none: the source needs one in metrics";
        require(!name.is_empty(), format!("{list}[{index}].name"), reason)?;
        let reason = format!("{name:?} is the name of another source too: give each a `name` of its own");
        require(names.insert(name), format!("{list}[{index}].name"), reason)?;
    }
    Ok(())
}

fn check_source(source: &DataConfig) -> Checked {
    require(source.weight.is_finite() && source.weight > 0.0, "weight", "must be a number above 0")?;
    if source.kind != DataKind::Tasks {
        require(!source.paths.is_empty(), "paths", "names no files")?;
        require(source.tasks.is_empty(), "tasks", "goes with kind \"tasks\" only")?;
        require(source.difficulty.is_none(), "difficulty", "goes with kind \"tasks\" only")?;
        return require(source.thinking.is_none(), "thinking", "goes with kind \"tasks\" only");
    }
    require(source.paths.is_empty(), "paths", "goes with kinds \"text\" and \"messages\" only")?;
    require(source.field.is_none(), "field", "goes with kinds \"text\" and \"messages\" only")?;
    require(!source.tasks.is_empty(), "tasks", "names no tasks; \"all\" stands for each there is")?;
    for name in source.tasks.iter().filter(|name| *name != "all") {
        let reason = format!("there is no task {name:?}; `arges tasks list` names them");
        require(arges_tasks::find(name).is_some(), "tasks", reason)?;
    }
    let [low, high] = source.difficulty.unwrap_or([1, 1]);
    require(1 <= low && low <= high, "difficulty", "must be two numbers from 1, the lower first")?;
    let share = source.thinking.is_none_or(|share| (0.0..=1.0).contains(&share));
    require(share, "thinking", "must be from 0 to 1")
}
