//! Descriptions of matrices for Hopper's copy engine.

use cudarc::driver::sys;

use super::{Buffer, CudaError};

/// A bf16 matrix in device memory and the box that one copy takes out of it into shared memory, whose rows are
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
        Self::encode(buffer, at, [rows, columns], columns, box_rows)
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
        Self::encode(buffer, 0, [rows, columns], stride, box_rows)
    }

    fn encode(
        buffer: &Buffer<u16>,
        at: usize,
        [rows, columns]: [usize; 2],
        stride: usize,
        box_rows: usize,
    ) -> Result<Self, CudaError> {
        if !stride.is_multiple_of(8) {
            return Err(CudaError::Unsupported(format!("rows of {stride} bf16 values are no multiple of 8")));
        }
        buffer.cuda().bind()?;
        let mut map = Self(sys::CUtensorMap { opaque: [0; 16] });
        let dimensions = [columns as u64, rows as u64];
        let strides = [2 * stride as u64];
        let box_shape = [64, box_rows as u32];
        let steps = [1, 1];
        // SAFETY: the arrays have an entry for each of the two dimensions, and the matrix lies within the buffer.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map.0,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
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
