//! Memory for weights, caches and workspaces: zeroed, aligned to a cache line, huge pages where it is large.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytemuck::Pod;

/// Alignment of small buffers: one cache line, one AVX-512 register.
const LINE: usize = 64;
/// Alignment of large buffers, so that the kernel can back them with huge pages.
const HUGE: usize = 2 << 20;

/// A fixed-size, zero-initialised, aligned array.
pub struct AlignedBuffer<T: Pod> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its elements, as Vec does.
unsafe impl<T: Pod + Send> Send for AlignedBuffer<T> {}
// SAFETY: shared access gives shared slices only.
unsafe impl<T: Pod + Sync> Sync for AlignedBuffer<T> {}

impl<T: Pod> AlignedBuffer<T> {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        if layout.size() == 0 {
            return Self { start: NonNull::dangling(), len };
        }
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start.cast::<T>()) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if layout.size() >= HUGE {
            // SAFETY: the range was just allocated; the call is advice and leaves its contents alone.
            unsafe { libc::madvise(start.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        Self { start, len }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        Self::layout(self.len).size()
    }

    fn layout(len: usize) -> Layout {
        let bytes = len.checked_mul(size_of::<T>()).expect("buffer size fits in memory");
        let align = if bytes >= HUGE { HUGE } else { LINE };
        Layout::from_size_align(bytes, align.max(align_of::<T>())).expect("buffer size fits in memory")
    }
}

impl<T: Pod> Drop for AlignedBuffer<T> {
    fn drop(&mut self) {
        let layout = Self::layout(self.len);
        if layout.size() > 0 {
            // SAFETY: allocated in `zeroed` with this layout.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) }
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
}
