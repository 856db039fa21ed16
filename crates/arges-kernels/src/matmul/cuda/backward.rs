//! Gradients of products on a GPU. Those by the inputs are products with transposed weights, which Hopper's tensor cores
//! read as the weights lie; those by the weights are products of columns of activations ([`by_weights`]).

mod by_weights;
mod squares;

use std::sync::Arc;

use super::{DeviceMatrix, DeviceRows, Output, Products, Rows, Turned, index};
use crate::device::cuda::{Activations, Argument, Buffer, Cuda, CudaError, Kernel, LaunchShape, Source};
use crate::matmul::Element;
pub use by_weights::HOPPER_GRADIENT;
#[cfg(test)]
pub(in crate::matmul) use by_weights::gradient_defines;
use by_weights::{Hopper, depth, read_in_place};
pub use squares::WrittenSquares;

/// Transposing kernels, and gradients on the ordinary cores.
pub const GRADIENTS: Source = Source { name: "matmul/backward.cu", text: include_str!("../backward.cu") };

/// Side of the tiles of `backward.cu`.
const TILE: usize = 64;

/// Rows of values on the device.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    /// f32 or bf16.
    Activations(&'a Activations),
    /// f32.
    F32(&'a Buffer<f32>),
}

impl Values<'_> {
    fn len(self) -> usize {
        match self {
            Self::Activations(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }

    fn address(self) -> u64 {
        match self {
            Self::Activations(values) => values.address(0),
            Self::F32(values) => values.address(0),
        }
    }

    fn element(self) -> Element {
        match self {
            Self::Activations(values) => values.element(),
            Self::F32(_) => Element::F32,
        }
    }
}

impl<'a> From<&'a Activations> for Values<'a> {
    fn from(values: &'a Activations) -> Self {
        Self::Activations(values)
    }
}

impl<'a> From<&'a Buffer<f32>> for Values<'a> {
    fn from(values: &'a Buffer<f32>) -> Self {
        Self::F32(values)
    }
}

/// Columns of activations: the first `width` values of rows of `stride`.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    /// The rows.
    pub data: Values<'a>,
    /// Values from one row to the next.
    pub stride: usize,
    /// Columns taken.
    pub width: usize,
}

impl<'a> Columns<'a> {
    /// All columns of rows of `width` values.
    pub fn all(data: impl Into<Values<'a>>, width: usize) -> Self {
        Self { data: data.into(), stride: width, width }
    }

    fn check(&self, rows: usize) {
        assert!(self.width <= self.stride, "{} columns of {}", self.width, self.stride);
        assert!(self.data.len() >= rows * self.stride, "{rows} rows of {}", self.stride);
    }
}

/// Where gradients of weights are added: from value `at` of `gradients` on, those of an expert `stride` values after
/// those of the one before.
pub struct GradientPlace<'a> {
    /// f32 sums.
    pub gradients: &'a mut Buffer<f32>,
    /// The first matrix.
    pub at: usize,
    /// From one matrix to the next.
    pub stride: usize,
    /// Whether the values that are there count as zeros. They are overwritten then, all of them.
    pub fresh: bool,
}

/// A gradient of one matrix by its weights: of rows, from those of `dy` and `x`, added from value `at` on.
#[derive(Clone, Copy)]
pub struct WeightGradient<'a> {
    /// By the outputs.
    pub dy: Columns<'a>,
    /// The inputs.
    pub x: Columns<'a>,
    /// The place of the first value.
    pub at: usize,
}

/// Compiled kernels, and memory for operands on their way.
pub struct ProductGradients {
    cuda: Arc<Cuda>,
    /// None where there are no tensor cores of Hopper.
    hopper: Option<Hopper>,
    turned: Option<Turned>,
    portable: [Kernel; 2],
    few: Kernel,
    transpose: [Kernel; 2],
    columns_as_rows: Kernel,
    pad_offsets: Kernel,
    add_parts: Kernel,
    /// Both operands, their columns as rows.
    operands: Buffer<u16>,
    padded: Buffer<i32>,
    parts: Buffer<f32>,
    squares: WrittenSquares,
}

impl ProductGradients {
    /// Compiles them, for up to `experts` matrices at once.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(cuda: &Arc<Cuda>, experts: usize) -> Result<Self, CudaError> {
        let module = cuda.module(GRADIENTS, &[]);
        let wide = cuda.facts().architecture.has_wgmma();
        Ok(Self {
            cuda: Arc::clone(cuda),
            hopper: wide.then(|| Hopper::new(cuda)).transpose()?,
            turned: wide.then(|| Turned::new(cuda)).transpose()?,
            portable: [module.kernel("gradient_f32")?, module.kernel("gradient_bf16")?],
            few: module.kernel("gradient_few")?,
            transpose: [module.kernel("transpose_f32")?, module.kernel("transpose_u16")?],
            columns_as_rows: module.kernel("columns_as_rows")?,
            pad_offsets: module.kernel("pad_offsets")?,
            add_parts: module.kernel("add_parts")?,
            operands: Buffer::zeroed(cuda, 0)?,
            padded: Buffer::zeroed(cuda, experts + 1)?,
            parts: Buffer::zeroed(cuda, 0)?,
            squares: WrittenSquares::new(cuda)?,
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.operands.bytes() + self.padded.bytes() + self.parts.bytes() + self.squares.bytes()
    }

    /// Squares of the gradients by weights that tensor cores wrote.
    pub fn squares(&self) -> &WrittenSquares {
        &self.squares
    }

    /// The same, to be forgotten.
    pub fn squares_mut(&mut self) -> &mut WrittenSquares {
        &mut self.squares
    }

    /// Takes the memory that [`ProductGradients::weights`] needs for bf16 rows of those two widths, up to `rows` of them in
    /// up to `experts` groups, so that none is taken later.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn reserve(&mut self, widths: [usize; 2], rows: usize, experts: usize) -> Result<(), CudaError> {
        let values = (widths[0] + widths[1]) * depth(rows, experts);
        let copied = self.hopper.is_some() && !widths.iter().all(|width| read_in_place(*width));
        if copied && values > self.operands.len() {
            self.operands = Buffer::zeroed(&self.cuda, values)?;
        }
        Ok(())
    }

    /// Multiplies gradients by outputs with the matrices' transposes, which gives those by inputs. Where the tensor cores
    /// do not read the matrices turned, `scratch` takes their transposes, for which it must have room.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree, or the output is neither f32 nor rounded.
    pub fn inputs(
        &self,
        products: &Products,
        matrix: &DeviceMatrix,
        dy: &DeviceRows,
        rows: Rows<'_>,
        output: Output<'_>,
        scratch: &mut DeviceMatrix,
    ) -> Result<(), CudaError> {
        if let Some(turned) = self.turned.as_ref().filter(|_| products.on_hopper(matrix, dy)) {
            return products.run_turned(turned, matrix, dy, rows, output);
        }
        self.transpose(matrix, scratch)?;
        products.run(scratch, dy, rows, output)
    }

    /// Makes `to` the transposes of all of `from`'s matrices.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When there is no room, or the formats differ.
    fn transpose(&self, from: &DeviceMatrix, to: &mut DeviceMatrix) -> Result<(), CudaError> {
        assert_eq!(from.element(), to.element(), "number formats");
        to.reshape(from.experts, from.k, from.outputs)?;
        to.fresh = true;
        self.transpose_values(&from.data, from.experts, from.outputs, from.k, &mut to.data)
    }

    /// The same of a matrix that is no product's yet, `[rows, columns]`.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When there is no room, or the formats differ.
    pub fn transpose_small(
        &self,
        from: &Activations,
        rows: usize,
        columns: usize,
        to: &mut DeviceMatrix,
    ) -> Result<(), CudaError> {
        assert_eq!(from.element(), to.element(), "number formats");
        to.reshape(1, columns, rows)?;
        to.fresh = true;
        self.transpose_values(from, 1, rows, columns, &mut to.data)
    }

    fn transpose_values(
        &self,
        from: &Activations,
        matrices: usize,
        rows: usize,
        columns: usize,
        to: &mut Activations,
    ) -> Result<(), CudaError> {
        let count = matrices * rows * columns;
        assert!(from.len() >= count && to.len() >= count, "room for the transposes");
        let shape = LaunchShape::grid(columns.div_ceil(TILE), rows.div_ceil(TILE), matrices, 256).overlap();
        let arguments = [
            Argument::Pointer(from.address(0)),
            Argument::Pointer(to.address(0)),
            Argument::I32(rows as i32),
            Argument::I32(columns as i32),
        ];
        let kernel = &self.transpose[index(from.element())];
        // SAFETY: the kernel's arguments, in order, for values of that size; both buffers hold all matrices.
        unsafe { self.cuda.launch(kernel, shape, &arguments) }
    }
}
