//! The first stage: namespaces, and a file system in them.

use std::io::Write as _;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_dumpable;
use nix::unistd::{Gid, Uid, getegid, geteuid, setgroups, setresgid, setresuid};

use super::super::Job;
use super::{INNER, die_with_parent, files, why};

/// The user that nobody's files belong to.
pub(super) const NOBODY: u32 = 65_534;

pub(super) fn run(job: &Job) -> Result<(), String> {
    if is_root_of_machine() {
        // Root of the machine is root for its files in a namespace, too: what only root can reach is mounted first,
        // and then nobody goes on.
        unshare(CloneFlags::CLONE_NEWNS).map_err(why("make a mount namespace"))?;
        files::make_private()?;
        files::stage(job)?;
        become_nobody()?;
        make_namespaces()?;
        files::make_private()?;
    } else {
        make_namespaces()?;
        files::make_private()?;
        files::stage(job)?;
    }
    files::assemble(job)?;
    // The first process after `unshare` is number 1 of the new namespace.
    let mut inner = Command::new("/proc/self/exe")
        .args(["sandbox-init", INNER])
        .env_clear()
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(why("start the second stage"))?;
    let text = serde_json::to_vec(job).map_err(why("write the job"))?;
    // Where that ends early, the host misses its report.
    let _ = inner.stdin.take().map(|mut stdin| stdin.write_all(&text));
    inner.wait().map(drop).map_err(why("wait for the second stage"))
}

/// Whether this is root, and not that of a user namespace whose root is an ordinary user of the machine.
pub(super) fn is_root_of_machine() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut ranges = map.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>());
    geteuid().is_root() && !ranges.any(|range| range[..] != ["0", "0"] && range.first() == Some(&"0"))
}

/// Gives up root, for all that follows.
pub(super) fn become_nobody() -> Result<(), String> {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    setgroups(&[]).map_err(why("leave its groups"))?;
    setresgid(group, group, group).map_err(why("change its group"))?;
    setresuid(user, user, user).map_err(why("change its user"))?;
    // Both are lost with a change of user.
    set_dumpable(true).map_err(why("have its own /proc/self"))?;
    die_with_parent()
}

fn make_namespaces() -> Result<(), String> {
    let (user, group) = (geteuid(), getegid());
    let all = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(all).map_err(why("make namespaces"))?;
    let write = |name: &str, text: String| {
        std::fs::write(format!("/proc/self/{name}"), text).map_err(why("map its user into the namespace"))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {user} 1"))?;
    write("gid_map", format!("0 {group} 1"))
}
