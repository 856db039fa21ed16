//! Lightning attention on a GPU: a block of threads is some value channels of one head of one span.

mod backward;

use std::sync::Arc;

use super::{CHUNK, Decays, Shape};
use crate::device::cuda::{
    Activations, Argument, Buffer, Cuda, CudaError, Define, Fill, Kernel, LaunchShape, Pinned, Source,
    TensorMap,
};
use crate::matmul::Element;

pub use backward::{BackwardInputs, LightningBackwardCuda};

macro_rules! source {
    ($file:literal $(, $header:literal)*) => {
        Source {
            name: concat!("lightning/", $file),
            text: concat!(include_str!("lightning.cuh"), $(include_str!($header),)* include_str!($file)),
        }
    };
}

const PREFILL: Source = source!("prefill.cu", "../device/cuda/panels.cuh", "stages.cuh", "chunks.cuh");
const BACKWARD: Source = source!("backward.cu", "../device/cuda/panels.cuh", "stages.cuh", "chunks.cuh");
const DECODE: Source = source!("decode.cu");
const PORTABLE: Source = source!("portable.cu");

/// A layer's [`Decays`] on the device: `e^(-s n)`, `[heads, CHUNK + 1]`.
pub struct DeviceDecays {
    powers: Buffer<f32>,
    heads: usize,
}

impl DeviceDecays {
    /// Copies the powers.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn new(cuda: &Arc<Cuda>, decays: &Decays) -> Result<Self, CudaError> {
        let heads = decays.heads();
        let powers: Vec<f32> = (0..heads).flat_map(|head| decays.powers(head)).copied().collect();
        Ok(Self { powers: Buffer::from_slice(cuda, &powers)?, heads })
    }
}

/// What one layer keeps of `slots` sequences: for each slot and head the state at the sequence's last grid point,
/// `[head_dim, head_dim]` in f32 (key channel by value channel), and the keys and values of its unfinished chunk,
/// `[2, CHUNK, head_dim]` in the activations' precision.
///
/// A slot needs no clearing: of a sequence's first [`CHUNK`] tokens no state is read, and of its unfinished chunk no
/// row that it has not written.
pub struct DeviceCache {
    shape: Shape,
    slots: usize,
    states: Buffer<f32>,
    tails: Activations,
}

impl DeviceCache {
    /// Takes the memory.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn new(cuda: &Arc<Cuda>, shape: Shape, element: Element, slots: usize) -> Result<Self, CudaError> {
        let heads = slots * shape.heads;
        Ok(Self {
            shape,
            slots,
            states: Buffer::zeroed(cuda, heads * shape.head_dim * shape.head_dim)?,
            tails: Activations::zeroed(cuda, element, heads * 2 * CHUNK * shape.head_dim)?,
        })
    }

    /// Bytes that [`new`](Self::new) takes for a slot.
    pub fn slot_bytes(shape: Shape, element: Element) -> usize {
        shape.heads * shape.head_dim * (4 * shape.head_dim + 2 * CHUNK * element_bytes(element))
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.states.bytes() + self.tails.bytes()
    }

    /// Sequences.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Fills states and tails with random values, for measurements.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn fill_random(&mut self, fill: &Fill, seed: u64) -> Result<(), CudaError> {
        fill.normal_f32(&mut self.states, seed, 1.0)?;
        fill.normal(&mut self.tails, seed.wrapping_add(1), 1.0)
    }

    /// All states and all tails.
    #[cfg(test)]
    pub(super) fn parts(&mut self) -> (&mut Buffer<f32>, &mut Activations) {
        (&mut self.states, &mut self.tails)
    }

    /// The recurrent state of the sequence in `slot` after its `tokens` tokens, `[heads, head_dim, head_dim]` (key
    /// channel by value channel), as [`materialize_state`](super::materialize_state) computes it on the CPU.
    ///
    /// # Errors
    /// When the driver fails, or a kernel before.
    ///
    /// # Panics
    /// When there is no such slot.
    pub fn materialize_state(
        &self,
        decays: &Decays,
        slot: usize,
        tokens: usize,
    ) -> Result<Vec<f32>, CudaError> {
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        let Shape { heads, head_dim: d } = self.shape;
        let mut states = vec![0.0; heads * d * d];
        if tokens >= CHUNK {
            self.states.read(slot * heads * d * d, &mut states)?;
        }
        let pending = tokens % CHUNK;
        let tail_len = 2 * CHUNK * d;
        let tails = self.tails.to_f32()?;
        for (head, state) in states.chunks_exact_mut(d * d).enumerate() {
            let tail = &tails[(slot * heads + head) * tail_len..][..tail_len];
            let (keys, values) = tail.split_at(CHUNK * d);
            let powers = decays.powers(head);
            for (at, value) in state.iter_mut().enumerate() {
                let mut sum = f64::from(*value) * f64::from(powers[pending]);
                for j in 0..pending {
                    let key = f64::from(keys[j * d + at / d]) * f64::from(powers[pending - 1 - j]);
                    sum += key * f64::from(values[j * d + at % d]);
                }
                *value = sum as f32;
            }
        }
        Ok(states)
    }
}

/// States of one layer that outlive their sequences: some on the device, and some in page-locked memory of the host.
/// Places count through both, those on the device first.
pub struct DeviceSnapshots {
    device: Buffer<f32>,
    host: Pinned<f32>,
    on_device: usize,
    /// Values of a state.
    each: usize,
}

impl DeviceSnapshots {
    /// Takes the memory.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn new(cuda: &Arc<Cuda>, shape: Shape, on_device: usize, on_host: usize) -> Result<Self, CudaError> {
        let each = Self::bytes_each(shape) / size_of::<f32>();
        let (device, host) = (Buffer::zeroed(cuda, on_device * each)?, Pinned::zeroed(cuda, on_host * each)?);
        Ok(Self { device, host, on_device, each })
    }

    /// Bytes of a state.
    pub fn bytes_each(shape: Shape) -> usize {
        shape.heads * shape.head_dim * shape.head_dim * size_of::<f32>()
    }

    /// Copies the state of the sequence in `slot`, as of its last grid point, to `place`, in the order of the stream.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When there is no such slot or place.
    pub fn save(&mut self, cache: &DeviceCache, slot: usize, place: usize) -> Result<(), CudaError> {
        let (each, from) = (self.each, slot * self.each);
        match place.checked_sub(self.on_device) {
            None => self.device.copy_from(place * each, &cache.states, from, each),
            Some(place) => cache.states.copy_to_host(from, &mut self.host, place * each, each),
        }
    }

    /// Copies the state at `place` to the sequence in `slot`, in the order of the stream.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When there is no such slot or place.
    pub fn load(&self, place: usize, cache: &mut DeviceCache, slot: usize) -> Result<(), CudaError> {
        let (each, to) = (self.each, slot * self.each);
        match place.checked_sub(self.on_device) {
            None => cache.states.copy_from(to, &self.device, place * each, each),
            Some(place) => cache.states.copy_from_host(to, &self.host, place * each, each),
        }
    }

    /// Copies a state from a place on the device to one on the host, in the order of the stream.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When the places are others.
    pub fn offload(&mut self, from: usize, to: usize) -> Result<(), CudaError> {
        let to = to.checked_sub(self.on_device).expect("a place on the host");
        self.device.copy_to_host(from * self.each, &mut self.host, to * self.each, self.each)
    }
}

/// What a launch reads and writes.
pub struct Inputs<'a> {
    /// Slopes of the layer.
    pub decays: &'a DeviceDecays,
    /// Rows of `stride` values that start with `[heads, 3, head_dim]`: query, key and value of each head after SiLU.
    pub projected: &'a Activations,
    /// Values of a row, of a multiple of 16 bytes where `head_dim` is a multiple of 8.
    pub stride: usize,
    /// `[first, rows, position, slot]` of each span, as [`Span`](super::Span) says; a slot below 0 is padding. No two
    /// spans of a launch may have one slot. Spans that reach beyond the rows or the slots are left out.
    pub spans: &'a Buffer<[i32; 4]>,
    /// The first span of the launch.
    pub first_span: usize,
    /// Spans of the launch.
    pub span_count: usize,
}

/// All kernels' sources, and the macros that they are compiled with for heads of a width.
#[cfg(test)]
pub(super) fn sources(head_dim: usize, element: Element, wgmma: bool) -> Vec<(Source, Vec<Define>)> {
    let [d, bytes] = defines(head_dim, element);
    let mut sources = vec![(PORTABLE, vec![d, bytes])];
    if element == Element::Bf16 && matches!(head_dim, 64 | 128) {
        sources.push((PREFILL, chunk_defines(head_dim, wgmma, 1).to_vec()));
        let attending = backward::attending(head_dim, wgmma);
        sources.push((BACKWARD, chunk_defines(head_dim, wgmma, attending).to_vec()));
    }
    if let Some(wide) = decode_columns(head_dim, element) {
        sources.push((DECODE, vec![d, bytes, ("WIDE", wide as i64)]));
    }
    sources
}

fn defines(head_dim: usize, element: Element) -> [Define; 2] {
    [("HEAD_DIM", head_dim as i64), ("ELEMENT_BYTES", element_bytes(element) as i64)]
}

/// Of the kernels of `chunks.cuh`, for bf16. `attending` are the warpgroups of a block that attend.
fn chunk_defines(head_dim: usize, wgmma: bool, attending: usize) -> [Define; 4] {
    let [d, bytes] = defines(head_dim, Element::Bf16);
    [d, bytes, ("WGMMA", i64::from(wgmma)), ("ATTENDING_WARPGROUPS", attending as i64)]
}

/// Compiled kernels for heads of one width and activations of one precision. They need no scratch.
pub struct LightningCuda {
    cuda: Arc<Cuda>,
    shape: Shape,
    element: Element,
    /// By spans.
    prefill: Launch,
    append: Kernel,
    /// By single rows, in wide and in narrow blocks; none for widths at which prefill's kernel takes these too.
    decode: Option<[Launch; 2]>,
}

/// A kernel and its blocks.
struct Launch {
    kernel: Kernel,
    /// Value channels of a block.
    columns: usize,
    shared: usize,
    /// Whether it takes the rows through the copy engine too.
    copy_engine: bool,
}

impl LightningCuda {
    /// Compiles the kernels, or takes them from the cache on disk.
    ///
    /// # Errors
    /// When heads are wider than 256, or the kernels do not compile.
    pub fn new(cuda: &Arc<Cuda>, shape: Shape, element: Element) -> Result<Self, CudaError> {
        Self::with_wgmma(cuda, shape, element, cuda.facts().architecture.has_wgmma())
    }

    /// With or without the warpgroup products of Hopper.
    pub(super) fn with_wgmma(
        cuda: &Arc<Cuda>,
        shape: Shape,
        element: Element,
        wgmma: bool,
    ) -> Result<Self, CudaError> {
        let d = shape.head_dim;
        let tensor_cores = on_tensor_cores(cuda, shape, element, wgmma)?;
        let defines = defines(d, element);
        let portable = cuda.module(PORTABLE, &defines);
        let prefill = if tensor_cores {
            let module = cuda.module(PREFILL, &chunk_defines(d, wgmma, 1));
            let kernel = module.kernel("lightning_prefill")?;
            Launch { kernel, columns: 64, shared: chunks_shared(d, wgmma, 1), copy_engine: wgmma }
        } else {
            let (columns, shared) = portable_shared(d);
            Launch { kernel: portable.kernel("lightning_portable")?, columns, shared, copy_engine: false }
        };
        let decode = match decode_columns(d, element) {
            None => None,
            Some(wide) => {
                let module = cuda.module(DECODE, &[defines[0], defines[1], ("WIDE", wide as i64)]);
                let launch = |name, columns| {
                    let kernel = module.kernel(name)?;
                    Ok::<_, CudaError>(Launch { kernel, columns, shared: 0, copy_engine: false })
                };
                Some([launch("lightning_decode_wide", wide)?, launch("lightning_decode_narrow", wide / 4)?])
            }
        };
        let append = portable.kernel("lightning_append")?;
        Ok(Self { cuda: Arc::clone(cuda), shape, element, prefill, append, decode })
    }

    /// Attends and moves every span's sequence on, spans of any length. `out` is `[rows, heads * head_dim]`; rows of
    /// no span stay as they are. A row's bits do not depend on how its sequence was cut into spans, nor on the other
    /// spans.
    ///
    /// # Errors
    /// When the driver refuses a launch.
    ///
    /// # Panics
    /// When a size does not agree.
    pub fn prefill(
        &self,
        inputs: &Inputs<'_>,
        cache: &mut DeviceCache,
        out: &mut Activations,
    ) -> Result<(), CudaError> {
        self.launch(&self.prefill, inputs, cache, out)?;
        let arguments = self.arguments(inputs, cache, out);
        let shape = LaunchShape::grid(self.shape.heads, inputs.span_count, 1, 128).overlap();
        // SAFETY: the kernel's six arguments, whose sizes `launch` has checked; it reads rows of `projected` and
        // writes rows of `tails` that the spans, which it holds against both bounds, name.
        unsafe {
            let [projected, stride, spans, rows, slots, _, _, tails, _] = arguments;
            self.cuda.launch(&self.append, shape, &[projected, stride, spans, rows, slots, tails])
        }
    }

    /// The same for spans of one row, of whose longer spans only the first row would be taken. It reads each state
    /// once and writes it when the row completes a chunk.
    ///
    /// # Errors
    /// When the driver refuses the launch.
    ///
    /// # Panics
    /// When a size does not agree.
    pub fn decode(
        &self,
        inputs: &Inputs<'_>,
        cache: &mut DeviceCache,
        out: &mut Activations,
    ) -> Result<(), CudaError> {
        let Some([wide, _]) = &self.decode else { return self.prefill(inputs, cache, out) };
        let blocks = inputs.span_count * self.shape.heads * (self.shape.head_dim / wide.columns);
        self.decode_in(2 * blocks <= self.cuda.facts().multiprocessors, inputs, cache, out)
    }

    /// [`decode`](Self::decode) in narrow or wide blocks.
    pub(super) fn decode_in(
        &self,
        narrow: bool,
        inputs: &Inputs<'_>,
        cache: &mut DeviceCache,
        out: &mut Activations,
    ) -> Result<(), CudaError> {
        match &self.decode {
            None => self.prefill(inputs, cache, out),
            Some(launches) => self.launch(&launches[usize::from(narrow)], inputs, cache, out),
        }
    }

    fn launch(
        &self,
        launch: &Launch,
        inputs: &Inputs<'_>,
        cache: &mut DeviceCache,
        out: &mut Activations,
    ) -> Result<(), CudaError> {
        let Shape { heads, head_dim } = self.shape;
        assert_eq!(inputs.decays.heads, heads);
        assert_eq!(cache.shape, self.shape);
        let elements = [inputs.projected.element(), cache.tails.element(), out.element()];
        assert_eq!(elements, [self.element; 3]);
        assert!(inputs.stride >= heads * 3 * head_dim, "rows of {} values", inputs.stride);
        assert!(
            (inputs.stride * element_bytes(self.element)).is_multiple_of(16) || head_dim % 8 != 0,
            "rows of {} values do not begin at multiples of 16 bytes",
            inputs.stride
        );
        assert!(inputs.first_span + inputs.span_count <= inputs.spans.len(), "spans beyond the end");
        let blocks = head_dim.div_ceil(launch.columns);
        let shape = LaunchShape::grid(blocks, heads, inputs.span_count, 256).shared(launch.shared).overlap();
        let arguments = self.arguments(inputs, cache, out);
        match (inputs.projected, launch.copy_engine) {
            (Activations::Bf16(projected), true) => {
                let rows = projected.len() / inputs.stride;
                let map = TensorMap::bf16(projected, rows, inputs.stride, CHUNK)?;
                let [a, b, c, d, e, f, g, h, i] = arguments;
                let arguments = [a, b, c, d, e, f, g, h, i, Argument::Map(&map)];
                // SAFETY: as below; the map describes `projected`, outside of which nothing is copied.
                unsafe { self.cuda.launch(&launch.kernel, shape, &arguments) }
            }
            // SAFETY: the kernel's nine arguments. What it reads and writes are rows and slots that the spans name,
            // within `rows` and `slots`, which the buffers hold; of each row `heads * 3 * head_dim` values, of each
            // slot what `DeviceCache::new` took for it.
            _ => unsafe { self.cuda.launch(&launch.kernel, shape, &arguments) },
        }
    }

    /// Of all kernels here.
    fn arguments(
        &self,
        inputs: &Inputs<'_>,
        cache: &mut DeviceCache,
        out: &mut Activations,
    ) -> [Argument<'static>; 9] {
        let width = self.shape.heads * self.shape.head_dim;
        let rows = (inputs.projected.len() / inputs.stride).min(out.len() / width);
        [
            Argument::Pointer(inputs.projected.address(0)),
            Argument::I64(inputs.stride as i64),
            Argument::Pointer(inputs.spans.address(inputs.first_span)),
            Argument::I32(i32::try_from(rows).unwrap_or(i32::MAX)),
            Argument::I32(i32::try_from(cache.slots).unwrap_or(i32::MAX)),
            Argument::Pointer(inputs.decays.powers.address(0)),
            Argument::Pointer(cache.states.address(0)),
            Argument::Pointer(cache.tails.address(0)),
            Argument::Pointer(out.address(0)),
        ]
    }
}

/// Whether the heads go to the kernels of `chunks.cuh`.
fn on_tensor_cores(cuda: &Cuda, shape: Shape, element: Element, wgmma: bool) -> Result<bool, CudaError> {
    let Shape { heads, head_dim: d } = shape;
    if heads == 0 || d == 0 || d > 256 {
        return Err(CudaError::Unsupported(format!(
            "lightning attention of {heads} heads of {d} channels; there must be heads, of 1 to 256 channels",
        )));
    }
    let fits = chunks_shared(d, wgmma, 1) <= cuda.facts().shared_memory;
    Ok(element == Element::Bf16 && matches!(d, 64 | 128) && fits)
}

fn element_bytes(element: Element) -> usize {
    match element {
        Element::F32 => 4,
        Element::Bf16 => 2,
    }
}

/// Bytes of shared memory of a block of `prefill.cu` or `backward.cu`: stages, scores, outputs, their values before SiLU,
/// barriers, powers with their margins, the block's number, and room to align them.
fn chunks_shared(head_dim: usize, wgmma: bool, attending: usize) -> usize {
    const PANEL: usize = CHUNK * 128;
    let stages = if wgmma && attending == 1 { 4 } else { 3 };
    let (before, margin) = if attending == 1 { (0, 0) } else { (2 * attending, CHUNK) };
    let panels = stages * (2 * head_dim / 64 + attending) + 2 + 2 * attending + before;
    panels * PANEL + (stages + 2) * 8 + 4 * (CHUNK + 1 + 2 * margin) + 4 + 1024
}

/// Value channels of a block of `portable.cu` and the bytes of its `Shared`.
fn portable_shared(head_dim: usize) -> (usize, usize) {
    let (columns, strip) = if head_dim > 128 { (16, 8) } else { (64, 16) };
    let channels = head_dim.next_multiple_of(4);
    let values =
        CHUNK * (channels + 4) + strip * channels + (CHUNK + channels) * columns + strip * CHUNK + CHUNK + 1;
    (columns, (4 * values).next_multiple_of(16))
}

/// Value channels of a wide block of `decode.cu`, whose part of the state is 16,384 values at most, if it takes that
/// width.
fn decode_columns(head_dim: usize, element: Element) -> Option<usize> {
    match (head_dim, element) {
        (64 | 128, _) | (256, Element::Bf16) => Some(head_dim.min(16_384 / head_dim)),
        _ => None,
    }
}
