//! Gradients of norms and of the residual stream on a GPU (`backward.cu`).

mod shape;
mod step;

use std::sync::Arc;

use super::Norm;
use crate::device::cuda::{Activations, Argument, Buffer, Cuda, CudaError, Kernel, LaunchShape, Source};
use crate::matmul::Element;
use shape::BLOCK;
pub use shape::StreamShape;
pub use step::{BranchGradient, NormBackward, NormSums, NormedGradient, Past, Weighed};

/// The kernels.
pub const GRADIENTS: Source = Source {
    name: "norm/backward.cu",
    text: concat!(
        include_str!("../backward.cuh"),
        include_str!("../through_norm.cu"),
        include_str!("../backward.cu")
    ),
};

/// The compiled kernels for activations of one format.
pub struct StreamGradients {
    cuda: Arc<Cuda>,
    activations: Element,
    shape: StreamShape,
    /// For a product, for choices, and for those with sums of a router's gradient, where that is done; each of rows of
    /// activations and of rows in f32.
    norm_backward: [Kernel; 2],
    norm_backward_weighing: Kernel,
    norm_backward_choices: [Kernel; 2],
    norm_backward_outer: Option<[Kernel; 2]>,
    gated_norm_backward: Kernel,
    add_rows: Kernel,
    scaled: Kernel,
    gather_rows: Kernel,
    scatter_rows: Kernel,
    embedding_backward: Kernel,
    /// Parts of gradients by weights.
    parts: Buffer<f32>,
}

impl StreamGradients {
    /// Compiles them.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(cuda: &Arc<Cuda>, activations: Element, shape: StreamShape) -> Result<Self, CudaError> {
        Self::check_width(shape.width);
        let module = cuda.module(GRADIENTS, &shape.defines(activations));
        let both = |rows, exact| Ok::<_, CudaError>([module.kernel(rows)?, module.kernel(exact)?]);
        Ok(Self {
            cuda: Arc::clone(cuda),
            activations,
            shape,
            norm_backward: both("norm_backward", "norm_backward_exact")?,
            norm_backward_weighing: module.kernel("norm_backward_weighing")?,
            norm_backward_choices: both("norm_backward_choices", "norm_backward_choices_exact")?,
            norm_backward_outer: (shape.summed(activations) > 0)
                .then(|| both("norm_backward_outer", "norm_backward_outer_exact"))
                .transpose()?,
            gated_norm_backward: module.kernel("gated_norm_backward")?,
            add_rows: module.kernel("add_rows")?,
            scaled: module.kernel("scaled")?,
            gather_rows: module.kernel("gather_rows")?,
            scatter_rows: module.kernel("scatter_rows")?,
            embedding_backward: module.kernel("embedding_backward")?,
            parts: Buffer::zeroed(cuda, shape.parts(activations))?,
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.parts.bytes()
    }

    /// Whether a router's gradient is summed on the way through the norm before it.
    pub fn sums_router(&self) -> bool {
        self.norm_backward_outer.is_some()
    }

    fn threads(width: usize) -> usize {
        (width / 8).next_multiple_of(32).clamp(32, 512)
    }

    fn check_width(width: usize) {
        assert!(width.is_multiple_of(4), "rows of {width} are no multiple of 4");
    }

    /// Through `gate * norm(x)` for rows `x[rows, width]`, where gates have been through the sigmoid: writes the
    /// gradient by `x` and that by the gate before the sigmoid, and sums that by the norm's weight. Gates and their
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
        sums: NormSums<'_>,
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
        assert!(sums.outer_at.is_none(), "a small matrix behind a gated norm");
        self.add_parts(blocks, width, sums)
    }

    /// Adds up parts: of each the gradient by a weight of `width` values and, if it is summed, that by a small matrix.
    fn add_parts(&self, blocks: usize, width: usize, sums: NormSums<'_>) -> Result<(), CudaError> {
        let NormSums { gradients, weight_at, outer_at, fresh } = sums;
        let (outer_at, behind) = outer_at.map_or((weight_at, 0), |at| (at, self.shape.experts * width));
        assert!(weight_at + width <= gradients.len(), "room for the gradient by the weight");
        assert!(outer_at + behind <= gradients.len(), "room for the gradient by the matrix");
        let arguments = [
            Argument::Pointer(self.parts.address(0)),
            Argument::Pointer(gradients.address(weight_at)),
            Argument::Pointer(gradients.address(outer_at)),
            Argument::I32(width as i32),
            Argument::I32(blocks as i32),
            Argument::I32((width + behind) as i32),
            Argument::I32(i32::from(fresh)),
        ];
        let shape = LaunchShape::new((width + behind).div_ceil(32), 256).overlap();
        // SAFETY: the kernel's arguments; `blocks` parts were just written, and the places were checked.
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
        x: &Activations,
        count: usize,
        factor: f32,
        out: &mut Activations,
    ) -> Result<(), CudaError> {
        Self::check_width(count);
        assert!(x.len() >= count && out.len() >= count, "room for {count} values");
        assert!([x, out].iter().all(|x| x.element() == self.activations), "element of the activations");
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

    /// `out[r] = x[rows[r]]` for rows of `width` values in f32. The first `count` of `rows` must be rows of `x`.
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
        out: &mut Activations,
    ) -> Result<(), CudaError> {
        assert!(out.len() >= count * width && out.element() == Element::F32, "room for {count} rows");
        self.move_rows(&self.gather_rows, x.address(0), rows, count, width, out.address(0))
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
        x: &Activations,
        rows: &Buffer<i32>,
        count: usize,
        width: usize,
        out: &mut Activations,
    ) -> Result<(), CudaError> {
        assert!(x.len() >= count * width, "{count} rows");
        assert!([x, out].iter().all(|x| x.element() == self.activations), "element of the activations");
        self.move_rows(&self.scatter_rows, x.address(0), rows, count, width, out.address(0))
    }

    fn move_rows(
        &self,
        kernel: &Kernel,
        x: u64,
        rows: &Buffer<i32>,
        count: usize,
        width: usize,
        out: u64,
    ) -> Result<(), CudaError> {
        Self::check_width(width);
        assert!(rows.len() >= count, "{count} rows");
        let arguments = [
            Argument::Pointer(x),
            Argument::Pointer(rows.address(0)),
            Argument::Pointer(out),
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
        dx: &Activations,
        tokens: &Buffer<i32>,
        begins: &Buffer<i32>,
        order: &Buffer<i32>,
        count: usize,
        width: usize,
        table: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        Self::check_width(width);
        assert!(tokens.len() >= count && begins.len() > count && dx.len() >= order.len() * width, "shapes");
        assert_eq!(dx.element(), self.activations, "element of the activations");
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
