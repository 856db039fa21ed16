//! AdamW on a GPU (`adamw.cu`): the arithmetic of the CPU's, on flat arrays in the memory of the device.

use std::ops::Range;
use std::sync::Arc;

use super::AdamW;
use super::cpu::{Factors, V_SCALE};
use crate::device::cuda::{Argument, Buffer, Cuda, CudaError, Define, Kernel, LaunchShape, Source};

/// The kernels.
pub const SOURCE: Source = Source { name: "adamw/adamw.cu", text: include_str!("adamw.cu") };

/// Values whose squares one block adds up.
const PIECE: usize = 1 << 14;

/// What the kernels are compiled for.
pub const DEFINES: [Define; 1] = [("PIECE", PIECE as i64)];

/// The compiled kernels.
pub struct AdamWCuda {
    cuda: Arc<Cuda>,
    adamw: Kernel,
    squares: Kernel,
    total: Kernel,
    parts: Buffer<f64>,
    sum: Buffer<f64>,
}

/// Values that learn and what AdamW keeps of them, all of one length.
pub struct Learned<'a> {
    /// The values.
    pub values: &'a mut Buffer<f32>,
    /// Their gradients.
    pub gradients: &'a Buffer<f32>,
    /// First moments; zeros at the beginning.
    pub m: &'a mut Buffer<f32>,
    /// Second moments in the form of [`adamw`](super::adamw); zeros at the beginning.
    pub v: &'a mut Buffer<f32>,
}

impl AdamWCuda {
    /// Compiles them for up to `len` values.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(cuda: &Arc<Cuda>, len: usize) -> Result<Self, CudaError> {
        let module = cuda.module(SOURCE, &DEFINES)?;
        Ok(Self {
            cuda: Arc::clone(cuda),
            adamw: module.kernel("adamw")?,
            squares: module.kernel("squares")?,
            total: module.kernel("total")?,
            parts: Buffer::zeroed(cuda, len.div_ceil(PIECE))?,
            sum: Buffer::zeroed(cuda, 1)?,
        })
    }

    /// One step for a range of values, as [`adamw`](super::adamw) does it on the CPU.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When sizes differ, or the step is 0.
    pub fn step(
        &self,
        settings: AdamW,
        gradient_scale: f32,
        range: Range<usize>,
        learned: &mut Learned<'_>,
    ) -> Result<(), CudaError> {
        let len = learned.values.len();
        assert_eq!([learned.gradients.len(), learned.m.len(), learned.v.len()], [len; 3]);
        assert!(range.start <= range.end && range.end <= len, "values {range:?} of {len}");
        let f = Factors::new(settings, gradient_scale);
        let arguments = [
            Argument::Pointer(learned.values.address(range.start)),
            Argument::Pointer(learned.gradients.address(range.start)),
            Argument::Pointer(learned.m.address(range.start)),
            Argument::Pointer(learned.v.address(range.start)),
            Argument::I64(range.len() as i64),
            Argument::F32(f.gradient),
            Argument::F32(f.beta1),
            Argument::F32(f.rest1),
            Argument::F32(f.beta2),
            Argument::F32(f.rest2),
            Argument::F32(f.rate),
            Argument::F32(f.root),
            Argument::F32(f.eps),
            Argument::F32(f.decay),
            Argument::F32(V_SCALE.sqrt()),
        ];
        let blocks = range.len().div_ceil(1024).min(32 * self.cuda.facts().multiprocessors);
        // SAFETY: the kernel's arguments, in order; the range lies within all four.
        unsafe { self.cuda.launch(&self.adamw, LaunchShape::new(blocks, 256), &arguments) }
    }

    /// Sum of squares, in f64 and in a fixed order. Waits for the device.
    ///
    /// # Errors
    /// When the driver fails, or a kernel before.
    ///
    /// # Panics
    /// When there are more values than these kernels were made for.
    pub fn sum_of_squares(&mut self, x: &Buffer<f32>) -> Result<f64, CudaError> {
        let parts = x.len().div_ceil(PIECE);
        assert!(parts <= self.parts.len(), "room for the parts of {} values", x.len());
        let arguments = [
            Argument::Pointer(x.address(0)),
            Argument::Pointer(self.parts.address(0)),
            Argument::I64(x.len() as i64),
        ];
        // SAFETY: the kernel's arguments; there is a part for each block.
        unsafe { self.cuda.launch(&self.squares, LaunchShape::new(parts, 256), &arguments)? };
        let arguments = [
            Argument::Pointer(self.parts.address(0)),
            Argument::Pointer(self.sum.address(0)),
            Argument::I32(parts as i32),
        ];
        // SAFETY: the kernel's arguments; `parts` parts were just written.
        unsafe { self.cuda.launch(&self.total, LaunchShape::new(1, 256), &arguments)? };
        let mut sum = [0.0];
        self.sum.read(0, &mut sum)?;
        Ok(sum[0])
    }
}
