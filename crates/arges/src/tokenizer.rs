//! `arges tokenizer train`: a tokenizer for a new model.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use arges_tasks::Task;
use arges_text::ChatTemplate;
use arges_text::train::{TokenizerTraining, train_tokenizer};
use arges_train::data::FIRST_TRAINING_SEED;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::failure::usage;

/// Plain text is handed on in pieces of about this size, cut between lines.
const PIECE_BYTES: usize = 64 << 10;

#[derive(Debug, Subcommand)]
pub enum TokenizerCommand {
    /// Learn a byte-level BPE tokenizer from text, with M1's turn markers and chat template
    Train(TrainArgs),
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct TrainArgs {
    /// Files to learn from. Those named .jsonl or .json hold one object a line, with `text`, or with `messages` and
    /// perhaps `tools`, which go through the chat template; others are plain text
    #[arg(short, long, value_name = "FILE", num_args = 1.., required_unless_present = "tasks")]
    input: Vec<PathBuf>,
    /// Tasks to learn from, by name, or all: solved instances as conversations (see arges tasks list)
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    tasks: Vec<String>,
    /// Instances of each task, over all its difficulties
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "tasks")]
    count: u64,
    /// Tokens in all: 256 bytes, what is learned, and 4 turn markers
    #[arg(long, value_name = "N")]
    vocab_size: usize,
    /// Let tokens hold several digits. Without it every digit is a token, which small models need to calculate
    #[arg(long)]
    group_digits: bool,
    /// Directory to write tokenizer.json and tokenizer_config.json to
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Replace a tokenizer that is there
    #[arg(long)]
    overwrite: bool,
}

const EXAMPLES: &str = "\
The same texts give the same files, byte for byte.

Examples:
  arges tokenizer train --input corpus.txt chats.jsonl --vocab-size 8192 -o my-model
  arges tokenizer train --tasks all --count 2000 --vocab-size 2048 -o my-model";

pub fn run(command: TokenizerCommand) -> Result<()> {
    match command {
        TokenizerCommand::Train(args) => train(&args),
    }
}

fn train(args: &TrainArgs) -> Result<()> {
    let tasks = chosen_tasks(&args.tasks)?;
    let existing = args.out.join("tokenizer.json");
    if existing.exists() && !args.overwrite {
        bail!("{} is there already: --overwrite replaces it", existing.display());
    }
    let template = ChatTemplate::default_m1();
    let files = args.input.iter().flat_map(|file| file_texts(file, &template));
    let texts = files.chain(task_texts(&tasks, args.count, &template));

    let (mut failure, mut count, mut bytes) = (None, 0u64, 0u64);
    let until_failure = texts.map_while(|text| text.map_err(|error| failure = Some(error)).ok());
    let counted = until_failure.inspect(|text| {
        count += 1;
        bytes += text.len() as u64;
    });
    let training =
        TokenizerTraining { single_digits: !args.group_digits, ..TokenizerTraining::new(args.vocab_size) };
    let tokenizer = train_tokenizer(counted, &training);
    if let Some(error) = failure {
        return Err(error);
    }
    let tokenizer = tokenizer?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let ids = tokenizer.write(&args.out)?;
    eprintln!(
        "{}: {} tokens, learned from {count} texts of {bytes} bytes; <beginning_of_sentence> is {}, \
         <end_of_sentence> {}",
        args.out.display(),
        args.vocab_size,
        ids.beginning_of_sentence,
        ids.end_of_sentence
    );
    Ok(())
}

type Texts<'a> = Box<dyn Iterator<Item = Result<String>> + Send + 'a>;

/// The texts of a file, or the one error that it cannot be opened.
fn file_texts<'a>(path: &'a Path, template: &'a ChatTemplate) -> Texts<'a> {
    let file = match File::open(path).with_context(|| format!("cannot read {}", path.display())) {
        Ok(file) => BufReader::new(file),
        Err(error) => return Box::new(std::iter::once(Err(error))),
    };
    if path.extension().is_some_and(|extension| extension == "jsonl" || extension == "json") {
        Box::new(json_texts(file, path, template))
    } else {
        Box::new(plain_texts(file, path))
    }
}

/// One text for each line that is not empty.
fn json_texts<'a>(
    file: impl BufRead + Send + 'a,
    path: &'a Path,
    template: &'a ChatTemplate,
) -> impl Iterator<Item = Result<String>> + Send + 'a {
    file.lines().enumerate().filter_map(move |(number, line)| {
        let text = match line {
            Ok(line) if line.trim().is_empty() => return None,
            Ok(line) => json_text(&line, template),
            Err(error) => Err(error.into()),
        };
        Some(text.with_context(|| format!("{}, line {}", path.display(), number + 1)))
    })
}

fn json_text(line: &str, template: &ChatTemplate) -> Result<String> {
    let line: Value = serde_json::from_str(line)?;
    if let Some(text) = line.get("text").and_then(Value::as_str) {
        return Ok(text.to_owned());
    }
    if line.get("messages").is_some_and(Value::is_array) {
        return conversation_text(&line, template);
    }
    Err(anyhow!("a line is an object with `text`, a string, or `messages`, a list"))
}

/// A conversation, `{"messages": […], "tools": […]}`, as the model sees it.
fn conversation_text(conversation: &Value, template: &ChatTemplate) -> Result<String> {
    let list = |name: &str| conversation.get(name).and_then(Value::as_array).map(Vec::as_slice);
    Ok(template.render(list("messages").unwrap_or_default(), list("tools"), false)?)
}

/// The lines of a file, some thousand at a time.
fn plain_texts<'a>(
    mut file: impl BufRead + Send + 'a,
    path: &'a Path,
) -> impl Iterator<Item = Result<String>> + Send + 'a {
    std::iter::from_fn(move || {
        let mut text = String::new();
        while text.len() < PIECE_BYTES {
            match file.read_line(&mut text) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    return Some(Err(error).with_context(|| format!("cannot read {}", path.display())));
                }
            }
        }
        (!text.is_empty()).then_some(Ok(text))
    })
}

fn chosen_tasks(names: &[String]) -> Result<Vec<&'static dyn Task>> {
    if names.iter().any(|name| name == "all") {
        return Ok(arges_tasks::all().to_vec());
    }
    let task = |name: &String| {
        arges_tasks::find(name).ok_or_else(|| {
            let known: Vec<&str> = arges_tasks::all().iter().map(|task| task.name()).collect();
            usage(format!("there is no task {name}; there are all, {}", known.join(", ")))
        })
    };
    names.iter().map(task).collect()
}

/// Solved instances of the tasks, each difficulty in turn; none has a seed of evaluation.
fn task_texts<'a>(
    tasks: &'a [&'static dyn Task],
    count: u64,
    template: &'a ChatTemplate,
) -> impl Iterator<Item = Result<String>> + Send + 'a {
    let text = |task: &dyn Task, number: u64| {
        let difficulty = 1 + number % u64::from(task.max_difficulty());
        let instance = task.generate(FIRST_TRAINING_SEED + number, difficulty as u32);
        conversation_text(&task.conversation(&instance, &task.solve(&instance)), template)
    };
    tasks.iter().flat_map(move |task| (0..count).map(move |number| text(*task, number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &str) -> Vec<String> {
        let template = ChatTemplate::default_m1();
        let texts = json_texts(lines.as_bytes(), Path::new("f.jsonl"), &template);
        texts.map(|text| text.unwrap_or_else(|error| format!("{error:#}"))).collect()
    }

    #[test]
    fn a_line_is_a_text_or_a_conversation() {
        let lines = "{\"text\": \"a\\nb\", \"more\": 1}\n\n\
                     {\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"tools\": [{\"name\": \"f\"}]}\n";
        let texts = texts(lines);
        assert_eq!(texts.len(), 2);
        assert_eq!(texts[0], "a\nb");
        assert!(
            texts[1].contains("{\"name\": \"f\"}") && texts[1].contains("user name=user\nhi<end"),
            "{}",
            texts[1]
        );
    }

    #[test]
    fn a_line_that_is_neither_is_named() {
        for (line, part) in [
            ("{", "EOF"),
            ("[]", "`text`"),
            ("{\"text\": 1}", "`text`"),
            ("{\"messages\": [{\"role\": \"x\"}]}", "messages[0]"),
        ] {
            let texts = texts(&format!("\n{line}\n"));
            assert!(texts[0].starts_with("f.jsonl, line 2: ") && texts[0].contains(part), "{texts:?}");
        }
    }

    #[test]
    fn plain_text_comes_in_pieces_of_whole_lines() {
        let line = format!("{}\n", "x".repeat(999));
        let whole = line.repeat(200) + "end";
        let pieces: Vec<String> =
            plain_texts(whole.as_bytes(), Path::new("f")).collect::<Result<_>>().unwrap();
        assert_eq!(pieces.concat(), whole);
        assert!(pieces.len() > 2 && pieces[..pieces.len() - 1].iter().all(|piece| piece.ends_with('\n')));
        let broken = plain_texts(&b"\xff"[..], Path::new("f")).next().unwrap();
        assert_eq!(broken.unwrap_err().to_string(), "cannot read f");
    }

    #[test]
    fn every_task_can_be_learned_from() {
        let template = ChatTemplate::default_m1();
        let tasks = chosen_tasks(&["all".to_owned()]).unwrap();
        for text in task_texts(&tasks, 3, &template) {
            assert!(text.unwrap().contains("<beginning_of_sentence>ai name=assistant\n"));
        }
        let error = chosen_tasks(&["additoin".to_owned()]).err().unwrap().to_string();
        assert!(error.contains("no task additoin") && error.contains("addition"), "{error}");
    }
}
