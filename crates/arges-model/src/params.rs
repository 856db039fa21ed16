//! The parameters of a model, free of any dialect, and how each is stored in one.

use crate::config::{AttentionKind, Config, Dialect};

/// One parameter of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Param {
    /// Token embedding, `[vocab_size, hidden_size]`.
    Embedding,
    /// A parameter of the layer with that index.
    Layer(usize, LayerParam),
    /// Norm after the last layer, `[hidden_size]`.
    FinalNorm,
    /// Output head, `[vocab_size, hidden_size]`; the embedding itself where they are tied.
    Head,
}

/// One parameter of a layer. Matrices are `[outputs, inputs]`; `W` is the width of all query
/// heads, `num_heads * head_dim`, `K` that of the key heads, `F` an MLP's inner width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerParam {
    /// Norm before attention, `[hidden_size]`.
    InputNorm,
    /// Norm between attention and experts, `[hidden_size]`.
    PostAttentionNorm,
    /// Lightning attention's q, k and v of one head after the other, `[3 W, hidden_size]`.
    LightningQkv,
    /// Lightning attention's output gate, `[W, hidden_size]`.
    LightningGate,
    /// Norm of lightning attention's output over all heads, `[W]`.
    LightningNorm,
    /// Lightning attention's output projection, `[hidden_size, W]`.
    LightningOut,
    /// Softmax attention's queries, `[W, hidden_size]`.
    Query,
    /// Softmax attention's keys, `[K, hidden_size]`.
    Key,
    /// Softmax attention's values, `[K, hidden_size]`.
    Value,
    /// Softmax attention's output projection, `[hidden_size, W]`.
    Output,
    /// The experts' router, `[num_experts, hidden_size]`.
    Router,
    /// Gate of an expert (`w1`), `[F, hidden_size]`; expert 0 is the plain MLP where there is one.
    ExpertGate(usize),
    /// Up projection of an expert (`w3`), `[F, hidden_size]`.
    ExpertUp(usize),
    /// Down projection of an expert (`w2`), `[hidden_size, F]`.
    ExpertDown(usize),
    /// Gate of the shared MLP, `[F, hidden_size]`.
    SharedGate,
    /// Up projection of the shared MLP, `[F, hidden_size]`.
    SharedUp,
    /// Down projection of the shared MLP, `[hidden_size, F]`.
    SharedDown,
    /// Weight of the shared MLP against the experts, `[1, hidden_size]`.
    SharedCoefficient,
}

/// A tensor that may hold a parameter, whole or among others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredAs {
    /// The tensor's name.
    pub name: String,
    /// The tensor's whole shape.
    pub shape: Vec<usize>,
    /// Row of the tensor, all leading dimensions taken together, where the parameter begins.
    pub first_row: usize,
}

impl Param {
    /// Every parameter a checkpoint of that configuration stores, in the order of computation.
    /// A tied head is not among them.
    pub fn all(config: &Config) -> impl Iterator<Item = Param> + '_ {
        let layers = (0..config.num_layers)
            .flat_map(move |layer| layer_params(config, layer).map(move |param| Param::Layer(layer, param)));
        let head = (!config.tie_word_embeddings).then_some(Param::Head);
        std::iter::once(Param::Embedding).chain(layers).chain([Param::FinalNorm]).chain(head)
    }

    /// Rows and columns; a vector of length n is `[n, 1]`.
    pub fn shape(self, config: &Config) -> [usize; 2] {
        let hidden = config.hidden_size;
        match self {
            Param::Embedding | Param::Head => [config.vocab_size, hidden],
            Param::FinalNorm => [hidden, 1],
            Param::Layer(_, param) => param.shape(config),
        }
    }

    /// Number of weights.
    pub fn elements(self, config: &Config) -> usize {
        let [rows, cols] = self.shape(config);
        rows * cols
    }

    /// Whether this is the weight of a norm, a vector; every other parameter is a matrix.
    pub fn is_norm(self) -> bool {
        use LayerParam::{InputNorm, LightningNorm, PostAttentionNorm};
        matches!(self, Param::FinalNorm | Param::Layer(_, InputNorm | PostAttentionNorm | LightningNorm))
    }

    /// The shape of the tensor in a file: one dimension for a norm, two for the rest.
    pub fn tensor_shape(self, config: &Config) -> Vec<usize> {
        let [rows, cols] = self.shape(config);
        if self.is_norm() { vec![rows] } else { vec![rows, cols] }
    }

    /// The name of the tensor in a file of the configuration's dialect, as it is written. In
    /// transformers' dialect experts are written one by one, as its own `save_pretrained` does.
    pub fn name(self, config: &Config) -> String {
        match self {
            Param::Embedding => "model.embed_tokens.weight".into(),
            Param::FinalNorm => "model.norm.weight".into(),
            Param::Head if config.tie_word_embeddings => Param::Embedding.name(config),
            Param::Head => "lm_head.weight".into(),
            Param::Layer(layer, param) => format!("model.layers.{layer}.{}", param.suffix(config)),
        }
    }

    /// Every way the parameter may be stored in the configuration's dialect, that of
    /// [`Param::name`] first.
    pub(crate) fn stored_as(self, config: &Config) -> Vec<StoredAs> {
        let whole = |name| StoredAs { name, shape: self.tensor_shape(config), first_row: 0 };
        let mut forms = vec![whole(self.name(config))];
        if config.dialect == Dialect::MiniMax
            && let Param::Layer(layer, param) = self
        {
            if let Some(suffix) = param.suffix(config).strip_prefix("block_sparse_moe.") {
                forms.push(whole(format!("model.layers.{layer}.mlp.{suffix}")));
            }
            forms.extend(param.fused_as(config, layer));
        }
        forms
    }
}

fn layer_params(config: &Config, layer: usize) -> impl Iterator<Item = LayerParam> + use<> {
    use LayerParam::*;
    let attention: &[LayerParam] = match config.attention[layer] {
        AttentionKind::Lightning => &[LightningQkv, LightningGate, LightningNorm, LightningOut],
        AttentionKind::Softmax => &[Query, Key, Value, Output],
    };
    let shared: &[LayerParam] = match config.has_shared_mlp() {
        true => &[SharedGate, SharedUp, SharedDown, SharedCoefficient],
        false => &[],
    };
    let experts = (0..config.num_experts).flat_map(|e| [ExpertGate(e), ExpertUp(e), ExpertDown(e)]);
    std::iter::once(InputNorm)
        .chain(attention.iter().copied())
        .chain([PostAttentionNorm])
        .chain(config.has_router().then_some(Router))
        .chain(experts)
        .chain(shared.iter().copied())
}

impl LayerParam {
    fn shape(self, config: &Config) -> [usize; 2] {
        use LayerParam::*;
        let hidden = config.hidden_size;
        let (width, kv_width) = (config.query_width(), config.kv_width());
        match self {
            InputNorm | PostAttentionNorm => [hidden, 1],
            LightningQkv => [3 * width, hidden],
            LightningNorm => [width, 1],
            LightningGate | Query => [width, hidden],
            LightningOut | Output => [hidden, width],
            Key | Value => [kv_width, hidden],
            Router => [config.num_experts, hidden],
            ExpertGate(_) | ExpertUp(_) => [config.intermediate_size, hidden],
            ExpertDown(_) => [hidden, config.intermediate_size],
            SharedGate | SharedUp => [config.shared_intermediate_size, hidden],
            SharedDown => [hidden, config.shared_intermediate_size],
            SharedCoefficient => [1, hidden],
        }
    }

    /// The tensor's name after `model.layers.{layer}.`.
    fn suffix(self, config: &Config) -> String {
        use LayerParam::*;
        let expert = |expert: usize, routed: &str, plain: &str| match config.has_router() {
            true => format!("block_sparse_moe.experts.{expert}.{routed}.weight"),
            false => format!("mlp.{plain}.weight"),
        };
        let fixed = match self {
            InputNorm => "input_layernorm.weight",
            PostAttentionNorm => "post_attention_layernorm.weight",
            LightningQkv => "self_attn.qkv_proj.weight",
            LightningGate => "self_attn.output_gate.weight",
            LightningNorm => "self_attn.norm.weight",
            LightningOut => "self_attn.out_proj.weight",
            Query => "self_attn.q_proj.weight",
            Key => "self_attn.k_proj.weight",
            Value => "self_attn.v_proj.weight",
            Output => "self_attn.o_proj.weight",
            Router => "block_sparse_moe.gate.weight",
            SharedGate => SHARED_GATE,
            SharedUp => "shared_mlp.up_proj.weight",
            SharedDown => "shared_mlp.down_proj.weight",
            SharedCoefficient => "coefficient.weight",
            ExpertGate(e) => return expert(e, "w1", "gate_proj"),
            ExpertUp(e) => return expert(e, "w3", "up_proj"),
            ExpertDown(e) => return expert(e, "w2", "down_proj"),
        };
        fixed.into()
    }

    /// transformers' fused experts: `gate_up_proj` `[E, 2 F, hidden_size]`, gate before up, and
    /// `down_proj` `[E, hidden_size, F]`.
    fn fused_as(self, config: &Config, layer: usize) -> Vec<StoredAs> {
        let (experts, inner, hidden) = (config.num_experts, config.intermediate_size, config.hidden_size);
        let (suffix, shape, first_row) = match self {
            LayerParam::ExpertGate(e) => ("gate_up_proj", vec![experts, 2 * inner, hidden], e * 2 * inner),
            LayerParam::ExpertUp(e) => {
                ("gate_up_proj", vec![experts, 2 * inner, hidden], e * 2 * inner + inner)
            }
            LayerParam::ExpertDown(e) => ("down_proj", vec![experts, hidden, inner], e * hidden),
            _ => return Vec::new(),
        };
        ["mlp", "block_sparse_moe"]
            .map(|module| StoredAs {
                name: format!("model.layers.{layer}.{module}.experts.{suffix}"),
                shape: shape.clone(),
                first_row,
            })
            .into()
    }
}

const SHARED_GATE: &str = "shared_mlp.gate_proj.weight";

/// The tensor whose first dimension is the width of the shared MLP.
pub(crate) fn shared_width_tensor() -> String {
    format!("model.layers.0.{SHARED_GATE}")
}

/// Whether a tensor of that name is no parameter but a value to be recomputed: transformers
/// stores the decays of lightning attention as buffers.
pub(crate) fn is_derived(name: &str, config: &Config) -> bool {
    const BUFFERS: [&str; 4] = ["slope_rate", "query_decay", "key_decay", "diagonal_decay"];
    let parse = || {
        let (layer, buffer) = name.strip_prefix("model.layers.")?.split_once(".self_attn.")?;
        let kind = config.attention.get(layer.parse::<usize>().ok()?)?;
        Some(*kind == AttentionKind::Lightning && BUFFERS.contains(&buffer))
    };
    config.dialect == Dialect::MiniMax && parse().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::synth::SynthShape;

    #[test]
    fn no_two_parameters_share_a_name_in_any_dialect() {
        for dialect in Dialect::ALL {
            for experts in [1, 4] {
                let shared_intermediate = if dialect == Dialect::MiniMax { 0 } else { 24 };
                let shape = SynthShape {
                    dialect,
                    experts,
                    experts_per_token: 1,
                    shared_intermediate,
                    ..SynthShape::default()
                };
                let config = shape.config().unwrap();
                let names: Vec<String> = Param::all(&config).map(|param| param.name(&config)).collect();
                let distinct: HashSet<&String> = names.iter().collect();
                assert_eq!(distinct.len(), names.len());
            }
        }
    }

    #[test]
    fn a_single_expert_is_a_plain_mlp_except_in_the_transformers_dialect() {
        let config = |dialect| {
            SynthShape { dialect, experts: 1, experts_per_token: 1, ..SynthShape::default() }
                .config()
                .unwrap()
        };
        let name = |config: &Config| Param::Layer(0, LayerParam::ExpertUp(0)).name(config);
        assert_eq!(name(&config(Dialect::MiniMaxM1)), "model.layers.0.mlp.up_proj.weight");
        assert_eq!(name(&config(Dialect::MiniMax)), "model.layers.0.block_sparse_moe.experts.0.w3.weight");
    }

    #[test]
    fn decay_buffers_are_derived_in_the_transformers_dialect_alone() {
        let hf = SynthShape { dialect: Dialect::MiniMax, ..SynthShape::default() }.config().unwrap();
        let m1 = SynthShape::default().config().unwrap();
        let name = "model.layers.0.self_attn.slope_rate";
        assert!(is_derived(name, &hf));
        assert!(!is_derived(name, &m1));
        assert!(!is_derived("model.layers.7.self_attn.slope_rate", &hf), "layer 7 is softmax attention");
        assert!(!is_derived("model.layers.99.self_attn.slope_rate", &hf));
        assert!(!is_derived("model.layers.0.self_attn.norm.weight", &hf));
    }
}
