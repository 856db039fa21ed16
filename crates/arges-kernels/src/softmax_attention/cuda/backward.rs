//! Gradients of softmax attention on a GPU: those of queries, and those of keys and values, each of which computes the
//! weights again from the logarithms that the forward pass kept. No two blocks add to one sum, so that the same input
//! gives the same bits.
//!
//! Heads of 64 or 128 channels in bf16 run on tensor cores: on Hopper's own way of using them (`hopper_backward.cu`), or
//! on that of all cards since Ampere (`backward.cu`). All others run on `plain_backward.cu`.

use std::sync::Arc;

use super::{DevicePages, Inputs};
use crate::device::cuda::{
    Activations, Argument, Buffer, Cuda, CudaError, Define, Kernel, LaunchShape, Source, TensorMap,
};
use crate::matmul::Element;
use crate::rope::cuda::DeviceAngles;
use crate::softmax_attention::{PAGE, Shape};

macro_rules! source {
    ($file:literal $(, $header:literal)*) => {
        Source {
            name: concat!("softmax_attention/", $file),
            text: concat!(
                include_str!("../pages.cuh"),
                include_str!("../backward.cuh"),
                $(include_str!($header),)*
                include_str!(concat!("../", $file))
            ),
        }
    };
}

/// Gradients on Hopper's tensor cores.
pub const HOPPER_BACKWARD: Source = source!(
    "hopper_backward.cu",
    "../../device/cuda/panels.cuh",
    "../hopper.cuh",
    "../backward_tiles.cuh",
    "../backward_tasks.cuh",
    "../backward_stages.cuh"
);
/// Gradients on other tensor cores.
pub const BACKWARD: Source = source!("backward.cu", "../../device/cuda/panels.cuh", "../backward_tiles.cuh");
/// Gradients of any heads, and the dots that all need.
pub const PLAIN_BACKWARD: Source = source!("plain_backward.cu");

/// Query rows, and keys, of a block of `plain_backward.cu`; threads of all blocks but Hopper's.
const PLAIN_TILE: usize = 32;
/// The same of `backward.cu`.
const TILE: usize = 128;
const THREADS: usize = 256;
/// Query rows of a tile of `hopper_backward.cu` at most, and threads of a block.
const HOPPER_ROWS: usize = 64;
const HOPPER_THREADS: usize = 384;

/// What a backward pass reads.
#[derive(Clone, Copy)]
pub struct BackwardInputs<'a> {
    /// Rows of the forward pass, after [`append`](super::SoftmaxCuda::append): `heads` rotated queries of `head_dim`
    /// channels, and what the pages were filled from.
    pub projected: &'a Activations,
    /// Values of a row.
    pub stride: usize,
    /// The forward pass's. Spans must be whole sequences that do not overlap; one with a position is left out.
    pub inputs: Inputs<'a>,
    /// Of the rows.
    pub angles: &'a DeviceAngles,
    /// Keys and values.
    pub pages: &'a DevicePages,
    /// The forward pass's output, `[rows, heads * head_dim]`.
    pub out: &'a Activations,
    /// The logarithms that it kept, `[rows, heads]`.
    pub lse: &'a Buffer<f32>,
    /// Gradient of the output, `[rows, heads * head_dim]`.
    pub dout: &'a Activations,
}

/// Kernels for one shape of heads, and room for what they share.
pub struct SoftmaxBackwardCuda {
    cuda: Arc<Cuda>,
    shape: Shape,
    element: Element,
    output_dots: Kernel,
    gradients: Gradients,
    /// Products of outputs and their gradients, `[rows, heads]`.
    delta: Buffer<f32>,
}

enum Gradients {
    Hopper(Hopper),
    /// Those of queries, and those of keys and values, on tensor cores.
    Tiles([Kernel; 2]),
    /// The same of any heads.
    Plain([Kernel; 2]),
}

/// All gradients by one kernel.
struct Hopper {
    kernel: Kernel,
    /// At most so many blocks share the work.
    blocks: usize,
    /// How many parts of it they have drawn; 0 between launches.
    drawn: Buffer<i32>,
}

impl SoftmaxBackwardCuda {
    /// Compiles the kernels for heads of that shape and that number format, and takes room for `max_rows` rows.
    ///
    /// # Errors
    /// When a head has more than 256 channels, the compiler fails, or there is no room.
    pub fn new(cuda: &Arc<Cuda>, shape: Shape, element: Element, max_rows: usize) -> Result<Self, CudaError> {
        Self::with(cuda, shape, element, max_rows, cuda.facts().architecture.has_wgmma())
    }

    /// [`new`](Self::new), with Hopper's own products where asked.
    pub(in crate::softmax_attention) fn with(
        cuda: &Arc<Cuda>,
        shape: Shape,
        element: Element,
        max_rows: usize,
        wgmma: bool,
    ) -> Result<Self, CudaError> {
        let Shape { heads, head_dim, rotary_dim, .. } = shape;
        if head_dim > 256 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
            return Err(CudaError::Unsupported(format!(
                "heads of {head_dim} channels, {rotary_dim} of them rotated"
            )));
        }
        let facts = cuda.facts();
        let kernels = |(source, defines): (Source, Vec<Define>)| -> Result<[Kernel; 2], CudaError> {
            let module = cuda.module(source, &defines);
            Ok([module.kernel("query_gradients")?, module.kernel("key_gradients")?])
        };
        let gradients = match on_tensor_cores(shape, element, wgmma) {
            Some(TensorCores::Hopper) if hopper_shared(head_dim) <= facts.shared_memory => {
                let (source, defines) = TensorCores::Hopper.source(shape, element);
                Gradients::Hopper(Hopper {
                    kernel: cuda.module(source, &defines).kernel("gradients")?,
                    blocks: facts.multiprocessors,
                    drawn: Buffer::zeroed(cuda, 1)?,
                })
            }
            Some(_) if key_shared(head_dim) <= facts.shared_memory => {
                Gradients::Tiles(kernels(TensorCores::Any.source(shape, element))?)
            }
            _ => Gradients::Plain(kernels(plain_source(shape, element))?),
        };
        let (source, defines) = plain_source(shape, element);
        Ok(Self {
            cuda: Arc::clone(cuda),
            shape,
            element,
            output_dots: cuda.module(source, &defines).kernel("output_dots")?,
            gradients,
            delta: Buffer::zeroed(cuda, max_rows * heads)?,
        })
    }

    /// Lets fewer blocks share the work, where they do.
    #[cfg(test)]
    pub(in crate::softmax_attention) fn limit_blocks(&mut self, most: usize) {
        if let Gradients::Hopper(hopper) = &mut self.gradients {
            hopper.blocks = most.min(hopper.blocks);
        }
    }

    /// Bytes of scratch held.
    pub fn bytes(&self) -> usize {
        self.delta.bytes()
    }

    /// Writes the gradients by the spans' rows before rotation, laid out as `projected`, to the same rows of
    /// `dprojected`; values behind the heads' and other rows are left alone. The rounding of keys and values is passed
    /// through as if it were none. A span's gradients have the same bits whatever it is packed with.
    ///
    /// # Errors
    /// When the driver refuses a launch, or `stride` is not a multiple of 16 bytes where heads are on tensor cores.
    ///
    /// # Panics
    /// When a size or a number format does not agree, or there are more rows than there is room for.
    pub fn gradients(
        &mut self,
        x: &BackwardInputs<'_>,
        dprojected: &mut Activations,
    ) -> Result<(), CudaError> {
        let Shape { heads, kv_heads, head_dim, rotary_dim } = self.shape;
        let (rows, stride, width) = (x.inputs.rows, x.stride, heads * head_dim);
        let elements = [
            x.projected.element(),
            x.pages.element(),
            x.out.element(),
            x.dout.element(),
            dprojected.element(),
        ];
        assert_eq!(elements, [self.element; 5], "number formats");
        assert_eq!(x.pages.shape, self.shape, "the pages' heads");
        assert_eq!(x.angles.rotary_dim(), rotary_dim, "rotated channels");
        assert!(stride >= (heads + 2 * kv_heads) * head_dim, "rows of {stride} values");
        assert!(rows * stride <= x.projected.len().min(dprojected.len()), "{rows} rows of inputs");
        assert!(rows * width <= x.out.len().min(x.dout.len()), "{rows} rows of outputs");
        assert!(rows * heads <= x.lse.len().min(self.delta.len()), "{rows} rows of logarithms");
        assert!(rows <= x.angles.rows(), "{rows} rows of angles");
        assert!(x.inputs.first_span + x.inputs.span_count <= x.inputs.spans.len(), "spans beyond the end");
        assert!(x.inputs.table_stride > 0 && x.pages.pages > 0, "no pages");
        if !matches!(self.gradients, Gradients::Plain(_)) && !stride.is_multiple_of(8) {
            return Err(CudaError::Unsupported(format!("rows of {stride} values are no multiple of 8")));
        }
        let dots = [
            Argument::Pointer(x.out.address(0)),
            Argument::Pointer(x.dout.address(0)),
            Argument::I32(heads as i32),
            Argument::Pointer(self.delta.address(0)),
        ];
        // SAFETY: the kernel's four arguments; each of `rows` blocks reads a row of both outputs and writes one of
        // `delta`, all of which have been checked to have as many.
        unsafe { self.cuda.launch(&self.output_dots, LaunchShape::new(rows, THREADS).overlap(), &dots) }?;

        let mut arguments = vec![
            Argument::Pointer(x.inputs.spans.address(x.inputs.first_span)),
            Argument::I32(x.inputs.span_count as i32),
            Argument::I32(rows as i32),
            Argument::Pointer(x.inputs.tables.address(0)),
            Argument::I32(x.inputs.table_stride as i32),
            Argument::I32((x.inputs.tables.len() / x.inputs.table_stride) as i32),
            Argument::I32(x.pages.pages as i32),
            Argument::I32(kv_heads as i32),
            Argument::Pointer(x.projected.address(0)),
            Argument::I64(stride as i64),
            Argument::Pointer(x.pages.data.address(0)),
            Argument::Pointer(x.dout.address(0)),
            Argument::Pointer(x.lse.address(0)),
            Argument::Pointer(self.delta.address(0)),
            Argument::Pointer(x.angles.table().address(0)),
            Argument::F32((head_dim as f64).powf(-0.5) as f32),
            Argument::Pointer(dprojected.address(0)),
        ];
        let group = heads / kv_heads;
        let (kernels, tile, shared) = match (&self.gradients, x.projected, x.dout) {
            (Gradients::Plain(kernels), ..) => (kernels, PLAIN_TILE, [plain_shared(head_dim); 2]),
            (Gradients::Tiles(kernels), ..) => {
                (kernels, TILE, [query_shared(head_dim), key_shared(head_dim)])
            }
            (Gradients::Hopper(hopper), Activations::Bf16(projected), Activations::Bf16(dout)) => {
                let boxes = [HOPPER_ROWS / group, group];
                let queries = TensorMap::bf16_heads(projected, [rows, heads, head_dim], stride, boxes)?;
                let dout = TensorMap::bf16_heads(dout, [rows, heads, head_dim], width, boxes)?;
                arguments.extend([&queries, &dout].map(Argument::Map));
                arguments.push(Argument::Pointer(hopper.drawn.address(0)));
                let shape = LaunchShape::new(hopper.blocks, HOPPER_THREADS).shared(hopper_shared(head_dim));
                // SAFETY: the kernel's twenty arguments. The maps describe the rows of inputs, outside of which
                // nothing is copied; `drawn` too is lent to one pass at a time; and the rest is as below.
                return unsafe { self.cuda.launch(&hopper.kernel, shape.overlap(), &arguments) };
            }
            (Gradients::Hopper(_), ..) => unreachable!("number formats were checked"),
        };
        // Each span fills its last tile in part.
        let blocks = |rows: usize| (rows / tile + x.inputs.span_count) * kv_heads;
        for ((kernel, rows), bytes) in kernels.iter().zip([rows * group, rows]).zip(shared) {
            let shape = LaunchShape::new(blocks(rows), THREADS).shared(bytes).overlap();
            // SAFETY: the seventeen arguments of either kernel. It reads rows of inputs and outputs and pages, and
            // writes rows of `dprojected`, all within the numbers given, whatever spans and tables name; their sizes
            // were checked, and `self`, borrowed mutably, lends `delta` to one pass of the stream at a time.
            unsafe { self.cuda.launch(kernel, shape, &arguments) }?;
        }
        Ok(())
    }
}

/// Ways of using tensor cores.
#[derive(Clone, Copy)]
enum TensorCores {
    Hopper,
    Any,
}

impl TensorCores {
    fn source(self, shape: Shape, element: Element) -> (Source, Vec<Define>) {
        let (source, wgmma) = match self {
            Self::Hopper => (HOPPER_BACKWARD, 1),
            Self::Any => (BACKWARD, 0),
        };
        (source, [&defines(shape, element)[..], &[("WGMMA", wgmma)]].concat())
    }
}

/// How tensor cores can take the heads, if they can. The halves of a rotated pair must be one thread's.
fn on_tensor_cores(shape: Shape, element: Element, wgmma: bool) -> Option<TensorCores> {
    let Shape { heads, kv_heads, head_dim, rotary_dim } = shape;
    if element != Element::Bf16 || !matches!(head_dim, 64 | 128) || !rotary_dim.is_multiple_of(16) {
        None
    } else if wgmma && heads / kv_heads <= HOPPER_ROWS {
        Some(TensorCores::Hopper)
    } else {
        Some(TensorCores::Any)
    }
}

fn plain_source(shape: Shape, element: Element) -> (Source, Vec<Define>) {
    (PLAIN_BACKWARD, defines(shape, element).to_vec())
}

fn defines(shape: Shape, element: Element) -> [Define; 4] {
    let Shape { heads, kv_heads, head_dim, rotary_dim } = shape;
    let bytes = if element == Element::Bf16 { 2 } else { 4 };
    [
        ("HEAD_DIM", head_dim as i64),
        ("GROUP", (heads / kv_heads) as i64),
        ("ELEMENT_BYTES", bytes),
        ("ROTARY_DIM", rotary_dim as i64),
    ]
}

/// The sources that heads of that shape need, and the macros that they are compiled with.
#[cfg(test)]
pub(in crate::softmax_attention) fn sources(
    shape: Shape,
    element: Element,
    wgmma: bool,
) -> Vec<(Source, Vec<Define>)> {
    let cores = on_tensor_cores(shape, element, wgmma);
    [plain_source(shape, element)]
        .into_iter()
        .chain(cores.map(|cores| cores.source(shape, element)))
        .collect()
}

/// Bytes of shared memory of a block of `plain_backward.cu`.
fn plain_shared(head_dim: usize) -> usize {
    4 * (2 * PLAIN_TILE * (2 * head_dim + 1) + 2 * PLAIN_TILE * PLAIN_TILE)
}

/// Bytes of shared memory of a block of `backward.cu` with query rows: those and the gradients of their outputs, three
/// stages of keys and values, and room to align them.
fn query_shared(head_dim: usize) -> usize {
    2 * TILE * head_dim * 2 + 3 * 2 * PAGE * head_dim * 2 + 1024
}

/// The same with keys and values, and stages of query rows with the gradients, logarithms and dots of their outputs.
fn key_shared(head_dim: usize) -> usize {
    query_shared(head_dim) + 3 * 2 * PAGE * 4
}

/// Bytes of shared memory of a block of `hopper_backward.cu`, besides what it declares itself: two matrices of 64 rows
/// for each of two warpgroups and four stages, and room to align them.
fn hopper_shared(head_dim: usize) -> usize {
    (2 + 4) * 2 * PAGE * head_dim * 2 + 1024
}
