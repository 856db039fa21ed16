//! What learns: f32 values and their gradients, flat, in the order of [`Param::all`].

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arges_kernels::device::cpu::{AlignedBuffer, Cpu};
use arges_kernels::matmul::{RowMajor, Stored};

use super::TrainingError;
use super::lora::{Lora, LoraOptions};
use crate::checkpoint::{Checkpoint, CheckpointError, CheckpointWriter, WriteOptions};
use crate::config::Config;
use crate::dtype::DType;
use crate::model::source::WeightSource;
use crate::params::{LayerParam, Param};
use crate::synth;

/// A tensor that learns, and where it lies in the flat arrays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainableTensor {
    /// Name of the stored tensor; an adapter's ends in `.lora_A.weight` or `.lora_B.weight`.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its place in [`Parameters::values`] and [`Parameters::gradients`].
    pub range: Range<usize>,
    /// Whether weight decay applies: to matrices, not to norms.
    pub decay: bool,
}

/// Values that learn, with their gradients. The gradients of a full model are those of its parameters; with
/// LoRA only adapters are here, and the base stays in its checkpoint.
pub struct Parameters {
    config: Config,
    tensors: Vec<TrainableTensor>,
    values: AlignedBuffer<f32>,
    gradients: AlignedBuffer<f32>,
    kind: Kind,
}

enum Kind {
    /// Places of whole parameters.
    Full(HashMap<Param, Range<usize>>),
    Lora(Box<Lora>),
}

impl Parameters {
    /// Every parameter of a checkpoint, widened to f32.
    ///
    /// # Errors
    /// When a parameter is missing.
    pub fn full(checkpoint: &Checkpoint) -> Result<Self, TrainingError> {
        let mut parameters = Self::zeroed(checkpoint.config().clone());
        for param in Param::all(checkpoint.config()) {
            checkpoint.param(param)?.read_f32(parameters.whole_mut(param));
            checkpoint.release(param);
        }
        Ok(parameters)
    }

    /// Random parameters, the same as those of a random checkpoint of that seed: matrices normal with deviation
    /// [`Config::initializer_range`], norms 1.
    pub fn initialized(config: &Config, seed: u64) -> Self {
        let mut parameters = Self::zeroed(config.clone());
        for param in Param::all(config) {
            synth::initialize(param, config, seed, parameters.whole_mut(param));
        }
        parameters
    }

    /// Low-rank adapters on some matrices of a checkpoint, which itself stays as it is.
    ///
    /// # Errors
    /// When the options ask for something that the model does not have, or a rank of 0.
    pub fn lora(
        checkpoint: Arc<Checkpoint>,
        options: &LoraOptions,
        seed: u64,
    ) -> Result<Self, TrainingError> {
        let config = checkpoint.config().clone();
        let (lora, tensors) = Lora::new(checkpoint, options)?;
        let len = tensors.last().map_or(0, |tensor| tensor.range.end);
        let mut values = AlignedBuffer::zeroed(len);
        lora.initialize(&tensors, seed, &mut values);
        let gradients = AlignedBuffer::zeroed(len);
        Ok(Self { config, tensors, values, gradients, kind: Kind::Lora(Box::new(lora)) })
    }

    pub(super) fn zeroed(config: Config) -> Self {
        let (mut tensors, mut places, mut end) = (Vec::new(), HashMap::new(), 0);
        for param in Param::all(&config) {
            let range = end..end + param.elements(&config);
            end = range.end;
            tensors.push(TrainableTensor {
                name: param.name(&config),
                shape: param.tensor_shape(&config),
                range: range.clone(),
                decay: !param.is_norm(),
            });
            places.insert(param, range);
        }
        let (values, gradients) = (AlignedBuffer::zeroed(end), AlignedBuffer::zeroed(end));
        Self { config, tensors, values, gradients, kind: Kind::Full(places) }
    }

    fn whole_mut(&mut self, param: Param) -> &mut [f32] {
        let Kind::Full(places) = &self.kind else { unreachable!("adapters are no whole parameters") };
        &mut self.values[places[&param].clone()]
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tensors, one after the other.
    pub fn tensors(&self) -> &[TrainableTensor] {
        &self.tensors
    }

    /// All values.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All values, to be changed. [`super::Trainer::publish`] brings them into the model.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The gradients accumulated so far.
    pub fn gradients(&self) -> &[f32] {
        &self.gradients
    }

    /// Values to be changed by an optimizer, and the gradients for it.
    pub fn values_and_gradients_mut(&mut self) -> (&mut [f32], &mut [f32]) {
        (&mut self.values, &mut self.gradients)
    }

    /// Forgets the gradients.
    pub fn zero_gradients(&mut self) {
        self.gradients.fill(0.0);
    }

    /// Whether a parameter of the model gets a gradient.
    pub(super) fn learns(&self, param: Param) -> bool {
        match &self.kind {
            Kind::Full(places) => places.contains_key(&self.owner(param)),
            Kind::Lora(lora) => lora.adapts(param),
        }
    }

    /// Has `add` add the gradient of a parameter to the values that it is handed, `[rows, cols]`. Nothing
    /// happens for one that does not learn.
    pub(super) fn accumulate(&mut self, cpu: &Cpu, param: Param, add: impl FnOnce(&mut [f32])) {
        let owner = self.owner(param);
        match &mut self.kind {
            Kind::Full(places) => {
                if let Some(range) = places.get(&owner) {
                    add(&mut self.gradients[range.clone()]);
                }
            }
            Kind::Lora(lora) => lora.accumulate(cpu, param, &self.values, &mut self.gradients, add),
        }
    }

    /// The adapters, where only those learn.
    pub(super) fn adapters(&self) -> Option<&Lora> {
        match &self.kind {
            Kind::Full(_) => None,
            Kind::Lora(lora) => Some(lora),
        }
    }

    /// Where a whole parameter lies among the values.
    ///
    /// # Panics
    /// When only adapters learn.
    pub(super) fn place(&self, param: Param) -> usize {
        let Kind::Full(places) = &self.kind else { panic!("adapters are no whole parameters") };
        places[&self.owner(param)].start
    }

    /// The parameter that holds the weights of `param`: the embedding for a tied head.
    fn owner(&self, param: Param) -> Param {
        let tied = param == Param::Head && self.config.tie_word_embeddings;
        if tied { Param::Embedding } else { param }
    }

    /// Writes a whole checkpoint without tokenizer: `config.json` and shards. Adapters are merged into the
    /// matrices they adapt. Norms, routers and the shared MLP's coefficient, which are never rounded in a
    /// model, are stored in f32 whatever `dtype` is, so that the checkpoint computes what was trained.
    ///
    /// # Errors
    /// When writing fails; nothing is left then.
    pub fn save(
        &self,
        cpu: &Cpu,
        directory: &Path,
        options: WriteOptions,
        dtype: DType,
    ) -> Result<(), TrainingError> {
        use LayerParam::{Router, SharedCoefficient};
        let exact =
            |param: Param| param.is_norm() || matches!(param, Param::Layer(_, Router | SharedCoefficient));
        let dtype_of = |param| if exact(param) { DType::F32 } else { dtype };
        let mut writer = CheckpointWriter::create(directory, &self.config, options, dtype_of)?;
        let source = Source { parameters: self, cpu };
        for param in Param::all(&self.config) {
            let mut outcome = Ok(());
            source.show(param, &mut |weights| {
                let values: Vec<f32> =
                    (0..weights.rows * weights.cols).map(|i| weights.stored.read(weights.data, i)).collect();
                outcome = writer.write_f32(param, &values);
            })?;
            outcome?;
        }
        Ok(writer.finish()?)
    }

    /// The parameters as weights of a model, in f32; adapters are merged on `cpu`.
    pub fn weights<'a>(&'a self, cpu: &'a Cpu) -> impl WeightSource + 'a {
        self.source(cpu)
    }

    pub(super) fn source<'a>(&'a self, cpu: &'a Cpu) -> Source<'a> {
        Source { parameters: self, cpu }
    }
}

/// [`Parameters`] as weights of a model: whole parameters, or a base with its adapters merged.
pub(super) struct Source<'a> {
    parameters: &'a Parameters,
    cpu: &'a Cpu,
}

impl WeightSource for Source<'_> {
    fn config(&self) -> &Config {
        &self.parameters.config
    }

    fn dtype(&self, param: Param) -> Result<DType, CheckpointError> {
        match &self.parameters.kind {
            Kind::Full(_) => Ok(DType::F32),
            Kind::Lora(lora) => lora.dtype(param),
        }
    }

    fn show(&self, param: Param, take: &mut dyn FnMut(RowMajor<'_>)) -> Result<(), CheckpointError> {
        let Parameters { config, values, kind, .. } = self.parameters;
        match kind {
            Kind::Full(places) => {
                let owner = self.parameters.owner(param);
                let [rows, cols] = param.shape(config);
                let data = bytemuck::cast_slice(&values[places[&owner].clone()]);
                take(RowMajor { stored: Stored::F32, rows, cols, data });
                Ok(())
            }
            Kind::Lora(lora) => lora.show(self.cpu, param, values, take),
        }
    }

    fn bytes(&self) -> usize {
        match &self.parameters.kind {
            Kind::Full(_) => size_of_val(self.parameters.values()),
            Kind::Lora(lora) => lora.base_bytes(),
        }
    }
}
