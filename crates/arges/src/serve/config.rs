//! Settings of `arges serve` from a file, the environment and flags; of these the later ones count.
//!
//! Every setting is defined once, as a flag. `--max-sequences` is `max_sequences` in the file and
//! `ARGES_MAX_SEQUENCES` in the environment, and is read and checked in the same way wherever it comes from: what a
//! file sets is added to the command line, unless the environment or a flag has it already.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use toml::{Table, Value};

use crate::failure::usage;

/// The subcommand whose settings these are.
const NAME: &str = "serve";
/// Flags that are no settings.
const NOT_SETTINGS: [&str; 3] = ["config", "print_config", "help"];

/// The command line `args` with what file and environment add to it; or the settings as text, where they are asked
/// for.
///
/// # Errors
/// A file that cannot be read, keys that name no setting, and values that a flag would not take. What is wrong with
/// the command line itself is told by clap, which ends the program.
pub fn parse<P: FromArgMatches>(command: Command, args: Vec<OsString>) -> Result<Parsed<P>> {
    let command = with_environment(command);
    let mut matches = command.clone().get_matches_from(&args);
    let Some((NAME, serve)) = matches.subcommand() else {
        return Ok(Parsed::Command(P::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())));
    };
    let mut from_file = HashMap::new();
    if let Some(path) = serve.get_one::<PathBuf>("config").cloned() {
        let mut all = args;
        for (key, flags) in File::read(&path)?.flags(&command, serve)? {
            all.extend(flags.into_iter().map(OsString::from));
            from_file.insert(key, path.clone());
        }
        // Without the file it was right, so that this is the file's.
        let in_file = |error: clap::Error| {
            let text = error.to_string();
            let text = text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: ").trim();
            usage(format!("{}: {text}", path.display()))
        };
        matches = command.clone().try_get_matches_from(all).map_err(in_file)?;
    }
    match matches.subcommand() {
        Some((NAME, serve)) if serve.get_flag("print_config") => {
            Ok(Parsed::Settings(shown(&command, serve, &from_file)))
        }
        _ => Ok(Parsed::Command(P::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))),
    }
}

/// What the command line asks for.
pub enum Parsed<P> {
    Command(P),
    /// To see the settings.
    Settings(String),
}

/// Lets every setting be given in the environment too.
fn with_environment(command: Command) -> Command {
    let variable = |arg: Arg| match key(&arg) {
        Some(key) => {
            let variable = variable(&key);
            arg.env(variable).hide_env_values(true)
        }
        None => arg,
    };
    command.mut_subcommand(NAME, |serve| serve.mut_args(variable))
}

/// The name of a flag's setting, unless it is none.
fn key(arg: &Arg) -> Option<String> {
    let key = arg.get_long()?.replace('-', "_");
    (!NOT_SETTINGS.contains(&&*key)).then_some(key)
}

fn variable(key: &str) -> String {
    format!("ARGES_{}", key.to_uppercase())
}

/// The settings and those flags that all subcommands have.
fn settings(command: &Command) -> impl Iterator<Item = (String, &Arg)> {
    let serve = command.find_subcommand(NAME).into_iter().flat_map(Command::get_arguments);
    let global = command.get_arguments().filter(|arg| arg.is_global_set());
    serve.chain(global).filter_map(|arg| Some((key(arg)?, arg)))
}

/// A file of settings.
struct File<'a> {
    path: &'a Path,
    table: Table,
}

impl<'a> File<'a> {
    fn read(path: &'a Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let table = text.parse().map_err(|error| usage(format!("{}: {error}", path.display())))?;
        Ok(Self { path, table })
    }

    /// Keys and their flags, of those that neither environment nor command line set.
    fn flags(&self, command: &Command, serve: &ArgMatches) -> Result<Vec<(String, Vec<String>)>> {
        let known: HashMap<String, &Arg> = settings(command).collect();
        let mut added = Vec::new();
        for (key, value) in &self.table {
            let arg = known.get(key).ok_or_else(|| self.unknown(key, command))?;
            let flags = self.flag(key, arg, value)?;
            let source = serve.value_source(arg.get_id().as_str());
            if !matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
                added.push((key.clone(), flags));
            }
        }
        Ok(added)
    }

    fn unknown(&self, key: &str, command: &Command) -> anyhow::Error {
        let known: Vec<String> = settings(command).map(|(key, _)| key).collect();
        usage(format!("{}: unknown key `{key}`; there are {}", self.path.display(), known.join(", ")))
    }

    /// The flag that sets this value.
    fn flag(&self, key: &str, arg: &Arg, value: &Value) -> Result<Vec<String>> {
        let flag = format!("--{}", arg.get_long().unwrap_or_default());
        let wrong = |wanted: &str| usage(format!("{}: `{key}` must be {wanted}", self.path.display()));
        let with = |value: &Value| match value {
            Value::String(text) => Ok(format!("{flag}={text}")),
            Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Ok(format!("{flag}={value}")),
            _ => Err(wrong("a text or a number")),
        };
        match (arg.get_action(), value) {
            (ArgAction::SetTrue, Value::Boolean(is_set)) => Ok(is_set.then_some(flag).into_iter().collect()),
            (ArgAction::SetTrue, _) => Err(wrong("true or false")),
            (ArgAction::Append, Value::Array(values)) => values.iter().map(with).collect(),
            (_, value) => Ok(vec![with(value)?]),
        }
    }
}

/// All settings with their values and where these are from, as a file that sets them. Secrets are left out.
fn shown(command: &Command, serve: &ArgMatches, from_file: &HashMap<String, PathBuf>) -> String {
    let mut lines = Vec::new();
    for (key, arg) in settings(command) {
        let id = arg.get_id().as_str();
        let source = match (serve.value_source(id), from_file.get(&key)) {
            (_, Some(path)) => path.display().to_string(),
            (Some(ValueSource::CommandLine), _) => format!("--{}", arg.get_long().unwrap_or_default()),
            (Some(ValueSource::EnvVariable), _) => variable(&key),
            (Some(_), _) => "default".to_owned(),
            (None, _) => "not set".to_owned(),
        };
        let line = match values(arg, serve) {
            Some(_) if SECRET.contains(&&*key) => format!("# {key} is set, and not shown"),
            Some(value) => format!("{key} = {value}"),
            None => format!("# {key} ="),
        };
        lines.push((line, source));
    }
    let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0).min(48);
    let mut text = String::new();
    for (line, source) in lines {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{line:width$}  # {source}");
    }
    text.pop();
    text
}

/// Settings whose values are not shown.
const SECRET: [&str; 2] = ["api_key", "admin_key"];

/// The values of a setting as TOML.
fn values(arg: &Arg, serve: &ArgMatches) -> Option<String> {
    let id = arg.get_id().as_str();
    let raw: Vec<String> = serve.get_raw(id)?.map(|value| value.to_string_lossy().into_owned()).collect();
    let value = |text: &String| match text.parse::<Value>() {
        Ok(value @ (Value::Integer(_) | Value::Float(_) | Value::Boolean(_))) => value,
        _ => Value::String(text.clone()),
    };
    match arg.get_action() {
        ArgAction::Append if raw.is_empty() => None,
        ArgAction::Append => Some(Value::Array(raw.iter().map(value).collect()).to_string()),
        _ => raw.first().map(|text| value(text).to_string()),
    }
}
