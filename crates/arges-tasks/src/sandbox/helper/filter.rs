//! System calls and files that are forbidden.

use std::collections::BTreeMap;
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope, path_beneath_rules,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};

use super::super::Job;
use super::why;

/// Calls that no program of the sandbox needs: other processes' memory, mounts and namespaces, kernel modules, keys,
/// memory that no limit counts, and interfaces that were often the way out of a sandbox.
const FORBIDDEN: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_msgget,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_semget,
    libc::SYS_setns,
    libc::SYS_shmget,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// Among the host's processes also what reaches them, or leaves the group that is killed at the end.
const FORBIDDEN_WITHOUT_NAMESPACES: &[i64] = &[
    libc::SYS_kill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_prlimit64,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sched_setaffinity,
    libc::SYS_setpgid,
    libc::SYS_setpriority,
    libc::SYS_setsid,
    libc::SYS_tgkill,
    libc::SYS_tkill,
];

/// Forbids system calls, to this thread and all that it starts.
pub(super) fn apply(among_host: bool) -> Result<(), String> {
    let outside = if among_host { FORBIDDEN_WITHOUT_NAMESPACES } else { &[] };
    let mut forbidden: BTreeMap<i64, Vec<SeccompRule>> =
        FORBIDDEN.iter().chain(outside).map(|call| (*call, Vec::new())).collect();
    // Sockets only within the machine: every other family is a network, or a way to the kernel.
    let family = condition(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, libc::AF_UNIX as u64)?;
    forbidden.insert(libc::SYS_socket, vec![rule(family)?]);
    let namespaces = [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ];
    let of_clone = namespaces.map(|flag| {
        let flag = flag as u64;
        condition(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag).and_then(rule)
    });
    forbidden.insert(libc::SYS_clone, of_clone.into_iter().collect::<Result<_, _>>()?);
    install(forbidden, libc::EPERM)?;
    // A filter cannot read its flags; the C library does with `clone` where there is no `clone3`.
    install(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
}

fn condition(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, String> {
    SeccompCondition::new(argument, length, operator, value).map_err(why("make a filter"))
}

fn rule(condition: SeccompCondition) -> Result<SeccompRule, String> {
    SeccompRule::new(vec![condition]).map_err(why("make a filter"))
}

/// Has calls fail with an error. Filters add up.
fn install(calls: BTreeMap<i64, Vec<SeccompRule>>, error: i32) -> Result<(), String> {
    let architecture = std::env::consts::ARCH.try_into().map_err(why("filter system calls here"))?;
    let action = SeccompAction::Errno(error as u32);
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, action, architecture);
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(why("make a filter"))?;
    apply_filter(&program).map_err(why("filter system calls"))
}

/// Leaves this thread, and all that it starts, the system's files to read and its directory to write. Whether the kernel does that.
pub(super) fn restrict_files(job: &Job, directory: &Path) -> Result<bool, String> {
    const NEWEST: ABI = ABI::V6;
    let read = AccessFs::from_read(NEWEST);
    let all = AccessFs::from_all(NEWEST);
    let devices = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
    let restrict = || {
        let ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()?;
        ruleset
            .add_rules(path_beneath_rules(&job.system, read))?
            .add_rules(path_beneath_rules(devices, AccessFs::ReadFile | AccessFs::WriteFile))?
            .add_rules(path_beneath_rules([directory], all))?
            .restrict_self()
    };
    let status: Result<_, landlock::RulesetError> = restrict();
    status.map(|status| status.ruleset != RulesetStatus::NotEnforced).map_err(why("restrict its files"))
}
