//! Page-locked memory of the host.

use std::sync::Arc;

use cudarc::driver::result;

use super::buffer::DeviceValue;
use super::{Cuda, CudaError};

/// `len` values in page-locked memory of the host, from and to which the device copies by itself.
pub struct Pinned<T> {
    cuda: Arc<Cuda>,
    pub(super) pointer: *mut T,
    pub(super) len: usize,
}

// SAFETY: it is owned memory of plain values.
unsafe impl<T: Send> Send for Pinned<T> {}
// SAFETY: shared references only read it.
unsafe impl<T: Sync> Sync for Pinned<T> {}

impl<T: DeviceValue> Pinned<T> {
    /// Takes memory for `len` zeros.
    ///
    /// # Errors
    /// When the system has none to lock.
    pub fn zeroed(cuda: &Arc<Cuda>, len: usize) -> Result<Self, CudaError> {
        cuda.bind()?;
        let bytes = len.max(1) * size_of::<T>();
        // SAFETY: a plain allocation, freed once in `drop`.
        let pointer = unsafe { result::malloc_host(bytes, 0) }
            .map_err(|e| CudaError::driver("taking page-locked memory", e))?
            .cast::<T>();
        // SAFETY: the allocation has that many bytes.
        unsafe { pointer.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { cuda: Arc::clone(cuda), pointer, len })
    }

    /// Values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: the allocation holds `len` values, zeros or written ones, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }

    /// The values, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // Copies from and to it may still be on their way; their errors were told to whoever waited for them.
        let _ = self.cuda.synchronize();
        // SAFETY: the allocation is this one's, and nothing copies from or to it any more.
        let _ = unsafe { result::free_host(self.pointer.cast()) };
    }
}
