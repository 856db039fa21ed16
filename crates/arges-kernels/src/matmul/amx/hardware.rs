//! The instructions of AMX, and whether they can be used.
//!
//! They are written as assembly because their intrinsics are not stable. Tiles keep their contents from one
//! statement to the next, which `asm!` cannot express; it holds because the compiler never uses a tile register
//! of itself, and because assembly that is not `pure` is neither reordered nor left out.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::ptr::from_ref;

use super::{Configuration, Tiles, check};

/// Whether AMX computes bf16 products here: the CPU and the system have it, the system lets this process use
/// it, and a few products come out right. The last guards against virtual machines that announce AMX and
/// mishandle its state: better slow than wrong.
///
/// Asks for permission for the whole process, threads that start later included.
pub(crate) fn usable() -> bool {
    supported() && permitted() && check::tiles_work(&mut Hardware)
}

/// Whether the CPU has AMX with bf16, and the system saves the state of tiles.
fn supported() -> bool {
    // Intel's manual, volume 2, CPUID leaf 7: EDX.
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    // Volume 1, 13.1: XCR0.
    const TILE_CONFIGURATION: u64 = 1 << 17;
    const TILE_DATA: u64 = 1 << 18;
    // Where there is XSAVE, there is leaf 7.
    let wanted = AMX_BF16 | AMX_TILE;
    if !is_x86_feature_detected!("xsave") || __cpuid_count(7, 0).edx & wanted != wanted {
        return false;
    }
    let wanted = TILE_CONFIGURATION | TILE_DATA;
    // SAFETY: XSAVE is there and enabled by the system, and XGETBV with it.
    unsafe { _xgetbv(0) & wanted == wanted }
}

/// Asks Linux for the use of tile data; it stops processes that use it without having asked.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    // From the kernel's asm/prctl.h and asm/fpu/types.h.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes no pointers, and does nothing but permit.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// How other systems are to be asked is not known here.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The tile registers of this machine.
pub(super) struct Hardware;

// SAFETY (of every block below): the trait's contract gives AMX, shapes that fit, and valid addresses.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Tiles for Hardware {
    #[inline(always)]
    unsafe fn configure(&mut self, configuration: &Configuration) {
        unsafe {
            asm!(
                "ldtilecfg [{}]",
                in(reg) from_ref(configuration),
                options(nostack, preserves_flags, readonly),
            );
        }
    }

    #[inline(always)]
    unsafe fn release(&mut self) {
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }

    #[inline(always)]
    unsafe fn zero<const TILE: usize>(&mut self) {
        unsafe { asm!("tilezero tmm{}", const TILE, options(nostack, preserves_flags, nomem)) };
    }

    #[inline(always)]
    unsafe fn load<const TILE: usize>(&mut self, first: *const u8, stride: usize) {
        unsafe {
            asm!(
                "tileloadd tmm{}, [{} + {} * 1]",
                const TILE,
                in(reg) first,
                in(reg) stride,
                options(nostack, preserves_flags, readonly),
            );
        }
    }

    #[inline(always)]
    unsafe fn store<const TILE: usize>(&mut self, first: *mut u8, stride: usize) {
        unsafe {
            asm!(
                "tilestored [{} + {} * 1], tmm{}",
                in(reg) first,
                in(reg) stride,
                const TILE,
                options(nostack, preserves_flags),
            );
        }
    }

    #[inline(always)]
    unsafe fn dot<const SUMS: usize, const ROWS: usize, const WEIGHTS: usize>(&mut self) {
        unsafe {
            asm!(
                "tdpbf16ps tmm{}, tmm{}, tmm{}",
                const SUMS,
                const ROWS,
                const WEIGHTS,
                options(nostack, preserves_flags, nomem),
            );
        }
    }
}
