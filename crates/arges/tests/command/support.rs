//! Runs the command and makes models for it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// Sizes of a model that takes no time.
pub const TINY: [&str; 16] = [
    "--hidden",
    "64",
    "--layers",
    "2",
    "--softmax-every",
    "2",
    "--heads",
    "4",
    "--head-dim",
    "16",
    "--experts",
    "4",
    "--vocab",
    "300",
    "--max-positions",
    "2000",
];

/// What a run of the command gave.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Standard output of a run that went well.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self.stdout
    }

    /// Standard output as JSON.
    pub fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// Standard error of a run that failed with that code; it printed no result, and panicked at nothing.
    pub fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stdout.is_empty(), "{}", self.stdout);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self.stderr
    }
}

/// The command, with nothing of the caller's surroundings that would change what it does.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arges"));
    for name in ["HF_ENDPOINT", "HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(name);
    }
    let settings = std::env::vars_os().map(|(name, _)| name);
    for name in settings.filter(|name| name.to_str().is_some_and(|name| name.starts_with("ARGES_"))) {
        command.env_remove(name);
    }
    // No test leaves this machine. Programs run in whatever sandbox it has.
    command.env("HF_HUB_OFFLINE", "1").env("ARGES_SANDBOX", "best-effort").stdin(Stdio::null());
    command
}

pub fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

pub fn arges<'a>(args: impl IntoIterator<Item = &'a str>) -> Ran {
    ran(command().args(args))
}

/// Runs the command with something on standard input.
pub fn arges_with_stdin(args: &[&str], stdin: &str) -> Ran {
    let mut command = command();
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that fails before it reads closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A random model in a directory of its own.
pub struct TinyModel {
    _directory: TempDir,
    path: PathBuf,
}

impl TinyModel {
    pub fn new(extra: &[&str]) -> TinyModel {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tiny");
        let args = ["synth", path.to_str().unwrap()];
        arges(args.iter().chain(&TINY).chain(extra).copied()).ok();
        TinyModel { _directory: directory, path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn dir(&self) -> &str {
        self.path.to_str().unwrap()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Changes a field of config.json.
    pub fn set_config(&self, field: &str, value: Value) {
        let file = self.file("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        config[field] = value;
        std::fs::write(&file, config.to_string()).unwrap();
    }
}

/// Token ids of a JSON array.
pub fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}
