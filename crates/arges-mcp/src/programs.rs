//! Programs of this machine: found on the path, run for a bounded time, and ended when nobody waits for them.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// A program that did not do its work.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// It cannot be started.
    #[error("cannot run {program}: {source}")]
    Start { program: String, source: std::io::Error },
    /// It took too long, and was ended.
    #[error("{program} did not end within {} s", .limit.as_secs_f32())]
    Timeout { program: String, limit: Duration },
    /// It says that it failed.
    #[error("{program} failed ({status}): {message}")]
    Failed { program: String, status: String, message: String },
}

/// The first of the programs that is on the path.
pub fn find(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    names.iter().find_map(|name| folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file()))
}

/// Runs a program with a text as its standard input and gives what it wrote to its standard output. Dropping the
/// future ends the program.
///
/// # Errors
/// See [`ProgramError`].
pub async fn run(
    program: &std::path::Path,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    input: &str,
    limit: Duration,
) -> Result<Vec<u8>, ProgramError> {
    let name = || program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let start = |source| ProgramError::Start { program: name(), source };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input tells so by its status.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let ended = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(limit, ended).await;
    let output: Output =
        output.map_err(|_| ProgramError::Timeout { program: name(), limit })?.map_err(start)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let message = message.lines().map(str::trim).filter(|line| !line.is_empty()).take(3);
    let message = message.collect::<Vec<_>>().join("; ");
    Err(ProgramError::Failed { program: name(), status: output.status.to_string(), message })
}

#[cfg(all(test, unix))]
mod tests {
    use std::path::Path;

    use super::*;

    async fn shell(script: &str, input: &str, limit: Duration) -> Result<Vec<u8>, ProgramError> {
        run(Path::new("/bin/sh"), ["-c", script], input, limit).await
    }

    #[tokio::test]
    async fn a_program_reads_the_text_and_its_output_comes_back() {
        let text = "ä".repeat(100_000);
        let output = shell("cat", &text, Duration::from_secs(20)).await.unwrap();
        assert_eq!(output, text.as_bytes());
    }

    #[tokio::test]
    async fn a_failure_says_what_the_program_said() {
        let error = shell("echo no such voice >&2; exit 3", "x", Duration::from_secs(20)).await.unwrap_err();
        assert_eq!(error.to_string(), "sh failed (exit status: 3): no such voice");
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("echo $$ > {}; exec sleep 60", pid.display());
        let error = shell(&script, "", Duration::from_millis(300)).await.unwrap_err();
        assert!(matches!(error, ProgramError::Timeout { .. }), "{error}");
        let pid = std::fs::read_to_string(pid).unwrap();
        let process = format!("/proc/{}/stat", pid.trim());
        for _ in 0..100 {
            // Gone, or ended and not yet waited for.
            let stat = std::fs::read_to_string(&process).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the program still runs");
    }
}
