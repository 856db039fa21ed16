//! Softmax attention on a GPU.
//!
//! Keys and values lie in pages of one buffer a layer; page tables, spans and inputs are on the device, so that a
//! captured launch stays valid while sequences grow. [`SoftmaxCuda::prefill`] takes spans of any length, and passes
//! over a row's keys in an order that depends on the row's position alone: its bits do not depend on how its sequence
//! was cut into spans. [`SoftmaxCuda::decode`] takes spans of one row, and splits their keys among blocks as suits the
//! card.
//!
//! Heads of 64 or 128 channels in bf16 run on tensor cores: on Hopper's own way of using them (`hopper.cu`), or on
//! that of all cards since Ampere (`tiles.cu`; `decode.cu` everywhere). All others run on `plain.cu`.

mod backward;
mod pages;

use std::sync::Arc;

use super::{PAGE, Shape};
use crate::device::cuda::{
    Activations, Argument, Buffer, Cuda, CudaError, Define, Kernel, LaunchShape, Source,
};
use crate::matmul::Element;
use crate::rope::cuda::DeviceAngles;

#[cfg(test)]
pub(super) use backward::sources;
pub use backward::{BACKWARD, BackwardInputs, HOPPER_BACKWARD, PLAIN_BACKWARD, SoftmaxBackwardCuda};
pub use pages::DevicePages;

macro_rules! source {
    ($file:literal $(, $header:literal)*) => {
        Source {
            name: concat!("softmax_attention/", $file),
            text: concat!(include_str!("pages.cuh"), $(include_str!($header),)* include_str!($file)),
        }
    };
}

/// Rotation and storing, and attention of any heads.
pub const PLAIN: Source = source!("plain.cu");
/// One row a span.
pub const DECODE: Source = source!("decode.cu");
/// Spans of any length on Hopper.
pub const HOPPER: Source = source!("hopper.cu", "hopper.cuh");
/// Spans of any length on other tensor cores.
pub const TILES: Source = source!("tiles.cu");

/// Parts into which the keys of a row are split at most.
const MAX_SPLITS: usize = 64;
/// Pages that a part should have at least: below that, adding up costs more than it gains.
const MIN_SPLIT_PAGES: usize = 2;

/// Rows of a tile of `plain.cu`, and threads of its blocks.
const PLAIN_TILE: usize = 32;
const PLAIN_THREADS: usize = 256;
/// The same of `tiles.cu`.
const TILE_ROWS: usize = 64;
const TILE_THREADS: usize = 128;

/// What a launch takes: consecutive spans, and where their sequences' pages are.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// Rows that the spans may lie in.
    pub rows: usize,
    /// Spans: first row, rows, position of the first row in its sequence, slot. A slot below 0 is padding, whose rows
    /// are left alone; so is a span that reaches beyond the rows, the slots or its page table.
    pub spans: &'a Buffer<[i32; 4]>,
    /// The first span of the launch.
    pub first_span: usize,
    /// Spans of the launch, of different sequences.
    pub span_count: usize,
    /// For each slot, the numbers of its sequence's pages in order, `[slots, table_stride]`; enough for the tokens
    /// that a span adds.
    pub tables: &'a Buffer<i32>,
    /// Page numbers of a slot.
    pub table_stride: usize,
}

/// Kernels for one shape of heads, and room for their intermediate sums.
pub struct SoftmaxCuda {
    cuda: Arc<Cuda>,
    shape: Shape,
    element: Element,
    /// Values that threads move together, and of which rows are a multiple.
    vector: usize,
    append: Kernel,
    plain: Kernel,
    prefill: Option<Prefill>,
    decode: Option<Decode>,
}

/// Spans of any length on tensor cores.
enum Prefill {
    Hopper {
        kernel: Kernel,
        /// How many tiles blocks have drawn; 0 between launches.
        drawn: Buffer<i32>,
    },
    Tiles(Kernel),
}

/// One row a span on tensor cores.
struct Decode {
    kernel: Kernel,
    /// Blocks that the card runs at a time, and that are split at most.
    blocks: usize,
    /// What each split summed, and its maxima and totals.
    sums: Buffer<f32>,
    totals: Buffer<f32>,
    /// Splits that are done.
    arrived: Buffer<u32>,
}

impl Decode {
    const THREADS: usize = 128;
    const STAGES: usize = 3;

    fn new(cuda: &Arc<Cuda>, shape: Shape, defines: &[Define]) -> Result<Self, CudaError> {
        let (group, blocks) = (shape.heads / shape.kv_heads, 2 * cuda.facts().multiprocessors);
        Ok(Self {
            kernel: cuda.module(DECODE, defines).kernel("decode")?,
            blocks,
            sums: Buffer::zeroed(cuda, blocks * group * shape.head_dim)?,
            totals: Buffer::zeroed(cuda, blocks * 2 * group)?,
            arrived: Buffer::zeroed(cuda, blocks)?,
        })
    }

    /// Into how many parts the keys of each of `rows` rows (spans times key-value heads) are split.
    fn splits(&self, rows: usize, max_context: usize) -> usize {
        let useful = max_context.div_ceil(PAGE) / MIN_SPLIT_PAGES;
        (self.blocks / rows).min(useful).clamp(1, MAX_SPLITS)
    }
}

impl SoftmaxCuda {
    /// Compiles the kernels for heads of that shape and inputs and pages of that number format.
    ///
    /// # Errors
    /// When a head has more than 256 channels, or the compiler fails.
    pub fn new(cuda: &Arc<Cuda>, shape: Shape, element: Element) -> Result<Self, CudaError> {
        Self::with(cuda, shape, element, cuda.facts().architecture.has_wgmma())
    }

    /// [`new`](Self::new), with Hopper's own products where asked.
    pub(super) fn with(
        cuda: &Arc<Cuda>,
        shape: Shape,
        element: Element,
        hopper: bool,
    ) -> Result<Self, CudaError> {
        let Shape { heads, kv_heads, head_dim, rotary_dim } = shape;
        if head_dim > 256 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
            return Err(CudaError::Unsupported(format!(
                "heads of {head_dim} channels, {rotary_dim} of them rotated"
            )));
        }
        let group = heads / kv_heads;
        let (bytes, most) = match element {
            Element::F32 => (4, 4),
            Element::Bf16 => (2, 8),
        };
        let fits = |n: usize| head_dim.is_multiple_of(n) && (rotary_dim / 2).is_multiple_of(n);
        let vector = if fits(most) { most } else { 1 };
        let defines = [("HEAD_DIM", head_dim as i64), ("GROUP", group as i64), ("ELEMENT_BYTES", bytes)];
        let plain_defines =
            [&defines[..], &[("ROTARY_DIM", rotary_dim as i64), ("VECTOR", vector as i64)]].concat();
        let plain = cuda.module(PLAIN, &plain_defines);
        let on_tensor_cores = element == Element::Bf16 && matches!(head_dim, 64 | 128) && vector == most;
        let prefill = if on_tensor_cores && hopper && group.is_power_of_two() && group <= 128 {
            let kernel = cuda.module(HOPPER, &defines).kernel("prefill")?;
            Some(Prefill::Hopper { kernel, drawn: Buffer::zeroed(cuda, 1)? })
        } else if on_tensor_cores && group <= TILE_ROWS {
            Some(Prefill::Tiles(cuda.module(TILES, &defines).kernel("prefill")?))
        } else {
            None
        };
        let decode =
            if on_tensor_cores && group <= 16 { Some(Decode::new(cuda, shape, &defines)?) } else { None };
        Ok(Self {
            cuda: Arc::clone(cuda),
            shape,
            element,
            vector,
            append: plain.kernel("append")?,
            plain: plain.kernel("plain_attention")?,
            prefill,
            decode,
        })
    }

    /// Bytes of scratch held.
    pub fn bytes(&self) -> usize {
        self.decode.as_ref().map_or(0, |d| d.sums.bytes() + d.totals.bytes() + d.arrived.bytes())
    }

    /// Rotates the spans' queries in place, and stores their rotated keys and their values in their pages.
    ///
    /// `projected [rows, stride]` has in each row `heads` queries, `kv_heads` keys and as many values, `head_dim`
    /// channels each, before rotation.
    ///
    /// # Errors
    /// When the driver fails, or `stride` is not a multiple of what a thread moves (8 values at most).
    ///
    /// # Panics
    /// When a size or a number format does not agree.
    pub fn append(
        &self,
        projected: &mut Activations,
        stride: usize,
        inputs: &Inputs<'_>,
        angles: &DeviceAngles,
        pages: &mut DevicePages,
    ) -> Result<(), CudaError> {
        self.check(projected, stride, inputs, pages)?;
        assert_eq!(angles.rotary_dim(), self.shape.rotary_dim, "rotated channels");
        assert!(inputs.rows <= angles.rows(), "{} rows of angles", angles.rows());
        let mut arguments = self.arguments(inputs, pages).to_vec();
        arguments.extend([
            Argument::Pointer(projected.address(0)),
            Argument::I64(stride as i64),
            Argument::Pointer(angles.table().address(0)),
            Argument::Pointer(pages.data.address(0)),
        ]);
        // SAFETY: the kernel's twelve arguments. It writes rows of `projected` and pages, of which the kernel itself
        // leaves alone what spans or tables name beyond the numbers given; their sizes were checked.
        unsafe { self.cuda.launch(&self.append, LaunchShape::new(inputs.rows, 256).overlap(), &arguments) }
    }

    /// Attention of spans of any length after [`append`](Self::append). `out` is `[rows, heads * head_dim]`; rows of no
    /// span stay as they are. A row's bits depend on its query and the keys and values of its sequence alone.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When a size or a number format does not agree.
    pub fn prefill(
        &self,
        projected: &Activations,
        stride: usize,
        inputs: &Inputs<'_>,
        pages: &DevicePages,
        out: &mut Activations,
    ) -> Result<(), CudaError> {
        self.attend(projected, stride, inputs, pages, out, None)
    }

    /// [`prefill`](Self::prefill) that keeps the logarithm of each row's sum of `e^score`, `[rows, heads]`, for the
    /// backward pass.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When a size or a number format does not agree.
    pub fn prefill_for_training(
        &self,
        projected: &Activations,
        stride: usize,
        inputs: &Inputs<'_>,
        pages: &DevicePages,
        out: &mut Activations,
        lse: &mut Buffer<f32>,
    ) -> Result<(), CudaError> {
        assert!(inputs.rows * self.shape.heads <= lse.len(), "rows of logarithms");
        self.attend(projected, stride, inputs, pages, out, Some(lse))
    }

    fn attend(
        &self,
        projected: &Activations,
        stride: usize,
        inputs: &Inputs<'_>,
        pages: &DevicePages,
        out: &mut Activations,
        lse: Option<&mut Buffer<f32>>,
    ) -> Result<(), CudaError> {
        self.check(projected, stride, inputs, pages)?;
        self.check_out(inputs, out);
        let lse = Argument::Pointer(lse.map_or(0, |lse| lse.address(0)));
        let Some(prefill) = &self.prefill else {
            return self.attend_plainly(projected, stride, inputs, pages, out, lse);
        };
        let mut arguments =
            self.attend_arguments(projected, stride, inputs, pages, out, std::f32::consts::LOG2_E);
        arguments.push(lse);
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let (kernel, shape) = match prefill {
            Prefill::Hopper { kernel, drawn } => {
                arguments.push(Argument::Pointer(drawn.address(0)));
                let shape = LaunchShape::new(self.cuda.facts().multiprocessors, 384);
                (kernel, shape.shared(hopper_shared(head_dim)))
            }
            Prefill::Tiles(kernel) => {
                // Each span fills its first and its last tile in part.
                let tiles = inputs.rows / (TILE_ROWS * kv_heads / heads) + 2 * inputs.span_count;
                (kernel, LaunchShape::new(tiles * kv_heads, TILE_THREADS).shared(2 * 2 * PAGE * head_dim * 2))
            }
        };
        // SAFETY: the fourteen arguments of either kernel, and Hopper's counter. It reads rows of `projected` and pages
        // and writes rows of `out` and, where it is given, `lse`, all within the numbers given, whatever spans and
        // tables name; their sizes were checked.
        unsafe { self.cuda.launch(kernel, shape.overlap(), &arguments) }
    }

    /// Attention of spans of one row after [`append`](Self::append); the same otherwise. `max_context` is the most
    /// tokens that a sequence has, the row's own counted in: it chooses how keys are split among blocks, so that a
    /// captured launch gets slow, but not wrong, beyond it.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When a size or a number format does not agree.
    pub fn decode(
        &mut self,
        projected: &Activations,
        stride: usize,
        inputs: &Inputs<'_>,
        max_context: usize,
        pages: &DevicePages,
        out: &mut Activations,
    ) -> Result<(), CudaError> {
        self.check(projected, stride, inputs, pages)?;
        self.check_out(inputs, out);
        let Some(decode) = &self.decode else {
            return self.attend_plainly(projected, stride, inputs, pages, out, Argument::Pointer(0));
        };
        let Shape { kv_heads, head_dim, .. } = self.shape;
        let splits = decode.splits((inputs.span_count * kv_heads).max(1), max_context);
        let mut arguments =
            self.attend_arguments(projected, stride, inputs, pages, out, std::f32::consts::LOG2_E);
        arguments.extend([
            Argument::Pointer(decode.sums.address(0)),
            Argument::Pointer(decode.totals.address(0)),
            Argument::Pointer(decode.arrived.address(0)),
        ]);
        let shape = LaunchShape::grid(kv_heads, splits, inputs.span_count, Decode::THREADS)
            .shared(Decode::STAGES * 2 * PAGE * head_dim * 2)
            .overlap();
        // SAFETY: the kernel's sixteen arguments. As for `prefill`, and with several splits there are no more blocks
        // than there is room for sums, which `self`, borrowed mutably, lends to one launch of the stream at a time.
        unsafe { self.cuda.launch(&decode.kernel, shape, &arguments) }
    }

    fn attend_plainly(
        &self,
        projected: &Activations,
        stride: usize,
        inputs: &Inputs<'_>,
        pages: &DevicePages,
        out: &mut Activations,
        lse: Argument<'static>,
    ) -> Result<(), CudaError> {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        // Each span fills its last tile in part.
        let tiles = inputs.rows * (heads / kv_heads) / PLAIN_TILE + inputs.span_count;
        let floats = PAGE * (head_dim + 1) + PLAIN_TILE * (head_dim + PAGE);
        let shape = LaunchShape::grid(tiles, kv_heads, 1, PLAIN_THREADS).shared(4 * floats).overlap();
        let mut arguments = self.attend_arguments(projected, stride, inputs, pages, out, 1.0);
        arguments.push(lse);
        // SAFETY: as for `prefill`.
        unsafe { self.cuda.launch(&self.plain, shape, &arguments) }
    }

    fn check(
        &self,
        projected: &Activations,
        stride: usize,
        inputs: &Inputs<'_>,
        pages: &DevicePages,
    ) -> Result<(), CudaError> {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        assert_eq!(projected.element(), self.element, "the number format of the inputs");
        assert_eq!(pages.element(), self.element, "the number format of the pages");
        assert_eq!(pages.shape, self.shape, "the pages' heads");
        assert!(stride >= (heads + 2 * kv_heads) * head_dim, "rows of {stride} values");
        assert!(inputs.rows * stride <= projected.len(), "{} rows of inputs", inputs.rows);
        assert!(inputs.first_span + inputs.span_count <= inputs.spans.len(), "spans beyond the end");
        assert!(inputs.table_stride > 0 && pages.pages > 0, "no pages");
        if !stride.is_multiple_of(self.vector) {
            let message = format!("rows of {stride} values are no multiple of {}", self.vector);
            return Err(CudaError::Unsupported(message));
        }
        Ok(())
    }

    fn check_out(&self, inputs: &Inputs<'_>, out: &Activations) {
        assert_eq!(out.element(), self.element, "the number format of the outputs");
        assert!(inputs.rows * self.shape.heads * self.shape.head_dim <= out.len(), "rows of outputs");
    }

    /// The first eight arguments of each kernel.
    fn arguments(&self, inputs: &Inputs<'_>, pages: &DevicePages) -> [Argument<'static>; 8] {
        [
            Argument::Pointer(inputs.spans.address(inputs.first_span)),
            Argument::I32(inputs.span_count as i32),
            Argument::I32(inputs.rows as i32),
            Argument::Pointer(inputs.tables.address(0)),
            Argument::I32(inputs.table_stride as i32),
            Argument::I32((inputs.tables.len() / inputs.table_stride) as i32),
            Argument::I32(pages.pages as i32),
            Argument::I32(self.shape.kv_heads as i32),
        ]
    }

    /// The first thirteen of those that attend. Scores are in units of `log unit`.
    fn attend_arguments(
        &self,
        projected: &Activations,
        stride: usize,
        inputs: &Inputs<'_>,
        pages: &DevicePages,
        out: &mut Activations,
        unit: f32,
    ) -> Vec<Argument<'static>> {
        let scale = (self.shape.head_dim as f64).powf(-0.5) * f64::from(unit);
        let mut arguments = self.arguments(inputs, pages).to_vec();
        arguments.extend([
            Argument::Pointer(projected.address(0)),
            Argument::I64(stride as i64),
            Argument::Pointer(pages.data.address(0)),
            Argument::F32(scale as f32),
            Argument::Pointer(out.address(0)),
        ]);
        arguments
    }
}

/// Bytes of shared memory of a block of `hopper.cu`: two stages of queries, keys and values, barriers, and room to
/// align them.
fn hopper_shared(head_dim: usize) -> usize {
    2 * 3 * 128 * head_dim * 2 + 128 + 1024
}
