//! The host's side of a run: starts the helper, gives it the job and reads its report.

use std::sync::atomic::{AtomicU8, Ordering};

use super::{Limits, Policy, Program, Report, SandboxError};

/// A policy as a number; [`UNSET`] until it is set.
static POLICY: AtomicU8 = AtomicU8::new(UNSET);
const UNSET: u8 = u8::MAX;
const POLICIES: [Policy; 3] = [Policy::Namespaces, Policy::BestEffort, Policy::Limits];

/// What runs accept that do not say it themselves: what [`set_policy`] said, or else the environment's
/// `ARGES_SANDBOX` (`namespaces`, `best-effort` or `limits`), or else [`Policy::Namespaces`].
pub fn policy() -> Policy {
    let set = POLICY.load(Ordering::Relaxed);
    POLICIES.into_iter().find(|policy| *policy as u8 == set).unwrap_or_else(|| {
        match std::env::var("ARGES_SANDBOX").as_deref() {
            Ok("best-effort") => Policy::BestEffort,
            Ok("limits") => Policy::Limits,
            _ => Policy::Namespaces,
        }
    })
}

/// Sets what runs accept, for the whole process.
pub fn set_policy(policy: Policy) {
    POLICY.store(policy as u8, Ordering::Relaxed);
}

/// What namespaces there are: `Ok`, or why there are none. Tried once in a process.
///
/// # Errors
/// The sandbox cannot run, or not with namespaces.
pub fn available() -> Result<(), SandboxError> {
    #[cfg(target_os = "linux")]
    return linux::namespaces().clone().map_err(SandboxError::Weak);
    #[cfg(not(target_os = "linux"))]
    Err(SandboxError::System)
}

/// To be called first of all in `main`: makes this program a helper of the sandbox. Where the program was started as
/// such it does that work, and gives the status to exit with.
pub fn enter_if_helper() -> Option<std::process::ExitCode> {
    #[cfg(target_os = "linux")]
    return linux::enter_if_helper();
    #[cfg(not(target_os = "linux"))]
    None
}

pub(super) fn run(program: &Program, limits: &Limits, policy: Policy) -> Result<Report, SandboxError> {
    #[cfg(target_os = "linux")]
    return linux::run(program, limits, policy);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (program, limits, policy);
        Err(SandboxError::System)
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io::{self, Read as _, Write as _};
    use std::os::unix::process::CommandExt as _;
    use std::path::{Path, PathBuf};
    use std::process::{Command, ExitCode, Stdio};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use nix::sys::signal::{Signal, killpg};
    use nix::unistd::Pid;

    use super::super::helper;
    use super::super::program::{interpreter, is_plain_path};
    use super::super::{Job, Limits, Policy, Program, Report, SandboxError};

    /// The argument that makes a program the helper.
    const ROLE: &str = "sandbox-init";
    /// How long a helper may take beside its program's time, on a machine that has much else to do.
    const GRACE: Duration = Duration::from_secs(20);
    /// Where programs and libraries are on Linux, as far as there are such directories.
    const SYSTEM: [&str; 9] = [
        "/usr",
        "/bin",
        "/sbin",
        "/lib",
        "/lib32",
        "/lib64",
        "/etc/alternatives",
        "/etc/ld.so.cache",
        "/nix/store",
    ];

    static THIS_IS_A_HELPER: AtomicBool = AtomicBool::new(false);

    pub(super) fn enter_if_helper() -> Option<ExitCode> {
        THIS_IS_A_HELPER.store(true, Ordering::Relaxed);
        let mut arguments = std::env::args_os().skip(1);
        let role = arguments.next().filter(|argument| argument == ROLE)?;
        debug_assert_eq!(role, ROLE);
        Some(helper::main(arguments.next().as_deref().and_then(|stage| stage.to_str()).unwrap_or_default()))
    }

    fn find_helper() -> Result<PathBuf, SandboxError> {
        if THIS_IS_A_HELPER.load(Ordering::Relaxed) {
            // The program as it runs, even after its file was replaced.
            return Ok(PathBuf::from("/proc/self/exe"));
        }
        let here = std::env::current_exe().map_err(|_| SandboxError::NoHelper)?;
        // Cargo puts tests one directory below programs.
        let directories = here.ancestors().skip(1).take(2);
        let mut candidates =
            directories.flat_map(|directory| ["arges-sandbox", "arges"].map(|name| directory.join(name)));
        candidates.find(|path| path.is_file()).ok_or(SandboxError::NoHelper)
    }

    pub(super) fn namespaces() -> &'static Result<(), String> {
        static TRIED: OnceLock<Result<(), String>> = OnceLock::new();
        TRIED.get_or_init(|| {
            let job = job(&Program::shell("exit 0"), &Limits::default(), None);
            let report = job.and_then(|job| attempt(&job)).map_err(|error| error.to_string())?;
            match report.outcome {
                super::super::Outcome::Ok => Ok(()),
                outcome => Err(format!("a first program {outcome}")),
            }
        })
    }

    pub(super) fn run(program: &Program, limits: &Limits, policy: Policy) -> Result<Report, SandboxError> {
        find_helper()?;
        let has_namespaces = match policy {
            Policy::Limits => false,
            Policy::BestEffort => namespaces().is_ok(),
            Policy::Namespaces => namespaces().clone().map(|()| true).map_err(SandboxError::Weak)?,
        };
        if has_namespaces {
            return attempt(&job(program, limits, None)?);
        }
        let failed = |error: io::Error| SandboxError::Failed(format!("no directory to work in: {error}"));
        let directory = tempfile::Builder::new().prefix("arges-sandbox-").tempdir().map_err(failed)?;
        attempt(&job(program, limits, Some(directory.path().to_owned()))?)
    }

    fn job(program: &Program, limits: &Limits, directory: Option<PathBuf>) -> Result<Job, SandboxError> {
        if let Some(path) = program.files.keys().find(|path| !is_plain_path(path)) {
            return Err(SandboxError::Path(path.chars().take(100).collect()));
        }
        let interpreter = interpreter(program.language)?;
        let (mut system, mut links) = (Vec::new(), Vec::new());
        for path in SYSTEM.map(Path::new) {
            match std::fs::read_link(path) {
                Ok(target) => links.push((path.to_owned(), target)),
                Err(_) if path.exists() => system.push(path.to_owned()),
                Err(_) => {}
            }
        }
        system.extend(interpreter.directories.iter().cloned());
        let variable = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let environment = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("HOME", "/tmp"),
            ("LANG", "C.UTF-8"),
            ("MALLOC_ARENA_MAX", "2"),
            ("PYTHONHASHSEED", "0"),
            ("PYTHONDONTWRITEBYTECODE", "1"),
        ];
        Ok(Job {
            command: [&interpreter.command[..], &program.arguments[..]].concat(),
            environment: environment.map(variable).to_vec(),
            files: program.files.iter().map(|(path, text)| (path.clone(), text.clone())).collect(),
            stdin: program.stdin.clone(),
            limits: limits.clone(),
            system,
            links,
            directory,
        })
    }

    /// Starts the helper, and waits for its report and its end.
    fn attempt(job: &Job) -> Result<Report, SandboxError> {
        let failed = |error: io::Error| SandboxError::Failed(error.to_string());
        let text = serde_json::to_vec(job).map_err(|error| SandboxError::Failed(error.to_string()))?;
        let mut helper = Command::new(find_helper()?)
            .args([ROLE, helper::OUTER])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        // A helper that ends early reads no job; its report, or the want of one, says so.
        let _ = helper.stdin.take().map(|mut stdin| stdin.write_all(&text));
        let (sender, receiver) = mpsc::channel();
        // Replacement characters are three bytes, and JSON writes control characters as six.
        let most = 64 * 1024 + 8 * job.limits.output as u64;
        let stdout = helper.stdout.take();
        let reader = std::thread::spawn(move || {
            let mut report = Vec::new();
            let read = stdout.map_or(Ok(0), |stdout| stdout.take(most).read_to_end(&mut report));
            let _ = sender.send(read.map(|_| report));
        });
        let report = receiver.recv_timeout(job.limits.wall + GRACE);
        // The helper and, where there are no namespaces, all that its program left are one group. Its number is in use
        // until the helper is waited for.
        let _ = killpg(Pid::from_raw(helper.id().cast_signed()), Signal::SIGKILL);
        let ended = helper.wait();
        let _ = reader.join();
        match report {
            Err(_) => Err(SandboxError::Failed("its helper does not answer".to_owned())),
            Ok(Err(error)) => Err(failed(error)),
            Ok(Ok(report)) => match serde_json::from_slice::<Result<Report, String>>(&report) {
                Ok(report) => report.map_err(SandboxError::Failed),
                Err(_) => Err(SandboxError::Failed(match ended {
                    Ok(status) => format!("its helper ended without a report ({status})"),
                    Err(error) => error.to_string(),
                })),
            },
        }
    }
}
