//! The sandbox: runs programs that a model wrote, in Python and shell, so that they can harm nothing.
//!
//! A run is two processes of a helper program (`arges` itself, or `arges-sandbox`) and the program. The first makes
//! user, mount, pid, network, IPC and UTS namespaces and a file system of its own: the system's programs and libraries,
//! read-only, and a small tmpfs to work in; no network, nothing of the host's users. The second is process 1 in there:
//! it sets limits (CPU, memory, processes, files, output) and a seccomp filter, starts the program, reads its output up
//! to a limit, watches clock and memory, and reports. When it ends, the kernel kills all that the program left. Should
//! the host's process die, the helpers die too, and so everything.
//!
//! Where the kernel forbids namespaces there are [`Isolation::Limits`]: the limits, the seccomp filter (no sockets, no
//! signals to others, no leaving the process group) and Landlock, where there is one, to keep files from being read.
//! [`Policy`] says whether that will do.

#[cfg(target_os = "linux")]
mod helper;
mod host;
mod program;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use host::{available, enter_if_helper, policy, set_policy};
pub(crate) use program::is_plain_path;
pub use program::{Language, Program};

/// What a program may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Time by the clock, from the program's start.
    pub wall: Duration,
    /// CPU seconds of each process.
    pub cpu: u64,
    /// Bytes that its processes have resident together, pages that they share counted for each; also bounds the
    /// address space of each process, at twice this and 256 MiB.
    pub memory: u64,
    pub processes: u64,
    /// Open files of each process.
    pub open_files: u64,
    /// Bytes of the files it makes.
    pub disk: u64,
    /// Files it makes.
    pub files: u64,
    /// Bytes of standard output and standard error together.
    pub output: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            wall: Duration::from_secs(5),
            cpu: 5,
            memory: 256 << 20,
            processes: 32,
            open_files: 64,
            disk: 16 << 20,
            files: 1024,
            output: 64 << 10,
        }
    }
}

/// How a program came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Exit status 0.
    Ok,
    /// Another exit status.
    Exit(i32),
    /// A signal, by its number.
    Signal(i32),
    /// It ran longer than [`Limits::wall`].
    WallTime,
    CpuTime,
    Memory,
    /// It wrote more than [`Limits::output`].
    Output,
    Disk,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ok => write!(f, "ended well"),
            Self::Exit(status) => write!(f, "ended with status {status}"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Self::WallTime => write!(f, "ran out of time"),
            Self::CpuTime => write!(f, "ran out of CPU time"),
            Self::Memory => write!(f, "took too much memory"),
            Self::Output => write!(f, "wrote too much output"),
            Self::Disk => write!(f, "wrote too much to files"),
        }
    }
}

/// What stood between a program and the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Namespaces and a file system of its own, limits and a seccomp filter. `proc`: it had a `/proc` of its own, and
    /// the memory of its processes together was watched; without it (as in some containers) each process's is bounded.
    Namespaces { proc: bool },
    /// Limits and a seccomp filter. `files`: Landlock kept the host's files from it.
    Limits { files: bool },
}

/// What isolation is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Namespaces, or no run at all.
    #[default]
    Namespaces,
    /// The best that the kernel allows; [`Report::isolation`] says what it was.
    BestEffort,
    /// Only limits, even where there are namespaces.
    Limits,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub outcome: Outcome,
    /// What it wrote until it ended or was stopped; bytes that are no UTF-8 as replacement characters.
    pub stdout: String,
    pub stderr: String,
    pub isolation: Isolation,
    /// By the clock.
    pub seconds: f64,
    /// The most bytes its processes were seen to have together; 0 where that was not watched.
    pub peak_memory: u64,
}

/// Why a program was not run. None of these is the program's fault.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("the sandbox needs Linux")]
    System,
    #[error(
        "the sandbox has no helper program: neither this program nor `arges` or `arges-sandbox` beside it is one"
    )]
    NoHelper,
    #[error("the kernel allows no namespaces ({0}), and the sandbox's policy accepts nothing weaker")]
    Weak(String),
    #[error("{0:?} cannot be the path of a program's file")]
    Path(String),
    #[error("there is no {0} to run programs with")]
    Interpreter(&'static str),
    #[error("the sandbox failed: {0}")]
    Failed(String),
}

/// Runs programs under limits.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sandbox {
    pub limits: Limits,
    /// `None` is the policy of the whole process, [`policy`].
    pub policy: Option<Policy>,
}

impl Sandbox {
    /// Runs a program to its end, or to that of its limits. The calling thread waits.
    ///
    /// # Errors
    /// The program was not run: see [`SandboxError`].
    pub fn run(&self, program: &Program) -> Result<Report, SandboxError> {
        host::run(program, &self.limits, self.policy.unwrap_or_else(policy))
    }
}

/// What the host tells the helper.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Job {
    command: Vec<String>,
    environment: Vec<(String, String)>,
    /// By path below the directory that the program works in.
    files: Vec<(String, String)>,
    stdin: String,
    limits: Limits,
    /// What the program sees of the host's files, read-only.
    system: Vec<PathBuf>,
    /// Symbolic links beside them: where, and to what.
    links: Vec<(PathBuf, PathBuf)>,
    /// Where the program works if it has no namespaces; of the host's file system, and empty.
    directory: Option<PathBuf>,
}
