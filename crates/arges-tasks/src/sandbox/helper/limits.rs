//! Resource limits.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use nix::sys::resource::{Resource, setrlimit};

use super::super::Limits;
use super::why;

/// Address space beside what is used: libraries, stacks of threads, the interpreter's arenas.
const UNUSED_SPACE: u64 = 256 << 20;

/// Sets the limits of this process and of all that it starts. `tasks` of this user there may be.
pub(super) fn apply(limits: &Limits, tasks: u64) -> Result<(), String> {
    let all = [
        // A second after the signal that it can handle comes the one that it cannot.
        (Resource::RLIMIT_CPU, limits.cpu, limits.cpu + 1),
        (Resource::RLIMIT_AS, 2 * limits.memory + UNUSED_SPACE, 2 * limits.memory + UNUSED_SPACE),
        (Resource::RLIMIT_NOFILE, limits.open_files, limits.open_files),
        (Resource::RLIMIT_FSIZE, limits.disk, limits.disk),
        (Resource::RLIMIT_NPROC, tasks, tasks),
        (Resource::RLIMIT_CORE, 0, 0),
        (Resource::RLIMIT_MEMLOCK, 0, 0),
        (Resource::RLIMIT_MSGQUEUE, 0, 0),
        (Resource::RLIMIT_RTPRIO, 0, 0),
    ];
    for (resource, soft, hard) in all {
        setrlimit(resource, soft, hard).map_err(why("limit its resources"))?;
    }
    Ok(())
}

/// Threads that a user has now: outside of a user namespace the limit counts them all.
pub(super) fn running(user: u32) -> u64 {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let own = processes.filter(|entry| entry.metadata().is_ok_and(|metadata| metadata.uid() == user));
    own.map(|entry| fs::read_dir(entry.path().join("task")).map_or(0, |tasks| tasks.count() as u64)).sum()
}
