//! Handing disjoint parts of one slice to several threads.

use std::marker::PhantomData;

/// A mutable slice whose parts are written by different tasks.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose caller promises that no two tasks overlap.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: it is a mutable borrow of elements that may be sent.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// `len` elements from `start`.
    ///
    /// # Safety
    /// While the result lives, nobody else may hold a part that overlaps it.
    #[allow(clippy::mut_from_ref)]
    #[inline]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "{start}+{len} beyond {}", self.len);
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// The first element, for code that computes addresses itself.
    pub(crate) fn as_mut_ptr(&self) -> *mut T {
        self.start
    }
}
