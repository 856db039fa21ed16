//! Memory for weights, caches and workspaces: zeroed, aligned to a cache line, huge pages where it is large.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytemuck::Pod;

/// Alignment of small buffers: one cache line, one AVX-512 register.
const LINE: usize = 64;
/// From this size on, memory comes straight from the system, in huge pages where it has them.
const HUGE: usize = 2 << 20;

/// A fixed-size, zero-initialised, aligned array. The system backs a large one as it is used.
pub struct AlignedBuffer<T: Pod> {
    start: NonNull<T>,
    len: usize,
    memory: Memory,
}

enum Memory {
    /// From the allocator, with this layout; nothing for an empty one.
    Allocated(Layout),
    /// Address and length of a mapping.
    #[cfg(target_os = "linux")]
    Mapped(*mut libc::c_void, usize),
}

// SAFETY: it owns its elements, as Vec does.
unsafe impl<T: Pod + Send> Send for AlignedBuffer<T> {}
// SAFETY: shared access gives shared slices only.
unsafe impl<T: Pod + Sync> Sync for AlignedBuffer<T> {}

impl<T: Pod> AlignedBuffer<T> {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<T>()).expect("buffer size fits in memory");
        let layout = Layout::from_size_align(bytes, LINE.max(align_of::<T>())).expect("size fits in memory");
        #[cfg(target_os = "linux")]
        if bytes >= HUGE {
            return Self::mapped(len, layout);
        }
        if bytes == 0 {
            return Self { start: NonNull::dangling(), len, memory: Memory::Allocated(layout) };
        }
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start.cast::<T>()) else { handle_alloc_error(layout) };
        Self { start, len, memory: Memory::Allocated(layout) }
    }

    /// A private mapping, from a huge-page boundary on. The advice comes before the first page is touched: the
    /// allocator would write every zero, in small pages.
    #[cfg(target_os = "linux")]
    fn mapped(len: usize, layout: Layout) -> Self {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let size = layout.size() + HUGE;
        // SAFETY: a new anonymous mapping touches no memory in use.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), size, access, kind, -1, 0) };
        if base == libc::MAP_FAILED {
            handle_alloc_error(layout);
        }
        let start = base.map_addr(|address| address.next_multiple_of(HUGE));
        // SAFETY: the range lies in the mapping; the call is advice and leaves the contents alone.
        unsafe { libc::madvise(start, layout.size(), libc::MADV_HUGEPAGE) };
        let start = NonNull::new(start.cast::<T>()).expect("a mapping is not at address 0");
        Self { start, len, memory: Memory::Mapped(base, size) }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T: Pod> Drop for AlignedBuffer<T> {
    fn drop(&mut self) {
        match self.memory {
            Memory::Allocated(layout) if layout.size() > 0 => {
                // SAFETY: allocated in `zeroed` with this layout.
                unsafe { dealloc(self.start.as_ptr().cast(), layout) }
            }
            Memory::Allocated(_) => {}
            #[cfg(target_os = "linux")]
            Memory::Mapped(base, size) => {
                // SAFETY: mapped in `mapped` with this size, and nobody holds a slice any more.
                unsafe { libc::munmap(base, size) };
            }
        }
    }
}

impl<T: Pod> Deref for AlignedBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised (zeroed Pod) elements, aligned.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Pod> DerefMut for AlignedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeroed_and_aligned_at_every_size() {
        for len in [0, 1, 17, HUGE / 4 - 1, HUGE / 4, HUGE / 2 + 3] {
            let buffer = AlignedBuffer::<f32>::zeroed(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|x| *x == 0.0));
            assert!(len == 0 || buffer.as_ptr().addr().is_multiple_of(LINE));
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_large_buffer_takes_memory_only_as_it_is_used() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let before = resident();
        let buffer = AlignedBuffer::<u8>::zeroed(1 << 30);
        assert_eq!(buffer.len(), 1 << 30);
        assert!(resident() < before + (1 << 29));
    }
}
