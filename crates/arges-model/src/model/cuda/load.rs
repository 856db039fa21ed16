//! From a checkpoint, through page-locked memory, to the device; or weights made there.

use std::ops::Range;
use std::sync::Arc;

use arges_kernels::device::cuda::{Activations, Buffer, Cuda, CudaError, Fill, Pinned};
use arges_kernels::lightning::Decays;
use arges_kernels::lightning::cuda::{DeviceDecays, LightningCuda};
use arges_kernels::matmul::cuda::{DeviceMatrix, GATE_GROUP, Products};
use arges_kernels::matmul::{Compute, Element, RowMajor, Stored};
use arges_kernels::moe::cuda::Router;
use arges_kernels::norm::cuda::Norms;
use arges_kernels::rope::Frequencies;
use half::bf16;

use super::{Attention, CudaModel, CudaModelError, Experts, Kernels, Layer, SharedMlp};
use crate::cache::lightning_shape;
use crate::checkpoint::Checkpoint;
use crate::config::{AttentionKind, Config};
use crate::dtype::DType;
use crate::model::source::WeightSource;
use crate::model::{LoadOptions, LoadProgress};
use crate::params::{LayerParam, Param};

/// Bytes of one of the two pieces of page-locked memory that weights pass through.
const STAGING_BYTES: usize = 64 << 20;

/// Standard deviation of random weights: that of the models' initialisation.
const DEVIATION: f32 = 0.02;

impl CudaModel {
    /// Copies every weight of a checkpoint to the device.
    ///
    /// # Errors
    /// When a parameter is missing, the memory of the device too small, or its kernels do not know the shape.
    pub fn load(
        checkpoint: &Checkpoint,
        options: LoadOptions,
        cuda: &Arc<Cuda>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, CudaModelError> {
        Self::from_source(checkpoint, options.compute, cuda, progress)
    }

    pub(crate) fn from_source(
        source: &dyn WeightSource,
        compute: Compute,
        cuda: &Arc<Cuda>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, CudaModelError> {
        let mut model = Self::zeroed(source.config(), compute, &|param| source.dtype(param), cuda)?;
        model.copy_from(source, &|_| true, progress)?;
        Ok(model)
    }

    /// Copies every weight of `source` that differs over those of the model, which was made for the same parameters in
    /// the same formats.
    pub(crate) fn fill(
        &mut self,
        source: &dyn WeightSource,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), CudaModelError> {
        self.copy_from(source, &|param| source.differs(param), progress)
    }

    /// Copies the `wanted` weights of `source` over those of the model.
    pub(crate) fn copy_from(
        &mut self,
        source: &dyn WeightSource,
        wanted: &dyn Fn(Param) -> bool,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), CudaModelError> {
        let cuda = &Arc::clone(&self.cuda);
        let done = LoadProgress { bytes_done: 0, bytes_total: source.bytes() };
        let staging = [Pinned::zeroed(cuda, STAGING_BYTES)?, Pinned::zeroed(cuda, STAGING_BYTES)?];
        let mut loader = Loader { source, wanted, staging, next: 0, cuda, progress, done };
        loader.model(self)?;
        Ok(cuda.synchronize()?)
    }

    /// Whether weights of `source`, which has the same configuration, would be kept in the formats of this model.
    ///
    /// # Errors
    /// When a parameter is missing.
    pub(crate) fn keeps_as(&self, source: &dyn WeightSource) -> Result<bool, CudaModelError> {
        let stored = |param| source.dtype(param);
        let builder =
            Builder { config: &self.config, compute: self.compute, stored: &stored, cuda: &self.cuda };
        let mut same = builder.element(&[Param::Embedding])? == self.embedding.element();
        for (index, layer) in self.layers.iter().enumerate() {
            same &= builder.keeps_layer(index, layer)?;
        }
        stored(Param::FinalNorm)?;
        Ok(same & (builder.element(&[Param::Head])? == self.head.element()))
    }

    /// A model of random weights, which the device makes from a seed: for measurements.
    ///
    /// # Errors
    /// When the memory of the device is too small, or its kernels do not know the shape.
    pub fn random(
        config: &Config,
        compute: Compute,
        cuda: &Arc<Cuda>,
        seed: u64,
    ) -> Result<Self, CudaModelError> {
        let stored = match compute {
            Compute::F32 => DType::F32,
            Compute::Bf16 => DType::Bf16,
        };
        let mut model = Self::zeroed(config, compute, &|_| Ok(stored), cuda)?;
        let fill = Fill::new(cuda)?;
        let mut seed = seed;
        let mut next = |values: &mut Activations| {
            seed = seed.wrapping_add(1);
            fill.normal(values, seed, DEVIATION)
        };
        let ones = |norm: &mut Buffer<f32>| norm.write(0, &vec![1.0; norm.len()]);
        next(&mut model.embedding)?;
        for layer in &mut model.layers {
            ones(&mut layer.input_norm)?;
            ones(&mut layer.post_attention_norm)?;
            match &mut layer.attention {
                Attention::Lightning { qkv_gate, norm, out, .. } => {
                    next(qkv_gate.data_mut())?;
                    ones(norm)?;
                    next(out.data_mut())?;
                }
                Attention::Softmax { qkv, out, .. } => {
                    next(qkv.data_mut())?;
                    next(out.data_mut())?;
                }
            }
            if let Some(router) = &mut layer.experts.router {
                next(router)?;
            }
            next(layer.experts.gate_up.data_mut())?;
            next(layer.experts.down.data_mut())?;
            if let Some(shared) = &mut layer.shared {
                next(shared.gate_up.data_mut())?;
                next(shared.down.data_mut())?;
                next(&mut shared.coefficient)?;
            }
        }
        ones(&mut model.final_norm)?;
        next(model.head.data_mut())?;
        cuda.synchronize()?;
        Ok(model)
    }

    /// Takes the memory for weights and compiles the kernels.
    pub(crate) fn zeroed(
        config: &Config,
        compute: Compute,
        stored: &dyn Fn(Param) -> Result<DType, crate::CheckpointError>,
        cuda: &Arc<Cuda>,
    ) -> Result<Self, CudaModelError> {
        let builder = Builder { config, compute, stored, cuda };
        let activations = match compute {
            Compute::F32 => Element::F32,
            Compute::Bf16 => Element::Bf16,
        };
        let table = builder.element(&[Param::Embedding])?;
        let layers =
            (0..config.num_layers).map(|layer| builder.layer(layer)).collect::<Result<Vec<_>, _>>()?;
        let experts = |router: &Activations| {
            Router::new(
                cuda,
                config.hidden_size,
                config.num_experts,
                config.experts_per_token,
                [activations, router.element()],
            )
        };
        let first = layers.first();
        let router = first.and_then(|layer| layer.experts.router.as_ref()).map(experts).transpose()?;
        let coefficient = first
            .and_then(|layer| layer.shared.as_ref())
            .map(|shared| {
                Router::new(cuda, config.hidden_size, 1, 1, [activations, shared.coefficient.element()])
            })
            .transpose()?;
        Ok(Self {
            compute,
            embedding: Activations::zeroed(cuda, table, config.vocab_size * config.hidden_size)?,
            layers,
            final_norm: Buffer::zeroed(cuda, config.hidden_size)?,
            head: builder.matrix(&[Param::Head])?,
            frequencies: Frequencies::new(config.rope_theta, config.rotary_dim),
            kernels: Kernels {
                products: Products::new(cuda)?,
                norms: Norms::new(cuda, config.hidden_size, activations, table)?,
                lightning: LightningCuda::new(cuda, lightning_shape(config), activations)?,
                router,
                coefficient,
            },
            config: config.clone(),
            cuda: Arc::clone(cuda),
        })
    }
}

/// Takes memory for weights.
struct Builder<'a> {
    config: &'a Config,
    compute: Compute,
    stored: &'a dyn Fn(Param) -> Result<DType, crate::CheckpointError>,
    cuda: &'a Arc<Cuda>,
}

impl Builder<'_> {
    /// bf16 in memory where nothing is lost by it or the products round to it anyway.
    fn element(&self, params: &[Param]) -> Result<Element, CudaModelError> {
        for param in params {
            if self.compute == Compute::F32 && (self.stored)(*param)? != DType::Bf16 {
                return Ok(Element::F32);
            }
        }
        Ok(Element::Bf16)
    }

    /// One matrix of several parameters, their outputs one after the other.
    fn matrix(&self, params: &[Param]) -> Result<DeviceMatrix, CudaModelError> {
        let outputs = params.iter().map(|param| param.shape(self.config)[0]).sum();
        let k = params[0].shape(self.config)[1];
        Ok(DeviceMatrix::zeroed(self.cuda, 1, outputs, k, self.element(params)?)?)
    }

    /// Matrices of several experts.
    fn experts(
        &self,
        count: usize,
        param: impl Fn(usize) -> Vec<Param>,
    ) -> Result<DeviceMatrix, CudaModelError> {
        let first = param(0);
        let outputs = first.iter().map(|param| param.shape(self.config)[0]).sum();
        let k = first[0].shape(self.config)[1];
        let all: Vec<Param> = (0..count).flat_map(param).collect();
        Ok(DeviceMatrix::zeroed(self.cuda, count, outputs, k, self.element(&all)?)?)
    }

    /// A small matrix whose products are f32 whatever the rest computes in: never rounded.
    fn exact(&self, param: Param) -> Result<Activations, CudaModelError> {
        Ok(Activations::zeroed(self.cuda, self.exact_element(param)?, param.elements(self.config))?)
    }

    fn exact_element(&self, param: Param) -> Result<Element, CudaModelError> {
        Ok(if (self.stored)(param)? == DType::Bf16 { Element::Bf16 } else { Element::F32 })
    }

    fn keeps_layer(&self, layer: usize, ours: &Layer) -> Result<bool, CudaModelError> {
        use LayerParam as P;
        let param = |param| Param::Layer(layer, param);
        let same = |params: &[Param], element| Ok::<_, CudaModelError>(self.element(params)? == element);
        (self.stored)(param(P::InputNorm))?;
        (self.stored)(param(P::PostAttentionNorm))?;
        let mut all = match &ours.attention {
            Attention::Lightning { qkv_gate, out, .. } => {
                (self.stored)(param(P::LightningNorm))?;
                same(&[param(P::LightningQkv), param(P::LightningGate)], qkv_gate.element())?
                    & same(&[param(P::LightningOut)], out.element())?
            }
            Attention::Softmax { qkv, out, .. } => {
                same(&[param(P::Query), param(P::Key), param(P::Value)], qkv.element())?
                    & same(&[param(P::Output)], out.element())?
            }
        };
        let Experts { router, gate_up, down } = &ours.experts;
        if let Some(router) = router {
            all &= self.exact_element(param(P::Router))? == router.element();
        }
        let experts = 0..self.config.num_experts;
        let gates: Vec<Param> =
            experts.clone().flat_map(|e| [param(P::ExpertGate(e)), param(P::ExpertUp(e))]).collect();
        let downs: Vec<Param> = experts.map(|e| param(P::ExpertDown(e))).collect();
        all &= same(&gates, gate_up.element())? & same(&downs, down.element())?;
        if let Some(SharedMlp { gate_up, down, coefficient }) = &ours.shared {
            all &= same(&[param(P::SharedGate), param(P::SharedUp)], gate_up.element())?;
            all &= same(&[param(P::SharedDown)], down.element())?;
            all &= self.exact_element(param(P::SharedCoefficient))? == coefficient.element();
        }
        Ok(all)
    }

    fn vector(&self, len: usize) -> Result<Buffer<f32>, CudaError> {
        Buffer::zeroed(self.cuda, len)
    }

    fn layer(&self, layer: usize) -> Result<Layer, CudaModelError> {
        use LayerParam as P;
        let (config, param) = (self.config, |param| Param::Layer(layer, param));
        for (what, width) in
            [("intermediate_size", config.intermediate_size), ("shared", config.shared_intermediate_size)]
        {
            if !width.is_multiple_of(GATE_GROUP) {
                let reason = format!("{what}: an MLP of width {width} is no multiple of {GATE_GROUP}");
                return Err(CudaError::Unsupported(reason).into());
            }
        }
        let router = config.has_router().then(|| self.exact(param(P::Router))).transpose()?;
        let gate_up = |e| vec![param(P::ExpertGate(e)), param(P::ExpertUp(e))];
        let shared = match config.has_shared_mlp() {
            true => Some(SharedMlp {
                gate_up: self.matrix(&[param(P::SharedGate), param(P::SharedUp)])?,
                down: self.matrix(&[param(P::SharedDown)])?,
                coefficient: self.exact(param(P::SharedCoefficient))?,
            }),
            false => None,
        };
        Ok(Layer {
            input_norm: self.vector(config.hidden_size)?,
            attention: self.attention(layer)?,
            post_attention_norm: self.vector(config.hidden_size)?,
            experts: Experts {
                router,
                gate_up: self.experts(config.num_experts, gate_up)?,
                down: self.experts(config.num_experts, |e| vec![param(P::ExpertDown(e))])?,
            },
            shared,
        })
    }

    fn attention(&self, layer: usize) -> Result<Attention, CudaModelError> {
        use LayerParam as P;
        let (config, param) = (self.config, |param| Param::Layer(layer, param));
        let kind = config.attention[layer];
        let index = config.attention[..layer].iter().filter(|other| **other == kind).count();
        Ok(match kind {
            AttentionKind::Lightning => Attention::Lightning {
                index,
                decays: DeviceDecays::new(self.cuda, &Decays::new(&config.lightning_slopes(layer)))?,
                qkv_gate: self.matrix(&[param(P::LightningQkv), param(P::LightningGate)])?,
                norm: self.vector(config.query_width())?,
                out: self.matrix(&[param(P::LightningOut)])?,
            },
            AttentionKind::Softmax => Attention::Softmax {
                index,
                qkv: self.matrix(&[param(P::Query), param(P::Key), param(P::Value)])?,
                out: self.matrix(&[param(P::Output)])?,
            },
        })
    }
}

/// Copies weights to the device, a piece of page-locked memory at a time: one is filled while the other travels.
struct Loader<'a> {
    source: &'a dyn WeightSource,
    wanted: &'a dyn Fn(Param) -> bool,
    staging: [Pinned<u8>; 2],
    next: usize,
    cuda: &'a Arc<Cuda>,
    progress: &'a mut dyn FnMut(LoadProgress),
    done: LoadProgress,
}

impl Loader<'_> {
    fn model(&mut self, model: &mut CudaModel) -> Result<(), CudaModelError> {
        let element = model.embedding.element();
        let embedding = &mut model.embedding;
        self.copy(Param::Embedding, element, 1, |from, first, rows, row_bytes| {
            embedding.write_rows(first * row_bytes, row_bytes, from, rows, row_bytes)
        })?;
        for (index, layer) in model.layers.iter_mut().enumerate() {
            self.layer(index, layer)?;
        }
        self.vector(Param::FinalNorm, &mut model.final_norm)?;
        self.matrix(&[Param::Head], &mut model.head, 0)
    }

    /// Brings a parameter to the device in pieces of whole groups of rows: `send` copies some rows from page-locked
    /// memory, given the first row, their number and the bytes of one.
    fn copy(
        &mut self,
        param: Param,
        element: Element,
        group: usize,
        mut send: impl FnMut(&Pinned<u8>, usize, usize, usize) -> Result<(), CudaError>,
    ) -> Result<(), CudaModelError> {
        if !(self.wanted)(param) {
            return Ok(());
        }
        let (staging, next, cuda) = (&mut self.staging, &mut self.next, self.cuda);
        let mut result = Ok(());
        let mut bytes = 0;
        self.source.show(param, &mut |weights| {
            bytes = weights.data.len();
            let row_bytes = weights.cols * size_of_element(element);
            let piece = (STAGING_BYTES / (row_bytes * group)).max(1) * group;
            for first in (0..weights.rows).step_by(piece) {
                let rows = first..(first + piece).min(weights.rows);
                let count = rows.len();
                // What was sent before the last piece has arrived, so that its memory is free.
                result = cuda.synchronize().and_then(|()| {
                    let memory = &mut staging[*next % 2];
                    convert(weights, rows, element, &mut memory.as_mut_slice()[..count * row_bytes]);
                    send(memory, first, count, row_bytes)
                });
                *next += 1;
                if result.is_err() {
                    return;
                }
            }
        })?;
        self.done.bytes_done = (self.done.bytes_done + bytes).min(self.done.bytes_total);
        (self.progress)(self.done);
        Ok(result?)
    }

    fn vector(&mut self, param: Param, vector: &mut Buffer<f32>) -> Result<(), CudaModelError> {
        if !(self.wanted)(param) {
            return Ok(());
        }
        let mut values = vec![0.0; vector.len()];
        self.source.show(param, &mut |weights| {
            for (i, value) in values.iter_mut().enumerate() {
                *value = weights.stored.read(weights.data, i);
            }
        })?;
        Ok(vector.write(0, &values)?)
    }

    fn exact(&mut self, param: Param, values: &mut Activations) -> Result<(), CudaModelError> {
        let element = values.element();
        self.copy(param, element, 1, |from, first, rows, row_bytes| {
            values.write_rows(first * row_bytes, row_bytes, from, rows, row_bytes)
        })
    }

    /// Parameters whose outputs stand one after the other from `first` on.
    fn matrix(
        &mut self,
        params: &[Param],
        matrix: &mut DeviceMatrix,
        first: usize,
    ) -> Result<(), CudaModelError> {
        let (element, config) = (matrix.element(), self.source.config());
        let mut begin = first;
        for &param in params {
            let outputs = param.shape(config)[0];
            self.copy(param, element, 1, |from, row, rows, _| {
                matrix.write_outputs(begin + row, rows, 1, 0, from)
            })?;
            begin += outputs;
        }
        Ok(())
    }

    /// A gate and an up projection whose outputs take turns in groups, from `first` on.
    fn gate_up(
        &mut self,
        params: [Param; 2],
        matrix: &mut DeviceMatrix,
        first: usize,
    ) -> Result<(), CudaModelError> {
        let element = matrix.element();
        for (half, param) in params.into_iter().enumerate() {
            self.copy(param, element, GATE_GROUP, |from, row, rows, _| {
                let place = first + 2 * row + half * GATE_GROUP;
                matrix.write_outputs(place, rows, GATE_GROUP, GATE_GROUP, from)
            })?;
        }
        Ok(())
    }

    fn layer(&mut self, index: usize, layer: &mut Layer) -> Result<(), CudaModelError> {
        use LayerParam as P;
        let param = |param| Param::Layer(index, param);
        self.vector(param(P::InputNorm), &mut layer.input_norm)?;
        match &mut layer.attention {
            Attention::Lightning { qkv_gate, norm, out, .. } => {
                self.matrix(&[param(P::LightningQkv), param(P::LightningGate)], qkv_gate, 0)?;
                self.vector(param(P::LightningNorm), norm)?;
                self.matrix(&[param(P::LightningOut)], out, 0)?;
            }
            Attention::Softmax { qkv, out, .. } => {
                self.matrix(&[param(P::Query), param(P::Key), param(P::Value)], qkv, 0)?;
                self.matrix(&[param(P::Output)], out, 0)?;
            }
        }
        self.vector(param(P::PostAttentionNorm), &mut layer.post_attention_norm)?;
        if let Some(router) = &mut layer.experts.router {
            self.exact(param(P::Router), router)?;
        }
        let Experts { gate_up, down, .. } = &mut layer.experts;
        for expert in 0..gate_up.experts() {
            let first = expert * gate_up.outputs();
            self.gate_up([param(P::ExpertGate(expert)), param(P::ExpertUp(expert))], gate_up, first)?;
            self.matrix(&[param(P::ExpertDown(expert))], down, expert * down.outputs())?;
        }
        if let Some(shared) = &mut layer.shared {
            self.gate_up([param(P::SharedGate), param(P::SharedUp)], &mut shared.gate_up, 0)?;
            self.matrix(&[param(P::SharedDown)], &mut shared.down, 0)?;
            self.exact(param(P::SharedCoefficient), &mut shared.coefficient)?;
        }
        Ok(())
    }
}

fn size_of_element(element: Element) -> usize {
    match element {
        Element::F32 => 4,
        Element::Bf16 => 2,
    }
}

/// Rows of a stored matrix as the device keeps them, on all cores: reading a file's pages is what loading waits for.
fn convert(weights: RowMajor<'_>, rows: Range<usize>, element: Element, out: &mut [u8]) {
    let cols = weights.cols;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let part = rows.len().div_ceil(threads).max(1);
    let row_bytes = cols * size_of_element(element);
    std::thread::scope(|scope| {
        for (i, out) in out.chunks_mut(part * row_bytes).enumerate() {
            let first = (rows.start + i * part) * cols;
            scope.spawn(move || convert_values(weights, first, element, out));
        }
    });
}

fn convert_values(weights: RowMajor<'_>, first: usize, element: Element, out: &mut [u8]) {
    match (weights.stored, element) {
        (Stored::F32, Element::F32) | (Stored::Bf16, Element::Bf16) => {
            let start = first * weights.stored.bytes();
            out.copy_from_slice(&weights.data[start..start + out.len()]);
        }
        (stored, Element::F32) => {
            for (i, out) in out.chunks_exact_mut(4).enumerate() {
                out.copy_from_slice(&stored.read(weights.data, first + i).to_le_bytes());
            }
        }
        (stored, Element::Bf16) => {
            for (i, out) in out.chunks_exact_mut(2).enumerate() {
                let value = bf16::from_f32(stored.read(weights.data, first + i));
                out.copy_from_slice(&value.to_bits().to_le_bytes());
            }
        }
    }
}
