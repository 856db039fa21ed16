//! Random values made on the device: weights for measurements that need no file.

use std::sync::Arc;

use super::{Activations, Argument, Buffer, Cuda, CudaError, Kernel, LaunchShape, Source};

const SOURCE: Source = Source { name: "device/cuda/fill.cu", text: include_str!("fill.cu") };

/// Fills memory with normal values that depend on a seed and on their places alone.
pub struct Fill {
    cuda: Arc<Cuda>,
    f32: Kernel,
    bf16: Kernel,
}

impl Fill {
    /// Compiles the kernels.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(cuda: &Arc<Cuda>) -> Result<Self, CudaError> {
        let module = cuda.module(SOURCE, &[]);
        Ok(Self {
            cuda: Arc::clone(cuda),
            f32: module.kernel("fill_f32")?,
            bf16: module.kernel("fill_bf16")?,
        })
    }

    /// Fills all of `values` with mean 0 and that standard deviation.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn normal(&self, values: &mut Activations, seed: u64, deviation: f32) -> Result<(), CudaError> {
        match values {
            Activations::F32(values) => self.normal_f32(values, seed, deviation),
            Activations::Bf16(values) => {
                self.launch(&self.bf16, values.address(0), values.len(), seed, deviation)
            }
        }
    }

    /// The same of f32 values.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn normal_f32(&self, values: &mut Buffer<f32>, seed: u64, deviation: f32) -> Result<(), CudaError> {
        self.launch(&self.f32, values.address(0), values.len(), seed, deviation)
    }

    fn launch(
        &self,
        kernel: &Kernel,
        address: u64,
        count: usize,
        seed: u64,
        deviation: f32,
    ) -> Result<(), CudaError> {
        let arguments = [
            Argument::Pointer(address),
            Argument::I64(count as i64),
            Argument::I64(seed.cast_signed()),
            Argument::F32(deviation),
        ];
        let blocks = count.div_ceil(1024).min(16 * self.cuda.facts().multiprocessors);
        // SAFETY: the kernel's four arguments; it writes as many values as there are.
        unsafe { self.cuda.launch(kernel, LaunchShape::new(blocks, 256), &arguments) }
    }
}
