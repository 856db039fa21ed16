//! Memory of the device.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::{Cuda, CudaError, Pinned};

/// What buffers hold: plain values for which all bits, zeros too, are valid.
pub trait DeviceValue: bytemuck::Pod {}

impl<T: bytemuck::Pod> DeviceValue for T {}

/// `len` values on the device.
pub struct Buffer<T> {
    cuda: Arc<Cuda>,
    pointer: sys::CUdeviceptr,
    len: usize,
    values: PhantomData<T>,
}

// SAFETY: a buffer is an address on the device; every use of it goes through the driver, which takes calls from any
// thread, and onto the one stream of its device.
unsafe impl<T: Send> Send for Buffer<T> {}
// SAFETY: as above; shared references only read the address.
unsafe impl<T: Sync> Sync for Buffer<T> {}

impl<T: DeviceValue> Buffer<T> {
    /// Takes memory for `len` zeros.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn zeroed(cuda: &Arc<Cuda>, len: usize) -> Result<Self, CudaError> {
        cuda.bind()?;
        let bytes = len
            .max(1)
            .checked_mul(size_of::<T>())
            .ok_or(CudaError::OutOfMemory { bytes: usize::MAX, free: cuda.free_memory().unwrap_or(0) })?;
        // SAFETY: a plain allocation, freed once in `drop`.
        let pointer = unsafe { result::malloc_sync(bytes) }.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                CudaError::OutOfMemory { bytes, free: cuda.free_memory().unwrap_or(0) }
            }
            _ => CudaError::driver("taking memory", error),
        })?;
        cuda.count_allocation(bytes);
        let buffer = Self { cuda: Arc::clone(cuda), pointer, len, values: PhantomData };
        // SAFETY: the allocation has that many bytes.
        unsafe { result::memset_d8_async(pointer, 0, bytes, cuda.stream()) }
            .map_err(|e| CudaError::driver("clearing memory", e))?;
        Ok(buffer)
    }

    /// A buffer with those values.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn from_slice(cuda: &Arc<Cuda>, values: &[T]) -> Result<Self, CudaError> {
        let mut buffer = Self::zeroed(cuda, values.len())?;
        buffer.write(0, values)?;
        Ok(buffer)
    }

    /// Values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// The device it is on.
    pub fn cuda(&self) -> &Arc<Cuda> {
        &self.cuda
    }

    /// Address of value `at`, for kernels.
    ///
    /// # Panics
    /// When `at` is beyond the end.
    pub fn address(&self, at: usize) -> u64 {
        assert!(at <= self.len, "place {at} of {} values", self.len);
        self.pointer + (at * size_of::<T>()) as u64
    }

    /// Copies values from the host to `at` and waits until they may be changed again.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When they reach beyond the end.
    pub fn write(&mut self, at: usize, values: &[T]) -> Result<(), CudaError> {
        assert!(at + values.len() <= self.len, "{} values at {at} of {}", values.len(), self.len);
        self.cuda.bind()?;
        if values.is_empty() {
            return Ok(());
        }
        // SAFETY: the range was checked; the stream is waited for while `values` is borrowed.
        unsafe { result::memcpy_htod_async(self.address(at), values, self.cuda.stream()) }
            .map_err(|e| CudaError::driver("copying to the device", e))?;
        self.cuda.synchronize()
    }

    /// Copies `count` values from page-locked memory to the same places here, in the order of the stream: those from
    /// `at` on. `from` must not change there until that is done.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When they reach beyond the end of either.
    pub fn copy_from_pinned(&mut self, at: usize, from: &Pinned<T>, count: usize) -> Result<(), CudaError> {
        assert!(at + count <= self.len && at + count <= from.len, "{count} values at {at} of {}", self.len);
        self.cuda.bind()?;
        // SAFETY: both ranges were checked; the caller keeps `from` unchanged, and its memory lives as long as its
        // device, whose stream is waited for before it is freed.
        unsafe {
            let values = &from.as_slice()[at..at + count];
            result::memcpy_htod_async(self.address(at), values, self.cuda.stream())
        }
        .map_err(|e| CudaError::driver("copying to the device", e))
    }

    /// Copies `count` values from the front into page-locked memory, in the order of the stream. They are there once
    /// the stream has been waited for.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When `count` is more than either holds.
    pub fn read_pinned(&self, to: &mut Pinned<T>, count: usize) -> Result<(), CudaError> {
        self.read_pinned_at(0, to, 0, count)
    }

    /// As [`Self::read_pinned`], from value `at` on, to `to_at`.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When they reach beyond the end of either.
    pub fn read_pinned_at(
        &self,
        at: usize,
        to: &mut Pinned<T>,
        to_at: usize,
        count: usize,
    ) -> Result<(), CudaError> {
        assert!(at + count <= self.len, "{count} values at {at} of {}", self.len);
        assert!(to_at + count <= to.len, "{count} values to {to_at} of {}", to.len);
        self.cuda.bind()?;
        // SAFETY: both ranges were checked; the memory lives until the stream has been waited for.
        unsafe {
            let values = &mut to.as_mut_slice()[to_at..to_at + count];
            result::memcpy_dtoh_async(values, self.address(at), self.cuda.stream())
        }
        .map_err(|e| CudaError::driver("copying from the device", e))
    }

    /// Copies `count` values of another buffer, from its value `from_at` on, to `at`, in the order of the stream.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When they reach beyond the end of either.
    pub fn copy_from(
        &mut self,
        at: usize,
        from: &Self,
        from_at: usize,
        count: usize,
    ) -> Result<(), CudaError> {
        assert!(at + count <= self.len && from_at + count <= from.len, "{count} values at {at}");
        self.cuda.bind()?;
        // SAFETY: both hold so many values, and are freed only after the stream has been waited for.
        unsafe {
            let bytes = count * size_of::<T>();
            result::memcpy_dtod_async(self.address(at), from.address(from_at), bytes, self.cuda.stream())
        }
        .map_err(|e| CudaError::driver("copying on the device", e))
    }

    /// Makes all values zero, in the order of the stream.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn clear(&mut self) -> Result<(), CudaError> {
        self.clear_range(0, self.len)
    }

    /// Makes `count` values from `at` on zero, in the order of the stream.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When they reach beyond the end.
    pub fn clear_range(&mut self, at: usize, count: usize) -> Result<(), CudaError> {
        assert!(at + count <= self.len, "{count} values at {at} of {}", self.len);
        self.cuda.bind()?;
        if count == 0 {
            return Ok(());
        }
        // SAFETY: the allocation holds that range.
        unsafe { result::memset_d8_async(self.address(at), 0, count * size_of::<T>(), self.cuda.stream()) }
            .map_err(|e| CudaError::driver("clearing memory", e))
    }

    /// Copies `count` values from `from_at` of page-locked memory to `at`, in the order of the stream. `from` must not
    /// change there until that is done.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When they reach beyond the end of either.
    pub fn copy_from_host(
        &mut self,
        at: usize,
        from: &Pinned<T>,
        from_at: usize,
        count: usize,
    ) -> Result<(), CudaError> {
        assert!(at + count <= self.len && from_at + count <= from.len, "{count} values beyond the end");
        self.cuda.bind()?;
        if count == 0 {
            return Ok(());
        }
        // SAFETY: both ranges were checked; the caller keeps `from` unchanged, and its memory lives until the stream
        // has been waited for.
        unsafe {
            let values = &from.as_slice()[from_at..from_at + count];
            result::memcpy_htod_async(self.address(at), values, self.cuda.stream())
        }
        .map_err(|e| CudaError::driver("copying to the device", e))
    }

    /// Copies `count` values from `at` to `to_at` of page-locked memory, in the order of the stream.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When they reach beyond the end of either.
    pub fn copy_to_host(
        &self,
        at: usize,
        to: &mut Pinned<T>,
        to_at: usize,
        count: usize,
    ) -> Result<(), CudaError> {
        assert!(at + count <= self.len && to_at + count <= to.len, "{count} values beyond the end");
        self.cuda.bind()?;
        if count == 0 {
            return Ok(());
        }
        // SAFETY: both ranges were checked; the memory lives until the stream has been waited for.
        unsafe {
            let values = &mut to.as_mut_slice()[to_at..to_at + count];
            result::memcpy_dtoh_async(values, self.address(at), self.cuda.stream())
        }
        .map_err(|e| CudaError::driver("copying from the device", e))
    }

    /// Copies `values.len()` values from `at` to the host.
    ///
    /// # Errors
    /// When the driver fails, or a kernel before.
    ///
    /// # Panics
    /// When they reach beyond the end.
    pub fn read(&self, at: usize, values: &mut [T]) -> Result<(), CudaError> {
        assert!(at + values.len() <= self.len, "{} values at {at} of {}", values.len(), self.len);
        self.cuda.bind()?;
        if !values.is_empty() {
            // SAFETY: the range was checked; the stream is waited for while `values` is borrowed.
            unsafe { result::memcpy_dtoh_async(values, self.address(at), self.cuda.stream()) }
                .map_err(|e| CudaError::driver("copying from the device", e))?;
        }
        self.cuda.synchronize()
    }

    /// All values, on the host.
    ///
    /// # Errors
    /// When the driver fails, or a kernel before.
    pub fn to_vec(&self) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::zeroed(); self.len];
        self.read(0, &mut values)?;
        Ok(values)
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        let bytes = self.len.max(1) * size_of::<T>();
        if self.cuda.bind().is_ok() {
            // SAFETY: the allocation is this buffer's; freeing waits for the kernels that use it. An error here is
            // one of an earlier kernel, which whoever waits for the stream is told.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
        self.cuda.count_release(bytes);
    }
}
