//! The best that a device does, measured: what speeds are stated as shares of.

use std::sync::Arc;

use cudarc::driver::result;

use super::{Buffer, Cuda, CudaError, Fill, Timer};
use crate::matmul::Element;
use crate::matmul::cuda::{DeviceMatrix, DeviceRows, Output, Products, Rows};

/// Bytes a second that the driver's own copy from memory to memory moves, read and written ones together, over
/// `bytes` of each.
///
/// # Errors
/// When the memory does not suffice or the driver fails.
pub fn copy_bandwidth(cuda: &Arc<Cuda>, bytes: usize, runs: usize) -> Result<f64, CudaError> {
    let (from, to) = (Buffer::<u8>::zeroed(cuda, bytes)?, Buffer::<u8>::zeroed(cuda, bytes)?);
    let seconds = shortest(cuda, runs, || {
        // SAFETY: both buffers have that many bytes and live until the timer has waited for the stream.
        unsafe { result::memcpy_dtod_async(to.address(0), from.address(0), bytes, cuda.stream()) }
            .map_err(|e| CudaError::driver("copying on the device", e))
    })?;
    Ok(2.0 * bytes as f64 / seconds)
}

/// Operations a second of our own bf16 product of `size` rows, outputs and inputs each, on random values.
///
/// # Errors
/// When the memory does not suffice or the driver fails.
pub fn matrix_rate(cuda: &Arc<Cuda>, size: usize, runs: usize) -> Result<f64, CudaError> {
    let (products, fill) = (Products::new(cuda)?, Fill::new(cuda)?);
    let mut matrix = DeviceMatrix::zeroed(cuda, 1, size, size, Element::Bf16)?;
    let mut x = DeviceRows::zeroed(cuda, size, size, Element::Bf16)?;
    let mut out = Buffer::zeroed(cuda, size * size)?;
    fill.normal(matrix.data_mut(), 1, 0.02)?;
    fill.normal(x.data_mut(), 2, 1.0)?;
    let seconds = shortest(cuda, runs, || products.run(&matrix, &x, Rows::All(size), Output::F32(&mut out)))?;
    Ok(2.0 * (size as f64).powi(3) / seconds)
}

/// Seconds of the shortest of some runs; one more goes first and does not count.
fn shortest(
    cuda: &Arc<Cuda>,
    runs: usize,
    mut body: impl FnMut() -> Result<(), CudaError>,
) -> Result<f64, CudaError> {
    let timer = Timer::new(cuda)?;
    body()?;
    let mut best = f64::INFINITY;
    for _ in 0..runs.max(1) {
        timer.start()?;
        body()?;
        best = best.min(timer.stop()?);
    }
    Ok(best)
}
