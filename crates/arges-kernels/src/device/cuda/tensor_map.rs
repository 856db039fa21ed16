//! Descriptions of matrices for Hopper's copy engine.

use cudarc::driver::sys;

use super::{Buffer, CudaError};

/// A bf16 matrix, or more, in device memory and the box that one copy takes out of it into shared memory, whose rows are
/// swizzled over 128 bytes. What lies outside the matrix is copied as zeros.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct TensorMap(sys::CUtensorMap);

// SAFETY: it is plain data.
unsafe impl Send for TensorMap {}
// SAFETY: as above.
unsafe impl Sync for TensorMap {}

impl TensorMap {
    /// The matrix `[rows, columns]` at the front of `buffer`, copied in boxes of `box_rows` rows by 64 columns.
    ///
    /// # Errors
    /// When rows do not begin at multiples of 16 bytes, or the driver refuses.
    ///
    /// # Panics
    /// When the matrix is larger than the buffer.
    pub fn bf16(
        buffer: &Buffer<u16>,
        rows: usize,
        columns: usize,
        box_rows: usize,
    ) -> Result<Self, CudaError> {
        Self::bf16_at(buffer, 0, rows, columns, box_rows)
    }

    /// The same for a matrix that begins at value `at`, a multiple of 8.
    ///
    /// # Errors
    /// As for [`TensorMap::bf16`].
    ///
    /// # Panics
    /// When the matrix reaches beyond the buffer.
    pub fn bf16_at(
        buffer: &Buffer<u16>,
        at: usize,
        rows: usize,
        columns: usize,
        box_rows: usize,
    ) -> Result<Self, CudaError> {
        assert!(
            at.is_multiple_of(8) && at + rows * columns <= buffer.len(),
            "[{rows}, {columns}] at {at} in a buffer of {}",
            buffer.len()
        );
        Self::encode(buffer, at, [columns, rows], [columns], [64, box_rows])
    }

    /// The first `columns` values of `rows` rows, which begin `stride` values apart.
    ///
    /// # Errors
    /// As for [`TensorMap::bf16`].
    ///
    /// # Panics
    /// When the rows reach beyond the buffer.
    pub fn bf16_columns(
        buffer: &Buffer<u16>,
        rows: usize,
        columns: usize,
        stride: usize,
        box_rows: usize,
    ) -> Result<Self, CudaError> {
        assert!(
            columns <= stride && rows * stride <= buffer.len(),
            "{columns} columns of [{rows}, {stride}] in a buffer of {}",
            buffer.len()
        );
        Self::encode(buffer, 0, [columns, rows], [stride], [64, box_rows])
    }

    /// The heads at the front of `rows` rows, which begin `stride` values apart: `[rows, heads, head_dim]`, copied in
    /// boxes of `box_rows` rows by `box_heads` heads by 64 channels.
    ///
    /// # Errors
    /// As for [`TensorMap::bf16`].
    ///
    /// # Panics
    /// When the rows reach beyond the buffer.
    pub fn bf16_heads(
        buffer: &Buffer<u16>,
        [rows, heads, head_dim]: [usize; 3],
        stride: usize,
        [box_rows, box_heads]: [usize; 2],
    ) -> Result<Self, CudaError> {
        assert!(
            heads * head_dim <= stride && rows * stride <= buffer.len(),
            "{heads} heads of {head_dim} of [{rows}, {stride}] in a buffer of {}",
            buffer.len()
        );
        Self::encode(buffer, 0, [head_dim, heads, rows], [head_dim, stride], [64, box_heads, box_rows])
    }

    /// An array of N dimensions, the innermost first, of whose outer ones the strides are.
    fn encode<const N: usize, const OUTER: usize>(
        buffer: &Buffer<u16>,
        at: usize,
        dimensions: [usize; N],
        strides: [usize; OUTER],
        box_shape: [usize; N],
    ) -> Result<Self, CudaError> {
        const { assert!(OUTER + 1 == N) };
        if let Some(stride) = strides.iter().find(|stride| !stride.is_multiple_of(8)) {
            return Err(CudaError::Unsupported(format!("rows of {stride} bf16 values are no multiple of 8")));
        }
        buffer.cuda().bind()?;
        let mut map = Self(sys::CUtensorMap { opaque: [0; 16] });
        let dimensions = dimensions.map(|n| n as u64);
        let strides = strides.map(|stride| 2 * stride as u64);
        let box_shape = box_shape.map(|n| n as u32);
        let steps = [1; N];
        // SAFETY: the arrays have an entry for each dimension, that of strides for each but the innermost, and the
        // array lies within the buffer.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map.0,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                N as u32,
                buffer.address(at) as *mut _,
                dimensions.as_ptr(),
                strides.as_ptr(),
                box_shape.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(|e| CudaError::driver("describing a matrix to the copy engine", e))?;
        Ok(map)
    }

    pub(super) fn as_ptr(&self) -> *const sys::CUtensorMap {
        &raw const self.0
    }
}
