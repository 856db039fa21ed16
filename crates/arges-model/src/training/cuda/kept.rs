//! What is kept of each layer for the backward pass, and how much of that fits.

use std::mem::swap;

use arges_kernels::device::cuda::{Activations, Buffer, Cuda, CudaError};
use arges_kernels::matmul::Element;
use arges_kernels::matmul::cuda::DeviceRows;
use arges_kernels::moe::cuda::DeviceRouting;
use arges_kernels::softmax_attention::cuda::DevicePages;

use super::CudaTrainer;
use super::buffers::Buffers;
use crate::cache::softmax_shape;
use crate::config::AttentionKind;
use crate::model::cuda::{CudaCache, CudaModel, CudaWorkspace};
use crate::training::Recompute;

/// What the backward pass reads of a layer. The workspace, the cache and the buffers have room for one layer's: this
/// changes places with it while the layer is computed, forwards and backwards.
pub(super) struct Insides {
    /// Queries, keys, values and gates as attention reads them, `[tokens, P]`, and before SiLU and sigmoid.
    projected: Activations,
    raw: Option<Activations>,
    /// What lightning attention gives, and the input of the output projection, `[tokens, W]`.
    attended: Option<Activations>,
    mixed: DeviceRows,
    /// Of softmax attention.
    lse: Option<Buffer<f32>>,
    /// The normed stream as attention reads it, `[tokens, hidden]`.
    pub(super) input: DeviceRows,
    pages: Option<DevicePages>,
    /// The experts' choices and their inputs, one row a choice.
    routed: Option<(DeviceRouting, DeviceRows)>,
    /// Gates and ups in turn and inner activations, of the experts.
    gate_ups: Activations,
    inner: DeviceRows,
    shared: Option<SharedInsides>,
}

/// The same of a shared MLP, and its coefficients.
struct SharedInsides {
    gate_ups: Activations,
    inner: DeviceRows,
    coefficients: Buffer<f32>,
}

impl Insides {
    fn new(model: &CudaModel, index: usize, tokens: usize, pages: usize) -> Result<Self, CudaError> {
        let (config, cuda, element) = (&model.config, &model.cuda, model.element());
        let (tokens, hidden, width) = (tokens.max(1), config.hidden_size, config.query_width());
        let zeroed = |len| Activations::zeroed(cuda, element, len);
        let lightning = config.attention[index] == AttentionKind::Lightning;
        let projections = if lightning { 4 * width } else { width + 2 * config.kv_width() };
        let choices = if config.has_router() { tokens * config.experts_per_token } else { tokens };
        let routed = || {
            let routing = DeviceRouting::zeroed(cuda, tokens, config.num_experts, config.experts_per_token)?;
            Ok::<_, CudaError>((routing, DeviceRows::zeroed(cuda, choices, hidden, element)?))
        };
        let inner = |rows, width| DeviceRows::zeroed(cuda, rows, width, element);
        let shared = || {
            let width = config.shared_intermediate_size;
            let (gate_ups, inner) = (zeroed(tokens * 2 * width)?, inner(tokens, width)?);
            Ok::<_, CudaError>(SharedInsides { gate_ups, inner, coefficients: Buffer::zeroed(cuda, tokens)? })
        };
        let of_pages = || DevicePages::new(cuda, softmax_shape(config), pages, element);
        Ok(Self {
            projected: zeroed(tokens * projections)?,
            raw: lightning.then(|| zeroed(tokens * projections)).transpose()?,
            attended: lightning.then(|| zeroed(tokens * width)).transpose()?,
            mixed: DeviceRows::zeroed(cuda, tokens, width, element)?,
            lse: (!lightning).then(|| Buffer::zeroed(cuda, tokens * config.num_heads)).transpose()?,
            input: DeviceRows::zeroed(cuda, tokens, hidden, element)?,
            pages: (!lightning).then(of_pages).transpose()?,
            routed: config.has_router().then(routed).transpose()?,
            gate_ups: zeroed(choices * 2 * config.intermediate_size)?,
            inner: inner(choices, config.intermediate_size)?,
            shared: config.has_shared_mlp().then(shared).transpose()?,
        })
    }

    /// The experts' choices, and the coefficients of a shared MLP beside them.
    pub(super) fn choices(&self) -> Option<(&DeviceRouting, Option<&Buffer<f32>>)> {
        let (routing, _) = self.routed.as_ref()?;
        Some((routing, self.shared.as_ref().map(|shared| &shared.coefficients)))
    }

    fn bytes(&self) -> usize {
        let optional = |x: &Option<Activations>| x.as_ref().map_or(0, Activations::bytes);
        self.projected.bytes()
            + optional(&self.raw)
            + optional(&self.attended)
            + [&self.mixed, &self.input, &self.inner].map(|rows| rows.data().bytes()).iter().sum::<usize>()
            + self.lse.as_ref().map_or(0, Buffer::bytes)
            + self.pages.as_ref().map_or(0, DevicePages::bytes)
            + self.routed.as_ref().map_or(0, |(routing, rows)| routing.bytes() + rows.data().bytes())
            + self.gate_ups.bytes()
            + self.shared.as_ref().map_or(0, SharedInsides::bytes)
    }
}

impl SharedInsides {
    fn bytes(&self) -> usize {
        self.gate_ups.bytes() + self.inner.data().bytes() + self.coefficients.bytes()
    }
}

impl Buffers {
    /// Lets what is kept of a layer and the room for one layer change places; done twice, all is as before. Nothing
    /// happens where the backward pass computes it once more.
    pub(super) fn exchange(&mut self, index: usize, cache: &mut CudaCache, ws: &mut CudaWorkspace) {
        let Some(kept) = self.insides.as_mut().map(|insides| &mut insides[index]) else { return };
        swap(&mut kept.projected, &mut ws.projected);
        swap(&mut kept.mixed, &mut ws.mixed);
        swap(&mut kept.gate_ups, &mut self.routed.pre);
        swap(&mut kept.inner, &mut ws.experts.inner);
        if let Some(raw) = &mut kept.raw {
            swap(raw, &mut self.attention.raw);
        }
        if let Some(attended) = &mut kept.attended {
            swap(attended, &mut ws.attended);
        }
        if let Some(lse) = &mut kept.lse {
            swap(lse, &mut self.attention.lse);
        }
        if let Some(pages) = &mut kept.pages {
            // All layers use the first one's; see `CudaCache::for_whole_sequences`.
            swap(pages, &mut cache.pages[0]);
        }
        if let Some((routing, inputs)) = &mut kept.routed {
            swap(routing, &mut ws.experts.routing);
            swap(inputs, &mut ws.experts.inputs);
        }
        if let (Some(kept), Some(buffers), Some(shared)) =
            (&mut kept.shared, &mut self.shared, &mut ws.experts.shared)
        {
            swap(&mut kept.gate_ups, &mut buffers.pre);
            swap(&mut kept.inner, &mut shared.inner);
            swap(&mut kept.coefficients, &mut shared.coefficients);
        }
    }

    /// Whether the experts' choices are kept of every layer.
    pub(super) fn keeps_choices(&self) -> bool {
        self.insides.iter().flatten().all(|kept| kept.routed.is_some()) && self.insides.is_some()
    }

    /// Whether the stream between attention and experts is kept of every layer.
    pub(super) fn keeps_middles(&self) -> bool {
        self.middles.len() == self.inputs.len()
    }

    /// Bytes of what is kept.
    pub(super) fn kept_bytes(&self) -> usize {
        self.inputs.iter().chain(&self.middles).map(Activations::bytes).sum::<usize>()
            + self.insides.iter().flatten().map(Insides::bytes).sum::<usize>()
    }
}

impl CudaTrainer {
    /// Takes memory for what the plan says is kept of layers. Where it leaves that open, as much is kept as leaves
    /// room for the optimizer's moments and a sixteenth of the card.
    pub(super) fn take_memory_for_layers(&mut self) -> Result<(), CudaError> {
        let Self { model, buffers, cache, values, .. } = self;
        let (cuda, layers) = (&model.cuda, model.config.num_layers);
        let (tokens, pages) = (buffers.plan.max_tokens.max(1), cache.tables.stride);
        let open = buffers.plan.recompute == Recompute::Auto;
        let reserve = open.then(|| 2 * values.bytes() + cuda.facts().memory / 16);
        let streams = |element, count| {
            fitting(cuda, reserve, count, |_| {
                Activations::zeroed(cuda, element, tokens * model.config.hidden_size)
            })
        };
        if matches!(buffers.plan.recompute, Recompute::Auto | Recompute::Nothing) {
            // What is only read once more to take gradients back is rounded as those are.
            let of_middles = if buffers.norms_experts_again { Element::F32 } else { model.element() };
            let inputs = streams(model.element(), layers)?;
            let middles = inputs.is_some().then(|| streams(of_middles, layers)).transpose()?.flatten();
            let insides = middles
                .is_some()
                .then(|| fitting(cuda, reserve, layers, |index| Insides::new(model, index, tokens, pages)));
            if let (Some(inputs), Some(middles), Some(insides)) =
                (inputs, middles, insides.transpose()?.flatten())
            {
                (buffers.inputs, buffers.middles, buffers.insides) = (inputs, middles, Some(insides));
                buffers.plan.recompute = Recompute::Nothing;
                return Ok(());
            }
        }
        let exact = |_| Activations::zeroed(cuda, Element::F32, tokens * model.config.hidden_size);
        buffers.inputs = (0..layers).map(exact).collect::<Result<_, _>>()?;
        let middles = match buffers.plan.recompute {
            Recompute::Layers => None,
            _ => streams(Element::F32, layers)?,
        };
        (buffers.plan.recompute, buffers.middles) = match middles {
            Some(middles) => (Recompute::Insides, middles),
            None => (Recompute::Layers, vec![exact(0)?]),
        };
        Ok(())
    }
}

/// One for each of `count` layers; none at all where `reserve` bytes are to stay free and would not.
fn fitting<T>(
    cuda: &Cuda,
    reserve: Option<usize>,
    count: usize,
    mut make: impl FnMut(usize) -> Result<T, CudaError>,
) -> Result<Option<Vec<T>>, CudaError> {
    let mut made = Vec::with_capacity(count);
    for index in 0..count {
        match (make(index), reserve) {
            (Err(CudaError::OutOfMemory { .. }), Some(_)) => return Ok(None),
            (Ok(_), Some(reserve)) if cuda.free_memory()? < reserve => return Ok(None),
            (result, _) => made.push(result?),
        }
    }
    Ok(Some(made))
}
