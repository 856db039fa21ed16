//! MiniMax-M1's own tokenizer and chat template against figures of the official code.

mod common;

use std::fmt::Write;

use arges_text::grammar::{AnswerGrammar, CallGrammar, GrammarCompiler, ToolShape};
use arges_text::{AnswerPart, ChatTemplate, Detokenizer, ThinkingParser, Tokenizer, ToolCallParser};
use common::{data, m1_dir};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Sample {
    text: String,
    ids: Vec<u32>,
    ids_gpt2_regex: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct Conversation {
    name: String,
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
    add_generation_prompt: bool,
    expected_text: String,
    expected_ids: Vec<u32>,
}

#[derive(Deserialize)]
struct ExternalVector {
    m1_text: Option<String>,
    ids: Vec<u32>,
}

#[test]
fn an_answer_ends_at_the_end_of_sentence() {
    let Some(dir) = m1_dir() else { return };
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    assert_eq!(tokenizer.end_token(), Some(200_020));
}

#[test]
fn every_sample_encodes_to_its_ids_and_decodes_back() {
    let Some(dir) = m1_dir() else { return };
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let samples: Vec<Sample> = data("samples.json");
    assert_eq!(samples.len(), 200);
    for Sample { text, ids, .. } in samples {
        assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids), text);
        let mut detokenizer = Detokenizer::new(tokenizer.clone());
        let mut pieces: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
        pieces += &detokenizer.finish();
        assert_eq!(pieces, text);
    }
}

#[test]
fn thinking_and_tool_calls_are_written_the_same_by_the_official_template_and_the_built_in_one() {
    let Some(dir) = m1_dir() else { return };
    let official = ChatTemplate::from_dir(&dir).unwrap().unwrap();
    let call = json!({"id": "0", "function": {"name": "f", "arguments": {"a": [1.5, "é"]}}});
    let messages = [
        json!({"role": "user", "content": "one"}),
        json!({"role": "assistant", "content": "1", "reasoning_content": "earlier"}),
        json!({"role": "user", "content": "two"}),
        json!({"role": "assistant", "content": null, "reasoning_content": "I call.", "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": "0", "content": "3"}),
        json!({"role": "assistant", "content": "2", "reasoning_content": "a\nb"}),
    ];
    let text = official.render(&messages, None, false).unwrap();
    assert!(text.contains("<think>\nI call.\n</think>\n<tool_calls>\n{\"name\": \"f\""), "{text}");
    assert!(text.ends_with("<think>\na\nb\n</think>\n2<end_of_sentence>\n"), "{text}");
    assert!(!text.contains("earlier"), "{text}");
    assert_eq!(ChatTemplate::default_m1().render(&messages, None, false).unwrap(), text);
}

#[test]
fn published_vectors_of_the_same_vocabulary_agree() {
    let Some(dir) = m1_dir() else { return };
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let vectors: Vec<ExternalVector> = data("external_m2_vectors.json");
    assert_eq!(vectors.len(), 5);
    for ExternalVector { m1_text, ids } in vectors {
        let text = m1_text.unwrap();
        assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn every_conversation_renders_to_the_official_text_and_ids() {
    let Some(dir) = m1_dir() else { return };
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let template = ChatTemplate::from_dir(&dir).unwrap().unwrap();
    let conversations: Vec<Conversation> = data("chat_template.json");
    assert_eq!(conversations.len(), 12);
    for c in conversations {
        let text = template.render(&c.messages, c.tools.as_deref(), c.add_generation_prompt).unwrap();
        assert_eq!(text, c.expected_text, "{}", c.name);
        assert_eq!(tokenizer.encode(&text).unwrap(), c.expected_ids, "{}", c.name);
    }
}

#[test]
fn openai_messages_render_to_the_same_text_as_messages_in_the_templates_own_shape() {
    let Some(dir) = m1_dir() else { return };
    let template = ChatTemplate::from_dir(&dir).unwrap().unwrap();
    let conversations: Vec<Conversation> = data("chat_template.json");
    let official = conversations.iter().find(|c| c.name == "conv06").unwrap();
    let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let messages = [
        json!({"role": "developer", "content": "S."}),
        json!({"role": "user", "content": "Where and weather?"}),
        json!({"role": "assistant", "content": "Let me check.", "tool_calls": [
            call("b", "get_weather", r#"{"city":"Paris"}"#),
        ]}),
        json!({"role": "tool", "name": "get_location", "content": "Paris"}),
        json!({"role": "tool", "tool_call_id": "b", "content": "雨 ☔\n2 lines"}),
        json!({"role": "assistant", "content": "It rains."}),
        json!({"role": "user", "content": "Thanks"}),
    ];
    let tools: Vec<Value> =
        official.tools.iter().flatten().map(|tool| json!({"type": "function", "function": tool})).collect();
    let text = template.render(&messages, Some(&tools), official.add_generation_prompt).unwrap();
    assert_eq!(text, official.expected_text);
}

#[test]
fn every_id_of_the_layout_has_its_text() {
    let Some(dir) = m1_dir() else { return };
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    assert_eq!(tokenizer.vocab_size(), 200_035);
    for byte in 0..=255u8 {
        assert_eq!(tokenizer.token_bytes(u32::from(byte)), Some(vec![byte]));
    }
    assert_eq!(tokenizer.id_of("<end_of_sentence>"), Some(200_020));
    assert!(tokenizer.is_special(200_020) && !tokenizer.is_special(1_000));
    assert_eq!(tokenizer.token_bytes(200_025), Some(b"]<]image[>[".to_vec()));
    assert_eq!(tokenizer.token_bytes(200_035), None);
    assert_eq!(tokenizer.decode(&[200_020, 200_063, 72]), "<end_of_sentence>H");
    assert_eq!(tokenizer.decode_skip_special(&[200_020, 72]), "H");
}

#[test]
fn vocab_json_and_merges_txt_tokenize_as_transformers_does_from_them() {
    let Some(m1) = m1_dir() else { return };
    let text = std::fs::read_to_string(m1.join("tokenizer.json")).unwrap();
    let tokenizer_json: Value = serde_json::from_str(&text).unwrap();
    let model = &tokenizer_json["model"];
    let mut merges = String::from("#version: 0.2\n");
    for merge in model["merges"].as_array().unwrap() {
        writeln!(merges, "{}", merge.as_str().unwrap()).unwrap();
    }
    let added: Map<String, Value> = tokenizer_json["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| (token["content"].as_str().unwrap().to_owned(), token["id"].clone()))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("vocab.json"), model["vocab"].to_string()).unwrap();
    std::fs::write(dir.path().join("merges.txt"), merges).unwrap();
    std::fs::write(dir.path().join("added_tokens.json"), Value::Object(added).to_string()).unwrap();
    std::fs::copy(m1.join("tokenizer_config.json"), dir.path().join("tokenizer_config.json")).unwrap();

    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let samples: Vec<Sample> = data("samples.json");
    let mut compared = 0;
    for Sample { text, ids_gpt2_regex, .. } in samples {
        if let Some(ids) = ids_gpt2_regex {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
            compared += 1;
        }
    }
    assert!(compared > 100, "only {compared} samples have ids of this pre-tokenizer");
    assert_eq!(tokenizer.id_of("<end_of_sentence>"), Some(200_020));
    assert!(tokenizer.is_special(200_020));
}

#[test]
fn white_space_longer_than_the_regex_engine_can_match_gives_the_reference_ids() {
    let Some(dir) = m1_dir() else { return };
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    // Count and last ids by the same tokenizer.json in Hugging Face's tokenizers 0.23.3 (Python,
    // Oniguruma).
    let reference = [
        (" ", 300_001, 2_347, [35_015, 159_004, 1_905, 53_343, 2_035]),
        (" ", 1_200_000, 9_379, [9_774, 101_036, 1_905, 53_343, 2_035]),
        ("\u{3000}", 1_200_000, 300_004, [196_555, 3_466, 120, 53_343, 2_035]),
    ];
    for (space, count, ids_count, last) in reference {
        let text = space.repeat(count) + "x hello world";
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!((ids.len(), &ids[ids.len() - 5..]), (ids_count, &last[..]), "{space:?} {count}");
        assert_eq!(tokenizer.decode(&ids), text);
    }
}

#[test]
fn thinking_and_calls_come_out_of_m1s_own_tokens() {
    let Some(dir) = m1_dir() else { return };
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let arguments = r#"{"filter": {"a": "} </tool_calls>", "b": [1, {"c": "日本"}]}}"#;
    let text = format!(
        "<think>\nShall I <tool_calls>?\n</think>\nLet me see.\n<tool_calls>\n\
         {{\"name\": \"find\", \"arguments\": {arguments}}}\n{{\"name\": \"now\", \"arguments\": {{}}}}\n</tool_calls>"
    );
    let (mut detokenizer, mut thinking) = (Detokenizer::new(tokenizer.clone()), ThinkingParser::new());
    let mut calls = ToolCallParser::new();
    let (mut reasoning, mut content, mut found) = (String::new(), String::new(), Vec::new());
    for id in tokenizer.encode(&text).unwrap() {
        let divided = thinking.push(&detokenizer.push(id));
        reasoning += &divided.reasoning;
        for part in calls.push(&divided.answer) {
            match part {
                AnswerPart::Content(text) => content += &text,
                AnswerPart::CallStart { name, .. } => found.push((name, String::new())),
                AnswerPart::CallArguments { index, text } => found[index].1 += &text,
            }
        }
    }
    assert_eq!((reasoning.as_str(), content.as_str()), ("Shall I <tool_calls>?", "Let me see.\n"));
    assert_eq!(found, [("find".to_owned(), arguments.to_owned()), ("now".to_owned(), "{}".to_owned())]);
}

#[test]
fn m1s_own_way_of_writing_calls_is_what_the_grammar_allows() {
    let Some(dir) = m1_dir() else { return };
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let compiler = GrammarCompiler::new(&tokenizer).unwrap();
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"], "additionalProperties": false});
    let tool = ToolShape { name: "get_weather".to_owned(), parameters, strict: true };
    let calls = CallGrammar { tools: vec![tool], required: true, parallel: true };
    let mut state = compiler.compile(&AnswerGrammar { format: None, calls: Some(calls) }).unwrap().start();
    // As the template writes the call when it goes back to the model.
    let call = json!({"id": "0", "function": {"name": "get_weather", "arguments": {"city": "São Paulo", "days": 3}}});
    let messages = [json!({"role": "assistant", "content": "", "tool_calls": [call]})];
    let template = ChatTemplate::from_dir(&dir).unwrap().unwrap();
    let text = template.render(&messages, None, false).unwrap();
    let (_, answer) = text.split_once("ai name=assistant\n").unwrap();
    for id in tokenizer.encode(answer.trim_end()).unwrap() {
        if state.is_finished() {
            assert_eq!(Some(id), tokenizer.end_token());
            return;
        }
        state.mask().unwrap();
        assert!(state.allows(id), "{:?} is not allowed", tokenizer.decode(&[id]));
        state.accept(id).unwrap();
    }
    panic!("the grammar has not ended with {answer:?}");
}
