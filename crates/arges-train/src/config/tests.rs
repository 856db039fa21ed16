use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

/// Every field there is, with an explanation.
const EXAMPLE: &str = include_str!("../../../../docs/training-example.toml");

const SMALL: &str = r#"
run = "runs/small"
steps = 100
[model]
from = "models/base"
[batch]
max_tokens = 512
[[data]]
kind = "text"
paths = ["a.jsonl"]
"#;

const NEW: &str = r#"
[model.new]
tokenizer = "tokenizer"
hidden_size = 32
num_layers = 4
num_heads = 2
num_kv_heads = 1
head_dim = 16
intermediate_size = 32
"#;

const LORA: &str = "[lora]\nrank = 4\nalpha = 8.0\ntargets = [\"query\"]\n";

const TASKS: &str = "[[data]]\nkind = \"tasks\"\ntasks = [\"addition\"]\n";

fn parse(text: &str) -> Result<TrainConfig, ConfigError> {
    TrainConfig::from_toml(text, Path::new("run.toml"))
}

fn error(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

/// [`SMALL`] with some text in place of another.
fn small(old: &str, new: &str) -> String {
    assert!(SMALL.contains(old), "{old}");
    SMALL.replacen(old, new, 1)
}

/// The example with all fields set that it only tells of.
fn all_set() -> String {
    let set = |line: &'static str| {
        line.strip_prefix('#').filter(|rest| rest.starts_with(|c| c != ' ')).unwrap_or(line)
    };
    EXAMPLE.lines().map(set).collect::<Vec<_>>().join("\n")
}

/// Paths of all fields in a value; the entries of a list count as one.
fn fields(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields_here) => {
            for (name, value) in fields_here {
                let path = format!("{path}.{name}");
                fields(value, &path, found);
                found.insert(path);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| fields(item, path, found)),
        _ => {}
    }
}

#[test]
fn the_example_is_a_run_that_can_be_described() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(
        config.data.iter().map(DataConfig::display_name).collect::<Vec<_>>(),
        ["books", "conversations", "addition"]
    );
}

#[test]
fn the_example_tells_of_every_field_and_of_no_other() {
    let text = all_set();
    let config: TrainConfig = toml::from_str(&text).unwrap();
    let (mut written, mut known) = (BTreeSet::new(), BTreeSet::new());
    fields(&toml::from_str(&text).unwrap(), "", &mut written);
    fields(&serde_json::to_value(&config).unwrap(), "", &mut known);
    // The sources of an evaluation have the fields of those that are trained on, which are explained there.
    let explained = |path: &String| !path.starts_with(".evaluation.data.");
    written.retain(explained);
    known.retain(explained);
    assert_eq!(written, known);
    assert!(known.contains(".lora.alpha") && known.contains(".model.new.rope_theta"), "{known:?}");
}

#[test]
fn each_field_of_the_example_stands_under_its_explanation() {
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    let is_field = |line: &str| line.contains(" = ") && !line.starts_with("# ");
    let sections = EXAMPLE.split("\n\n").map(|section| section.lines().filter(|line| is_field(line)).count());
    assert_eq!(sections.sum::<usize>(), lines.iter().filter(|line| is_field(line)).count());
    let bare = lines.windows(2).filter(|pair| is_field(pair[1]) && !pair[0].starts_with("# "));
    // Fields that were explained in an earlier source, and `kind`, which the text before each source explains.
    let repeated = ["kind", "paths", "weight"];
    for pair in bare {
        let name = pair[1].split(" = ").next().unwrap();
        assert!(repeated.contains(&name), "{} is not explained", pair[1]);
    }
}

#[test]
fn what_the_example_calls_a_default_is_one() {
    let shown: Vec<&str> = EXAMPLE.lines().filter(|line| line.ends_with("# default")).collect();
    assert!(shown.len() > 20, "{shown:?}");
    let left_out: Vec<&str> = EXAMPLE.lines().filter(|line| !line.ends_with("# default")).collect();
    assert_eq!(parse(&left_out.join("\n")).unwrap(), parse(EXAMPLE).unwrap());
}

#[test]
fn only_a_few_fields_must_be_given() {
    let config = parse(SMALL).unwrap();
    assert_eq!((config.steps, config.seed, config.balance_loss), (100, 0, None));
    assert_eq!((config.batch.sequence_length(), config.batch.max_sequences()), (512, 16));
    assert_eq!((config.model.compute, config.model.save_dtype), (ComputeType::F32, SaveType::F32));
    assert_eq!(config.optimizer, OptimizerConfig::default());
    assert!(config.data[0].shuffle && config.data[0].weight == 1.0);
    let new = SMALL.replace("[model]\nfrom = \"models/base\"", NEW);
    assert_eq!(parse(&new).unwrap().model.new.unwrap().max_position_embeddings, 1 << 20);
}

#[test]
fn a_field_that_is_unknown_missing_or_of_another_type_is_named() {
    let root = |field: &str| format!("{field}\n{SMALL}");
    let end = |text: &str| format!("{SMALL}{text}\n");
    for (text, name) in [
        (root("step = 3"), "unknown field `step`"),
        (small("from =", "form ="), "unknown field `form`"),
        (end("path = 3"), "unknown field `path`"),
        (end("[optimizer]\nlr = 1.0"), "unknown field `lr`"),
        (end("[schedule]\nwarmup = 1"), "unknown field `warmup`"),
        (end("[checkpoint]\nkeeps = 1"), "unknown field `keeps`"),
        (end("[evaluation]\nevery = 1\nsteps = 2"), "unknown field `steps`"),
        (small("max_tokens = 512", "max_tokens = 512\ntokens = 1"), "unknown field `tokens`"),
        (end(&format!("{LORA}dropout = 0.1")), "unknown field `dropout`"),
        (end(&format!("{NEW}width = 1")), "unknown field `width`"),
        (small("run = \"runs/small\"", ""), "missing field `run`"),
        (small("steps = 100", ""), "missing field `steps`"),
        (small("[model]\nfrom = \"models/base\"", ""), "missing field `model`"),
        (small("[batch]\nmax_tokens = 512", ""), "missing field `batch`"),
        (small("max_tokens = 512", ""), "missing field `max_tokens`"),
        (small("kind = \"text\"", ""), "missing field `kind`"),
        (end("[evaluation]\nevery = 1"), "missing field `data`"),
        (end(&NEW.replace("num_heads = 2", "")), "missing field `num_heads`"),
        (end(&LORA.replace("alpha = 8.0", "")), "missing field `alpha`"),
        (small("steps = 100", "steps = \"100\""), "steps = \"100\""),
        (small("steps = 100", "steps = -1"), "steps = -1"),
        (small("steps = 100", "steps = 1.5"), "steps = 1.5"),
        (small("max_tokens = 512", "max_tokens = true"), "max_tokens = true"),
        (small("paths = [\"a.jsonl\"]", "paths = \"a.jsonl\""), "paths = \"a.jsonl\""),
        (small("kind = \"text\"", "kind = \"texts\""), "unknown variant `texts`"),
        (end("difficulty = [1]"), "difficulty = [1]"),
        (end("shuffle = 1"), "shuffle = 1"),
        (end("[schedule]\nkind = \"linear\""), "unknown variant `linear`"),
        (end(&LORA.replace("query", "queries")), "unknown variant `queries`"),
        (end(&format!("{NEW}attention = [\"none\"]")), "unknown variant `none`"),
        (small("from =", "compute = \"f16\"\nfrom ="), "unknown variant `f16`"),
        (small("steps = 100", "steps = 100\nsteps = 200"), "duplicate key"),
        ("run = ".to_owned(), "run = "),
    ] {
        let error = error(&text);
        assert!(error.starts_with("run.toml: ") && error.contains(name), "{name}: {error}");
    }
}

#[test]
fn a_value_out_of_range_is_an_error_that_names_the_field() {
    let end = |text: &str| format!("{SMALL}{text}\n");
    let new = |text: &str| SMALL.replace("[model]\nfrom = \"models/base\"", &format!("{NEW}{text}"));
    let optimizer = |text: &str| end(&format!("[optimizer]\n{text}"));
    let schedule = |text: &str| end(&format!("[schedule]\n{text}"));
    let batch = |text: &str| small("max_tokens = 512", &format!("max_tokens = 512\n{text}"));
    let evaluation = |text: &str| {
        end(&format!("[evaluation]\n{text}\n[[evaluation.data]]\nkind = \"text\"\npaths = [\"b.jsonl\"]"))
    };
    let lora = |old: &str, new: &str| end(&LORA.replace(old, new));
    let tasks = |text: &str| end(&format!("{TASKS}{text}"));
    for (text, field) in [
        (small("runs/small", ""), "run"),
        (small("steps = 100", "steps = 0"), "steps"),
        (small("steps = 100", "steps = 100\nbalance_loss = -0.1"), "balance_loss"),
        (small("steps = 100", "steps = 100\nbalance_loss = nan"), "balance_loss"),
        (small("from = \"models/base\"", ""), "model.from"),
        (end(NEW), "model.new"),
        (new("dialect = \"llama\""), "model.new.dialect"),
        (new("softmax_every = 2\nattention = [\"softmax\"]"), "model.new.attention"),
        (new(LORA), "lora"),
        (lora("rank = 4", "rank = 0"), "lora.rank"),
        (lora("8.0", "0.0"), "lora.alpha"),
        (lora("8.0", "inf"), "lora.alpha"),
        (lora("\"query\"", ""), "lora.targets"),
        (optimizer("learning_rate = 0.0"), "optimizer.learning_rate"),
        (optimizer("learning_rate = inf"), "optimizer.learning_rate"),
        (optimizer("beta1 = 1.0"), "optimizer.beta1"),
        (optimizer("beta2 = -0.1"), "optimizer.beta2"),
        (optimizer("eps = 0.0"), "optimizer.eps"),
        (optimizer("weight_decay = -1.0"), "optimizer.weight_decay"),
        (optimizer("clip = nan"), "optimizer.clip"),
        (schedule("min_lr_ratio = 1.5"), "schedule.min_lr_ratio"),
        (schedule("warmup_steps = 101"), "schedule.warmup_steps"),
        (schedule("decay_steps = 0"), "schedule.decay_steps"),
        (schedule("kind = \"wsd\"\nwarmup_steps = 50\ndecay_steps = 51"), "schedule.decay_steps"),
        (schedule("kind = \"constant\"\ndecay_steps = 5"), "schedule.decay_steps"),
        (small("max_tokens = 512", "max_tokens = 1"), "batch.max_tokens"),
        (small("max_tokens = 512", "max_tokens = 1073741825"), "batch.max_tokens"),
        (batch("sequence_length = 1"), "batch.sequence_length"),
        (batch("sequence_length = 513"), "batch.sequence_length"),
        (batch("max_sequences = 0"), "batch.max_sequences"),
        (batch("max_sequences = 513"), "batch.max_sequences"),
        (batch("accumulation = 0"), "batch.accumulation"),
        (end("[checkpoint]\nevery = 0"), "checkpoint.every"),
        (end("[checkpoint]\nshard_bytes = 0"), "checkpoint.shard_bytes"),
        (evaluation("every = 0"), "evaluation.every"),
        (evaluation("every = 1\ndocuments = 0"), "evaluation.documents"),
        (evaluation("every = 1\ndocuments = 4294967297"), "evaluation.documents"),
        (end("[evaluation]\nevery = 1\ndata = []"), "evaluation.data"),
        (
            evaluation("every = 1").replace("b.jsonl\"]", "b.jsonl\"]\nweight = 0.0"),
            "evaluation.data[0].weight",
        ),
        (small("[[data]]\nkind = \"text\"\npaths = [\"a.jsonl\"]", ""), "data"),
        (small("paths = [\"a.jsonl\"]", ""), "data[0].paths"),
        (end("weight = 0.0"), "data[0].weight"),
        (end("weight = inf"), "data[0].weight"),
        (end("tasks = [\"addition\"]"), "data[0].tasks"),
        (end("difficulty = [1, 2]"), "data[0].difficulty"),
        (end("thinking = 0.5"), "data[0].thinking"),
        (end("name = \"\""), "data[0].name"),
        (small("a.jsonl", ".."), "data[0].name"),
        (end("[[data]]\nkind = \"messages\"\npaths = [\"other/a.parquet\"]"), "data[1].name"),
        (tasks("paths = [\"b.jsonl\"]"), "data[1].paths"),
        (tasks("field = \"text\""), "data[1].field"),
        (tasks("difficulty = [0, 1]"), "data[1].difficulty"),
        (tasks("difficulty = [3, 2]"), "data[1].difficulty"),
        (tasks("thinking = 1.1"), "data[1].thinking"),
        (tasks("").replace("\"addition\"", ""), "data[1].tasks"),
        (tasks("").replace("addition", "addiction"), "data[1].tasks"),
    ] {
        let error = parse(&text).expect_err(&text);
        let ConfigError::Field { field: found, reason, .. } = &error else { panic!("{field}: {error}") };
        assert_eq!((found.as_str(), reason.is_empty()), (field, false), "{error}");
        assert!(error.to_string().starts_with(&format!("run.toml: field `{field}`: ")), "{error}");
    }
}

#[test]
fn values_at_the_ends_of_their_ranges_are_allowed() {
    for text in [
        format!(
            "{SMALL}[schedule]\nkind = \"wsd\"\nwarmup_steps = 50\ndecay_steps = 50\nmin_lr_ratio = 0.0\n"
        ),
        format!("{SMALL}[optimizer]\nbeta1 = 0.0\nbeta2 = 0.0\nweight_decay = 0.0\nclip = 0.0\n"),
        format!("{SMALL}[checkpoint]\nkeep = 0\n"),
        format!("{SMALL}{TASKS}difficulty = [1, 4000000000]\nthinking = 0\n"),
        format!("{SMALL}{}", TASKS.replace("addition", "all")),
        format!("{SMALL}{LORA}"),
        small("max_tokens = 512", "max_tokens = 512\nsequence_length = 512\nmax_sequences = 512"),
        small("max_tokens = 512", "max_tokens = 2"),
    ] {
        parse(&text).unwrap();
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("none.toml");
    let error = TrainConfig::from_file(&file).unwrap_err();
    assert!(matches!(&error, ConfigError::Read { file: named, .. } if *named == file), "{error}");
    std::fs::write(&file, SMALL).unwrap();
    assert_eq!(TrainConfig::from_file(&file).unwrap(), parse(SMALL).unwrap());
}

#[test]
fn a_run_keeps_its_identity_when_only_its_length_its_place_and_what_it_saves_or_evaluates_change() {
    let one = parse(EXAMPLE).unwrap();
    let mut other = one.clone();
    other.run = PathBuf::from("elsewhere");
    other.steps += 1;
    other.checkpoint = CheckpointConfig { every: 1, keep: 1, shard_bytes: 1 };
    other.evaluation = None;
    assert_eq!(one.identity(), other.identity());
}

#[test]
fn a_run_has_another_identity_when_anything_else_changes() {
    let one: TrainConfig = toml::from_str(&all_set()).unwrap();
    let whole = serde_json::to_value(&one).unwrap();
    let mut pointers = Vec::new();
    leaves(&whole, String::new(), &mut pointers);
    let free = ["/run", "/steps", "/checkpoint/", "/evaluation/", "/batch/recompute"];
    let mut bound = 0;
    for pointer in &pointers {
        let value = whole.pointer(pointer).unwrap();
        // A field that one kind of data does not have is set where another kind has it.
        if value.is_null() {
            continue;
        }
        let mut changed = whole.clone();
        *changed.pointer_mut(pointer).unwrap() = another(value);
        // Lists of names and of numbers of fixed length may not be read back with such a value.
        let Ok(other) = serde_json::from_value::<TrainConfig>(changed) else { continue };
        let is_free = free.iter().any(|free| pointer.starts_with(free));
        assert_eq!(other.identity() == one.identity(), is_free, "{pointer}");
        bound += usize::from(!is_free);
    }
    assert!(bound > 40, "{bound}");
}

fn leaves(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| leaves(value, format!("{at}/{name}"), found))
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| leaves(value, format!("{at}/{i}"), found))
        }
        _ => found.push(at),
    }
}

fn another(value: &Value) -> Value {
    match value {
        Value::Bool(on) => (!on).into(),
        Value::String(text) => match text.as_str() {
            "f32" => "bf16".into(),
            "cosine" => "wsd".into(),
            "text" | "messages" => "tasks".into(),
            "tasks" => "text".into(),
            "lightning" => "softmax".into(),
            "softmax" => "lightning".into(),
            "query" => "key".into(),
            "auto" => "layers".into(),
            other => format!("{other}x").into(),
        },
        number => match number.as_u64() {
            Some(number) => (number + 1).into(),
            None => (number.as_f64().unwrap() / 2.0).into(),
        },
    }
}
