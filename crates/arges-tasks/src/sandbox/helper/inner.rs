//! The last stage: all that is left to forbid, and then the program.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::chown;
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::stat::Mode;
use nix::unistd::{geteuid, getppid, sethostname};

use super::super::{Isolation, Job, Report};
use super::outer::{NOBODY, become_nobody, is_root_of_machine};
use super::watch::watch;
use super::{files, filter, limits, why};

/// What the limit of processes counts beside the program's: this process, and its thread that starts the program.
const HELPERS: u64 = 2;

/// Runs the program as process 2 of its namespaces; this is process 1.
pub(super) fn run_in_namespaces(job: &Job) -> Result<Report, String> {
    let host_proc = File::open("/proc").map_err(why("open /proc"))?;
    let has_proc = files::enter()?;
    files::write_files(job, Path::new(files::WORK))?;
    sethostname("sandbox").map_err(why("set the host's name"))?;
    enter_user_namespace(&host_proc)?;
    drop(host_proc);
    limits::apply(&job.limits, job.limits.processes + HELPERS)?;
    watch(job, Path::new(files::WORK), None, || {
        filter::apply(false)?;
        Ok(Isolation::Namespaces { proc: has_proc })
    })
}

/// Another user namespace, which has no power over the mounts and processes of the first; processes are counted in it
/// from none, whatever else the user runs.
fn enter_user_namespace(proc: &File) -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(why("make a second user namespace"))?;
    for (name, text) in [("setgroups", "deny"), ("uid_map", "1000 0 1"), ("gid_map", "1000 0 1")] {
        let path = format!("self/{name}");
        let file = openat(proc, path.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
        let mut file = File::from(file.map_err(why("map its user"))?);
        file.write_all(text.as_bytes()).map_err(why("map its user"))?;
    }
    Ok(())
}

/// Runs the program in a directory of the host, among the host's processes.
pub(super) fn run_under_limits(job: &Job, directory: &Path) -> Result<Report, String> {
    // Asked while this process still dies with its parent; becoming another user ends that.
    let host = getppid();
    files::write_files(job, directory)?;
    if is_root_of_machine() {
        give_away(directory).map_err(why("give the program its files"))?;
        become_nobody()?;
    }
    // No namespace ends with this process: it has to outlive the host, and to end the program itself.
    set_pdeathsig(None).map_err(why("outlive its parent"))?;
    // What the program's end leaves behind becomes this process's.
    set_child_subreaper(true).map_err(why("adopt what is left behind"))?;
    limits::apply(&job.limits, job.limits.processes + HELPERS + limits::running(geteuid().as_raw()))?;
    watch(job, directory, Some(host), || {
        let files = filter::restrict_files(job, directory)?;
        filter::apply(true)?;
        Ok(Isolation::Limits { files })
    })
}

fn give_away(path: &Path) -> std::io::Result<()> {
    chown(path, Some(NOBODY), Some(NOBODY))?;
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give_away(&entry?.path())?;
        }
    }
    Ok(())
}
