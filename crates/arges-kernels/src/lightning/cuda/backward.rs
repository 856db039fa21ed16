//! Gradients of lightning attention on a GPU: each of the three is lightning attention itself, of other operands and, for
//! keys and values, against time (`backward.cu`). Nothing of the forward pass is kept.

use std::sync::Arc;

use super::{
    BACKWARD, CHUNK, DeviceDecays, Launch, PORTABLE, Shape, chunk_defines, chunks_shared, defines,
    element_bytes, on_tensor_cores, portable_shared,
};
use crate::device::cuda::{Activations, Argument, Buffer, Cuda, CudaError, Kernel, LaunchShape, TensorMap};
use crate::matmul::Element;

/// What a backward pass reads.
#[derive(Clone, Copy)]
pub struct BackwardInputs<'a> {
    /// Slopes of the layer.
    pub decays: &'a DeviceDecays,
    /// The forward pass's input, rows of `stride` values that start with `[heads, 3, head_dim]`: query, key and value of
    /// each head after SiLU.
    pub projected: &'a Activations,
    /// The same before SiLU, rows of `stride` values: with it the gradients are those by these values, without it those
    /// by `projected`.
    pub before_silu: Option<&'a Activations>,
    /// Values of a row, of a multiple of 16 bytes where `head_dim` is a multiple of 8.
    pub stride: usize,
    /// `[first, rows, position, slot]` of each span. They must be whole sequences: a span with a position is left out, as
    /// are those that reach beyond the rows and those with a slot below 0, which is not used otherwise.
    pub spans: &'a Buffer<[i32; 4]>,
    /// The first span of the launch.
    pub first_span: usize,
    /// Spans of the launch; they must not overlap.
    pub span_count: usize,
    /// Gradient of the output, `[rows, heads * head_dim]`.
    pub dout: &'a Activations,
}

/// Compiled kernels for heads of one width and activations of one precision.
pub struct LightningBackwardCuda {
    cuda: Arc<Cuda>,
    shape: Shape,
    element: Element,
    gradients: Launch,
    /// Of the kernel for tensor cores.
    shares: Option<Shares>,
    activate: Kernel,
}

/// The work on a batch is cut into a share for each block, and where a cut falls into the walk over a sequence, one
/// block hands the state to the next.
struct Shares {
    threads: usize,
    /// The most blocks of a launch: as many as run at once.
    most: usize,
    /// A state of `head_dim` by a block's columns for each block.
    states: Buffer<f32>,
    /// The counter by which blocks get their numbers, and a flag for each state's 64 columns. All zeros between launches.
    flags: Buffer<u32>,
}

impl Shares {
    fn new(cuda: &Arc<Cuda>, head_dim: usize, launch: &Launch) -> Result<Self, CudaError> {
        let facts = cuda.facts();
        let attending = launch.columns / 64;
        let kinds = 3 * head_dim / launch.columns;
        let most = (facts.multiprocessors * (facts.shared_memory / launch.shared).max(1)).max(kinds);
        Ok(Self {
            threads: 128 * (1 + attending),
            most,
            states: Buffer::zeroed(cuda, most * head_dim * launch.columns)?,
            flags: Buffer::zeroed(cuda, 1 + most * attending)?,
        })
    }
}

/// Warpgroups of a block of `backward.cu` that attend, each with 64 channels.
pub(super) fn attending(head_dim: usize, wgmma: bool) -> usize {
    if wgmma { head_dim / 64 } else { 1 }
}

impl LightningBackwardCuda {
    /// Compiles the kernels, or takes them from the cache on disk.
    ///
    /// # Errors
    /// When heads are wider than 256, or the kernels do not compile.
    pub fn new(cuda: &Arc<Cuda>, shape: Shape, element: Element) -> Result<Self, CudaError> {
        Self::with_wgmma(cuda, shape, element, cuda.facts().architecture.has_wgmma())
    }

    /// With or without the warpgroup products of Hopper.
    pub(in crate::lightning) fn with_wgmma(
        cuda: &Arc<Cuda>,
        shape: Shape,
        element: Element,
        wgmma: bool,
    ) -> Result<Self, CudaError> {
        let d = shape.head_dim;
        let tensor_cores = on_tensor_cores(cuda, shape, element, wgmma)?;
        let defines = defines(d, element);
        let portable = cuda.module(PORTABLE, &defines);
        let gradients = if tensor_cores {
            let attending = attending(d, wgmma);
            let module = cuda.module(BACKWARD, &chunk_defines(d, wgmma, attending));
            let kernel = module.kernel("lightning_backward")?;
            let shared = chunks_shared(d, wgmma, attending);
            Launch { kernel, columns: 64 * attending, shared, copy_engine: wgmma }
        } else {
            let (columns, shared) = portable_shared(d);
            let kernel = portable.kernel("lightning_portable_backward")?;
            Launch { kernel, columns, shared, copy_engine: false }
        };
        let shares = tensor_cores.then(|| Shares::new(cuda, d, &gradients)).transpose()?;
        Ok(Self {
            cuda: Arc::clone(cuda),
            shape,
            element,
            gradients,
            shares,
            activate: portable.kernel("lightning_activate")?,
        })
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.shares.as_ref().map_or(0, |shares| shares.states.bytes() + shares.flags.bytes())
    }

    /// SiLU of the first `heads * 3 * head_dim` values of the first `rows` rows of `before_silu`, into those of
    /// `projected`; rows of both are `stride` apart, and nothing else is written.
    ///
    /// # Errors
    /// When the driver refuses the launch.
    ///
    /// # Panics
    /// When a size or a number format does not agree.
    pub fn activate(
        &self,
        before_silu: &Activations,
        stride: usize,
        rows: usize,
        projected: &mut Activations,
    ) -> Result<(), CudaError> {
        let width = self.shape.heads * 3 * self.shape.head_dim;
        assert_eq!([before_silu.element(), projected.element()], [self.element; 2]);
        assert!(stride >= width, "rows of {stride} values");
        assert!(rows * stride <= before_silu.len().min(projected.len()), "{rows} rows of {stride} values");
        let arguments = [
            Argument::Pointer(before_silu.address(0)),
            Argument::I64(stride as i64),
            Argument::I32(width as i32),
            Argument::Pointer(projected.address(0)),
        ];
        // SAFETY: the kernel's four arguments; of each of `rows` rows, which both buffers hold, it reads and writes
        // `width` values.
        unsafe { self.cuda.launch(&self.activate, LaunchShape::new(rows, 256).overlap(), &arguments) }
    }

    /// Writes the gradients of queries, keys and values, `[heads, 3, head_dim]`, at the front of the spans' rows of
    /// `dprojected`, which are `stride` values apart too. Nothing else is written. A span's gradients have the same bits
    /// whatever it is packed with.
    ///
    /// # Errors
    /// When the driver refuses a launch.
    ///
    /// # Panics
    /// When a size or a number format does not agree.
    pub fn gradients(
        &self,
        inputs: &BackwardInputs<'_>,
        dprojected: &mut Activations,
    ) -> Result<(), CudaError> {
        self.gradients_in(usize::MAX, inputs, dprojected)
    }

    /// [`gradients`](Self::gradients) in a number of blocks at most, or the fewest, where the kernel takes any number.
    pub(in crate::lightning) fn gradients_in(
        &self,
        most: usize,
        inputs: &BackwardInputs<'_>,
        dprojected: &mut Activations,
    ) -> Result<(), CudaError> {
        let Shape { heads, head_dim } = self.shape;
        let &BackwardInputs { projected, stride, dout, .. } = inputs;
        assert_eq!(inputs.decays.heads, heads);
        assert_eq!([projected.element(), dout.element(), dprojected.element()], [self.element; 3]);
        let before = inputs.before_silu.unwrap_or(projected);
        assert_eq!(before.element(), self.element);
        assert!(stride >= heads * 3 * head_dim, "rows of {stride} values");
        assert!(
            (stride * element_bytes(self.element)).is_multiple_of(16) || head_dim % 8 != 0,
            "rows of {stride} values do not begin at multiples of 16 bytes"
        );
        assert!(inputs.first_span + inputs.span_count <= inputs.spans.len(), "spans beyond the end");
        let width = heads * head_dim;
        let len = projected.len().min(before.len()).min(dprojected.len());
        let rows = (len / stride).min(dout.len() / width);
        let launch = &self.gradients;
        // Gradients, each of some columns.
        let kinds = 3 * head_dim.div_ceil(launch.columns);
        let projected_address = Argument::Pointer(projected.address(0));
        let before_silu = Argument::Pointer(inputs.before_silu.map_or(0, |x| x.address(0)));
        let row = Argument::I64(stride as i64);
        let dout_address = Argument::Pointer(dout.address(0));
        let spans = Argument::Pointer(inputs.spans.address(inputs.first_span));
        let row_count = Argument::I32(i32::try_from(rows).unwrap_or(i32::MAX));
        let powers = Argument::Pointer(inputs.decays.powers.address(0));
        let out = Argument::Pointer(dprojected.address(0));
        let Some(shares) = &self.shares else {
            let shape = LaunchShape::grid(kinds / 3, heads * 3, inputs.span_count, 256)
                .shared(launch.shared)
                .overlap();
            let arguments =
                [projected_address, before_silu, row, dout_address, spans, row_count, powers, out];
            // SAFETY: the kernel's eight arguments. What it reads and writes are rows that the spans name, within
            // `rows`, which all four buffers hold; of each row `heads * 3 * head_dim` or `heads * head_dim` values.
            return unsafe { self.cuda.launch(&launch.kernel, shape, &arguments) };
        };
        let each = (heads * inputs.span_count).min((shares.most.min(most) / kinds).max(1));
        let blocks = if inputs.span_count == 0 { 0 } else { each * kinds };
        let shape = LaunchShape::new(blocks, shares.threads).shared(launch.shared).overlap();
        let span_count = Argument::I32(i32::try_from(inputs.span_count).unwrap_or(i32::MAX));
        let head_count = Argument::I32(heads as i32);
        let states = Argument::Pointer(shares.states.address(0));
        let flags = Argument::Pointer(shares.flags.address(0));
        let arguments = [
            projected_address,
            before_silu,
            row,
            dout_address,
            spans,
            span_count,
            row_count,
            head_count,
            powers,
            out,
            states,
            flags,
        ];
        match (projected, before, dout, launch.copy_engine) {
            (Activations::Bf16(projected), Activations::Bf16(before), Activations::Bf16(dout), true) => {
                let projected = TensorMap::bf16(projected, rows, stride, CHUNK)?;
                let before = TensorMap::bf16(before, rows, stride, CHUNK)?;
                let dout = TensorMap::bf16(dout, rows, width, CHUNK)?;
                let maps = [&projected, &before, &dout].map(Argument::Map);
                let arguments: Vec<_> = arguments.into_iter().chain(maps).collect();
                // SAFETY: as below; the maps describe the three inputs, outside of which nothing is copied.
                unsafe { self.cuda.launch(&launch.kernel, shape, &arguments) }
            }
            // SAFETY: the kernel's twelve arguments: those above, and states and flags of as many blocks as it has at
            // most, which no other launch uses, as launches follow one another in the one stream.
            _ => unsafe { self.cuda.launch(&launch.kernel, shape, &arguments) },
        }
    }
}
