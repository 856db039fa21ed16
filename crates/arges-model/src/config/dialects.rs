//! The three ways a configuration is written.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::limits::{attention_name, attention_number, scale_fields};
use super::{AttentionKind, Config, ConfigError, Dialect, ResidualScale};
use crate::dtype::DType;

const DEFAULT_INITIALIZER_RANGE: f64 = 0.02;
const DEFAULT_ROUTER_AUX_LOSS_COEF: f64 = 0.001;

/// Reads the fields of any dialect; [`Config::validate`] then checks their values.
pub(super) fn read(fields: &Fields) -> Result<Config, ConfigError> {
    let dialect = read_dialect(fields)?;
    refuse_unsupported(fields)?;
    let hidden_size = fields.size("hidden_size")?;
    let num_heads = fields.size("num_attention_heads")?;
    let head_dim = read_head_dim(fields, dialect, hidden_size, num_heads)?;
    let (rope_theta, rotary_dim) = read_rope(fields, dialect, head_dim)?;
    let [lightning, softmax, mlp] = read_scales(fields, dialect)?;
    Ok(Config {
        dialect,
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        num_layers: fields.size("num_hidden_layers")?,
        attention: read_attention(fields, dialect)?,
        num_heads,
        num_kv_heads: fields.size("num_key_value_heads")?,
        head_dim,
        rotary_dim,
        rope_theta,
        rms_norm_eps: fields.number("rms_norm_eps")?,
        postnorm: read_postnorm(fields, dialect)?,
        lightning,
        softmax,
        mlp,
        num_experts: fields.size("num_local_experts")?,
        experts_per_token: fields.size("num_experts_per_tok")?,
        intermediate_size: fields.size("intermediate_size")?,
        shared_intermediate_size: read_shared_width(fields)?,
        max_position_embeddings: fields.size("max_position_embeddings")?,
        tie_word_embeddings: fields.optional_flag("tie_word_embeddings")?.unwrap_or(false),
        bos_token_id: fields.optional_token("bos_token_id")?,
        eos_token_ids: fields.tokens("eos_token_id")?,
        stored_dtype: read_dtype(fields)?,
        initializer_range: fields.optional_number("initializer_range")?.unwrap_or(DEFAULT_INITIALIZER_RANGE),
        router_aux_loss_coef: fields
            .optional_number("router_aux_loss_coef")?
            .unwrap_or(DEFAULT_ROUTER_AUX_LOSS_COEF),
    })
}

fn read_dialect(fields: &Fields) -> Result<Dialect, ConfigError> {
    let name = fields.text("model_type")?;
    let dialect = Dialect::from_model_type(name).ok_or_else(|| {
        let known = Dialect::ALL.map(Dialect::model_type).join(", ");
        fields.invalid("model_type", name, format!("supported are {known}"))
    })?;
    for entry in fields.optional_list("architectures")?.unwrap_or_default() {
        if entry.as_str() != Some(dialect.architecture()) {
            let reason = format!("`model_type` {name} goes with {}", dialect.architecture());
            return Err(fields.invalid("architectures", entry, reason));
        }
    }
    Ok(dialect)
}

/// Fields that would change the computation in a way nothing here implements.
fn refuse_unsupported(fields: &Fields) -> Result<(), ConfigError> {
    let act = fields.text("hidden_act")?;
    if act != "silu" {
        return Err(fields.invalid("hidden_act", act, "only silu is supported"));
    }
    for (name, what) in [
        ("sliding_window", "attention over a window is not supported"),
        ("quantization_config", "quantized checkpoints are not supported"),
    ] {
        if let Some(value) = fields.get(name) {
            return Err(fields.invalid(name, super::fields::shortened(value), what));
        }
    }
    Ok(())
}

fn read_head_dim(
    fields: &Fields,
    dialect: Dialect,
    hidden_size: usize,
    num_heads: usize,
) -> Result<usize, ConfigError> {
    match (fields.optional_size("head_dim")?, dialect) {
        (Some(head_dim), _) => Ok(head_dim),
        (None, Dialect::MiniMax) if num_heads > 0 && hidden_size.is_multiple_of(num_heads) => {
            Ok(hidden_size / num_heads)
        }
        (None, _) => Err(fields.missing("head_dim")),
    }
}

/// Rope's base and the number of rotated channels. Since transformers 5 both may stand in
/// `rope_parameters`, in every dialect.
fn read_rope(fields: &Fields, dialect: Dialect, head_dim: usize) -> Result<(f64, usize), ConfigError> {
    for name in ["rope_parameters", "rope_scaling"] {
        refuse_scaled_rope(fields, name)?;
    }
    let inner = fields.optional_object("rope_parameters", "rope_parameters.")?;
    let either = |name: &str| -> Result<Option<f64>, ConfigError> {
        let outer = fields.optional_number(name)?;
        let inner = inner.map(|rope| rope.optional_number(name)).transpose()?.flatten();
        match (outer, inner) {
            (Some(outer), Some(inner)) if outer != inner => {
                Err(fields.invalid(name, outer, format!("`rope_parameters.{name}` is {inner}")))
            }
            (outer, inner) => Ok(outer.or(inner)),
        }
    };
    let theta = either("rope_theta")?.ok_or_else(|| fields.missing("rope_theta"))?;
    let factor = either("partial_rotary_factor")?;
    if let Some(factor) = factor.filter(|factor| !(*factor > 0.0 && *factor <= 1.0)) {
        return Err(fields.invalid(
            "partial_rotary_factor",
            factor,
            "a number above 0 and at most 1 is needed",
        ));
    }
    let by_factor = factor.map(|factor| rotated_channels(head_dim, factor));
    let stated = fields.optional_size("rotary_dim")?;
    let by_dialect = match dialect {
        Dialect::MiniMaxM1 | Dialect::MiniMaxText01 => stated.ok_or_else(|| fields.missing("rotary_dim"))?,
        Dialect::MiniMax => by_factor.unwrap_or(head_dim),
    };
    if let Some(stated) = stated.filter(|stated| by_factor.unwrap_or(by_dialect) != *stated) {
        let reason = match factor {
            Some(factor) => format!("`partial_rotary_factor` is {factor} of `head_dim` {head_dim}"),
            None => format!("`model_type` {} rotates the whole head", dialect.model_type()),
        };
        return Err(fields.invalid("rotary_dim", stated, reason));
    }
    Ok((theta, by_dialect))
}

/// `head_dim * factor` as transformers truncates it, but for a factor that was itself a rounded
/// quotient of whole numbers.
fn rotated_channels(head_dim: usize, factor: f64) -> usize {
    let channels = head_dim as f64 * factor;
    let nearest = channels.round();
    if (channels - nearest).abs() < 1e-6 { nearest as usize } else { channels as usize }
}

fn refuse_scaled_rope(fields: &Fields, name: &'static str) -> Result<(), ConfigError> {
    let prefix = if name == "rope_parameters" { "rope_parameters." } else { "rope_scaling." };
    let Some(rope) = fields.optional_object(name, prefix)? else { return Ok(()) };
    for key in ["rope_type", "type"] {
        if let Some(kind) = rope.optional_text(key)?.filter(|kind| *kind != "default") {
            return Err(rope.invalid(key, kind, "only the default rope is supported"));
        }
    }
    Ok(())
}

fn read_scales(fields: &Fields, dialect: Dialect) -> Result<[ResidualScale; 3], ConfigError> {
    let [lightning, softmax, mlp] = scale_fields(dialect).map(|(alpha, beta)| {
        Ok(ResidualScale { alpha: fields.number(alpha)? as f32, beta: fields.number(beta)? as f32 })
    });
    Ok([lightning?, softmax?, mlp?])
}

fn read_attention(fields: &Fields, dialect: Dialect) -> Result<Vec<AttentionKind>, ConfigError> {
    const KINDS: [AttentionKind; 2] = [AttentionKind::Lightning, AttentionKind::Softmax];
    let (name, known) = match dialect {
        Dialect::MiniMaxM1 | Dialect::MiniMaxText01 => {
            ("attn_type_list", "0 (lightning) and 1 (softmax) are known")
        }
        Dialect::MiniMax => ("layer_types", "linear_attention and full_attention are known"),
    };
    let kind_of = |entry: &Value| match dialect {
        Dialect::MiniMaxM1 | Dialect::MiniMaxText01 => {
            KINDS.into_iter().find(|kind| entry.as_u64() == Some(attention_number(*kind)))
        }
        Dialect::MiniMax => KINDS.into_iter().find(|kind| entry.as_str() == Some(attention_name(*kind))),
    };
    let entries = fields.list(name)?.iter().enumerate();
    entries
        .map(|(layer, entry)| {
            kind_of(entry).ok_or_else(|| {
                fields.invalid(name, format!("{entry} at layer {layer}"), format!("only {known}"))
            })
        })
        .collect()
}

fn read_postnorm(fields: &Fields, dialect: Dialect) -> Result<bool, ConfigError> {
    match dialect {
        Dialect::MiniMaxM1 | Dialect::MiniMaxText01 => fields.flag("postnorm"),
        Dialect::MiniMax => Ok(fields.optional_flag("postnorm")?.unwrap_or(true)),
    }
}

fn read_shared_width(fields: &Fields) -> Result<usize, ConfigError> {
    let width = fields.optional_size("shared_intermediate_size")?.unwrap_or(0);
    if width > 0 {
        let mode = fields.text("shared_moe_mode")?;
        if mode != "sigmoid" {
            return Err(fields.invalid("shared_moe_mode", mode, "only sigmoid is supported"));
        }
    }
    Ok(width)
}

fn read_dtype(fields: &Fields) -> Result<Option<DType>, ConfigError> {
    let read = |field: &str| -> Result<Option<DType>, ConfigError> {
        let Some(name) = fields.optional_text(field)? else { return Ok(None) };
        let dtype = DType::from_torch_name(name)
            .ok_or_else(|| fields.invalid(field, name, "only float32, bfloat16 and float16 are supported"));
        dtype.map(Some)
    };
    match (read("torch_dtype")?, read("dtype")?) {
        (Some(old), Some(new)) if old != new => {
            Err(fields.invalid("torch_dtype", old.torch_name(), format!("`dtype` is {}", new.torch_name())))
        }
        (old, new) => Ok(old.or(new)),
    }
}

/// Writes the fields of the configuration's own dialect.
pub(super) fn write(config: &Config) -> Value {
    let mut object = Map::new();
    let mut set = |name: &str, value: Value| object.insert(name.to_owned(), value);
    set("architectures", json!([config.dialect.architecture()]));
    set("model_type", json!(config.dialect.model_type()));
    set("vocab_size", json!(config.vocab_size));
    set("hidden_size", json!(config.hidden_size));
    set("intermediate_size", json!(config.intermediate_size));
    set("num_hidden_layers", json!(config.num_layers));
    set("num_attention_heads", json!(config.num_heads));
    set("num_key_value_heads", json!(config.num_kv_heads));
    set("head_dim", json!(config.head_dim));
    set("num_local_experts", json!(config.num_experts));
    set("num_experts_per_tok", json!(config.experts_per_token));
    set("max_position_embeddings", json!(config.max_position_embeddings));
    set("rms_norm_eps", json!(config.rms_norm_eps));
    set("hidden_act", json!("silu"));
    set("initializer_range", json!(config.initializer_range));
    set("router_aux_loss_coef", json!(config.router_aux_loss_coef));
    set("tie_word_embeddings", json!(config.tie_word_embeddings));
    set("bos_token_id", json!(config.bos_token_id));
    set("eos_token_id", eos_value(&config.eos_token_ids));
    set("attention_dropout", json!(0.0));
    set("output_router_logits", json!(false));
    set("router_jitter_noise", json!(0.0));
    set("sliding_window", Value::Null);
    set("use_cache", json!(true));
    for ((alpha, beta), scale) in
        config.scale_fields().into_iter().zip([config.lightning, config.softmax, config.mlp])
    {
        set(alpha, shortest(scale.alpha));
        set(beta, shortest(scale.beta));
    }
    match config.dialect {
        Dialect::MiniMaxM1 | Dialect::MiniMaxText01 => write_official(config, &mut object),
        Dialect::MiniMax => write_transformers(config, &mut object),
    }
    Value::Object(object)
}

fn write_official(config: &Config, object: &mut Map<String, Value>) {
    let kinds: Vec<u64> = config.attention.iter().copied().map(attention_number).collect();
    object.insert("attn_type_list".into(), json!(kinds));
    object.insert("rotary_dim".into(), json!(config.rotary_dim));
    object.insert("rope_theta".into(), json!(config.rope_theta));
    object.insert("postnorm".into(), json!(config.postnorm));
    object.insert("shared_intermediate_size".into(), json!(config.shared_intermediate_size));
    object.insert("shared_moe_mode".into(), json!("sigmoid"));
    if let Some(dtype) = config.stored_dtype {
        object.insert("torch_dtype".into(), json!(dtype.torch_name()));
    }
}

fn write_transformers(config: &Config, object: &mut Map<String, Value>) {
    let kinds: Vec<&str> = config.attention.iter().copied().map(attention_name).collect();
    object.insert("layer_types".into(), json!(kinds));
    let mut rope = json!({ "rope_type": "default", "rope_theta": config.rope_theta });
    if config.rotary_dim != config.head_dim {
        rope["partial_rotary_factor"] = json!(config.rotary_dim as f64 / config.head_dim as f64);
    }
    object.insert("rope_parameters".into(), rope);
    if let Some(dtype) = config.stored_dtype {
        object.insert("dtype".into(), json!(dtype.torch_name()));
    }
}

fn eos_value(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    }
}

/// A JSON number with the fewest digits that read back as the same f32.
fn shortest(value: f32) -> Value {
    json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value)))
}
