//! Settings of the server from file, environment and flags.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::support::{Ran, command, ran};

struct Settings {
    _directory: TempDir,
    file: PathBuf,
}

impl Settings {
    fn new(text: &str) -> Settings {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("serve.toml");
        std::fs::write(&file, text).unwrap();
        Settings { _directory: directory, file }
    }

    fn command(&self) -> Command {
        let mut command = command();
        command.args(["serve", "--config"]).arg(&self.file);
        command
    }

    /// The settings that come of it.
    fn shown(&self, more: impl FnOnce(&mut Command) -> &mut Command) -> String {
        let mut command = self.command();
        command.arg("--print-config");
        ran(more(&mut command)).ok()
    }

    fn failed(&self) -> String {
        ran(&mut self.command()).failed(2)
    }
}

/// The line of a setting, without the space between value and source.
fn line(shown: &str, key: &str) -> String {
    let start = format!("{key} ");
    let line = shown.lines().find(|line| line.trim_start_matches("# ").starts_with(&start));
    let line = line.unwrap_or_else(|| panic!("no {key} in\n{shown}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn flags_come_before_the_environment_and_that_before_the_file() {
    let settings = Settings::new(
        "port = 1000\nhost = \"0.0.0.0\"\nmax_sequences = 3\nexact = true\ntool = [\"clock\", \"calculator\"]\n\
         temperature = 0.5\nlog = \"info\"\n",
    );
    let file = settings.file.display().to_string();
    let shown = settings.shown(|command| {
        command.env("ARGES_PORT", "2000").env("ARGES_HOST", "::1").args(["--port", "3000", "--top-k", "5"])
    });
    for (key, expected) in [
        ("port", "port = 3000 # --port".to_owned()),
        ("host", "host = \"::1\" # ARGES_HOST".to_owned()),
        ("max_sequences", format!("max_sequences = 3 # {file}")),
        ("exact", format!("exact = true # {file}")),
        ("tool", format!("tool = [\"clock\", \"calculator\"] # {file}")),
        ("temperature", format!("temperature = 0.5 # {file}")),
        ("log", format!("log = \"info\" # {file}")),
        ("top_k", "top_k = 5 # --top-k".to_owned()),
        ("top_p", "top_p = 0.95 # default".to_owned()),
        ("context", "# context = # not set".to_owned()),
    ] {
        assert_eq!(line(&shown, key), expected, "{shown}");
    }
}

#[test]
fn what_is_shown_is_such_a_file_without_keys() {
    let settings = Settings::new("api_key = \"sesame\"\nport = 1000\nmodel_name = \"7\"\n");
    let shown = settings.shown(|command| command);
    assert!(!shown.contains("sesame"), "{shown}");
    assert!(line(&shown, "api_key").starts_with("# api_key is set, and not shown # "), "{shown}");
    let again = Settings::new(&shown);
    let values = |shown: &str| {
        let values = shown.lines().filter(|line| !line.starts_with('#'));
        values.map(|line| line.split(" # ").next().unwrap().trim().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(values(&again.shown(|command| command)), values(&shown));
}

#[test]
fn what_is_wrong_in_a_file_is_named() {
    for (text, reasons) in [
        ("max_seqs = 3", vec!["unknown key `max_seqs`", "max_sequences"]),
        ("print_config = true", vec!["unknown key `print_config`"]),
        ("port = \"high\"", vec!["high", "--port"]),
        ("port = 70000", vec!["70000", "--port"]),
        ("exact = 1", vec!["`exact` must be true or false"]),
        ("port = [1]", vec!["`port` must be a text or a number"]),
        ("[limits]\nport = 1", vec!["unknown key `limits`"]),
        ("port = ", vec!["line 1"]),
    ] {
        let settings = Settings::new(text);
        let failed = settings.failed();
        let file = settings.file.display().to_string();
        assert!(failed.contains(&file), "{failed}");
        assert!(reasons.iter().all(|reason| failed.contains(reason)), "{text}: {failed}");
    }
    let missing = ran(command().args(["serve", "--config", "/no/such.toml"])).failed(1);
    assert!(missing.contains("/no/such.toml"), "{missing}");
}

#[test]
fn values_of_the_environment_are_checked_as_flags_are() {
    let Ran { code, stderr, .. } = ran(command().arg("serve").env("ARGES_MAX_SEQUENCES", "0"));
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--max-sequences") && stderr.contains("at least 1"), "{stderr}");
    let failed = ran(command().args(["serve", "--top-p", "2"])).failed(2);
    assert!(failed.contains("--top-p"), "{failed}");
}
