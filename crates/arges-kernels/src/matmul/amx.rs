//! placeholder
#![cfg(target_arch = "x86_64")]
use super::cpu::Task;
pub(crate) fn usable() -> bool {
    false
}
pub(super) unsafe fn run(_task: &Task<'_>) {
    unreachable!()
}
