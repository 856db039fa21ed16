use std::fs;
use std::path::Path;

use arges_model::config::ResidualScale;
use arges_model::{AttentionKind, Config, DType, Dialect};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{GOLDEN, golden, json as read_json, m1_file, small_config};

const ALPHA: f32 = 3.556_558_8;

fn read(value: &Value) -> Result<Config, String> {
    Config::from_json(&value.to_string(), Path::new("dir/config.json")).map_err(|error| error.to_string())
}

/// The configuration with some fields set, or removed where the value is `"<removed>"`.
fn changed(base: &Value, changes: &[(&str, Value)]) -> Value {
    let mut value = base.clone();
    let object = value.as_object_mut().unwrap();
    for (field, change) in changes {
        match change.as_str() {
            Some("<removed>") => drop(object.remove(*field).unwrap()),
            _ => drop(object.insert((*field).to_owned(), change.clone())),
        }
    }
    value
}

#[track_caller]
fn assert_refused(base: &Value, changes: &[(&str, Value)], field: &str, said: &str) {
    let error = read(&changed(base, changes)).expect_err("should be refused");
    assert!(error.contains("dir/config.json"), "{error:?} does not name the file");
    assert!(error.contains(&format!("field `{field}`")), "{error:?} does not name {field}");
    assert!(error.contains(said), "{error:?} lacks {said:?}");
}

fn official() -> Value {
    read_json(&golden("tiny-m1/fp32/config.json"))
}

fn transformers() -> Value {
    read_json(&golden("tiny-minimax-hf/fp32/config.json"))
}

#[test]
fn the_three_golden_configurations_are_read() {
    use AttentionKind::{Lightning as L, Softmax as S};
    let scale = ResidualScale { alpha: ALPHA, beta: 1.0 };

    let m1 = Config::from_dir(&golden("tiny-m1/fp32")).unwrap();
    assert_eq!(m1.dialect, Dialect::MiniMaxM1);
    assert_eq!(m1.attention, [L, L, L, L, L, L, L, S]);
    assert_eq!((m1.vocab_size, m1.hidden_size, m1.num_layers), (512, 64, 8));
    assert_eq!((m1.num_heads, m1.num_kv_heads, m1.head_dim, m1.rotary_dim), (4, 2, 32, 16));
    assert_eq!((m1.num_experts, m1.experts_per_token, m1.intermediate_size), (4, 2, 96));
    assert_eq!((m1.lightning, m1.softmax, m1.mlp), (scale, scale, scale));
    assert_eq!((m1.rope_theta, m1.rms_norm_eps), (1e7, 1e-5));
    assert!(m1.postnorm && !m1.tie_word_embeddings && !m1.has_shared_mlp() && m1.is_moe());
    assert_eq!((m1.stored_dtype, m1.max_position_embeddings), (Some(DType::F32), 8192));
    assert_eq!((m1.bos_token_id, m1.eos_token_ids), (None, vec![]));

    let text01 = Config::from_dir(&golden("tiny-text01/fp32")).unwrap();
    assert_eq!(text01.dialect, Dialect::MiniMaxText01);
    assert_eq!(text01.attention, [L, S, L, S]);
    assert_eq!((text01.num_heads, text01.query_width(), text01.kv_width()), (6, 96, 48));

    let hf = Config::from_dir(&golden("tiny-minimax-hf/fp32")).unwrap();
    assert_eq!(hf.dialect, Dialect::MiniMax);
    assert_eq!(hf.attention, [L, L, S, L]);
    assert_eq!((hf.head_dim, hf.rotary_dim, hf.rope_theta), (32, 32, 1e7));
    assert_eq!((hf.lightning, hf.softmax, hf.mlp), (scale, scale, scale));
    assert!(hf.postnorm);
    assert_eq!(hf.stored_dtype, Some(DType::F32));
}

#[test]
fn the_configuration_of_minimax_m1_is_read() {
    let Some(file) = m1_file("config.json") else { return };
    let config = Config::from_file(&file).unwrap();
    assert_eq!((config.num_layers, config.count(AttentionKind::Softmax)), (80, 10));
    assert!((0..80).all(|l| (config.attention[l] == AttentionKind::Softmax) == (l % 8 == 7)));
    assert_eq!((config.query_width(), config.kv_width(), config.rotary_dim), (8192, 1024, 64));
    assert_eq!((config.vocab_size, config.max_position_embeddings), (200_064, 10_240_000));
    assert_eq!(config.stored_dtype, None);
    let block = Config::from_file(&m1_file("config-8layer.json").unwrap()).unwrap();
    assert_eq!((block.num_layers, block.hidden_size, block.stored_dtype), (8, 6144, Some(DType::Bf16)));
}

#[test]
fn what_is_written_reads_back_equal_in_every_dialect() {
    for name in GOLDEN {
        let config = Config::from_dir(&golden(name)).unwrap();
        assert_eq!(read(&config.to_json()), Ok(config), "{name}");
    }
    for dialect in Dialect::ALL {
        let mut config = small_config(dialect);
        config.bos_token_id = Some(1);
        config.eos_token_ids = vec![2, 3];
        config.tie_word_embeddings = true;
        config.stored_dtype = Some(DType::F16);
        (config.head_dim, config.rotary_dim) = (98, 58);
        config.softmax = ResidualScale { alpha: 0.1, beta: 1.0 / 3.0 };
        assert_eq!(read(&config.to_json()), Ok(config));
    }
}

#[test]
fn a_written_configuration_keeps_the_fields_and_values_it_was_read_from() {
    for (base, digits) in [(official(), "3.5565588"), (transformers(), "3.5565588")] {
        let written = read(&base).unwrap().to_json();
        for (field, value) in base.as_object().unwrap() {
            let ignored = ["transformers_version", "pad_token_id", "block_size"].contains(&field.as_str());
            let dtype = ["dtype", "torch_dtype"].contains(&field.as_str());
            if ignored {
                continue;
            }
            let found = &written[field.as_str()];
            if field.contains("alpha") {
                assert_eq!(found.to_string(), digits);
            } else if dtype || !value.is_number() {
                assert_eq!(found, value, "{field}");
            } else {
                assert_eq!(found.as_f64(), value.as_f64(), "{field}");
            }
        }
    }
}

#[test]
fn every_field_the_model_needs_is_missed_by_name() {
    let shared = [
        "model_type",
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "num_local_experts",
        "num_experts_per_tok",
        "intermediate_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "hidden_act",
    ];
    let official_only = [
        "attn_type_list",
        "head_dim",
        "rotary_dim",
        "rope_theta",
        "postnorm",
        "layernorm_full_attention_alpha",
        "layernorm_full_attention_beta",
        "layernorm_linear_attention_alpha",
        "layernorm_linear_attention_beta",
        "layernorm_mlp_alpha",
        "layernorm_mlp_beta",
    ];
    let transformers_only = [
        "layer_types",
        "full_attn_alpha_factor",
        "full_attn_beta_factor",
        "linear_attn_alpha_factor",
        "linear_attn_beta_factor",
        "mlp_alpha_factor",
        "mlp_beta_factor",
    ];
    for (base, own) in [(official(), &official_only[..]), (transformers(), &transformers_only[..])] {
        for field in shared.iter().chain(own) {
            assert_refused(&base, &[(field, json!("<removed>"))], field, "is missing");
            assert_refused(&base, &[(field, Value::Null)], field, "is missing");
            assert_refused(&base, &[(field, json!({}))], field, "should be");
        }
    }
    let no_theta = [("rope_parameters", json!({ "rope_type": "default" }))];
    assert_refused(&transformers(), &no_theta, "rope_theta", "is missing");
}

#[test]
fn every_contradiction_names_a_field_and_the_reason() {
    let base = official();
    for (field, value, said) in [
        ("attn_type_list", json!([0, 1]), "`num_hidden_layers` is 8"),
        ("attn_type_list", json!([0, 0, 0, 0, 0, 0, 0, 2]), "2 at layer 7"),
        ("attn_type_list", json!([0, 0, 0, "1", 0, 0, 0, 1]), "at layer 3"),
        ("attn_type_list", json!("0,1"), "should be a list"),
        ("num_key_value_heads", json!(3), "`num_attention_heads`, 4, is not a multiple"),
        ("num_key_value_heads", json!(0), "a size from 1"),
        ("rotary_dim", json!(15), "even"),
        ("rotary_dim", json!(0), "even"),
        ("rotary_dim", json!(34), "`head_dim` is only 32"),
        ("num_experts_per_tok", json!(5), "`num_local_experts` is only 4"),
        ("num_experts_per_tok", json!(0), "a size from 1"),
        ("num_local_experts", json!([4, 4]), "a whole number"),
        ("hidden_act", json!("gelu"), "only silu"),
        ("hidden_act", json!(1), "a string"),
        ("sliding_window", json!(4096), "not supported"),
        ("quantization_config", json!({ "bits": 4 }), "not supported"),
        ("hidden_size", json!(0), "a size from 1"),
        ("hidden_size", json!(-64), "a whole number"),
        ("hidden_size", json!(64.5), "a whole number"),
        ("hidden_size", json!("64"), "a whole number"),
        ("hidden_size", json!(u64::MAX), "a size from 1 to"),
        ("vocab_size", json!(1u64 << 40), "a size from 1 to"),
        ("num_hidden_layers", json!(1u64 << 60), "a size from 1 to"),
        ("head_dim", json!(1u64 << 50), "a size from 1 to"),
        ("intermediate_size", json!(0), "a size from 1 to"),
        ("shared_intermediate_size", json!(1u64 << 50), "at most"),
        ("max_position_embeddings", json!(0), "a size from 1"),
        ("rope_theta", json!(0), "a positive number"),
        ("rope_theta", json!("1e7"), "a number"),
        ("rms_norm_eps", json!(-1e-5), "above 0"),
        ("rms_norm_eps", json!(1.0), "below 1"),
        ("layernorm_mlp_alpha", json!(1e300), "finite"),
        ("initializer_range", json!(-0.1), "from 0"),
        ("postnorm", json!(1), "true or false"),
        ("tie_word_embeddings", json!("yes"), "true or false"),
        ("torch_dtype", json!("float8_e4m3fn"), "only float32, bfloat16 and float16"),
        ("dtype", json!("float16"), "`dtype` is float16"),
        ("eos_token_id", json!(512), "`vocab_size` is only 512"),
        ("eos_token_id", json!([1, -2]), "a list of token ids"),
        ("bos_token_id", json!([1]), "a token id or null"),
        ("model_type", json!("minimax_m2"), "supported are minimax_m1, minimax_text_01, minimax"),
        ("architectures", json!(["MiniMaxText01ForCausalLM"]), "MiniMaxM1ForCausalLM"),
        ("architectures", json!("MiniMaxM1ForCausalLM"), "a list"),
        ("partial_rotary_factor", json!(1.5), "at most 1"),
    ] {
        let named = match field {
            "dtype" => "torch_dtype",
            other => other,
        };
        assert_refused(&base, &[(field, value)], named, said);
    }
    assert_refused(&base, &[("partial_rotary_factor", json!(0.25))], "rotary_dim", "0.25 of `head_dim` 32");
    assert_refused(
        &base,
        &[("shared_intermediate_size", json!(32)), ("shared_moe_mode", json!("softmax"))],
        "shared_moe_mode",
        "only sigmoid",
    );
    assert_refused(
        &base,
        &[("shared_intermediate_size", json!(32)), ("shared_moe_mode", json!("<removed>"))],
        "shared_moe_mode",
        "is missing",
    );
    let scaled = [("rope_scaling", json!({ "type": "yarn", "factor": 4.0 }))];
    assert_refused(&base, &scaled, "rope_scaling.type", "only the default rope");
}

#[test]
fn contradictions_of_the_transformers_dialect_name_a_field_and_the_reason() {
    let base = transformers();
    for (field, value, named, said) in [
        ("layer_types", json!(["full_attention"]), "layer_types", "`num_hidden_layers` is 4"),
        ("layer_types", json!(vec!["sliding_attention"; 4]), "layer_types", "at layer 0"),
        ("layer_types", json!([0, 0, 1, 0]), "layer_types", "0 at layer 0"),
        ("rope_theta", json!(1e6), "rope_theta", "`rope_parameters.rope_theta` is 10000000"),
        ("rope_parameters", json!({ "rope_theta": "x" }), "rope_parameters.rope_theta", "a number"),
        (
            "rope_parameters",
            json!({ "rope_theta": 1e7, "rope_type": "yarn" }),
            "rope_parameters.rope_type",
            "default",
        ),
        ("rope_parameters", json!(7), "rope_parameters", "an object"),
        ("rotary_dim", json!(16), "rotary_dim", "rotates the whole head"),
        ("partial_rotary_factor", json!(0.1), "partial_rotary_factor", "even"),
        ("partial_rotary_factor", json!(0.0), "partial_rotary_factor", "above 0"),
        ("postnorm", json!(false), "postnorm", "always"),
        ("architectures", json!(["MiniMaxM2ForCausalLM"]), "architectures", "MiniMaxForCausalLM"),
    ] {
        assert_refused(&base, &[(field, value)], named, said);
    }
    let odd_heads = [("head_dim", Value::Null), ("num_attention_heads", json!(6))];
    assert_refused(&base, &odd_heads, "head_dim", "is missing");
    let shared = [("shared_intermediate_size", json!(8)), ("shared_moe_mode", json!("sigmoid"))];
    assert_refused(&base, &shared, "shared_intermediate_size", "no shared MLP");
}

#[test]
fn the_transformers_dialect_takes_older_spellings_and_its_own_defaults() {
    let base = transformers();
    let older = changed(
        &base,
        &[
            ("rope_parameters", json!("<removed>")),
            ("rope_theta", json!(5e6)),
            ("dtype", json!("<removed>")),
            ("torch_dtype", json!("bfloat16")),
            ("head_dim", json!(null)),
            ("rope_scaling", json!(null)),
        ],
    );
    let config = read(&older).unwrap();
    assert_eq!((config.rope_theta, config.head_dim, config.rotary_dim), (5e6, 16, 16));
    assert_eq!(config.stored_dtype, Some(DType::Bf16));

    let partial = json!({ "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.5 });
    let config = read(&changed(&base, &[("rope_parameters", partial), ("rotary_dim", json!(16))])).unwrap();
    assert_eq!(config.rotary_dim, 16);
}

#[test]
fn an_official_configuration_saved_by_newer_transformers_is_read() {
    let rope = json!({ "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.5 });
    let saved = changed(
        &official(),
        &[
            ("rope_theta", json!("<removed>")),
            ("rope_parameters", rope),
            ("torch_dtype", json!("<removed>")),
            ("dtype", json!("float32")),
        ],
    );
    assert_eq!(read(&saved), read(&official()));
}

#[test]
fn end_tokens_are_one_a_list_or_none_and_join_those_for_generation() {
    let base = official();
    let eos = |value: Value| read(&changed(&base, &[("eos_token_id", value)])).unwrap().eos_token_ids;
    assert_eq!(eos(Value::Null), [0u32; 0]);
    assert_eq!(eos(json!(7)), [7]);
    assert_eq!(eos(json!([7, 9])), [7, 9]);

    let directory = tempfile::tempdir().unwrap();
    let config = changed(&base, &[("eos_token_id", json!(7))]);
    fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    let generation = directory.path().join("generation_config.json");
    fs::write(&generation, r#"{"eos_token_id": [9, 7]}"#).unwrap();
    assert_eq!(Config::from_dir(directory.path()).unwrap().eos_token_ids, [7, 9]);
    fs::write(&generation, r#"{"eos_token_id": 512}"#).unwrap();
    let error = Config::from_dir(directory.path()).unwrap_err().to_string();
    assert!(error.contains("generation_config.json: field `eos_token_id` is 512"), "{error}");
}

#[test]
fn a_file_that_is_absent_or_no_json_object_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let message = || Config::from_dir(directory.path()).unwrap_err().to_string();
    assert!(message().contains("cannot read") && message().contains("config.json"), "{}", message());
    for text in ["", "{", "[1]", "{\"a\": NaN}"] {
        fs::write(directory.path().join("config.json"), text).unwrap();
        assert!(message().contains("config.json is not a JSON object"), "{}", message());
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0u64..600).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop::collection::vec(0u64..3, 0..10).prop_map(Value::from),
        Just(json!({ "rope_theta": 1e4, "type": "default" })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn any_value_in_any_fields_is_refused_or_read_into_what_writes_back(
        transformers_dialect in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_value()), 1..4),
    ) {
        let mut value = if transformers_dialect { transformers() } else { official() };
        let fields: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        for (field, change) in changes {
            value[fields[field.index(fields.len())].as_str()] = change;
        }
        if let Ok(config) = read(&value) {
            prop_assert!(config.lightning_slopes(config.num_layers - 1).iter().all(|s| s.is_finite()));
            prop_assert_eq!(read(&config.to_json()), Ok(config));
        }
    }

    #[test]
    fn mutated_text_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut text = official().to_string().into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        let outcome = Config::from_json(&String::from_utf8_lossy(&text), Path::new("c"));
        prop_assert!(outcome.is_ok() || !outcome.unwrap_err().to_string().is_empty());
    }
}
