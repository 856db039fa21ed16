//! What a model costs, from its configuration alone: parameters, memory and arithmetic.

mod display;

use serde::Serialize;

use crate::config::{AttentionKind, Config};
use crate::dtype::DType;
use crate::params::{LayerParam, Param};

/// Tokens of a chunk of lightning attention, on the absolute grid counted from a sequence's start.
const CHUNK: f64 = 64.0;

/// Parameters, memory and arithmetic of a model at one context length and batch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Accounting {
    pub model_type: &'static str,
    /// Tokens of each sequence.
    pub context: u64,
    /// Sequences held at once.
    pub batch: u64,
    pub weight_dtype: DType,
    pub kv_dtype: DType,
    pub layers: Layers,
    pub parameters: Parameters,
    pub memory: Memory,
    pub flops: Flops,
}

/// Layers by the kind of their attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Layers {
    pub total: u64,
    pub lightning: u64,
    pub softmax: u64,
    /// Experts of each layer, and how many of them see one token.
    pub experts: u64,
    pub experts_per_token: u64,
}

/// Numbers of weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// All weights of the checkpoint.
    pub total: u64,
    /// Weights of the layers that one token passes through: attention, norms, router, the chosen
    /// experts and the shared MLP. The tables of embedding and head are left out, as in the
    /// published 45.9 B of MiniMax-M1.
    pub active: u64,
    /// `active` and the head, whose weights all take part in every sampled token.
    pub active_with_head: u64,
    pub embedding: u64,
    /// The output head; 0 where it is the embedding.
    pub head: u64,
    /// Projections of lightning attention in all its layers.
    pub lightning: u64,
    /// Projections of softmax attention in all its layers.
    pub softmax: u64,
    pub routers: u64,
    /// All experts of all layers.
    pub experts: u64,
    pub shared_mlp: u64,
    pub norms: u64,
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    pub weights: u64,
    /// Keys and values of one token in all softmax layers.
    pub kv_per_token: u64,
    /// Keys and values of the whole batch at the context.
    pub kv: u64,
    /// States of one sequence in all lightning layers: f32 always.
    pub state_per_sequence: u64,
    /// States of the whole batch.
    pub state: u64,
    /// Weights, keys and values, and states.
    pub total: u64,
}

/// Floating-point operations, a multiplication and an addition counting as two.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Flops {
    /// One token of a prompt as long as the context, on average over its positions. The head runs
    /// once a prompt and is left out.
    pub prefill_token: TokenFlops,
    /// One generated token that sees the whole context.
    pub decode_token: TokenFlops,
}

/// Floating-point operations of one token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TokenFlops {
    pub total: f64,
    /// Projections of attention.
    pub projections: f64,
    /// Router, chosen experts and shared MLP.
    pub experts: f64,
    /// Lightning attention itself, in chunks of 64.
    pub lightning: f64,
    /// Scores and weighted values of softmax attention.
    pub softmax: f64,
    pub head: f64,
}

impl Accounting {
    /// Accounts for a validated configuration with `context` tokens in each of `batch` sequences.
    pub fn of(config: &Config, context: u64, batch: u64, weight_dtype: DType, kv_dtype: DType) -> Accounting {
        let layers = Layers {
            total: config.num_layers as u64,
            lightning: config.count(AttentionKind::Lightning) as u64,
            softmax: config.count(AttentionKind::Softmax) as u64,
            experts: config.num_experts as u64,
            experts_per_token: config.experts_per_token as u64,
        };
        let parameters = Parameters::of(config);
        Accounting {
            model_type: config.dialect.model_type(),
            context,
            batch,
            weight_dtype,
            kv_dtype,
            memory: Memory::of(config, &layers, &parameters, context, batch, weight_dtype, kv_dtype),
            flops: Flops::of(config, &layers, &parameters, context),
            layers,
            parameters,
        }
    }
}

impl Parameters {
    fn of(config: &Config) -> Parameters {
        let mut sums = Parameters::default();
        for param in Param::all(config) {
            let weights = param.elements(config) as u64;
            sums.total += weights;
            *sums.part_of(param) += weights;
        }
        let chosen_experts = sums.experts / config.num_experts as u64 * config.experts_per_token as u64;
        sums.active = sums.total - sums.embedding - sums.head - sums.experts + chosen_experts;
        sums.active_with_head = sums.active + Param::Head.elements(config) as u64;
        sums
    }

    fn part_of(&mut self, param: Param) -> &mut u64 {
        use LayerParam::*;
        match param {
            Param::Embedding => &mut self.embedding,
            Param::Head => &mut self.head,
            Param::FinalNorm => &mut self.norms,
            Param::Layer(_, param) => match param {
                InputNorm | PostAttentionNorm | LightningNorm => &mut self.norms,
                LightningQkv | LightningGate | LightningOut => &mut self.lightning,
                Query | Key | Value | Output => &mut self.softmax,
                Router => &mut self.routers,
                ExpertGate(_) | ExpertUp(_) | ExpertDown(_) => &mut self.experts,
                SharedGate | SharedUp | SharedDown | SharedCoefficient => &mut self.shared_mlp,
            },
        }
    }
}

impl Memory {
    fn of(
        config: &Config,
        layers: &Layers,
        parameters: &Parameters,
        context: u64,
        batch: u64,
        weight_dtype: DType,
        kv_dtype: DType,
    ) -> Memory {
        let weights = parameters.total * weight_dtype.size() as u64;
        let kv_per_token = layers.softmax * 2 * (config.kv_width() * kv_dtype.size()) as u64;
        let state = config.query_width() * config.head_dim * DType::F32.size();
        let state_per_sequence = layers.lightning * state as u64;
        let kv = kv_per_token.saturating_mul(context).saturating_mul(batch);
        let state = state_per_sequence.saturating_mul(batch);
        let total = weights.saturating_add(kv).saturating_add(state);
        Memory { weights, kv_per_token, kv, state_per_sequence, state, total }
    }
}

impl Flops {
    fn of(config: &Config, layers: &Layers, parameters: &Parameters, context: u64) -> Flops {
        let width = config.query_width() as f64;
        let chosen = config.experts_per_token as f64 / config.num_experts as f64;
        let experts = parameters.experts as f64 * chosen;
        // Per head of width D and token: reading and writing the state, 2 D^2 each; then on average
        // (C + 1) / 2 tokens of the chunk, 2 D for the score and 2 D for the value of each.
        let lightning_layer = width * (4.0 * config.head_dim as f64 + 2.0 * (CHUNK + 1.0));
        let token = |attended: f64, head: f64| {
            let parts = TokenFlops {
                total: 0.0,
                projections: 2.0 * (parameters.lightning + parameters.softmax) as f64,
                experts: 2.0 * (experts + (parameters.routers + parameters.shared_mlp) as f64),
                lightning: layers.lightning as f64 * lightning_layer,
                softmax: layers.softmax as f64 * 4.0 * width * attended,
                head,
            };
            let total = parts.projections + parts.experts + parts.lightning + parts.softmax + parts.head;
            TokenFlops { total, ..parts }
        };
        let context = context as f64;
        Flops {
            prefill_token: token((context + 1.0) / 2.0, 0.0),
            decode_token: token(context, 2.0 * Param::Head.elements(config) as f64),
        }
    }
}
