//! Gradients of norms and of the residual stream on a GPU (`backward.cu`).

use std::sync::Arc;

use super::Norm;
use crate::device::cuda::{
    Activations, Argument, Buffer, Cuda, CudaError, Define, Kernel, LaunchShape, Source,
};
use crate::matmul::Element;

/// The kernels.
pub const GRADIENTS: Source = Source { name: "norm/backward.cu", text: include_str!("../backward.cu") };

/// Rows of a block, whose gradients by the weight are summed together.
const BLOCK: usize = 16;

/// What the kernels are compiled for.
#[must_use]
pub fn gradient_defines(activations: Element) -> [Define; 2] {
    [("ACTIVATIONS_BF16", i64::from(activations == Element::Bf16)), ("ROWS", BLOCK as i64)]
}

/// The compiled kernels for activations of one format.
pub struct StreamGradients {
    cuda: Arc<Cuda>,
    activations: Element,
    norm_backward: Kernel,
    gated_norm_backward: Kernel,
    add_rows: Kernel,
    scaled: Kernel,
    gather_rows: Kernel,
    scatter_rows: Kernel,
    embedding_backward: Kernel,
    /// Parts of gradients by weights, `[blocks, width]`.
    parts: Buffer<f32>,
}

/// What goes past a block of the model, times this factor.
#[derive(Debug, Clone, Copy)]
pub enum Past {
    /// Its input.
    Stream(f32),
    /// Its normed input (`postnorm`).
    Normed(f32),
    /// Nothing: a norm alone.
    Nothing,
}

/// The gradient by a normed value: the sum of these, all optional.
#[derive(Clone, Copy, Default)]
pub struct NormedGradient<'a> {
    /// Rows `[rows, width]`.
    pub products: [Option<&'a Activations>; 2],
    /// Rows of each token's choices, their places `[rows, choices]` and the number of choices.
    pub choices: Option<(&'a Activations, &'a Buffer<i32>, usize)>,
    /// Rows in f32.
    pub exact: Option<&'a Buffer<f32>>,
    /// Through small matrices `[count, width]`: the gradients by their outputs, `[rows, count]`, and the matrices. The
    /// second one has one row.
    pub outer: [Option<(&'a Buffer<f32>, &'a Buffer<f32>)>; 2],
}

/// Where a gradient is added: from that value of a buffer on.
pub type Place<'a> = (&'a mut Buffer<f32>, usize);

impl StreamGradients {
    /// Compiles them, for up to `rows` rows of up to `width` values.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(cuda: &Arc<Cuda>, activations: Element, rows: usize, width: usize) -> Result<Self, CudaError> {
        let module = cuda.module(GRADIENTS, &gradient_defines(activations))?;
        Ok(Self {
            cuda: Arc::clone(cuda),
            activations,
            norm_backward: module.kernel("norm_backward")?,
            gated_norm_backward: module.kernel("gated_norm_backward")?,
            add_rows: module.kernel("add_rows")?,
            scaled: module.kernel("scaled")?,
            gather_rows: module.kernel("gather_rows")?,
            scatter_rows: module.kernel("scatter_rows")?,
            embedding_backward: module.kernel("embedding_backward")?,
            parts: Buffer::zeroed(cuda, rows.div_ceil(BLOCK) * width)?,
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.parts.bytes()
    }

    fn threads(width: usize) -> usize {
        (width / 8).next_multiple_of(32).clamp(32, 512)
    }

    fn check_width(width: usize) {
        assert!(width.is_multiple_of(4), "rows of {width} are no multiple of 4");
    }

    /// The last step back through a block whose input `x[rows, width]` went through a norm: `dx`, the gradient by the
    /// block's output, becomes that by its input, and that by the norm's weight is added at its place. `rounded` gets
    /// the former too, times a factor and rounded.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    #[allow(clippy::too_many_arguments)]
    pub fn norm_backward(
        &mut self,
        x: &Buffer<f32>,
        rows: usize,
        norm: Norm<'_>,
        past: Past,
        gradient: NormedGradient<'_>,
        dx: &mut Buffer<f32>,
        dweight: Place<'_>,
        rounded: Option<(f32, &mut Activations)>,
    ) -> Result<(), CudaError> {
        let width = norm.weight.len();
        Self::check_width(width);
        let room = rows * width;
        assert!(x.len() >= room && dx.len() >= room, "room for {rows} rows");
        let (beta, rounded) = rounded.map_or((0.0, None), |(beta, rounded)| (beta, Some(&*rounded)));
        for rows in gradient.products.iter().chain([&rounded]).flatten() {
            assert!(rows.len() >= room && rows.element() == self.activations, "rows of activations");
        }
        assert!(gradient.exact.is_none_or(|exact| exact.len() >= room), "room for {rows} rows");
        if let Some((values, places, choices)) = gradient.choices {
            assert!(places.len() >= rows * choices, "choices of {rows} rows");
            assert_eq!(values.element(), self.activations, "element of the choices");
        }
        let counts = gradient.outer.map(|outer| outer.map_or(0, |(_, matrix)| matrix.len() / width));
        for ((factors, matrix), count) in gradient.outer.iter().flatten().zip(counts) {
            assert!(
                matrix.len() == count * width && factors.len() >= rows * count,
                "shapes of a small matrix"
            );
        }
        assert!(counts[1] <= 1, "one row of the second small matrix");
        let (past, alpha) = match past {
            Past::Stream(alpha) => (0, alpha),
            Past::Normed(alpha) => (1, alpha),
            Past::Nothing => (2, 0.0),
        };
        let pointer = |buffer: Option<&Buffer<f32>>| Argument::Pointer(buffer.map_or(0, |b| b.address(0)));
        let address = |rows: Option<&Activations>| Argument::Pointer(rows.map_or(0, |rows| rows.address(0)));
        let blocks = rows.div_ceil(BLOCK);
        assert!(self.parts.len() >= blocks * width, "room for parts of {rows} rows");
        let arguments = [
            Argument::Pointer(x.address(0)),
            Argument::Pointer(norm.weight.address(0)),
            Argument::F32(norm.epsilon),
            Argument::I32(width as i32),
            Argument::I32(rows as i32),
            Argument::Pointer(dx.address(0)),
            Argument::F32(alpha),
            Argument::I32(past),
            address(gradient.products[0]),
            address(gradient.choices.map(|choices| choices.0)),
            Argument::Pointer(gradient.choices.map_or(0, |choices| choices.1.address(0))),
            Argument::I32(gradient.choices.map_or(0, |choices| choices.2 as i32)),
            address(gradient.products[1]),
            pointer(gradient.exact),
            pointer(gradient.outer[0].map(|outer| outer.0)),
            pointer(gradient.outer[0].map(|outer| outer.1)),
            Argument::I32(counts[0] as i32),
            pointer(gradient.outer[1].map(|outer| outer.0)),
            pointer(gradient.outer[1].map(|outer| outer.1)),
            Argument::Pointer(self.parts.address(0)),
            address(rounded),
            Argument::F32(beta),
        ];
        let shape = LaunchShape::new(blocks, Self::threads(width)).shared(8 * width).overlap();
        // SAFETY: the kernel's arguments, in order; `rows` rows of each were checked above, and so was room for a part
        // of each block. Places are rows of the choices or negative, as `group` of moe.cu writes them.
        unsafe { self.cuda.launch(&self.norm_backward, shape, &arguments)? };
        self.add_parts(blocks, width, dweight)
    }

    /// Through `gate * norm(x)` for rows `x[rows, width]`, where gates have been through the sigmoid: writes the
    /// gradient by `x` and that by the gate before the sigmoid, and adds that by the norm's weight. Gates and their
    /// gradients begin at value `first` of rows of `stride`.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    #[allow(clippy::too_many_arguments)]
    pub fn gated_norm_backward(
        &mut self,
        x: &Activations,
        rows: usize,
        gate: (&Activations, usize, usize),
        norm: Norm<'_>,
        dy: &Activations,
        dx: &mut Activations,
        dgate: &mut Activations,
        dweight: Place<'_>,
    ) -> Result<(), CudaError> {
        let width = norm.weight.len();
        let (gate, first, stride) = gate;
        Self::check_width(width);
        assert!(first.is_multiple_of(4) && stride.is_multiple_of(4) && first + width <= stride, "gates");
        let room = rows * width;
        assert!(x.len() >= room && dy.len() >= room && dx.len() >= room, "room for {rows} rows");
        assert!(gate.len() >= rows * stride && dgate.len() >= rows * stride, "gates of {rows} rows");
        for element in [x.element(), gate.element(), dy.element(), dx.element(), dgate.element()] {
            assert_eq!(element, self.activations, "element of the activations");
        }
        let blocks = rows.div_ceil(BLOCK);
        assert!(self.parts.len() >= blocks * width, "room for parts of {rows} rows");
        let arguments = [
            Argument::Pointer(x.address(0)),
            Argument::Pointer(gate.address(first)),
            Argument::I32(stride as i32),
            Argument::Pointer(norm.weight.address(0)),
            Argument::F32(norm.epsilon),
            Argument::I32(width as i32),
            Argument::I32(rows as i32),
            Argument::Pointer(dy.address(0)),
            Argument::Pointer(dx.address(0)),
            Argument::Pointer(dgate.address(first)),
            Argument::Pointer(self.parts.address(0)),
        ];
        let shape = LaunchShape::new(blocks, Self::threads(width)).shared(4 * width).overlap();
        // SAFETY: the kernel's arguments, in order; `rows` rows of each and a part of each block were checked above.
        unsafe { self.cuda.launch(&self.gated_norm_backward, shape, &arguments)? };
        self.add_parts(blocks, width, dweight)
    }

    fn add_parts(&self, blocks: usize, width: usize, (out, at): Place<'_>) -> Result<(), CudaError> {
        assert!(at + width <= out.len(), "room for the gradient by the weight");
        let arguments = [
            Argument::Pointer(self.parts.address(0)),
            Argument::Pointer(out.address(at)),
            Argument::I32(blocks as i32),
            Argument::I32(width as i32),
        ];
        let shape = LaunchShape::new(width.div_ceil(32), 256).overlap();
        // SAFETY: the kernel's arguments; `blocks` parts were just written, and the place was checked.
        unsafe { self.cuda.launch(&self.add_rows, shape, &arguments) }
    }

    /// `out = factor * x` for the first `count` values, rounded.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When there is no room, or `count` is no multiple of 4.
    pub fn scaled(
        &self,
        x: &Buffer<f32>,
        count: usize,
        factor: f32,
        out: &mut Activations,
    ) -> Result<(), CudaError> {
        Self::check_width(count);
        assert!(x.len() >= count && out.len() >= count, "room for {count} values");
        assert_eq!(out.element(), self.activations, "element of the activations");
        let arguments = [
            Argument::Pointer(x.address(0)),
            Argument::F32(factor),
            Argument::Pointer(out.address(0)),
            Argument::I64(count as i64),
        ];
        let shape = LaunchShape::new(count.div_ceil(1024), 256).overlap();
        // SAFETY: the kernel's arguments; `count` values of both were checked.
        unsafe { self.cuda.launch(&self.scaled, shape, &arguments) }
    }

    /// `out[r] = x[rows[r]]` for rows of `width` values. The first `count` of `rows` must be rows of `x`.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn gather_rows(
        &self,
        x: &Buffer<f32>,
        rows: &Buffer<i32>,
        count: usize,
        width: usize,
        out: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        assert!(out.len() >= count * width, "room for {count} rows");
        self.move_rows(&self.gather_rows, x, rows, count, width, out)
    }

    /// `out[rows[r]] = x[r]`, where no row is named twice. The first `count` of `rows` must be rows of `out`.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn scatter_rows(
        &self,
        x: &Buffer<f32>,
        rows: &Buffer<i32>,
        count: usize,
        width: usize,
        out: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        assert!(x.len() >= count * width, "{count} rows");
        self.move_rows(&self.scatter_rows, x, rows, count, width, out)
    }

    fn move_rows(
        &self,
        kernel: &Kernel,
        x: &Buffer<f32>,
        rows: &Buffer<i32>,
        count: usize,
        width: usize,
        out: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        Self::check_width(width);
        assert!(rows.len() >= count, "{count} rows");
        let arguments = [
            Argument::Pointer(x.address(0)),
            Argument::Pointer(rows.address(0)),
            Argument::Pointer(out.address(0)),
            Argument::I32(width as i32),
        ];
        let shape = LaunchShape::new(count, Self::threads(width)).overlap();
        // SAFETY: the kernel's arguments; rows that lie together were checked by the callers, and that those named are
        // rows is their callers' promise, which the model checks on the host.
        unsafe { self.cuda.launch(kernel, shape, &arguments) }
    }

    /// Adds the gradient by rows of an embedding, `dx[_, width]`, to that of its table, which is at the front of
    /// `table`: row `tokens[i]` gets the sum of the rows that `order[begins[i]..begins[i + 1]]` names. Tokens must differ,
    /// and all must be rows.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    #[allow(clippy::too_many_arguments)]
    pub fn embedding_backward(
        &self,
        dx: &Buffer<f32>,
        tokens: &Buffer<i32>,
        begins: &Buffer<i32>,
        order: &Buffer<i32>,
        count: usize,
        width: usize,
        table: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        Self::check_width(width);
        assert!(tokens.len() >= count && begins.len() > count && dx.len() >= order.len() * width, "shapes");
        let arguments = [
            Argument::Pointer(dx.address(0)),
            Argument::Pointer(tokens.address(0)),
            Argument::Pointer(begins.address(0)),
            Argument::Pointer(order.address(0)),
            Argument::Pointer(table.address(0)),
            Argument::I32(width as i32),
        ];
        let shape = LaunchShape::new(count, Self::threads(width)).overlap();
        // SAFETY: the kernel's arguments; that begins, order and tokens name what is there is the caller's promise, which
        // the model keeps by making them from a batch it has checked.
        unsafe { self.cuda.launch(&self.embedding_backward, shape, &arguments) }
    }
}
