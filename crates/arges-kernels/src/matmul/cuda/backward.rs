//! Gradients of products on a GPU. Those by the inputs are products with transposed weights. Those by the weights are
//! products of columns of activations, which on Hopper are laid out as rows first (`backward.cu`) and multiplied by the
//! tensor cores (`hopper.cu`); elsewhere, and in f32, the ordinary cores read them as they lie. An element is one
//! accumulator over ascending rows, or a fixed number of them added in order: the same bits every time.

use std::sync::Arc;

use super::tiling::{LARGE, TILINGS, Tiling};
use super::{DeviceMatrix, HOPPER, Rows, index};
use crate::device::cuda::{
    Activations, Argument, Buffer, Cuda, CudaError, Define, Kernel, LaunchShape, Source, TensorMap,
};
use crate::matmul::Element;

/// Transposing kernels, and gradients on the ordinary cores.
pub const GRADIENTS: Source = Source { name: "matmul/backward.cu", text: include_str!("../backward.cu") };

/// Side of the tiles of `backward.cu`.
const TILE: usize = 64;
/// An expert's rows are padded to a multiple of this; a step of the tensor cores along them.
const STEP: usize = 64;
/// Rows that one block of the ordinary cores adds up where blocks are few.
const PART: usize = 512;
/// Parts at most, so that sums of parts stay small.
const MOST_PARTS: usize = 64;

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
}

/// Compiled kernels, and memory for operands on their way.
pub struct ProductGradients {
    cuda: Arc<Cuda>,
    /// For many tiles and for few; none where there are no tensor cores of Hopper.
    hopper: Option<[(Tiling, Kernel); 2]>,
    portable: [Kernel; 2],
    transpose: [Kernel; 2],
    columns_as_rows: Kernel,
    pad_offsets: Kernel,
    add_parts: Kernel,
    pack: [Kernel; 2],
    /// Both operands, their columns as rows.
    operands: Buffer<u16>,
    padded: Buffer<i32>,
    parts: Buffer<f32>,
}

/// Tilings of gradients, of [`TILINGS`].
const CHOICES: [usize; 2] = [LARGE, 3];

/// What `hopper.cu` is compiled for.
#[cfg(test)]
pub(in crate::matmul) fn gradient_defines() -> impl Iterator<Item = Vec<Define>> {
    CHOICES.iter().map(|choice| hopper_defines(TILINGS[*choice]))
}

fn hopper_defines(tiling: Tiling) -> Vec<Define> {
    let mut defines = tiling.defines().to_vec();
    defines.push(("GRADIENTS", 1));
    defines
}

impl ProductGradients {
    /// Compiles them, for up to `experts` matrices at once.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(cuda: &Arc<Cuda>, experts: usize) -> Result<Self, CudaError> {
        let module = cuda.module(GRADIENTS, &[])?;
        let hopper = match cuda.facts().architecture.has_wgmma() {
            true => {
                let compile = |choice: usize| {
                    let tiling = TILINGS[choice];
                    let kernel = cuda.module(HOPPER, &hopper_defines(tiling))?.kernel("gradient")?;
                    let name = format!("by weights, tiles of {} by {}", tiling.outputs(), tiling.rows);
                    Ok::<_, CudaError>((tiling, kernel.called(&name)))
                };
                Some([compile(CHOICES[0])?, compile(CHOICES[1])?])
            }
            false => None,
        };
        Ok(Self {
            cuda: Arc::clone(cuda),
            hopper,
            portable: [module.kernel("gradient_f32")?, module.kernel("gradient_bf16")?],
            transpose: [module.kernel("transpose_f32")?, module.kernel("transpose_u16")?],
            columns_as_rows: module.kernel("columns_as_rows")?,
            pad_offsets: module.kernel("pad_offsets")?,
            add_parts: module.kernel("add_parts")?,
            pack: [module.kernel("pack_f32")?, module.kernel("pack_bf16")?],
            operands: Buffer::zeroed(cuda, 0)?,
            padded: Buffer::zeroed(cuda, experts + 1)?,
            parts: Buffer::zeroed(cuda, 0)?,
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.operands.bytes() + self.padded.bytes() + self.parts.bytes()
    }

    /// Takes the memory for [`ProductGradients::weights`] of bf16 columns whose widths add up to `widths`, of up to
    /// `rows` rows in up to `experts` groups, so that none is taken later.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn reserve(&mut self, widths: usize, rows: usize, experts: usize) -> Result<(), CudaError> {
        let values = widths * depth(rows, experts);
        if self.hopper.is_some() && values > self.operands.len() {
            self.operands = Buffer::zeroed(&self.cuda, values)?;
        }
        Ok(())
    }

    /// Makes `to` the transposes of all of `from`'s matrices.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When there is no room, or the formats differ.
    pub fn transpose(&self, from: &DeviceMatrix, to: &mut DeviceMatrix) -> Result<(), CudaError> {
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

    /// Copies f32 values to weights on the device, rounded where those are bf16: of each of `matrices` matrices,
    /// `[rows, columns]`. From one to the next there are `from.2` and `to.2` values; the first begins at `from.1` and
    /// `to.1`. Of the rows written every `group` ones are followed by a gap of `gap`.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    #[allow(clippy::too_many_arguments)]
    pub fn pack(
        &self,
        matrices: usize,
        [rows, columns]: [usize; 2],
        from: (&Buffer<f32>, usize, usize),
        to: (&mut Activations, usize, usize),
        group: usize,
        gap: usize,
    ) -> Result<(), CudaError> {
        if matrices == 0 || rows == 0 || columns == 0 {
            return Ok(());
        }
        assert!(group > 0, "rows in groups");
        let last_row = rows - 1 + (rows - 1) / group * gap;
        assert!(from.1 + (matrices - 1) * from.2 + rows * columns <= from.0.len(), "values");
        assert!(
            to.1 + (matrices - 1) * to.2 + (last_row + 1) * columns <= to.0.len(),
            "room for the weights"
        );
        let arguments = [
            Argument::Pointer(from.0.address(from.1)),
            Argument::I64(from.2 as i64),
            Argument::Pointer(to.0.address(to.1)),
            Argument::I64(to.2 as i64),
            Argument::I64((rows * columns) as i64),
            Argument::I32(columns as i32),
            Argument::I32(group as i32),
            Argument::I32(gap as i32),
        ];
        let blocks = (rows * columns).div_ceil(1024).min(4096);
        let shape = LaunchShape::grid(blocks, matrices, 1, 256).overlap();
        // SAFETY: the kernel's arguments, in order, for that element; what it reads and writes was checked above.
        unsafe { self.cuda.launch(&self.pack[index(to.0.element())], shape, &arguments) }
    }

    /// Adds `dy^T x` of the rows to the gradients: of one matrix `[dy.width, x.width]`, or of each expert's from its own
    /// rows. With `gated` the columns of `dy` are those of a matrix whose gates and ups take turns, and the gradients are
    /// first all gates', then all ups'.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn weights(
        &mut self,
        dy: Columns<'_>,
        x: Columns<'_>,
        rows: Rows<'_>,
        gated: bool,
        place: GradientPlace<'_>,
    ) -> Result<(), CudaError> {
        let (offsets, rows) = match rows {
            Rows::All(rows) => (None, rows),
            Rows::Grouped { offsets, most } => (Some(offsets), most),
        };
        let experts = offsets.map_or(1, |_| self.padded.len() - 1);
        assert!(
            offsets.is_none_or(|offsets| offsets.len() == self.padded.len()),
            "an offset for each expert"
        );
        dy.check(rows);
        x.check(rows);
        assert_eq!(dy.data.element(), x.data.element(), "number formats");
        let values = dy.width * x.width;
        assert!(place.at + (experts - 1) * place.stride + values <= place.gradients.len(), "room");
        assert!(experts == 1 || place.stride >= values, "matrices apart");
        if rows == 0 {
            return Ok(());
        }
        let call = Call { dy, x, offsets, experts, rows, gates: if gated { dy.width / 2 } else { 0 }, place };
        match &self.hopper {
            Some(_) if dy.data.element() == Element::Bf16 => self.on_tensor_cores(call),
            _ => self.on_ordinary_cores(call),
        }
    }

    fn on_tensor_cores(&mut self, call: Call<'_>) -> Result<(), CudaError> {
        let Call { dy, x, offsets, experts, rows, place, .. } = &call;
        self.reserve(dy.width + x.width, *rows, *experts)?;
        let depth = depth(*rows, *experts);
        if let Some(offsets) = offsets {
            let arguments = [
                Argument::Pointer(offsets.address(0)),
                Argument::Pointer(self.padded.address(0)),
                Argument::I32(*experts as i32),
            ];
            // SAFETY: the kernel's arguments; both have a value for each expert and one more.
            unsafe { self.cuda.launch(&self.pad_offsets, LaunchShape::new(1, 32).overlap(), &arguments)? };
        }
        let second = dy.width * depth;
        self.lay_out(&call, *dy, call.gates, 0)?;
        self.lay_out(&call, *x, 0, second)?;
        let Some([large, small]) = &self.hopper else { unreachable!("the caller has looked") };
        let processors = self.cuda.facts().multiprocessors;
        let tiles =
            |tiling: Tiling| experts * dy.width.div_ceil(tiling.rows) * x.width.div_ceil(tiling.outputs());
        let (tiling, kernel) = if 2 * tiles(large.0) > processors { large } else { small };
        let of_x = TensorMap::bf16_at(&self.operands, second, x.width, depth, tiling.outputs())?;
        let of_dy = TensorMap::bf16_at(&self.operands, 0, dy.width, depth, tiling.row_box())?;
        let padded = offsets.map_or(0, |_| self.padded.address(0));
        let arguments = [
            Argument::Map(&of_x),
            Argument::Map(&of_dy),
            Argument::Pointer(place.gradients.address(place.at)),
            Argument::Pointer(padded),
            Argument::I32(*experts as i32),
            Argument::I32(dy.width as i32),
            Argument::I32(x.width as i32),
            Argument::I32(depth as i32),
            Argument::I64(place.stride as i64),
        ];
        let shape = LaunchShape::new(tiles(*tiling).min(processors), tiling.threads())
            .shared(tiling.shared())
            .overlap();
        // SAFETY: the kernel's arguments, in order. Copies stay within the two maps; `weights` has checked that the
        // gradients of all matrices lie within the buffer.
        unsafe { self.cuda.launch(kernel, shape, &arguments) }
    }

    /// Columns as rows, from value `at` of the operands on.
    fn lay_out(
        &mut self,
        call: &Call<'_>,
        columns: Columns<'_>,
        gates: usize,
        at: usize,
    ) -> Result<(), CudaError> {
        let depth = depth(call.rows, call.experts);
        let (offsets, padded) = match call.offsets {
            Some(offsets) => (offsets.address(0), self.padded.address(0)),
            None => (0, 0),
        };
        let arguments = [
            Argument::Pointer(columns.data.address()),
            Argument::Pointer(self.operands.address(at)),
            Argument::Pointer(offsets),
            Argument::Pointer(padded),
            Argument::I32(call.experts as i32),
            Argument::I32(call.rows as i32),
            Argument::I32(columns.stride as i32),
            Argument::I32(columns.width as i32),
            Argument::I32(gates as i32),
            Argument::I32(depth as i32),
        ];
        let shape = LaunchShape::grid(depth / STEP, columns.width.div_ceil(TILE), 1, 256).overlap();
        // SAFETY: the kernel's arguments, in order. It reads rows below the offsets' last or `rows`, which `weights` has
        // checked, and writes `width * depth` values, for which there is room after `reserve`.
        unsafe { self.cuda.launch(&self.columns_as_rows, shape, &arguments) }
    }

    fn on_ordinary_cores(&mut self, call: Call<'_>) -> Result<(), CudaError> {
        let Call { dy, x, offsets, experts, rows, gates, place } = call;
        let values = dy.width * x.width;
        let tiles = dy.width.div_ceil(TILE) * x.width.div_ceil(TILE);
        // Few tiles of many rows would leave most of the card idle.
        let parts = match offsets {
            None if tiles < 2 * self.cuda.facts().multiprocessors => rows.div_ceil(PART).min(MOST_PARTS),
            _ => 1,
        };
        let part = rows.div_ceil(parts);
        let partial = parts > 1;
        if partial && self.parts.len() < parts * values {
            self.parts = Buffer::zeroed(&self.cuda, parts * values)?;
        }
        let target = place.gradients.address(place.at);
        let (out, stride) = match partial {
            true => (self.parts.address(0), values),
            false => (target, place.stride),
        };
        let arguments = [
            Argument::Pointer(dy.data.address()),
            Argument::Pointer(x.data.address()),
            Argument::Pointer(out),
            Argument::Pointer(offsets.map_or(0, |offsets| offsets.address(0))),
            Argument::I32(rows as i32),
            Argument::I32(dy.stride as i32),
            Argument::I32(dy.width as i32),
            Argument::I32(x.stride as i32),
            Argument::I32(x.width as i32),
            Argument::I32(gates as i32),
            Argument::I64(stride as i64),
            Argument::I32(part as i32),
            Argument::I32(i32::from(partial)),
        ];
        let blocks = if offsets.is_some() { experts } else { parts };
        let shape = LaunchShape::grid(x.width.div_ceil(TILE), dy.width.div_ceil(TILE), blocks, 256).overlap();
        let kernel = &self.portable[index(dy.data.element())];
        // SAFETY: the kernel's arguments, in order, for that element. It reads rows below `rows` or the offsets' last,
        // and writes as many matrices as there are blocks in the third direction: `weights` has checked the gradients,
        // and the parts were made large enough above.
        unsafe { self.cuda.launch(kernel, shape, &arguments)? };
        if !partial {
            return Ok(());
        }
        let arguments = [
            Argument::Pointer(self.parts.address(0)),
            Argument::Pointer(target),
            Argument::I32(values as i32),
            Argument::I32(parts as i32),
        ];
        let shape = LaunchShape::new(values.div_ceil(256), 256).overlap();
        // SAFETY: the kernel's arguments; `parts` times `values` were just written.
        unsafe { self.cuda.launch(&self.add_parts, shape, &arguments) }
    }
}

/// One gradient, checked.
struct Call<'a> {
    dy: Columns<'a>,
    x: Columns<'a>,
    offsets: Option<&'a Buffer<i32>>,
    experts: usize,
    rows: usize,
    gates: usize,
    place: GradientPlace<'a>,
}

/// Padded rows of all experts at most.
fn depth(rows: usize, experts: usize) -> usize {
    let padding = if experts > 1 { experts * (STEP - 1) } else { 0 };
    (rows + padding).next_multiple_of(STEP)
}
