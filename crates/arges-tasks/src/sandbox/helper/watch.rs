//! The program while it runs: its output is read, its time and memory are watched, and its end is told.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, getppid};

use super::super::{Isolation, Job, Outcome, Report};
use super::why;

/// How often time and memory are looked at, in milliseconds.
const TICK: u16 = 5;

/// Starts the program and stays with it to its end. What it leaves behind is killed when this process ends: by the
/// kernel in namespaces, otherwise by the host, as the filter lets nothing leave this process's group.
///
/// With a `host`, all ends when that is no longer this process's parent.
/// `confine` forbids its thread and all that this starts what the program may not do; it does not hold for the watch.
pub(super) fn watch(
    job: &Job,
    directory: &Path,
    host: Option<Pid>,
    confine: impl FnOnce() -> Result<Isolation, String> + Send,
) -> Result<Report, String> {
    let started = Instant::now();
    let start = || Ok::<_, String>((confine()?, spawn(job, directory)?));
    let confined = std::thread::scope(|scope| scope.spawn(start).join());
    let (isolation, mut child) = confined.map_err(|_| "its second thread panicked")??;
    let mut run = Run {
        job,
        directory,
        child: Pid::from_raw(child.id().cast_signed()),
        started,
        stdin: Some(nonblocking(OwnedFd::from(child.stdin.take().ok_or("it has no input")?))?),
        written: 0,
        stdout: Output::new(OwnedFd::from(child.stdout.take().ok_or("it has no output")?))?,
        stderr: Output::new(OwnedFd::from(child.stderr.take().ok_or("it has no output")?))?,
        peak_memory: 0,
        host,
        in_namespaces: matches!(isolation, Isolation::Namespaces { .. }),
    };
    let outcome = run.outcome(isolation != Isolation::Namespaces { proc: false })?;
    Ok(Report {
        outcome,
        stdout: run.stdout.text(),
        stderr: run.stderr.text(),
        isolation,
        seconds: run.started.elapsed().as_secs_f64(),
        peak_memory: run.peak_memory,
    })
}

fn spawn(job: &Job, directory: &Path) -> Result<Child, String> {
    let (name, arguments) = job.command.split_first().ok_or("there is nothing to run")?;
    Command::new(name)
        .args(arguments)
        .env_clear()
        .envs(job.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(why(&format!("start {name}")))
}

struct Run<'a> {
    job: &'a Job,
    directory: &'a Path,
    child: Pid,
    started: Instant,
    /// `None` when all is written, or the program does not read.
    stdin: Option<File>,
    written: usize,
    stdout: Output,
    stderr: Output,
    peak_memory: u64,
    host: Option<Pid>,
    in_namespaces: bool,
}

impl Run<'_> {
    fn outcome(&mut self, watches_memory: bool) -> Result<Outcome, String> {
        let limits = &self.job.limits;
        loop {
            self.wait_for_pipes()?;
            if self.host.is_some_and(|host| getppid() != host) {
                // Nobody is left to kill the group, of which this process is one.
                killpg(getpgrp(), Signal::SIGKILL).map_err(why("end the program"))?;
            }
            let ended = self.reap()?;
            self.feed();
            self.stdout.read(limits.output);
            self.stderr.read(limits.output);
            if self.stdout.data.len() + self.stderr.data.len() > limits.output {
                return Ok(Outcome::Output);
            }
            if let Some(outcome) = ended {
                return Ok(outcome);
            }
            if self.started.elapsed() > limits.wall {
                return Ok(Outcome::WallTime);
            }
            if watches_memory {
                self.peak_memory = self.peak_memory.max(self.memory());
                if self.peak_memory > limits.memory {
                    return Ok(Outcome::Memory);
                }
            }
            if !self.in_namespaces
                && !within(self.directory, &mut limits.disk.clone(), &mut limits.files.clone())
            {
                return Ok(Outcome::Disk);
            }
        }
    }

    /// Until a pipe is ready, or for a tick.
    fn wait_for_pipes(&self) -> Result<(), String> {
        let waits = |file: &Option<File>, flags| -> Option<(OwnedFd, PollFlags)> {
            file.as_ref().and_then(|file| Some((file.as_fd().try_clone_to_owned().ok()?, flags)))
        };
        let files = [
            waits(&self.stdin, PollFlags::POLLOUT),
            waits(&self.stdout.pipe, PollFlags::POLLIN),
            waits(&self.stderr.pipe, PollFlags::POLLIN),
        ];
        let mut polled: Vec<PollFd> =
            files.iter().flatten().map(|(file, flags)| PollFd::new(file.as_fd(), *flags)).collect();
        // Once its pipes are closed the program is about to end.
        let tick = if self.stdout.pipe.is_some() { TICK } else { 1 };
        match poll(&mut polled, PollTimeout::from(tick)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(why("wait for the program")(error)),
        }
    }

    fn feed(&mut self) {
        let text = self.job.stdin.as_bytes();
        let Some(stdin) = &mut self.stdin else { return };
        while self.written < text.len() {
            match stdin.write(&text[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The program has closed it.
                Err(_) => break,
            }
        }
        self.stdin = None;
    }

    /// Takes note of all processes that have ended; how the program did, if it is among them.
    fn reap(&self) -> Result<Option<Outcome>, String> {
        let mut outcome = None;
        loop {
            let status = waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL));
            let (process, of_process) = match status {
                Ok(WaitStatus::Exited(process, 0)) => (process, Outcome::Ok),
                Ok(WaitStatus::Exited(process, status)) => (process, Outcome::Exit(status)),
                Ok(WaitStatus::Signaled(process, Signal::SIGXCPU, _)) => (process, Outcome::CpuTime),
                Ok(WaitStatus::Signaled(process, Signal::SIGXFSZ, _)) => (process, Outcome::Disk),
                Ok(WaitStatus::Signaled(process, signal, _)) => (process, Outcome::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(outcome),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => return Err(why("wait for the program")(error)),
            };
            if process == self.child {
                outcome = Some(of_process);
            }
        }
    }

    /// Bytes that the program's processes have for themselves.
    fn memory(&self) -> u64 {
        let own = std::process::id();
        let mut processes = match self.in_namespaces {
            true => numbers(fs::read_dir("/proc")),
            false => children(own),
        };
        processes.retain(|process| *process != own);
        processes.into_iter().map(resident).sum()
    }
}

/// An end of a pipe that is never waited for.
fn nonblocking(pipe: OwnedFd) -> Result<File, String> {
    fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(why("read without waiting"))?;
    Ok(File::from(pipe))
}

/// What the program writes.
struct Output {
    /// `None` once it is closed.
    pipe: Option<File>,
    data: Vec<u8>,
}

impl Output {
    fn new(pipe: OwnedFd) -> Result<Self, String> {
        Ok(Self { pipe: Some(nonblocking(pipe)?), data: Vec::new() })
    }

    /// Reads what there is, up to one byte above `most` in all.
    fn read(&mut self, most: usize) {
        let mut buffer = [0; 4096];
        while let Some(pipe) = self.pipe.as_mut().filter(|_| self.data.len() <= most) {
            let wanted = buffer.len().min(most + 1 - self.data.len());
            match pipe.read(&mut buffer[..wanted]) {
                Ok(0) => self.pipe = None,
                Ok(count) => self.data.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.data).into_owned()
    }
}

fn numbers(entries: std::io::Result<fs::ReadDir>) -> Vec<u32> {
    let entries = entries.into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// All processes below one.
fn children(process: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut open = vec![process];
    while let Some(process) = open.pop() {
        for thread in numbers(fs::read_dir(format!("/proc/{process}/task"))) {
            let list = fs::read_to_string(format!("/proc/{process}/task/{thread}/children"));
            let listed: Vec<u32> =
                list.unwrap_or_default().split_whitespace().filter_map(|text| text.parse().ok()).collect();
            found.extend_from_slice(&listed);
            open.extend(listed);
        }
    }
    found
}

/// Bytes of memory, not of files, that a process has.
fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let kilobytes = |line: &str| -> Option<u64> {
        let rest = line.strip_prefix("RssAnon:").or_else(|| line.strip_prefix("RssShmem:"))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    1024 * status.lines().filter_map(kilobytes).sum::<u64>()
}

/// Whether the files below a directory are within what is left of bytes and of files, and takes them off.
fn within(directory: &Path, bytes: &mut u64, files: &mut u64) -> bool {
    fs::read_dir(directory).into_iter().flatten().flatten().all(|entry| {
        let Ok(metadata) = entry.metadata() else { return true };
        let left = bytes.checked_sub(metadata.len()).zip(files.checked_sub(1));
        let Some((fewer_bytes, fewer_files)) = left else { return false };
        (*bytes, *files) = (fewer_bytes, fewer_files);
        !metadata.is_dir() || within(&entry.path(), bytes, files)
    })
}
