//! What is trained: a checkpoint, or a new model of some shape.

use std::path::{Path, PathBuf};

use arges_kernels::matmul::Compute;
use arges_model::synth::SynthShape;
use arges_model::{AttentionKind, Config, DType, Dialect};
use arges_text::Tokenizer;
use serde::{Deserialize, Serialize};

/// What is trained, and in which precision. Either `from` or `new` is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Directory of a checkpoint with tokenizer, whose weights are the start.
    #[serde(default)]
    pub from: Option<PathBuf>,
    /// Shape of a new model with random weights.
    #[serde(default)]
    pub new: Option<NewModel>,
    /// Precision of products; everything else, the weights that learn included, is f32.
    #[serde(default)]
    pub compute: ComputeType,
    /// Precision of the rows that the head multiplies, on a GPU beside `compute = "bf16"`: with `bf16` a step is some
    /// percent faster, and log-probabilities are no longer those of inference.
    #[serde(default)]
    pub head: ComputeType,
    /// How weights are stored in checkpoints. The state of a run keeps f32 whatever stands here.
    #[serde(default)]
    pub save_dtype: SaveType,
}

impl ModelConfig {
    /// Takes what was no field yet when a run began out of the configuration that tells whether it is the same run, where
    /// it says what held then.
    pub(crate) fn forget_defaults(&self, config: &mut serde_json::Map<String, serde_json::Value>) {
        let model = config.get_mut("model").and_then(serde_json::Value::as_object_mut);
        if let Some(model) = model.filter(|_| self.head == ComputeType::F32) {
            model.shift_remove("head");
        }
    }
}

/// Precision of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeType {
    /// 32-bit floating point.
    #[default]
    F32,
    /// bfloat16 factors, sums in f32.
    Bf16,
}

impl From<ComputeType> for Compute {
    fn from(compute: ComputeType) -> Self {
        match compute {
            ComputeType::F32 => Self::F32,
            ComputeType::Bf16 => Self::Bf16,
        }
    }
}

/// How weights are stored in checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SaveType {
    /// As they are trained.
    #[default]
    F32,
    /// Rounded to bfloat16: half the size.
    Bf16,
}

impl From<SaveType> for DType {
    fn from(dtype: SaveType) -> Self {
        match dtype {
            SaveType::F32 => Self::F32,
            SaveType::Bf16 => Self::Bf16,
        }
    }
}

/// Shape of a new model. Sizes without a default must be given; other figures are M1's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewModel {
    /// Directory of its tokenizer, which is copied into every checkpoint.
    pub tokenizer: PathBuf,
    /// Form of configuration and tensor names: `minimax_m1`, `minimax_text_01` or `minimax`.
    #[serde(default = "default_dialect")]
    pub dialect: String,
    /// Rows of embedding and head; the size of the tokenizer's vocabulary when absent.
    #[serde(default)]
    pub vocab_size: Option<usize>,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// Every how many layers softmax attention stands in place of lightning attention; 0 is in none. 8, as in M1,
    /// when neither this nor `attention` is given.
    #[serde(default)]
    pub softmax_every: Option<usize>,
    /// Attention of each layer, `lightning` or `softmax`, in place of `softmax_every`.
    #[serde(default)]
    pub attention: Option<Vec<LayerAttention>>,
    /// Attention heads.
    pub num_heads: usize,
    /// Key and value heads of softmax attention; a divisor of `num_heads`.
    pub num_kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Leading channels of a head that rope rotates; half of them when absent, all in dialect `minimax`.
    #[serde(default)]
    pub rotary_dim: Option<usize>,
    /// Base of rope's frequencies.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// Experts of a layer; 1 is a plain MLP.
    #[serde(default = "one")]
    pub num_experts: usize,
    /// Experts that see one token; 2, or 1 for a plain MLP, when absent.
    #[serde(default)]
    pub experts_per_token: Option<usize>,
    /// Inner width of an expert.
    pub intermediate_size: usize,
    /// Inner width of an MLP that every token passes beside its experts; 0 is none.
    #[serde(default)]
    pub shared_intermediate_size: usize,
    /// Longest sequence that the model's configuration allows.
    #[serde(default = "default_positions")]
    pub max_position_embeddings: usize,
    /// Use the embedding's weights for the head too.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Standard deviation of the random weights.
    #[serde(default = "default_initializer_range")]
    pub initializer_range: f64,
}

/// Attention of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerAttention {
    /// Linear attention with a decaying state.
    Lightning,
    /// Causal softmax attention.
    Softmax,
}

impl From<LayerAttention> for AttentionKind {
    fn from(attention: LayerAttention) -> Self {
        match attention {
            LayerAttention::Lightning => Self::Lightning,
            LayerAttention::Softmax => Self::Softmax,
        }
    }
}

fn default_dialect() -> String {
    Dialect::MiniMaxM1.model_type().to_owned()
}

fn default_rope_theta() -> f64 {
    1e7
}

fn one() -> usize {
    1
}

fn default_positions() -> usize {
    1 << 20
}

fn default_initializer_range() -> f64 {
    0.02
}

impl NewModel {
    /// The model's configuration, with the turn markers of its tokenizer.
    ///
    /// # Errors
    /// The model's own field that cannot be.
    pub fn config(&self, tokenizer: &Tokenizer, origin: &Path) -> Result<Config, arges_model::ConfigError> {
        let dialect = Dialect::from_model_type(&self.dialect).unwrap_or(Dialect::MiniMaxM1);
        let rotated = match dialect {
            Dialect::MiniMax => self.head_dim,
            Dialect::MiniMaxM1 | Dialect::MiniMaxText01 => (self.head_dim / 4 * 2).max(2),
        };
        let shape = SynthShape {
            dialect,
            hidden: self.hidden_size,
            layers: self.num_layers,
            heads: self.num_heads,
            kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            rotary_dim: self.rotary_dim.unwrap_or(rotated),
            softmax_every: self.softmax_every.unwrap_or(8),
            experts: self.num_experts,
            experts_per_token: self.experts_per_token.unwrap_or(self.num_experts.min(2)),
            intermediate: self.intermediate_size,
            shared_intermediate: self.shared_intermediate_size,
            vocab: self.vocab_size.unwrap_or(tokenizer.vocab_size()),
            max_positions: self.max_position_embeddings,
            tie_embeddings: self.tie_word_embeddings,
        };
        let mut config = shape.config()?;
        if let Some(attention) = &self.attention {
            config.attention = attention.iter().copied().map(AttentionKind::from).collect();
        }
        config.rope_theta = self.rope_theta;
        config.initializer_range = self.initializer_range;
        config.bos_token_id = tokenizer.id_of("<beginning_of_sentence>");
        config.eos_token_ids = tokenizer.end_token().into_iter().collect();
        config.validate(origin)?;
        Ok(config)
    }
}
