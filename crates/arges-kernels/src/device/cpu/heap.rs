//! How the C library's heap keeps what is freed.

/// Bytes from which an allocation has pages of its own, which are given back when it is freed, and bytes that are kept
/// at the end of a heap.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: i32 = 256 << 10;

/// Heaps that threads share.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAPS: i32 = 2;

/// Has freed memory go back to the system. glibc learns from one large allocation that is freed to keep those to come:
/// a server that once read bodies of 32 MiB would hold their memory from then on. Elsewhere nothing is changed.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` takes two numbers and sets parameters of the allocator under its own lock. One that it does not
    // know is left as it is.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}
