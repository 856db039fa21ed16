//! The helper's side of a run: a program of one thread, started for one job.

mod files;
mod filter;
mod inner;
mod limits;
mod outer;
mod watch;

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::{Job, Report};

/// The stage that makes namespaces, or does without.
pub(super) const OUTER: &str = "outer";
/// The stage that is process 1 of the namespaces.
const INNER: &str = "inner";

/// Does a stage's work: a job from standard input, a report to standard output.
pub(super) fn main(stage: &str) -> ExitCode {
    let report = read_job().and_then(|job| match (stage, &job.directory) {
        (OUTER, Some(directory)) => inner::run_under_limits(&job, directory).map(Some),
        (OUTER, None) => outer::run(&job).map(|()| None),
        (INNER, None) => inner::run_in_namespaces(&job).map(Some),
        _ => Err("there is no such stage".to_owned()),
    });
    let written = match report {
        // The inner stage has reported.
        Ok(None) => Ok(()),
        Ok(Some(report)) => write_report(&Ok(report)),
        Err(error) => write_report(&Err(error)),
    };
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn read_job() -> Result<Job, String> {
    die_with_parent()?;
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text).map_err(why("read its job"))?;
    serde_json::from_slice(&text).map_err(|error| format!("no job: {error}"))
}

fn write_report(report: &Result<Report, String>) -> io::Result<()> {
    let mut text = serde_json::to_vec(report)?;
    let mut stdout = io::stdout();
    stdout.write_all(&std::mem::take(&mut text))?;
    stdout.flush()
}

/// A helper's end is that of all that it started; so is the end of whoever started it.
fn die_with_parent() -> Result<(), String> {
    set_pdeathsig(Signal::SIGKILL).map_err(why("tie its life to its parent's"))
}

/// Makes an error say what could not be done.
fn why<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> String {
    move |error| format!("cannot {what}: {error}")
}
