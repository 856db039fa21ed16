//! Activations on the device.

use std::sync::Arc;

use cudarc::driver::sys;

use super::{Buffer, Cuda, CudaError, Pinned};
use crate::matmul::Element;

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
            Self::F32(buffer) => buffer.cuda(),
            Self::Bf16(buffer) => buffer.cuda(),
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
