//! The residual stream and its norms on a GPU (`norm.cu`): a block a row, in f32; the normed rows are those that the
//! next product reads.

mod backward;

use std::sync::Arc;

use crate::device::cuda::{
    Activations, Argument, Buffer, Cuda, CudaError, Define, Kernel, LaunchShape, Source,
};
use crate::matmul::Element;
use crate::matmul::cuda::{DeviceRows, PARTS};

pub use backward::{
    BranchGradient, GRADIENTS, NormBackward, NormSums, NormedGradient, Past, StreamGradients, StreamShape,
    Weighed,
};

/// The kernels.
pub const SOURCE: Source = Source { name: "norm/norm.cu", text: include_str!("norm.cu") };

/// Threads of a block at most, and values that each has of a row of a gated norm at most; as in `norm.cu`.
const MOST_THREADS: usize = 1024;
const HELD: usize = 16;
/// The widest rows of which a warp norms one alone.
const NARROW: usize = 1536;

/// What the kernels are compiled for.
#[must_use]
pub fn defines(width: usize, activations: Element, table: Element) -> [Define; 7] {
    let Division { values, groups, .. } = Division::of(width, activations, MOST_THREADS);
    [
        ("ACTIVATIONS_BF16", i64::from(activations == Element::Bf16)),
        ("TABLE_BF16", i64::from(table == Element::Bf16)),
        ("PARTS", PARTS as i64),
        ("NARROW", NARROW as i64),
        ("MOST_THREADS", MOST_THREADS as i64),
        ("VALUES", values as i64),
        ("GROUPS", groups as i64),
    ]
}

/// How a block divides a row: vectors of `values`, of which each thread has as many as there are groups.
struct Division {
    values: usize,
    groups: usize,
    threads: usize,
}

impl Division {
    /// A row of `width`, by `most_threads` at most.
    fn of(width: usize, activations: Element, most_threads: usize) -> Self {
        let values = if activations == Element::Bf16 && width.is_multiple_of(8) { 8 } else { 4 };
        let vectors = width / values;
        let groups = vectors.div_ceil(most_threads).max(1);
        let threads = vectors.div_ceil(groups).next_multiple_of(32).max(32);
        Self { values, groups, threads }
    }
}

/// The compiled kernels for one model's width.
pub struct Norms {
    cuda: Arc<Cuda>,
    width: usize,
    activations: Element,
    table: Element,
    embed: Kernel,
    norm_rows: Kernel,
    join: Kernel,
    gated_norm: Kernel,
    gated_norm_narrow: Kernel,
    head_rows: Kernel,
}

/// The residual stream of a step on the device.
pub struct Stream {
    /// `[rows, width]`.
    pub x: Buffer<f32>,
    /// Normed, `[rows, width]`, as products read it.
    pub normed: DeviceRows,
}

impl Stream {
    /// Room for `rows` rows.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn zeroed(cuda: &Arc<Cuda>, rows: usize, width: usize, element: Element) -> Result<Self, CudaError> {
        Ok(Self {
            x: Buffer::zeroed(cuda, rows * width)?,
            normed: DeviceRows::zeroed(cuda, rows, width, element)?,
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.x.bytes() + self.normed.data().bytes()
    }
}

/// A norm's weight and epsilon.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// `[width]`.
    pub weight: &'a Buffer<f32>,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// What joins the residual stream.
#[derive(Clone, Copy)]
pub enum Branch<'a> {
    /// Rows `[rows, width]`.
    Rows(&'a Activations),
    /// For each row, the sum of `choices` rows of `rows`, which are at `places`, times `weights`. A place below 0
    /// stands for none.
    Choices { rows: &'a Activations, places: &'a Buffer<i32>, weights: &'a Buffer<f32>, choices: usize },
}

/// A shared MLP that is mixed in: `(1 - c) branch + c rows` with `c` the sigmoid of a row's coefficient.
#[derive(Clone, Copy)]
pub struct Shared<'a> {
    /// `[rows, width]`.
    pub rows: &'a Activations,
    /// `[rows]`.
    pub coefficients: &'a Buffer<f32>,
}

/// How a branch joins: `alpha * base + beta * branch`.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Weight of the base.
    pub alpha: f32,
    /// Weight of the branch.
    pub beta: f32,
    /// Whether the base is the normed stream.
    pub postnorm: bool,
}

/// What of the stream is kept where a branch joins it.
#[derive(Default)]
pub struct Kept<'a> {
    /// Where the stream goes besides, rounded if that is.
    pub stream: Option<&'a mut Activations>,
    /// The normed stream, where it is not in its place but here.
    pub normed: Option<&'a DeviceRows>,
}

impl Norms {
    /// Compiles them for rows of `width`, which must be a multiple of 4.
    ///
    /// # Errors
    /// When the width is not, or compilation fails.
    pub fn new(
        cuda: &Arc<Cuda>,
        width: usize,
        activations: Element,
        table: Element,
    ) -> Result<Self, CudaError> {
        if !width.is_multiple_of(4) {
            return Err(CudaError::Unsupported(format!("a hidden size of {width} is no multiple of 4")));
        }
        let module = cuda.module(SOURCE, &defines(width, activations, table));
        Ok(Self {
            cuda: Arc::clone(cuda),
            width,
            activations,
            table,
            embed: module.kernel("embed")?,
            norm_rows: module.kernel("norm_rows")?,
            join: module.kernel("join")?,
            gated_norm: module.kernel("gated_norm")?,
            gated_norm_narrow: module.kernel("gated_norm_narrow")?,
            head_rows: module.kernel("head_rows")?,
        })
    }

    /// A block a row; threads by the width alone, so that a sum's order does not depend on the number of rows.
    fn shape(&self, rows: usize, width: usize) -> LaunchShape {
        LaunchShape::new(rows, (width / 8).next_multiple_of(32).clamp(32, MOST_THREADS)).overlap()
    }

    /// The same for rows of the stream, as the kernels are compiled for.
    fn row_shape(&self, rows: usize) -> LaunchShape {
        LaunchShape::new(rows, Division::of(self.width, self.activations, MOST_THREADS).threads).overlap()
    }

    fn check(&self, stream: &Stream, rows: usize) {
        let room = rows * self.width;
        assert!(stream.x.len() >= room, "room for {rows} rows");
        self.check_normed(&stream.normed, rows);
    }

    fn check_normed(&self, normed: &DeviceRows, rows: usize) {
        let room = rows * self.width;
        assert!(normed.data().len() >= room && normed.k() == self.width, "room for {rows} rows");
        assert_eq!(normed.data().element(), self.activations, "element of the normed rows");
    }

    /// Where a copy of the stream goes, and whether it is in f32.
    fn kept(&self, kept: Option<&mut Activations>, rows: usize) -> [Argument<'static>; 2] {
        let Some(kept) = kept else { return [Argument::Pointer(0), Argument::I32(0)] };
        assert!(kept.len() >= rows * self.width, "room for {rows} rows");
        assert!(
            kept.element() == Element::F32 || kept.element() == self.activations,
            "element of what is kept"
        );
        [Argument::Pointer(kept.address(0)), Argument::I32(i32::from(kept.element() == Element::F32))]
    }

    /// Begins the stream with rows of the embedding `table[vocab, width]`, and norms it. The first `rows` of `tokens`
    /// must be below the table's rows. The stream itself goes into `kept` too, rounded if that is.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn embed(
        &self,
        tokens: &Buffer<i32>,
        rows: usize,
        table: &Activations,
        norm: Norm<'_>,
        stream: &mut Stream,
        kept: Option<&mut Activations>,
    ) -> Result<(), CudaError> {
        self.check(stream, rows);
        let [kept, kept_exact] = self.kept(kept, rows);
        assert!(tokens.len() >= rows && norm.weight.len() == self.width, "shapes of the embedding");
        assert_eq!(table.element(), self.table, "element of the table");
        let arguments = [
            Argument::Pointer(tokens.address(0)),
            Argument::Pointer(table.address(0)),
            Argument::Pointer(stream.x.address(0)),
            Argument::Pointer(norm.weight.address(0)),
            Argument::F32(norm.epsilon),
            Argument::I32(self.width as i32),
            Argument::Pointer(stream.normed.data().address(0)),
            kept,
            kept_exact,
        ];
        // SAFETY: the kernel's arguments, in order; `rows` rows of each were checked above, and that tokens are within
        // the table is the caller's promise, which the model checks on the host.
        unsafe { self.cuda.launch(&self.embed, self.row_shape(rows), &arguments) }
    }

    /// The norm of rows `x[rows, width]` in f32 as a stream of them has it, in f32 where there is room given for it, and
    /// rounded.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn norm_rows(
        &self,
        x: &Activations,
        rows: usize,
        norm: Norm<'_>,
        normed: Option<&mut Buffer<f32>>,
        rounded: &mut DeviceRows,
    ) -> Result<(), CudaError> {
        let room = rows * self.width;
        assert_eq!(norm.weight.len(), self.width, "width of the norm");
        assert!(x.len() >= room && rounded.data().len() >= room, "room for {rows} rows");
        assert_eq!(x.element(), Element::F32, "element of the stream");
        assert!(normed.as_ref().is_none_or(|normed| normed.len() >= room), "room for {rows} rows");
        assert_eq!(rounded.data().element(), self.activations, "element of the rounded rows");
        let arguments = [
            Argument::Pointer(x.address(0)),
            Argument::Pointer(norm.weight.address(0)),
            Argument::F32(norm.epsilon),
            Argument::I32(self.width as i32),
            Argument::Pointer(normed.map_or(0, |normed| normed.address(0))),
            Argument::Pointer(rounded.data().address(0)),
        ];
        // SAFETY: the kernel's arguments, in order; `rows` rows of each were checked above.
        unsafe { self.cuda.launch(&self.norm_rows, self.row_shape(rows), &arguments) }
    }

    /// Lets a branch join the stream, and norms it. Without a norm the stream alone is written; with one, it is
    /// written where its next base is not the normed stream.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    #[allow(clippy::too_many_arguments)]
    pub fn join(
        &self,
        rows: usize,
        branch: Branch<'_>,
        shared: Option<Shared<'_>>,
        scale: Scale,
        norm: Option<Norm<'_>>,
        stream: &mut Stream,
        kept: Kept<'_>,
    ) -> Result<(), CudaError> {
        self.check(stream, rows);
        let base = kept.normed.unwrap_or(&stream.normed);
        self.check_normed(base, rows);
        let base = if scale.postnorm { base.data().address(0) } else { 0 };
        let [kept, kept_exact] = self.kept(kept.stream, rows);
        let (branch_rows, places, weights, choices) = match branch {
            Branch::Rows(branch) => {
                assert!(branch.len() >= rows * self.width, "rows of the branch");
                (branch, 0, 0, 0)
            }
            Branch::Choices { rows: branch, places, weights, choices } => {
                assert!(branch.len() >= rows * choices * self.width, "rows of the choices");
                assert!(
                    places.len() >= rows * choices && weights.len() >= rows * choices,
                    "choices of the rows"
                );
                (branch, places.address(0), weights.address(0), choices)
            }
        };
        for rows in [Some(branch_rows), shared.map(|shared| shared.rows)].into_iter().flatten() {
            assert_eq!(rows.element(), self.activations, "element of the branch");
        }
        if let Some(shared) = &shared {
            assert!(
                shared.rows.len() >= rows * self.width && shared.coefficients.len() >= rows,
                "shared rows"
            );
        }
        assert!(norm.is_none_or(|norm| norm.weight.len() == self.width), "width of the norm");
        let arguments = [
            Argument::Pointer(stream.x.address(0)),
            Argument::Pointer(base),
            Argument::Pointer(branch_rows.address(0)),
            Argument::Pointer(places),
            Argument::Pointer(weights),
            Argument::I32(choices as i32),
            Argument::Pointer(shared.map_or(0, |shared| shared.rows.address(0))),
            Argument::Pointer(shared.map_or(0, |shared| shared.coefficients.address(0))),
            Argument::F32(scale.alpha),
            Argument::F32(scale.beta),
            Argument::Pointer(norm.map_or(0, |norm| norm.weight.address(0))),
            Argument::F32(norm.map_or(0.0, |norm| norm.epsilon)),
            Argument::I32(self.width as i32),
            Argument::Pointer(stream.normed.data().address(0)),
            kept,
            kept_exact,
        ];
        // SAFETY: the kernel's arguments, in order; `rows` rows of each were checked above. Places are below
        // `rows * choices` or negative, as `group` of moe.cu writes them.
        unsafe { self.cuda.launch(&self.join, self.row_shape(rows), &arguments) }
    }

    /// `out = gate * norm(attended)` for rows of any width that is a multiple of 4. Gates have been through the
    /// sigmoid; they begin at value `first` of rows of `stride` values.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn gated_norm(
        &self,
        rows: usize,
        attended: &Activations,
        gate: (&Activations, usize, usize),
        norm: Norm<'_>,
        out: &mut DeviceRows,
    ) -> Result<(), CudaError> {
        let width = norm.weight.len();
        let (gate, first, stride) = gate;
        assert!(width.is_multiple_of(4) && first.is_multiple_of(4) && stride.is_multiple_of(4), "widths");
        assert!(width <= HELD * MOST_THREADS, "a gated norm of {width} values");
        assert!(attended.len() >= rows * width && out.data().len() >= rows * width, "room for {rows} rows");
        assert!(rows == 0 || gate.len() >= (rows - 1) * stride + first + width, "gates of {rows} rows");
        for element in [attended.element(), gate.element(), out.data().element()] {
            assert_eq!(element, self.activations, "element of the activations");
        }
        let wide = [width, first, stride].iter().all(|n| n.is_multiple_of(8));
        let narrow = wide && width <= NARROW;
        let arguments = [
            Argument::Pointer(attended.address(0)),
            Argument::Pointer(gate.address(first)),
            Argument::I32(stride as i32),
            Argument::Pointer(norm.weight.address(0)),
            Argument::F32(norm.epsilon),
            Argument::I32(width as i32),
            Argument::Pointer(out.data().address(0)),
            Argument::I32(if narrow { rows as i32 } else { i32::from(wide) }),
        ];
        let (kernel, shape) = match narrow {
            true => (&self.gated_norm_narrow, LaunchShape::new(rows.div_ceil(8), 256).overlap()),
            false => (&self.gated_norm, self.shape(rows, width)),
        };
        // SAFETY: the kernel's arguments, in order; `rows` rows of each were checked above.
        unsafe { self.cuda.launch(kernel, shape, &arguments) }
    }

    /// The final norm of `count` rows of the stream, in f32, and in parts for [`crate::matmul::cuda::Products::run_parts`]
    /// where there is room given for them. The first `count` of `rows` must be rows of the stream.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn head_rows(
        &self,
        stream: &Stream,
        rows: &Buffer<i32>,
        count: usize,
        norm: Norm<'_>,
        normed: &mut DeviceRows,
        parts: Option<&mut DeviceRows>,
    ) -> Result<(), CudaError> {
        assert!(rows.len() >= count && norm.weight.len() == self.width, "shapes of the head");
        assert!(normed.data().len() >= count * self.width && normed.data().element() == Element::F32, "room");
        let parts = parts.map(|parts| {
            assert!(
                parts.rows() >= count.next_multiple_of(8) * PARTS && parts.k() == self.width,
                "room for parts"
            );
            assert_eq!(parts.data().element(), Element::Bf16, "element of the parts");
            parts.data().address(0)
        });
        let arguments = [
            Argument::Pointer(stream.x.address(0)),
            Argument::Pointer(rows.address(0)),
            Argument::Pointer(norm.weight.address(0)),
            Argument::F32(norm.epsilon),
            Argument::I32(self.width as i32),
            Argument::Pointer(normed.data().address(0)),
            Argument::Pointer(parts.unwrap_or(0)),
        ];
        // SAFETY: the kernel's arguments, in order; `count` rows of each output were checked above, and that `rows` are
        // rows of the stream is the caller's promise, which the model checks on the host.
        unsafe { self.cuda.launch(&self.head_rows, self.shape(count, self.width), &arguments) }
    }
}
