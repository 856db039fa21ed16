//! What a configuration must fulfil, whichever file or flags it came from.

use std::path::Path;

use super::{AttentionKind, Config, ConfigError, Dialect, ResidualScale};

// Largest sizes accepted. Each is far above any known model, and together they keep the number
// of bytes of a model below 2^63, so that no later sum of sizes can overflow.
const MAX_VOCAB: usize = 1 << 24;
const MAX_HIDDEN: usize = 1 << 17;
const MAX_LAYERS: usize = 1 << 10;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_EXPERTS: usize = 1 << 12;
const MAX_INTERMEDIATE: usize = 1 << 18;
const MAX_POSITIONS: usize = 1 << 40;

impl Config {
    /// Checks every field by itself and against the others. `source` names the origin in errors.
    pub fn validate(&self, source: &Path) -> Result<(), ConfigError> {
        let check = Check { file: source };
        self.validate_layer_count(source)?;
        self.validate_sizes(&check)?;
        self.validate_heads(&check)?;
        self.validate_numbers(&check)?;
        self.validate_dialect(&check)?;
        self.validate_tokens(source)
    }

    /// Checks the number of layers alone, before anything is allocated for each of them.
    pub(crate) fn validate_layer_count(&self, source: &Path) -> Result<(), ConfigError> {
        Check { file: source }.size("num_hidden_layers", self.num_layers, MAX_LAYERS)
    }

    fn validate_sizes(&self, check: &Check) -> Result<(), ConfigError> {
        check.size("vocab_size", self.vocab_size, MAX_VOCAB)?;
        check.size("hidden_size", self.hidden_size, MAX_HIDDEN)?;
        check.size("num_attention_heads", self.num_heads, MAX_HEADS)?;
        check.size("num_key_value_heads", self.num_kv_heads, MAX_HEADS)?;
        check.size("head_dim", self.head_dim, MAX_HEAD_DIM)?;
        check.size("num_local_experts", self.num_experts, MAX_EXPERTS)?;
        check.size("num_experts_per_tok", self.experts_per_token, MAX_EXPERTS)?;
        check.size("intermediate_size", self.intermediate_size, MAX_INTERMEDIATE)?;
        check.size("max_position_embeddings", self.max_position_embeddings, MAX_POSITIONS)?;
        if self.shared_intermediate_size > MAX_INTERMEDIATE {
            let reason = format!("at most {MAX_INTERMEDIATE} is supported");
            return Err(check.error("shared_intermediate_size", self.shared_intermediate_size, reason));
        }
        if self.attention.len() != self.num_layers {
            let value = format!("a list of {}", self.attention.len());
            let reason = format!("`num_hidden_layers` is {}", self.num_layers);
            return Err(check.error(self.attention_field(), value, reason));
        }
        if self.experts_per_token > self.num_experts {
            let reason = format!("`num_local_experts` is only {}", self.num_experts);
            return Err(check.error("num_experts_per_tok", self.experts_per_token, reason));
        }
        Ok(())
    }

    fn validate_heads(&self, check: &Check) -> Result<(), ConfigError> {
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let reason = format!("`num_attention_heads`, {}, is not a multiple of it", self.num_heads);
            return Err(check.error("num_key_value_heads", self.num_kv_heads, reason));
        }
        let rotary = |reason: String| check.error(self.rotary_field(), self.rotary_dim, reason);
        if self.rotary_dim == 0 || !self.rotary_dim.is_multiple_of(2) {
            return Err(rotary("rope turns pairs of channels: a positive even number is needed".into()));
        }
        if self.rotary_dim > self.head_dim {
            return Err(rotary(format!("`head_dim` is only {}", self.head_dim)));
        }
        Ok(())
    }

    fn validate_numbers(&self, check: &Check) -> Result<(), ConfigError> {
        check.number("rope_theta", self.rope_theta, "a positive number", |n| n > 0.0)?;
        check.number("rms_norm_eps", self.rms_norm_eps, "a number above 0 and below 1", |n| {
            n > 0.0 && n < 1.0
        })?;
        check.number("initializer_range", self.initializer_range, "a number from 0", |n| n >= 0.0)?;
        check.number("router_aux_loss_coef", self.router_aux_loss_coef, "a number from 0", |n| n >= 0.0)?;
        let names = self.scale_fields();
        for (scale, (alpha, beta)) in [self.lightning, self.softmax, self.mlp].iter().zip(names) {
            let ResidualScale { alpha: a, beta: b } = *scale;
            check.number(alpha, f64::from(a), "a finite number in f32", |_| true)?;
            check.number(beta, f64::from(b), "a finite number in f32", |_| true)?;
        }
        Ok(())
    }

    fn validate_dialect(&self, check: &Check) -> Result<(), ConfigError> {
        if self.dialect != Dialect::MiniMax {
            return Ok(());
        }
        if !self.postnorm {
            return Err(check.error("postnorm", false, "`model_type` minimax always has it".into()));
        }
        if self.has_shared_mlp() {
            let reason = "`model_type` minimax has no shared MLP".into();
            return Err(check.error("shared_intermediate_size", self.shared_intermediate_size, reason));
        }
        Ok(())
    }

    pub(super) fn validate_tokens(&self, source: &Path) -> Result<(), ConfigError> {
        let check = Check { file: source };
        let bos = self.bos_token_id.iter().map(|id| ("bos_token_id", id));
        let eos = self.eos_token_ids.iter().map(|id| ("eos_token_id", id));
        for (field, &id) in bos.chain(eos) {
            if id as usize >= self.vocab_size {
                let reason = format!("`vocab_size` is only {}", self.vocab_size);
                return Err(check.error(field, id, reason));
            }
        }
        Ok(())
    }

    /// The field that lists each layer's attention.
    pub(super) fn attention_field(&self) -> &'static str {
        match self.dialect {
            Dialect::MiniMaxM1 | Dialect::MiniMaxText01 => "attn_type_list",
            Dialect::MiniMax => "layer_types",
        }
    }

    fn rotary_field(&self) -> &'static str {
        match self.dialect {
            Dialect::MiniMaxM1 | Dialect::MiniMaxText01 => "rotary_dim",
            Dialect::MiniMax => "partial_rotary_factor",
        }
    }

    /// Fields of the residual weights, as (alpha, beta) of lightning, softmax and MLP.
    pub(super) fn scale_fields(&self) -> [(&'static str, &'static str); 3] {
        scale_fields(self.dialect)
    }
}

/// Fields of the residual weights, as (alpha, beta) of lightning, softmax and MLP.
pub(super) fn scale_fields(dialect: Dialect) -> [(&'static str, &'static str); 3] {
    match dialect {
        Dialect::MiniMaxM1 | Dialect::MiniMaxText01 => [
            ("layernorm_linear_attention_alpha", "layernorm_linear_attention_beta"),
            ("layernorm_full_attention_alpha", "layernorm_full_attention_beta"),
            ("layernorm_mlp_alpha", "layernorm_mlp_beta"),
        ],
        Dialect::MiniMax => [
            ("linear_attn_alpha_factor", "linear_attn_beta_factor"),
            ("full_attn_alpha_factor", "full_attn_beta_factor"),
            ("mlp_alpha_factor", "mlp_beta_factor"),
        ],
    }
}

/// Value of an attention kind in `attn_type_list`.
pub(super) fn attention_number(kind: AttentionKind) -> u64 {
    match kind {
        AttentionKind::Lightning => 0,
        AttentionKind::Softmax => 1,
    }
}

/// Value of an attention kind in `layer_types`.
pub(super) fn attention_name(kind: AttentionKind) -> &'static str {
    match kind {
        AttentionKind::Lightning => "linear_attention",
        AttentionKind::Softmax => "full_attention",
    }
}

struct Check<'a> {
    file: &'a Path,
}

impl Check<'_> {
    fn error(&self, field: &str, value: impl ToString, reason: String) -> ConfigError {
        let (field, value) = (field.to_owned(), value.to_string());
        ConfigError::Invalid { file: self.file.to_owned(), field, value, reason }
    }

    fn size(&self, field: &str, value: usize, max: usize) -> Result<(), ConfigError> {
        if (1..=max).contains(&value) {
            return Ok(());
        }
        Err(self.error(field, value, format!("a size from 1 to {max} is needed")))
    }

    fn number(
        &self,
        field: &str,
        value: f64,
        needed: &str,
        accept: impl Fn(f64) -> bool,
    ) -> Result<(), ConfigError> {
        if value.is_finite() && accept(value) {
            return Ok(());
        }
        Err(self.error(field, value, format!("{needed} is needed")))
    }
}
