//! Programs, and what they are run with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use super::SandboxError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// Python 3 with its standard library.
    Python,
    /// The system's `sh`.
    Shell,
}

/// A program, with the files that it finds in its working directory.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    pub language: Language,
    /// What the interpreter is started with: a file's name first, mostly.
    pub arguments: Vec<String>,
    /// Texts by relative path.
    pub files: BTreeMap<String, String>,
    pub stdin: String,
}

impl Program {
    /// A Python program of one file, `main.py`.
    pub fn python(source: impl Into<String>) -> Self {
        Self::new(Language::Python, "main.py", source)
    }

    /// A shell script, `main.sh`.
    pub fn shell(source: impl Into<String>) -> Self {
        Self::new(Language::Shell, "main.sh", source)
    }

    fn new(language: Language, name: &str, source: impl Into<String>) -> Self {
        let files = BTreeMap::from([(name.to_owned(), source.into())]);
        Self { language, arguments: vec![name.to_owned()], files, stdin: String::new() }
    }

    /// With one file more.
    pub fn with_file(mut self, path: impl Into<String>, content: impl Into<String>) -> Self {
        self.files.insert(path.into(), content.into());
        self
    }

    pub fn with_stdin(mut self, stdin: impl Into<String>) -> Self {
        self.stdin = stdin.into();
        self
    }
}

/// Whether a path stays below the working directory and is an ordinary name in every part.
pub(crate) fn is_plain_path(path: &str) -> bool {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && part.len() <= 100 && !part.contains('\0');
    path.len() <= 200 && path.split('/').count() <= 8 && path.split('/').all(plain)
}

/// How programs are run on this machine.
pub(super) struct Interpreter {
    pub(super) command: Vec<String>,
    /// Directories outside of `/usr` that it is made of.
    pub(super) directories: Vec<PathBuf>,
}

pub(super) fn interpreter(language: Language) -> Result<&'static Interpreter, SandboxError> {
    static PYTHON: OnceLock<Option<Interpreter>> = OnceLock::new();
    static SHELL: OnceLock<Option<Interpreter>> = OnceLock::new();
    match language {
        Language::Python => {
            PYTHON.get_or_init(find_python).as_ref().ok_or(SandboxError::Interpreter("Python 3"))
        }
        Language::Shell => SHELL.get_or_init(find_shell).as_ref().ok_or(SandboxError::Interpreter("`sh`")),
    }
}

fn find_shell() -> Option<Interpreter> {
    let shell = Path::new("/bin/sh");
    let command = vec!["/bin/sh".to_owned()];
    shell.exists().then_some(Interpreter { command, directories: Vec::new() })
}

/// Neither the user's packages nor compiled files.
const PYTHON_FLAGS: [&str; 2] = ["-s", "-B"];

/// The system's Python, or else the one of `PATH`, which says itself where it is.
fn find_python() -> Option<Interpreter> {
    const ASK: &str = "import sys, os\n\
        print(os.path.realpath(getattr(sys, '_base_executable', sys.executable)))\n\
        print(os.path.realpath(sys.base_prefix))\nprint(os.path.realpath(sys.base_exec_prefix))";
    let command = |path: &str| [path].into_iter().chain(PYTHON_FLAGS).map(str::to_owned).collect();
    if Path::new("/usr/bin/python3").exists() {
        return Some(Interpreter { command: command("/usr/bin/python3"), directories: Vec::new() });
    }
    let asked = Command::new("python3").args(["-I", "-c", ASK]).stdin(Stdio::null()).output().ok()?;
    let told = String::from_utf8(asked.stdout).ok().filter(|_| asked.status.success())?;
    let mut lines = told.lines();
    let executable = lines.next()?;
    let mut directories: Vec<PathBuf> = lines.map(PathBuf::from).collect();
    directories.dedup();
    directories.retain(|directory| !directory.starts_with("/usr") && directory.parent().is_some());
    Some(Interpreter { command: command(executable), directories })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_directory_are_none() {
        for path in ["a", "a/b.py", "-x", "a b", "…"] {
            assert!(is_plain_path(path), "{path}");
        }
        for path in
            ["", "/a", "a/", "../a", "a/../b", ".", "a//b", "a\0b", &"a/".repeat(20), &"a".repeat(300)]
        {
            assert!(!is_plain_path(path), "{path}");
        }
    }
}
