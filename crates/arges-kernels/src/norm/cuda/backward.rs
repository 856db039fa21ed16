//! Gradients of norms and of the residual stream on a GPU (`backward.cu`).

use std::sync::Arc;

use super::Norm;
use crate::device::cuda::{
    Activations, Argument, Buffer, Cuda, CudaError, Define, Kernel, LaunchShape, Source,
};
use crate::matmul::Element;

/// The kernels.
pub const GRADIENTS: Source = Source { name: "norm/backward.cu", text: include_str!("../backward.cu") };

/// Rows of a block of the gated norm's, whose gradients by the weight are summed together.
const BLOCK: usize = 16;
/// The same of the stream's norm at least, and blocks at most.
const LEAST_PART: usize = 16;
const MOST_PARTS: usize = 256;

/// Bytes of rows at most that a block of it copies ahead of their use; two blocks share a multiprocessor.
const COPY_BYTES: usize = 100 << 10;
/// Rows that it has room for then, and what it copies of each besides those that its token chose.
const ROWS_AHEAD: usize = 4;
const OPERANDS: usize = 2;

/// Threads of a block of the stream's norm at most, and values of sums of a router's gradient that one has registers for.
const MOST_THREADS: usize = 384;
const MOST_SUMS: usize = 64;

/// What the gradients of a stream's norms are compiled for.
#[derive(Debug, Clone, Copy)]
pub struct StreamShape {
    /// Rows at most.
    pub rows: usize,
    /// Width of the stream.
    pub width: usize,
    /// Width of gated norms at most.
    pub gated: usize,
    /// Rows of each token that a mixture chooses, and experts it chooses from; 0 without one.
    pub choices: usize,
    /// See there.
    pub experts: usize,
}

impl StreamShape {
    /// How a block divides a row of the stream.
    fn division(&self, activations: Element) -> Division {
        let values = if activations == Element::Bf16 && self.width.is_multiple_of(8) { 8 } else { 4 };
        let vectors = self.width / values;
        let groups = vectors.div_ceil(MOST_THREADS).max(1);
        let threads = vectors.div_ceil(groups).next_multiple_of(32).max(32);
        Division { values, groups, threads }
    }

    /// Rows of the small matrix whose gradient is summed on the way through the norm before it, a router's: where a
    /// thread has registers for the sums of all experts, and else none.
    fn summed(&self, activations: Element) -> usize {
        let Division { values, groups, .. } = self.division(activations);
        if self.experts * values * groups <= MOST_SUMS { self.experts } else { 0 }
    }

    /// What the kernels are compiled for.
    #[must_use]
    pub fn defines(&self, activations: Element) -> [Define; 8] {
        let Division { values, groups, threads } = self.division(activations);
        [
            ("ACTIVATIONS_BF16", i64::from(activations == Element::Bf16)),
            ("ROWS", BLOCK as i64),
            ("VALUES", values as i64),
            ("GROUPS", groups as i64),
            ("THREADS", threads as i64),
            ("CHOICES", self.choices.max(1) as i64),
            ("SMALL", self.summed(activations) as i64),
            ("COPIES", i64::from(self.copies(activations, self.choices.max(1)) > 0)),
        ]
    }

    /// Shared memory for rows that are copied ahead of their use, where each has so many of a branch; none where they do
    /// not fit.
    fn copies(&self, activations: Element, branches: usize) -> usize {
        let Division { values, groups, threads } = self.division(activations);
        let size = if activations == Element::Bf16 { 2 } else { 4 };
        let of_branches = |branches| (OPERANDS + branches) * ROWS_AHEAD * groups * threads * values * size;
        if of_branches(self.choices.max(1)) <= COPY_BYTES { of_branches(branches) } else { 0 }
    }

    /// Values of all parts of gradients by weights.
    fn parts(&self, activations: Element) -> usize {
        let (_, blocks) = parts_of(self.rows);
        (blocks * (1 + self.summed(activations)) * self.width).max(self.rows.div_ceil(BLOCK) * self.gated)
    }
}

/// How a block divides a row: vectors of `values`, of which each thread has as many as there are groups.
struct Division {
    values: usize,
    groups: usize,
    threads: usize,
}

/// Rows that one block of the stream's norm takes, and blocks.
fn parts_of(rows: usize) -> (usize, usize) {
    let part = rows.div_ceil(MOST_PARTS).next_multiple_of(2).max(LEAST_PART);
    (part, rows.div_ceil(part))
}

/// The compiled kernels for activations of one format.
pub struct StreamGradients {
    cuda: Arc<Cuda>,
    activations: Element,
    shape: StreamShape,
    /// For a product, for choices, and for those with sums of a router's gradient, where that is done; each of rows of
    /// activations and of rows in f32.
    norm_backward: [Kernel; 2],
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

/// Where most of the gradient by a normed value comes from.
#[derive(Clone, Copy)]
pub enum BranchGradient<'a> {
    /// Rows `[rows, width]`.
    Rows(&'a Activations),
    /// Rows of each token's choices, and their places `[rows, choices]`; a place below 0 stands for none.
    Choices(&'a Activations, &'a Buffer<i32>),
}

/// The gradient by a normed value: the sum of these.
#[derive(Clone, Copy)]
pub struct NormedGradient<'a> {
    /// See there.
    pub branch: BranchGradient<'a>,
    /// More rows `[rows, width]`.
    pub more: Option<&'a Activations>,
    /// Rows in f32.
    pub exact: Option<&'a Buffer<f32>>,
    /// Through small matrices `[count, width]`: the gradients by their outputs, `[rows, count]`, and the matrices. The
    /// second one has one row.
    pub outer: [Option<(&'a Buffer<f32>, &'a Buffer<f32>)>; 2],
}

impl<'a> From<BranchGradient<'a>> for NormedGradient<'a> {
    fn from(branch: BranchGradient<'a>) -> Self {
        Self { branch, more: None, exact: None, outer: [None; 2] }
    }
}

/// Where a gradient is added: from that value of a buffer on.
pub type Place<'a> = (&'a mut Buffer<f32>, usize);

/// The last step back through a block whose input went through a norm.
pub struct NormBackward<'a> {
    /// The block's input, `[rows, width]`: in f32 or as it was kept, which is rounded. The gradients are the same.
    pub x: &'a Activations,
    /// See there.
    pub rows: usize,
    /// The norm.
    pub norm: Norm<'a>,
    /// What goes past the block.
    pub past: Past,
    /// The gradient by the normed input.
    pub gradient: NormedGradient<'a>,
    /// The gradient by the block's output, which becomes that by its input, `[rows, width]`.
    pub dx: &'a mut Activations,
    /// Gets the latter times that factor too.
    pub scaled: Option<(f32, &'a mut Activations)>,
    /// Where gradients are added.
    pub gradients: &'a mut Buffer<f32>,
    /// The place of that by the norm's weight.
    pub weight_at: usize,
    /// The place of that by the first small matrix, if it is to be added: see [`StreamGradients::sums_router`].
    pub outer_at: Option<usize>,
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

    /// Takes a step back through a norm.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree, or a small matrix's gradient is asked for that is not summed here.
    pub fn norm_backward(&mut self, step: NormBackward<'_>) -> Result<(), CudaError> {
        let NormBackward { x, rows, norm, past, gradient, dx, scaled, gradients, weight_at, outer_at } = step;
        let width = norm.weight.len();
        assert_eq!(width, self.shape.width, "width of the stream");
        assert!(rows <= self.shape.rows, "{rows} rows");
        let room = rows * width;
        let (beta, scaled) = scaled.map_or((0.0, None), |(beta, scaled)| (beta, Some(&*scaled)));
        for rows in [&*dx].into_iter().chain(gradient.more).chain(scaled) {
            assert!(rows.len() >= room && rows.element() == self.activations, "rows of activations");
        }
        assert!(x.len() >= room && gradient.exact.is_none_or(|exact| exact.len() >= room), "{rows} rows");
        assert!(x.element() == Element::F32 || x.element() == self.activations, "element of the stream");
        let (branch, places, branches) = match gradient.branch {
            BranchGradient::Rows(branch) => {
                assert!(branch.len() >= room, "rows of the branch");
                (branch, 0, 1)
            }
            BranchGradient::Choices(branch, places) => {
                assert!(places.len() >= rows * self.shape.choices, "choices of {rows} rows");
                (branch, places.address(0), self.shape.choices)
            }
        };
        assert_eq!(branch.element(), self.activations, "element of the branch");
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
        let kernels = match (gradient.branch, outer_at) {
            (BranchGradient::Rows(_), None) => &self.norm_backward,
            (BranchGradient::Choices(..), None) => &self.norm_backward_choices,
            (branch, Some(_)) => {
                assert!(matches!(branch, BranchGradient::Choices(..)), "a router's gradient without choices");
                assert_eq!(counts[0], self.shape.experts, "rows of the first small matrix");
                self.norm_backward_outer.as_ref().expect("made for matrices that are summed here")
            }
        };
        let kernel = &kernels[usize::from(x.element() != self.activations)];
        let pointer = |buffer: Option<&Buffer<f32>>| Argument::Pointer(buffer.map_or(0, |b| b.address(0)));
        let address = |rows: Option<&Activations>| Argument::Pointer(rows.map_or(0, |rows| rows.address(0)));
        let (part, blocks) = parts_of(rows);
        let arguments = [
            Argument::Pointer(x.address(0)),
            Argument::Pointer(norm.weight.address(0)),
            Argument::F32(norm.epsilon),
            Argument::I32(width as i32),
            Argument::I32(rows as i32),
            Argument::I32(part as i32),
            Argument::Pointer(dx.address(0)),
            Argument::F32(alpha),
            Argument::I32(past),
            Argument::Pointer(branch.address(0)),
            Argument::Pointer(places),
            address(gradient.more),
            pointer(gradient.exact),
            pointer(gradient.outer[0].map(|outer| outer.0)),
            pointer(gradient.outer[0].map(|outer| outer.1)),
            Argument::I32(counts[0] as i32),
            pointer(gradient.outer[1].map(|outer| outer.0)),
            pointer(gradient.outer[1].map(|outer| outer.1)),
            Argument::Pointer(self.parts.address(0)),
            address(scaled),
            Argument::F32(beta),
        ];
        let threads = self.shape.division(self.activations).threads;
        let copies = self.shape.copies(self.activations, branches);
        let shape = LaunchShape::new(blocks, threads).shared(copies).overlap();
        // SAFETY: the kernel's arguments, in order; `rows` rows of each were checked above, and there is room for a part
        // of each block of as many rows as these kernels were made for. Places are rows of the choices or negative, as
        // `group` of moe.cu writes them.
        unsafe { self.cuda.launch(kernel, shape, &arguments)? };
        let summed = outer_at.map_or(0, |_| self.shape.experts * width);
        self.add_parts(blocks, width + summed, 0, width, (&mut *gradients, weight_at))?;
        match outer_at {
            Some(at) => self.add_parts(blocks, width + summed, width, summed, (gradients, at)),
            None => Ok(()),
        }
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
        self.add_parts(blocks, width, 0, width, dweight)
    }

    /// Adds `width` values from value `first` on of every part, which are `stride` values apart.
    fn add_parts(
        &self,
        blocks: usize,
        stride: usize,
        first: usize,
        width: usize,
        (out, at): Place<'_>,
    ) -> Result<(), CudaError> {
        assert!(at + width <= out.len(), "room for the gradient by the weight");
        let arguments = [
            Argument::Pointer(self.parts.address(first)),
            Argument::I32(stride as i32),
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
