//! How much memory this machine has, as far as the system tells.

use std::fs;

/// Memory of the machine, or of the control group that the program runs in where that is less. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineMemory {
    /// All of it.
    pub total: u64,
    /// What could be taken now without swapping.
    pub available: u64,
}

/// What Linux says; `None` on other systems.
pub fn machine_memory() -> Option<MachineMemory> {
    let machine = of_machine(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let group = |file: &str| fs::read_to_string(format!("/sys/fs/cgroup/memory.{file}")).ok();
    let limited = || of_group(&group("max")?, &group("current")?, &group("stat")?);
    Some(match limited() {
        Some(group) => MachineMemory {
            total: machine.total.min(group.total),
            available: machine.available.min(group.available),
        },
        None => machine,
    })
}

/// The most memory that this program has had resident so far, in bytes. `None` where the system does not tell.
pub fn peak_resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let rest = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// From the text of `/proc/meminfo`.
fn of_machine(meminfo: &str) -> Option<MachineMemory> {
    let field = |name: &str| {
        let rest = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(MachineMemory { total: field("MemTotal")?, available: field("MemAvailable")? })
}

/// From the files of a control group (version 2). `None` where it sets no limit.
fn of_group(max: &str, current: &str, stat: &str) -> Option<MachineMemory> {
    let total: u64 = max.trim().parse().ok()?;
    let used: u64 = current.trim().parse().ok()?;
    // Files read before stay cached and count as used, but give way.
    let inactive_file = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok());
    let used = used.saturating_sub(inactive_file.unwrap_or(0));
    Some(MachineMemory { total, available: total.saturating_sub(used) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read_in_bytes() {
        let text = "MemTotal:       1000 kB\nMemFree:         10 kB\nMemAvailable:    600 kB\n";
        assert_eq!(of_machine(text), Some(MachineMemory { total: 1_024_000, available: 614_400 }));
        assert_eq!(of_machine("MemTotal: 1000 kB\n"), None);
    }

    #[test]
    fn a_group_without_a_limit_says_nothing_and_cached_files_count_as_available() {
        assert_eq!(of_group("max\n", "5\n", ""), None);
        let stat = "anon 100\ninactive_file 300\n";
        assert_eq!(of_group("1000\n", "700\n", stat), Some(MachineMemory { total: 1000, available: 600 }));
    }
}
