use arges_model::synth::SynthShape;
use arges_model::{Accounting, Checkpoint, Config, DType, Param};

use crate::support::{golden, m1_file};

fn close(found: f64, expected: f64, tolerance: f64) -> bool {
    (found - expected).abs() <= tolerance * expected
}

#[test]
fn minimax_m1_has_the_published_sizes() {
    let Some(file) = m1_file("config.json") else { return };
    let config = Config::from_file(&file).unwrap();
    let million = Accounting::of(&config, 1 << 20, 1, DType::Bf16, DType::Bf16);
    assert_eq!(million.parameters.total, 456_089_655_296);
    assert!(close(million.parameters.active as f64, 45.9e9, 0.002), "{}", million.parameters.active);
    assert_eq!(million.parameters.active_with_head - million.parameters.active, 200_064 * 6144);
    assert_eq!(million.memory.weights, 912_179_310_592);
    assert_eq!(million.memory.state_per_sequence, 280 << 20);
    assert_eq!(million.memory.kv_per_token, 40 << 10);
    assert_eq!(million.memory.kv, 40 << 30);
    let token = &million.flops.decode_token;
    assert!(close(token.projections + token.experts, 92e9, 0.005), "{token:?}");
    assert!(close(token.lightning, 0.37e9, 0.01), "{}", token.lightning);
    let attention = token.softmax / (token.softmax + token.lightning);
    assert!(attention > 0.95, "softmax is {attention} of attention at a million tokens");

    let text = million.to_string();
    for said in ["456.1 B", "45.9 B", "40.0 GiB", "280.0 MiB", "849.5 GiB"] {
        assert!(text.contains(said), "{text} lacks {said}");
    }
    let json = serde_json::to_value(&million).unwrap();
    assert_eq!(json["parameters"]["total"], 456_089_655_296u64);
    assert_eq!(json["weight_dtype"], "bf16");
}

#[test]
fn the_measured_models_have_the_sizes_they_were_measured_with() {
    // Models A and B of the CPU comparison: millions of weights, all and active with the head.
    let b = SynthShape {
        hidden: 1536,
        layers: 16,
        heads: 16,
        kv_heads: 4,
        head_dim: 128,
        rotary_dim: 64,
        experts: 16,
        intermediate: 1280,
        vocab: 32_000,
        ..SynthShape::default()
    };
    for (shape, total, active) in [(SynthShape::default(), 118.9e6, 39.2e6), (b, 1845e6, 474e6)] {
        let accounting = Accounting::of(&shape.config().unwrap(), 1024, 1, DType::Bf16, DType::Bf16);
        assert!(close(accounting.parameters.total as f64, total, 0.001), "{accounting}");
        assert!(close(accounting.parameters.active_with_head as f64, active, 0.002), "{accounting}");
    }
}

#[test]
fn the_parts_add_up_and_the_weights_are_those_of_the_checkpoint() {
    let checkpoint = Checkpoint::open(&golden("tiny-m1/fp32")).unwrap();
    let config = checkpoint.config();
    let accounting = Accounting::of(config, 100, 3, DType::F32, DType::F32);
    assert_eq!(accounting.memory.weights, checkpoint.weight_bytes() as u64);
    let p = &accounting.parameters;
    let parts =
        p.embedding + p.head + p.lightning + p.softmax + p.experts + p.routers + p.shared_mlp + p.norms;
    assert_eq!(p.total, parts);
    // Half of the four experts of each of the eight layers are chosen.
    assert_eq!(p.experts - 8 * 2 * 3 * 96 * 64, p.total - p.embedding - p.head - p.active);
    // One softmax layer: 2 heads of 32, keys and values, f32, 100 tokens, 3 sequences.
    assert_eq!(accounting.memory.kv, 2 * 32 * 2 * 4 * 100 * 3);
    assert_eq!(accounting.memory.state, 7 * 4 * 32 * 32 * 4 * 3);
    let m = &accounting.memory;
    assert_eq!(m.total, m.weights + m.kv + m.state);
    let decode = &accounting.flops.decode_token;
    // Scores and values: 2 FLOPs each for 4 heads of 32 channels over 100 tokens.
    assert_eq!(decode.softmax, 4.0 * 128.0 * 100.0);
    assert_eq!(accounting.flops.prefill_token.softmax, 4.0 * 128.0 * 50.5);
    assert_eq!(decode.head, 2.0 * Param::Head.elements(config) as f64);
    assert_eq!(accounting.flops.prefill_token.head, 0.0);
}

#[test]
fn a_shared_mlp_and_a_tied_head_are_counted_once() {
    let shape = SynthShape { shared_intermediate: 256, tie_embeddings: true, ..SynthShape::default() };
    let accounting = Accounting::of(&shape.config().unwrap(), 1, 1, DType::Bf16, DType::Bf16);
    assert_eq!(accounting.parameters.shared_mlp, 8 * (3 * 256 * 512 + 512));
    assert_eq!(accounting.parameters.head, 0);
    assert_eq!(accounting.parameters.active_with_head - accounting.parameters.active, 8192 * 512);
    let plain = Accounting::of(&SynthShape::default().config().unwrap(), 1, 1, DType::Bf16, DType::Bf16);
    assert_eq!(accounting.parameters.active - plain.parameters.active, accounting.parameters.shared_mlp);
}

#[test]
fn absurd_contexts_do_not_overflow() {
    let config = SynthShape::default().config().unwrap();
    let accounting = Accounting::of(&config, u64::MAX, u64::MAX, DType::F32, DType::F32);
    assert_eq!(accounting.memory.total, u64::MAX);
    assert!(accounting.to_string().contains("PiB"));
}

#[test]
fn the_largest_configuration_that_is_accepted_does_not_overflow() {
    let shape = SynthShape {
        hidden: 1 << 17,
        layers: 1 << 10,
        heads: 1 << 12,
        kv_heads: 1 << 12,
        head_dim: 1 << 12,
        rotary_dim: 1 << 12,
        softmax_every: 2,
        experts: 1 << 12,
        experts_per_token: 1 << 12,
        intermediate: 1 << 18,
        shared_intermediate: 1 << 18,
        vocab: 1 << 24,
        max_positions: 1 << 40,
        ..SynthShape::default()
    };
    let accounting = Accounting::of(&shape.config().unwrap(), 1, 1, DType::F32, DType::F32);
    assert!(accounting.memory.total < 1 << 63);
    assert!(accounting.parameters.active < accounting.parameters.total);
    for shape in [
        SynthShape { hidden: (1 << 17) + 1, ..shape.clone() },
        SynthShape { experts: (1 << 12) + 1, ..shape.clone() },
        SynthShape { layers: (1 << 10) + 1, ..shape },
    ] {
        assert!(shape.config().is_err());
    }
}
