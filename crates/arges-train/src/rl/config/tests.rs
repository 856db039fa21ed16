use std::path::Path;

use serde_json::Value;

use super::*;

const EXAMPLE: &str = include_str!("../../../../../docs/rl-example.toml");

/// The example with the fields set that it only tells of.
fn whole() -> String {
    let lines = EXAMPLE.lines().map(|line| match line.strip_prefix("# ") {
        Some(field) if field.split_once(" = ").is_some_and(|(name, _)| !name.contains(' ')) => field,
        _ => line,
    });
    lines.map(|line| format!("{line}\n")).collect()
}

fn read(text: &str) -> Result<RlConfig, String> {
    RlConfig::from_toml(text, Path::new("x.toml")).map_err(|error| error.to_string())
}

fn fields(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => object.iter().for_each(|(name, value)| {
            found.push(name.clone());
            fields(value, found);
        }),
        Value::Array(items) => items.iter().for_each(|item| fields(item, found)),
        _ => {}
    }
}

#[test]
fn the_example_is_a_run_and_tells_of_every_field() {
    let example = read(EXAMPLE).unwrap();
    let text = whole().replace("anchor = \"rollout\"", "anchor = \"old\"");
    let whole = read(&text).unwrap();
    let mut names = Vec::new();
    fields(&serde_json::to_value(&whole).unwrap(), &mut names);
    assert!(names.len() > 60);
    for name in names.iter().filter(|name| *name != "new" && *name != "lora") {
        let told = |text: &str| {
            text.lines().any(|line| {
                let line = line.trim_start_matches(['[', '#', ' ']);
                line.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with([' ', ']', '.']))
            }) || text.contains(&format!("{{ {name} = "))
                || text.contains(&format!(", {name} = "))
        };
        assert!(told(EXAMPLE), "the example does not tell of `{name}`");
    }
    assert_eq!(example.objective.objective(), Algorithm::Cispo.objective());
}

#[test]
fn what_the_example_calls_a_default_is_one() {
    let least = "run = 'r'\nbatches = 40\n[model]\nfrom = 'models/nano'\n[rollout]\nprompts = 16\nresponses = 8\n\
                 [update]\nmax_tokens = 2048\n[[window]]\ntokens = 200\n[[task]]\nname = 'word_sorting'\n";
    let config = read(least).unwrap();
    assert_eq!((config.seed, config.balance_loss, config.update.updates), (0, 0.0, 16));
    assert_eq!(config.optimizer, RlOptimizerConfig::default());
    assert_eq!((config.optimizer.eps, config.optimizer.learning_rate), (1e-15, 1e-6));
    assert_eq!((config.optimizer.warmup_steps, config.optimizer.weight_decay), (20, 0.0));
    let example = read(EXAMPLE).unwrap();
    assert_eq!(config.curriculum, example.curriculum);
    assert_eq!(config.window_rule, example.window_rule);
    assert_eq!(config.checkpoint, example.checkpoint);
    assert_eq!(config.advantage, AdvantageConfig { overlong: None, ..example.advantage });
    assert_eq!(config.rollout, RolloutConfig { repetition: None, ..example.rollout });
}

#[test]
fn a_wrong_field_is_named() {
    for (then, now, message) in [
        ("is_min = 0.0", "is_min = 1.0", "field `objective.is_min`: is absolute"),
        ("is_max = 5.0\n#", "is_max = -1.0\n#", "field `objective.is_max`: must be above 0"),
        ("# mask_low = 0.2", "mask_low = 0.2", "field `objective.mask_high`: is missing"),
        ("# rollout_correction = 2.0", "rollout_correction = 2.0", "goes with anchor `old`"),
        ("head = \"f32\"", "head = \"bf16\"", "field `model.head`: must be f32"),
        ("responses = 8", "responses = 1", "field `rollout.responses`: must be at least 2"),
        ("updates = 4", "updates = 129", "field `update.updates`: must be at most the 128 responses"),
        ("tokens = 200", "tokens = 2048", "field `window[0].tokens`: must be less than `update.max_tokens`"),
        ("name = \"game_of_24\"", "name = \"x\"", "field `task[0].name`: there is no task \"x\""),
        ("difficulty = [1, 1]", "difficulty = [3, 1]", "field `task[0].difficulty`"),
        ("difficulty = [1, 1]", "prompts = \"p\"", "field `task[0].name`: is that of another task"),
        ("name = \"game_of_24\"", "name = \"x\"\nprompts = \"p\"", "`task[0].difficulty`: is none of a file"),
        ("[curriculum]", "[reward_model]\nurl = \"u\"\nmodel = \"m\"\n[curriculum]", "has nothing to judge"),
        ("start = 0", "start = 1", "field `task`: has no source that is there from the start"),
        ("explore = 0.05", "explore = 0.0", "field `curriculum.explore`: must be a number above 0"),
        ("step_tokens = 512", "step_tokens = 8", "field `rollout.step_tokens`: must be at least"),
        ("eps = 1e-15", "epsilon = 1e-15", "unknown field `epsilon`"),
        ("from = \"models/nano\"", "", "field `model.from`: is missing"),
    ] {
        assert!(EXAMPLE.contains(then), "{then}");
        let error = read(&EXAMPLE.replace(then, now)).unwrap_err();
        assert!(error.contains(message), "{now}: {error}");
    }
}

#[test]
fn what_differs_from_the_algorithm_is_set_in_its_place() {
    let objective = |text: &str| toml::from_str::<ObjectiveConfig>(text).unwrap().objective();
    let dapo = Algorithm::Dapo.objective();
    assert_eq!(objective("algorithm = 'dapo'"), dapo);
    assert_eq!(objective("algorithm = 'dapo'\nis_max = 2"), Objective { is_max: 2.0, ..dapo });
    let mask = Some(TokenMask { low: 0.1, high: 0.3 });
    assert_eq!(objective("algorithm = 'dapo'\nmask_low = 0.1\nmask_high = 0.3"), Objective { mask, ..dapo });
    assert_eq!(objective("is_max = inf").is_max, f64::INFINITY);
}

#[test]
fn a_run_may_be_longer_when_it_is_resumed_but_not_another_one() {
    let one = read(EXAMPLE).unwrap();
    let longer = RlConfig { batches: 99, evaluation: None, run: "y".into(), ..one.clone() };
    assert_eq!(one.identity(), longer.identity());
    let other = RlConfig { seed: 2, ..one.clone() };
    assert_ne!(one.identity(), other.identity());
}
