//! The last step back through a block of the model: through the norm of its input, and past it.

use super::StreamGradients;
use super::shape::parts_of;
use crate::device::cuda::{Activations, Argument, Buffer, CudaError, LaunchShape};
use crate::matmul::Element;
use crate::norm::cuda::Norm;

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

/// Where the sums over rows go: the gradients by a norm's weight and by a small matrix behind it.
pub struct NormSums<'a> {
    /// All gradients.
    pub gradients: &'a mut Buffer<f32>,
    /// The place of that by the norm's weight.
    pub weight_at: usize,
    /// The place of that by the first small matrix, if it is to be summed: see [`StreamGradients::sums_router`].
    pub outer_at: Option<usize>,
    /// Whether they count as zeros, whatever lies there.
    pub fresh: bool,
}

/// The choices of experts whose output was a block's input, of as many as the shape says: the gradient by that, or, where
/// it is written, times a factor, is weighed for them, as
/// [`MixtureGradients::weigh`](crate::moe::cuda::MixtureGradients::weigh) does it.
pub struct Weighed<'a> {
    /// Places and weights of the choices, `[rows, choices]`.
    pub places: &'a Buffer<i32>,
    /// See there.
    pub weights: &'a Buffer<f32>,
    /// Gets a row for each choice, `[rows * choices, width]`.
    pub out: &'a mut Activations,
    /// Coefficients of a shared MLP, `[rows]`, and what gets its rows, `[rows, width]`.
    pub shared: Option<(&'a Buffer<f32>, &'a mut Activations)>,
}

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
    /// Those of the block before, if that is done here: for rows that were kept and a branch that is a product's.
    pub weighed: Option<Weighed<'a>>,
    /// See there.
    pub sums: NormSums<'a>,
}

impl StreamGradients {
    /// Takes a step back through a norm.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree, or a small matrix's gradient is asked for that is not summed here.
    pub fn norm_backward(&mut self, step: NormBackward<'_>) -> Result<(), CudaError> {
        let NormBackward { x, rows, norm, past, gradient, dx, scaled, weighed, sums } = step;
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
        let kernels = match (gradient.branch, sums.outer_at) {
            (BranchGradient::Rows(_), None) => &self.norm_backward,
            (BranchGradient::Choices(..), None) => &self.norm_backward_choices,
            (branch, Some(_)) => {
                assert!(matches!(branch, BranchGradient::Choices(..)), "a router's gradient without choices");
                assert_eq!(counts[0], self.shape.experts, "rows of the first small matrix");
                self.norm_backward_outer.as_ref().expect("made for matrices that are summed here")
            }
        };
        let mut kernel = &kernels[usize::from(x.element() != self.activations)];
        let mut of_weighed = [Argument::Pointer(0); 5];
        if let Some(Weighed { places, weights, out, shared }) = &weighed {
            let choices = rows * self.shape.choices;
            assert!(matches!(gradient.branch, BranchGradient::Rows(_)), "a branch that is a product's");
            assert!(x.element() == self.activations && self.shape.choices > 0, "rows that were kept");
            assert!(places.len() >= choices && weights.len() >= choices, "choices of {rows} rows");
            assert!(out.len() >= choices * width && out.element() == self.activations, "weighed rows");
            for (coefficients, out) in shared.iter() {
                assert!(coefficients.len() >= rows && out.len() >= room, "rows of a shared MLP");
                assert_eq!(out.element(), self.activations, "element of the weighed rows");
            }
            kernel = &self.norm_backward_weighing;
            let (coefficients, of_shared) = match shared {
                Some((coefficients, out)) => (coefficients.address(0), out.address(0)),
                None => (0, 0),
            };
            of_weighed = [places.address(0), weights.address(0), coefficients, out.address(0), of_shared]
                .map(Argument::Pointer);
        }
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
            of_weighed[0],
            of_weighed[1],
            of_weighed[2],
            of_weighed[3],
            of_weighed[4],
        ];
        let threads = self.shape.division(self.activations).threads;
        let copies = self.shape.copies(self.activations, branches);
        let shape = LaunchShape::new(blocks, threads).shared(copies).overlap();
        // SAFETY: the kernel's arguments, in order; `rows` rows of each were checked above, and there is room for a part
        // of each block of as many rows as these kernels were made for. Places are rows of the choices or negative, as
        // `group` of moe.cu writes them.
        unsafe { self.cuda.launch(kernel, shape, &arguments)? };
        self.add_parts(blocks, width, sums)
    }
}
