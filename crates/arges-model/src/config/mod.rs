//! The configuration of a model, the same for the three dialects it may be written in.
//!
//! A field that is missing, of a wrong type, unsupported or in contradiction to another is an
//! error that names the field and the file.

mod dialects;
mod fields;
mod limits;
mod slopes;

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::dtype::DType;

/// Epsilon of the norm over the heads' output inside lightning attention. It is fixed in the
/// official code and does not follow `rms_norm_eps`.
pub const LIGHTNING_NORM_EPS: f64 = 1e-6;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}: {source}", file.display())]
    Read { file: PathBuf, source: io::Error },
    /// The file is no JSON object.
    #[error("{} is not a JSON object: {reason}", file.display())]
    Json { file: PathBuf, reason: String },
    /// A field the model cannot be built without is absent or null.
    #[error("{}: field `{field}` is missing", file.display())]
    Missing { file: PathBuf, field: String },
    /// A field holds a value of another type.
    #[error("{}: field `{field}` should be {expected}, but is {found}", file.display())]
    WrongType { file: PathBuf, field: String, expected: &'static str, found: String },
    /// A field's value is out of range, unsupported, or contradicts another field.
    #[error("{}: field `{field}` is {value}: {reason}", file.display())]
    Invalid { file: PathBuf, field: String, value: String, reason: String },
}

/// Which code the configuration was written for. It decides field names, tensor names, the decay
/// of lightning attention and how much of a head is rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `minimax_m1` / `MiniMaxM1ForCausalLM`: MiniMax-M1's own code.
    MiniMaxM1,
    /// `minimax_text_01` / `MiniMaxText01ForCausalLM`: MiniMax-Text-01's own code.
    MiniMaxText01,
    /// `minimax` / `MiniMaxForCausalLM`: transformers' own code.
    MiniMax,
}

impl Dialect {
    /// Every dialect.
    pub const ALL: [Dialect; 3] = [Dialect::MiniMaxM1, Dialect::MiniMaxText01, Dialect::MiniMax];

    /// The value of `model_type`.
    pub const fn model_type(self) -> &'static str {
        match self {
            Dialect::MiniMaxM1 => "minimax_m1",
            Dialect::MiniMaxText01 => "minimax_text_01",
            Dialect::MiniMax => "minimax",
        }
    }

    /// The entry of `architectures`.
    pub const fn architecture(self) -> &'static str {
        match self {
            Dialect::MiniMaxM1 => "MiniMaxM1ForCausalLM",
            Dialect::MiniMaxText01 => "MiniMaxText01ForCausalLM",
            Dialect::MiniMax => "MiniMaxForCausalLM",
        }
    }

    /// The dialect of that `model_type`.
    pub fn from_model_type(name: &str) -> Option<Dialect> {
        Self::ALL.into_iter().find(|dialect| dialect.model_type() == name)
    }
}

/// The attention of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttentionKind {
    /// Linear attention with a decaying state: type 0, `linear_attention`.
    Lightning,
    /// Causal softmax attention over cached keys and values: type 1, `full_attention`.
    Softmax,
}

/// Weights of a residual connection: `alpha * residual + beta * branch`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResidualScale {
    /// Of the residual.
    pub alpha: f32,
    /// Of the attention's or the experts' output.
    pub beta: f32,
}

/// A model's configuration. Field names in parentheses are those of the file where they differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The code the configuration was written for (`model_type`).
    pub dialect: Dialect,
    /// Rows of the embedding and the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of layers (`num_hidden_layers`).
    pub num_layers: usize,
    /// Attention of each layer, `[num_layers]` (`attn_type_list`, `layer_types`).
    pub attention: Vec<AttentionKind>,
    /// Query heads; lightning attention has as many key and value heads (`num_attention_heads`).
    pub num_heads: usize,
    /// Key and value heads of softmax attention (`num_key_value_heads`).
    pub num_kv_heads: usize,
    /// Channels of a head. `num_heads * head_dim` may differ from `hidden_size`.
    pub head_dim: usize,
    /// Leading channels of a head that rope rotates; even (`rotary_dim`, `partial_rotary_factor`).
    pub rotary_dim: usize,
    /// Base of the rope frequencies.
    pub rope_theta: f64,
    /// Epsilon of the norms of the residual stream.
    pub rms_norm_eps: f64,
    /// Whether the residual is the normed value; always so in transformers' own dialect.
    pub postnorm: bool,
    /// Residual around lightning attention.
    pub lightning: ResidualScale,
    /// Residual around softmax attention.
    pub softmax: ResidualScale,
    /// Residual around the experts.
    pub mlp: ResidualScale,
    /// Routed experts of a layer; 1 means a plain MLP (`num_local_experts`).
    pub num_experts: usize,
    /// Experts that see one token (`num_experts_per_tok`).
    pub experts_per_token: usize,
    /// Inner width of one expert.
    pub intermediate_size: usize,
    /// Inner width of the MLP every token passes beside its experts; 0 where there is none. In a
    /// checkpoint's configuration this is the width of its tensors, whatever the file says.
    pub shared_intermediate_size: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the head uses the embedding's weights.
    pub tie_word_embeddings: bool,
    /// Token that begins a sequence; often none.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence, from `config.json` and `generation_config.json`; often none.
    pub eos_token_ids: Vec<u32>,
    /// Storage type the file declares (`torch_dtype`, `dtype`); the tensors' own types count.
    pub stored_dtype: Option<DType>,
    /// Standard deviation of a fresh model's weights; 0.02 where the file says nothing.
    pub initializer_range: f64,
    /// Weight of the load-balancing loss in training; 0.001 where the file says nothing.
    pub router_aux_loss_coef: f64,
}

impl Config {
    /// Reads `config.json`, and the end tokens of `generation_config.json` where there is one.
    pub fn from_dir(directory: &Path) -> Result<Config, ConfigError> {
        Config::from_files(directory, |name| std::fs::read_to_string(directory.join(name)))
    }

    /// As [`Config::from_dir`], with the files' texts from `read`.
    pub(crate) fn from_files(
        directory: &Path,
        read: impl Fn(&str) -> io::Result<String>,
    ) -> Result<Config, ConfigError> {
        let (main, generation) = (directory.join("config.json"), directory.join("generation_config.json"));
        let text = read("config.json").map_err(|source| ConfigError::Read { file: main.clone(), source })?;
        let mut config = Config::from_json(&text, &main)?;
        match read("generation_config.json") {
            Ok(text) => config.add_generation_config(&text, &generation)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(ConfigError::Read { file: generation, source }),
        }
        Ok(config)
    }

    /// Reads one configuration file, whatever its name.
    pub fn from_file(file: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
        Config::from_json(&text, file)
    }

    /// Reads a configuration from the text of its file. `source` names the file in errors.
    pub fn from_json(text: &str, source: &Path) -> Result<Config, ConfigError> {
        let value = parse(text, source)?;
        let config = dialects::read(&fields::Fields::new(&value, source))?;
        config.validate(source)?;
        Ok(config)
    }

    fn add_generation_config(&mut self, text: &str, source: &Path) -> Result<(), ConfigError> {
        let value = parse(text, source)?;
        for id in fields::Fields::new(&value, source).tokens("eos_token_id")? {
            if !self.eos_token_ids.contains(&id) {
                self.eos_token_ids.push(id);
            }
        }
        self.validate_tokens(source)
    }

    /// The configuration in the dialect it came in: what this writes, [`Config::from_json`] and
    /// transformers can read.
    pub fn to_json(&self) -> Value {
        dialects::write(self)
    }

    /// Whether a router chooses among several experts; otherwise each layer has a plain MLP.
    pub fn is_moe(&self) -> bool {
        self.num_experts > 1
    }

    /// Whether layers store a router. transformers' own dialect has one even for a single expert,
    /// where its outcome is always 1.
    pub fn has_router(&self) -> bool {
        self.is_moe() || self.dialect == Dialect::MiniMax
    }

    /// Whether every token also passes an MLP beside its experts.
    pub fn has_shared_mlp(&self) -> bool {
        self.shared_intermediate_size > 0
    }

    /// Width of all query heads together, which is also that of lightning attention's keys,
    /// values and output.
    pub fn query_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key heads of softmax attention together, and of its values.
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Number of layers with that attention.
    pub fn count(&self, kind: AttentionKind) -> usize {
        self.attention.iter().filter(|found| **found == kind).count()
    }

    /// Residual weights around the attention of a layer of that kind.
    pub fn attention_scale(&self, kind: AttentionKind) -> ResidualScale {
        match kind {
            AttentionKind::Lightning => self.lightning,
            AttentionKind::Softmax => self.softmax,
        }
    }
}

fn parse(text: &str, file: &Path) -> Result<serde_json::Map<String, Value>, ConfigError> {
    let json = |reason| ConfigError::Json { file: file.to_owned(), reason };
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(json(format!("it holds {}", fields::shortened(&other)))),
        Err(error) => Err(json(error.to_string())),
    }
}
