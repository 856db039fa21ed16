//! Routing on a GPU (`moe.cu`): the host never learns which expert gets how many rows.

mod backward;

use std::sync::Arc;

use crate::device::cuda::{
    Activations, Argument, Buffer, Cuda, CudaError, Define, Kernel, LaunchShape, Source,
};
use crate::matmul::Element;
use crate::matmul::cuda::DeviceRows;

pub use backward::{DeviceBalance, GRADIENTS, MixtureGradients, SharedRows, Swiglu, gradient_defines};

/// The kernels.
pub const SOURCE: Source = Source { name: "moe/moe.cu", text: include_str!("moe.cu") };

/// The most experts that a token can choose.
pub const MAX_CHOICES: usize = 16;

/// What the kernels are compiled for.
#[must_use]
pub fn defines(activations: Element, weights: Element, choices: usize) -> [Define; 3] {
    let bf16 = |element| i64::from(element == Element::Bf16);
    [("ACTIVATIONS_BF16", bf16(activations)), ("ROUTER_BF16", bf16(weights)), ("CHOICES", choices as i64)]
}

/// Choices of an expert that one block of those that group them may have to place.
const SHARE_CHOICES: usize = 4096;

/// The compiled kernels for one model.
pub struct Router {
    cuda: Arc<Cuda>,
    width: usize,
    experts: usize,
    choices: usize,
    activations: Element,
    weights: Element,
    /// Logits of few rows, a warp an expert, and of many, eight experts a warp.
    few: Kernel,
    many: Kernel,
    choose: Kernel,
    group: Kernel,
    choose_and_group: Kernel,
    gather: Kernel,
}

/// Rows up to which a warp makes the logits of one expert alone.
const FEW_ROWS: usize = 64;
/// Choices that one block chooses and groups; `FEW_CHOICES` in moe.cu.
const FEW_CHOICES: usize = 1024;

/// Which experts serve the rows of a step.
pub struct DeviceRouting {
    /// `[rows, experts]`.
    pub logits: Buffer<f32>,
    /// `[rows, choices]`, best first; the number of experts where a row chooses none.
    pub chosen: Buffer<i32>,
    /// `[rows, choices]`, each row's summing to 1.
    pub weights: Buffer<f32>,
    /// Packed row of each choice, `[rows, choices]`; -1 for none.
    pub places: Buffer<i32>,
    /// Row of each packed row.
    pub sources: Buffer<i32>,
    /// Where each expert's packed rows begin, and the end, `[experts + 1]`.
    pub offsets: Buffer<i32>,
    /// Experts that served a row, over all calls; it wraps.
    pub used: Buffer<i32>,
}

impl DeviceRouting {
    /// Room for `rows` rows.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn zeroed(cuda: &Arc<Cuda>, rows: usize, experts: usize, choices: usize) -> Result<Self, CudaError> {
        Ok(Self {
            logits: Buffer::zeroed(cuda, rows * experts)?,
            chosen: Buffer::zeroed(cuda, rows * choices)?,
            weights: Buffer::zeroed(cuda, rows * choices)?,
            places: Buffer::zeroed(cuda, rows * choices)?,
            sources: Buffer::zeroed(cuda, rows * choices)?,
            offsets: Buffer::zeroed(cuda, experts + 1)?,
            used: Buffer::zeroed(cuda, 1)?,
        })
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.logits.bytes()
            + self.chosen.bytes()
            + self.weights.bytes()
            + self.places.bytes()
            + self.sources.bytes()
            + self.offsets.bytes()
    }
}

impl Router {
    /// Compiles them for rows of `width` values, and for formats of rows and weights.
    ///
    /// # Errors
    /// When a size is not supported, or compilation fails.
    pub fn new(
        cuda: &Arc<Cuda>,
        width: usize,
        experts: usize,
        choices: usize,
        [activations, weights]: [Element; 2],
    ) -> Result<Self, CudaError> {
        if !width.is_multiple_of(8) || choices > MAX_CHOICES || choices > experts || choices == 0 {
            return Err(CudaError::Unsupported(format!(
                "{choices} of {experts} experts for rows of {width}: the width must be a multiple of 8, and no token \
                 can choose more than {MAX_CHOICES}"
            )));
        }
        let module = cuda.module(SOURCE, &defines(activations, weights, choices));
        Ok(Self {
            cuda: Arc::clone(cuda),
            width,
            experts,
            choices,
            activations,
            weights,
            few: module.kernel("router_few")?,
            many: module.kernel("router_many")?,
            choose: module.kernel("choose")?,
            group: module.kernel("group")?,
            choose_and_group: module.kernel("choose_and_group")?,
            gather: module.kernel("gather")?,
        })
    }

    /// Router logits `out[rows, experts]` of rows of `x[_, width]`, from weights `[experts, width]`.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn logits(
        &self,
        x: &DeviceRows,
        rows: usize,
        weights: &Activations,
        out: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        let Self { cuda, width, experts, .. } = self;
        assert!(
            x.rows() >= rows && x.k() == *width && weights.len() == experts * width,
            "shapes of the router"
        );
        assert_eq!(x.data().element(), self.activations, "element of the rows");
        assert_eq!(weights.element(), self.weights, "element of the router");
        assert!(out.len() >= rows * experts, "room for {rows} rows");
        let arguments = [
            Argument::Pointer(x.data().address(0)),
            Argument::Pointer(weights.address(0)),
            Argument::Pointer(out.address(0)),
            Argument::I32(rows as i32),
            Argument::I32(*width as i32),
            Argument::I32(*experts as i32),
        ];
        let tiles = rows.div_ceil(4);
        let (kernel, shape) = match rows <= FEW_ROWS {
            true => (&self.few, LaunchShape::grid(tiles, *experts, 1, 32)),
            false => (&self.many, LaunchShape::new((tiles * experts.div_ceil(8)).div_ceil(8), 256)),
        };
        // SAFETY: the kernel's arguments, in order; `rows` rows of each were checked above.
        unsafe { cuda.launch(kernel, shape.overlap(), &arguments) }
    }

    /// Experts for `rows` rows of `x[_, width]`, from router weights `[experts, width]`; rows from the number in
    /// `active` on choose none.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn route(
        &self,
        x: &DeviceRows,
        rows: usize,
        active: &Buffer<i32>,
        weights: &Activations,
        routing: &mut DeviceRouting,
    ) -> Result<(), CudaError> {
        let Self { cuda, experts, choices, .. } = self;
        assert!(routing.places.len() >= rows * choices, "room for {rows} rows");
        assert!(!active.is_empty(), "the number of rows");
        self.logits(x, rows, weights, &mut routing.logits)?;
        if rows * choices <= FEW_CHOICES {
            let arguments = [
                Argument::Pointer(routing.logits.address(0)),
                Argument::Pointer(routing.chosen.address(0)),
                Argument::Pointer(routing.weights.address(0)),
                Argument::Pointer(routing.offsets.address(0)),
                Argument::Pointer(routing.places.address(0)),
                Argument::Pointer(routing.sources.address(0)),
                Argument::I32(rows as i32),
                Argument::Pointer(active.address(0)),
                Argument::I32(*experts as i32),
                Argument::Pointer(routing.used.address(0)),
            ];
            // SAFETY: the kernel's arguments, in order; there is room for `rows * choices` of each, and for an offset
            // for every expert and the end. A thread a row, as there are no more rows than threads.
            return unsafe {
                cuda.launch(&self.choose_and_group, LaunchShape::new(1, 1024).overlap(), &arguments)
            };
        }
        let arguments = [
            Argument::Pointer(routing.logits.address(0)),
            Argument::Pointer(routing.chosen.address(0)),
            Argument::Pointer(routing.weights.address(0)),
            Argument::I32(rows as i32),
            Argument::Pointer(active.address(0)),
            Argument::I32(*experts as i32),
        ];
        let shape = LaunchShape::new(rows.div_ceil(128), 128).overlap();
        // SAFETY: as above.
        unsafe { cuda.launch(&self.choose, shape, &arguments)? };
        let arguments = [
            Argument::Pointer(routing.chosen.address(0)),
            Argument::Pointer(routing.offsets.address(0)),
            Argument::Pointer(routing.places.address(0)),
            Argument::Pointer(routing.sources.address(0)),
            Argument::I32((rows * choices) as i32),
            Argument::I32(*experts as i32),
            Argument::Pointer(routing.used.address(0)),
        ];
        let threads = (rows * choices).next_multiple_of(32).min(1024);
        // A block reads all choices, but writes the places of so many only, one by one.
        let shares = (rows * choices).div_ceil(SHARE_CHOICES);
        let shape = LaunchShape::grid(*experts, shares, 1, threads).overlap();
        // SAFETY: as above; places and sources have room for `rows * choices`, offsets for every expert and the end.
        unsafe { cuda.launch(&self.group, shape, &arguments) }
    }

    /// Puts the rows of `x` that experts were chosen for into the order of experts.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn gather(
        &self,
        x: &DeviceRows,
        rows: usize,
        routing: &DeviceRouting,
        out: &mut DeviceRows,
    ) -> Result<(), CudaError> {
        let choices = rows * self.choices;
        assert!(x.rows() >= rows && out.rows() >= choices && routing.sources.len() >= choices, "room");
        assert_eq!((x.k(), out.k()), (self.width, self.width), "width of the rows");
        assert_eq!(x.data().element(), out.data().element(), "elements of the rows");
        let bytes = self.width * if x.data().element() == Element::Bf16 { 2 } else { 4 };
        let arguments = [
            Argument::Pointer(x.data().address(0)),
            Argument::Pointer(routing.sources.address(0)),
            Argument::Pointer(routing.offsets.address(0)),
            Argument::Pointer(out.data().address(0)),
            Argument::I32(choices as i32),
            Argument::I32(self.experts as i32),
            Argument::I32((bytes / 16) as i32),
        ];
        let shape = LaunchShape::new(choices.div_ceil(8), 256).overlap();
        // SAFETY: the kernel's arguments, in order; there is room for a packed row a choice, and sources are rows of
        // `x`. Rows are whole 16 bytes, as the width is a multiple of 8.
        unsafe { self.cuda.launch(&self.gather, shape, &arguments) }
    }
}
