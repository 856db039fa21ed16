//! Random checkpoints, streamed to disk: for measuring speed, for tests, and as the start of
//! training. Matrices are normal with deviation `initializer_range`, norms are 1.

mod noise;

use std::path::Path;

use crate::checkpoint::{CheckpointWriter, DEFAULT_SHARD_BYTES, DType, WriteError, WriteOptions, narrow};
use crate::config::{AttentionKind, Config, ConfigError, Dialect, ResidualScale};
use crate::params::Param;

/// Bytes generated at a time, by all threads together.
const BUFFER_BYTES: usize = 16 << 20;
/// Fewer bytes than this are not worth a second thread.
const MIN_THREAD_BYTES: usize = 256 << 10;

/// Sizes of a model of the M1 family, from which a configuration is made.
#[derive(Clone, Debug, PartialEq)]
pub struct SynthShape {
    pub dialect: Dialect,
    /// Width of the residual stream.
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Channels of a head that rope rotates.
    pub rotary_dim: usize,
    /// Every how many layers softmax attention stands; 8 is M1's seven to one. 0: in none.
    pub softmax_every: usize,
    pub experts: usize,
    pub experts_per_token: usize,
    /// Inner width of one expert.
    pub intermediate: usize,
    /// Inner width of the shared MLP; 0 for none.
    pub shared_intermediate: usize,
    pub vocab: usize,
    pub max_positions: usize,
    pub tie_embeddings: bool,
}

impl Default for SynthShape {
    /// A model of 119 M parameters, 39 M of them active: small enough for any machine.
    fn default() -> Self {
        SynthShape {
            dialect: Dialect::MiniMaxM1,
            hidden: 512,
            layers: 8,
            heads: 8,
            kv_heads: 2,
            head_dim: 64,
            rotary_dim: 32,
            softmax_every: 8,
            experts: 8,
            experts_per_token: 2,
            intermediate: 1024,
            shared_intermediate: 0,
            vocab: 8192,
            max_positions: 1 << 20,
            tie_embeddings: false,
        }
    }
}

impl SynthShape {
    /// The configuration of these sizes. Every other figure is M1's; alpha is DeepNorm's
    /// `(2 layers)^(1/4)` (Wang et al., "DeepNet", 2022), which gives M1's own at 80 layers.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let alpha = (2.0 * self.layers as f64).powf(0.25) as f32;
        let scale = ResidualScale { alpha, beta: 1.0 };
        let kind = |layer: usize| match self.softmax_every {
            0 => AttentionKind::Lightning,
            every if (layer + 1).is_multiple_of(every) => AttentionKind::Softmax,
            _ => AttentionKind::Lightning,
        };
        let mut config = Config {
            dialect: self.dialect,
            vocab_size: self.vocab,
            hidden_size: self.hidden,
            num_layers: self.layers,
            attention: Vec::new(),
            num_heads: self.heads,
            num_kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            rotary_dim: self.rotary_dim,
            rope_theta: 1e7,
            rms_norm_eps: 1e-5,
            postnorm: true,
            lightning: scale,
            softmax: scale,
            mlp: scale,
            num_experts: self.experts,
            experts_per_token: self.experts_per_token,
            intermediate_size: self.intermediate,
            shared_intermediate_size: self.shared_intermediate,
            max_position_embeddings: self.max_positions,
            tie_word_embeddings: self.tie_embeddings,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            stored_dtype: None,
            initializer_range: 0.02,
            router_aux_loss_coef: 0.001,
        };
        let source = Path::new("the sizes given");
        config.validate_layer_count(source)?;
        config.attention = (0..self.layers).map(kind).collect();
        config.validate(source)?;
        Ok(config)
    }
}

/// How a random checkpoint is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SynthOptions {
    /// The same seed makes the same weights, whatever the other options.
    pub seed: u64,
    /// How all weights are stored.
    pub dtype: DType,
    /// Most bytes of one shard.
    pub shard_bytes: u64,
    /// Whether the directory may hold files already; a checkpoint in it is replaced.
    pub overwrite: bool,
    /// Threads that make weights.
    pub threads: usize,
}

impl Default for SynthOptions {
    fn default() -> Self {
        SynthOptions {
            seed: 0,
            dtype: DType::Bf16,
            shard_bytes: DEFAULT_SHARD_BYTES,
            overwrite: false,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// How far a random checkpoint has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynthProgress {
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// Writes a random checkpoint of that configuration. Memory stays at one buffer of 16 MiB,
/// whatever the size of the model.
pub fn write_checkpoint(
    config: &Config,
    directory: &Path,
    options: &SynthOptions,
    progress: &mut dyn FnMut(SynthProgress),
) -> Result<(), WriteError> {
    let write = WriteOptions { shard_bytes: options.shard_bytes, overwrite: options.overwrite };
    let mut writer = CheckpointWriter::create(directory, config, write, |_| options.dtype)?;
    let mut report = SynthProgress { bytes_done: 0, bytes_total: writer.total_bytes() };
    let mut buffer = vec![0; BUFFER_BYTES.min(usize::try_from(report.bytes_total).unwrap_or(BUFFER_BYTES))];
    for param in Param::all(config) {
        let source = Source::of(param, config, options.seed);
        let total = param.elements(config) * options.dtype.size();
        let mut tensor = writer.begin(param)?;
        let mut done = 0;
        while done < total {
            let length = buffer.len().min(total - done);
            let bytes = &mut buffer[..length - length % options.dtype.size()];
            source.fill((done / options.dtype.size()) as u64, options, bytes);
            tensor.write_bytes(bytes)?;
            done += bytes.len();
            report.bytes_done += bytes.len() as u64;
            progress(report);
        }
        tensor.finish()?;
    }
    writer.finish()
}

/// Fills a parameter with the weights that a random checkpoint of that seed has, in f32.
pub(crate) fn initialize(param: Param, config: &Config, seed: u64, out: &mut [f32]) {
    match Source::of(param, config, seed) {
        Source::Ones => out.fill(1.0),
        Source::Normal { key, deviation } => noise::fill(key, 0, deviation, out),
    }
}

/// Fills `out` with normal values of a stream of their own for each seed and name.
pub(crate) fn fill_normal(seed: u64, name: &str, deviation: f32, out: &mut [f32]) {
    noise::fill(noise::key(seed, name), 0, deviation, out);
}

/// Where the weights of a parameter come from.
enum Source {
    Ones,
    Normal { key: u64, deviation: f32 },
}

impl Source {
    fn of(param: Param, config: &Config, seed: u64) -> Source {
        if param.is_norm() {
            return Source::Ones;
        }
        let key = noise::key(seed, &param.name(config));
        Source::Normal { key, deviation: config.initializer_range as f32 }
    }

    /// Stores the weights from index `first` on, filling `bytes`.
    fn fill(&self, first: u64, options: &SynthOptions, bytes: &mut [u8]) {
        let dtype = options.dtype;
        let &Source::Normal { key, deviation } = self else {
            let ones = vec![1.0; bytes.len() / dtype.size()];
            return narrow(&ones, dtype, bytes);
        };
        let threads = options.threads.clamp(1, bytes.len().div_ceil(MIN_THREAD_BYTES).max(1));
        let part = (bytes.len() / dtype.size()).div_ceil(threads).max(1) * dtype.size();
        let parts = bytes.chunks_mut(part).enumerate().map(|(i, bytes)| {
            let first = first + (i * part / dtype.size()) as u64;
            move || noise::fill_bytes(key, first, deviation, dtype, bytes)
        });
        std::thread::scope(|scope| {
            let mut parts = parts;
            let own = parts.next();
            for other in parts {
                scope.spawn(other);
            }
            if let Some(mut own) = own {
                own();
            }
        });
    }
}
