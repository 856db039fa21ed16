//! Memory of the device and page-locked memory of the host.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::{Cuda, CudaError};
use crate::matmul::Element;

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

/// Copies rows of `width` bytes, one after the other at `from`, to `to + r * pitch` on the device. The callers have
/// checked both ranges.
fn copy_rows(
    cuda: &Cuda,
    to: u64,
    pitch: usize,
    from: *const u8,
    rows: usize,
    width: usize,
) -> Result<(), CudaError> {
    cuda.bind()?;
    let copy = sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: from.cast(),
        srcDevice: 0,
        srcArray: std::ptr::null_mut(),
        srcPitch: width,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: std::ptr::null_mut(),
        dstDevice: to,
        dstArray: std::ptr::null_mut(),
        dstPitch: pitch,
        WidthInBytes: width,
        Height: rows,
    };
    // SAFETY: the callers have checked that both ranges lie within their memory, which is page-locked here, and keep
    // it unchanged until the stream has been waited for.
    unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, cuda.stream()) }
        .result()
        .map_err(|e| CudaError::driver("copying rows to the device", e))
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

/// `len` values in page-locked memory of the host, from and to which the device copies by itself.
pub struct Pinned<T> {
    cuda: Arc<Cuda>,
    pointer: *mut T,
    len: usize,
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

/// Activations on the device, in the precision that the model computes in.
pub enum Activations {
    /// f32.
    F32(Buffer<f32>),
    /// bf16.
    Bf16(Buffer<u16>),
}

impl Activations {
    /// Takes memory for `len` zeros.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn zeroed(cuda: &Arc<Cuda>, element: Element, len: usize) -> Result<Self, CudaError> {
        Ok(match element {
            Element::F32 => Self::F32(Buffer::zeroed(cuda, len)?),
            Element::Bf16 => Self::Bf16(Buffer::zeroed(cuda, len)?),
        })
    }

    /// Those values, rounded to the precision asked for.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn from_f32(cuda: &Arc<Cuda>, element: Element, values: &[f32]) -> Result<Self, CudaError> {
        Ok(match element {
            Element::F32 => Self::F32(Buffer::from_slice(cuda, values)?),
            Element::Bf16 => {
                let rounded: Vec<u16> = values.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
                Self::Bf16(Buffer::from_slice(cuda, &rounded)?)
            }
        })
    }

    /// All values on the host, widened.
    ///
    /// # Errors
    /// When the driver fails, or a kernel before.
    pub fn to_f32(&self) -> Result<Vec<f32>, CudaError> {
        Ok(match self {
            Self::F32(buffer) => buffer.to_vec()?,
            Self::Bf16(buffer) => {
                buffer.to_vec()?.into_iter().map(|bits| half::bf16::from_bits(bits).to_f32()).collect()
            }
        })
    }

    /// Copies `rows` rows of `width` bytes from page-locked memory, row `r` to byte `at + r * pitch`, in the order of
    /// the stream. `from` must not change until that is done.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When the rows reach beyond the end of either.
    pub fn write_rows(
        &mut self,
        at: usize,
        pitch: usize,
        from: &Pinned<u8>,
        rows: usize,
        width: usize,
    ) -> Result<(), CudaError> {
        if rows == 0 || width == 0 {
            return Ok(());
        }
        assert!(rows * width <= from.len, "{rows} rows of {width} bytes from {}", from.len);
        assert!(at + (rows - 1) * pitch + width <= self.bytes(), "rows beyond the end");
        let to = self.address(0) + at as u64;
        let cuda = match self {
            Self::F32(buffer) => &buffer.cuda,
            Self::Bf16(buffer) => &buffer.cuda,
        };
        copy_rows(cuda, to, pitch, from.pointer, rows, width)
    }

    /// Copies all values of others of the same element and number, in the order of the stream.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When element or number differ.
    pub fn copy_from(&mut self, from: &Self) -> Result<(), CudaError> {
        assert_eq!(self.len(), from.len(), "values");
        match (self, from) {
            (Self::F32(to), Self::F32(from)) => to.copy_from(0, from, 0, from.len()),
            (Self::Bf16(to), Self::Bf16(from)) => to.copy_from(0, from, 0, from.len()),
            _ => panic!("values of different elements"),
        }
    }

    /// Makes all values zero, in the order of the stream.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn clear(&mut self) -> Result<(), CudaError> {
        match self {
            Self::F32(buffer) => buffer.clear(),
            Self::Bf16(buffer) => buffer.clear(),
        }
    }

    /// Precision.
    pub fn element(&self) -> Element {
        match self {
            Self::F32(_) => Element::F32,
            Self::Bf16(_) => Element::Bf16,
        }
    }

    /// Values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(buffer) => buffer.len(),
            Self::Bf16(buffer) => buffer.len(),
        }
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::F32(buffer) => buffer.bytes(),
            Self::Bf16(buffer) => buffer.bytes(),
        }
    }

    /// Address of value `at`, for kernels.
    ///
    /// # Panics
    /// When `at` is beyond the end.
    pub fn address(&self, at: usize) -> u64 {
        match self {
            Self::F32(buffer) => buffer.address(at),
            Self::Bf16(buffer) => buffer.address(at),
        }
    }
}
