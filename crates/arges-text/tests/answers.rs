//! Thinking and calls in what a model wrote: what is told apart, and that the cut of the text does not matter.

mod entries;

use arges_text::{AnswerPart, ToolCallParser};
use entries::{divide, parse};
use proptest::prelude::*;
use serde_json::{Value, json};

/// The whole text, with every single split and character by character.
fn parsed(text: &str) -> (String, Vec<(String, String)>) {
    let whole = parse([text]);
    for (at, _) in text.char_indices() {
        assert_eq!(parse([&text[..at], &text[at..]]), whole, "split at {at} of {text:?}");
    }
    assert_eq!(parse(text.split_inclusive(|_| true)), whole, "{text:?}");
    whole
}

fn calls(calls: &[(&str, &str)]) -> Vec<(String, String)> {
    calls.iter().map(|(name, arguments)| (String::from(*name), String::from(*arguments))).collect()
}

fn block(inside: &str) -> String {
    format!("<tool_calls>\n{inside}\n</tool_calls>")
}

#[test]
fn a_call_a_line_is_what_the_model_writes() {
    let text = block("{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n{\"name\": \"g\", \"arguments\": {}}");
    assert_eq!(parsed(&text), (String::new(), calls(&[("f", "{\"a\": 1}"), ("g", "{}")])));
}

#[test]
fn nested_objects_and_braces_in_strings_stay_valid_json() {
    for arguments in
        [r#"{"filter":{"a":1}}"#, r#"{"code": "if (x) { y(\"}\") }"}"#, r#"{"a": "</tool_calls>\n{"}"#]
    {
        let text = block(&format!(r#"{{"name": "f", "arguments": {arguments}}}"#));
        assert_eq!(parsed(&text), (String::new(), calls(&[("f", arguments)])));
        assert!(serde_json::from_str::<Value>(arguments).is_ok());
    }
}

#[test]
fn objects_may_share_a_line_or_be_spread_over_several() {
    let text = "<tool_calls>{\"name\":\"f\",\"arguments\":{}} {\"name\":\"g\",\"arguments\":{}}{\"name\":\"h\"}\
                {\n  \"arguments\": {\n    \"a\": [1, 2]\n  },\n  \"name\": \"i\"\n}</tool_calls>";
    let expected = [("f", "{}"), ("g", "{}"), ("h", "{}"), ("i", "{\n    \"a\": [1, 2]\n  }")];
    assert_eq!(parsed(text), (String::new(), calls(&expected)));
}

#[test]
fn text_beside_blocks_is_content() {
    let text = format!("Wait.\n{}\n\nand\n{}\n", block(r#"{"name": "f"}"#), block(r#"{"name": "g"}"#));
    assert_eq!(parsed(&text), ("Wait.\n\n\nand\n".to_owned(), calls(&[("f", "{}"), ("g", "{}")])));
}

#[test]
fn white_space_around_blocks_is_none() {
    let text = format!("\n\n{} \n{}\n", block(r#"{"name": "f"}"#), block(r#"{"name": "g"}"#));
    assert_eq!(parsed(&text), (String::new(), calls(&[("f", "{}"), ("g", "{}")])));
    assert_eq!(parsed(" \n"), (" \n".to_owned(), Vec::new()));
}

#[test]
fn a_block_that_does_not_end_has_the_calls_it_has() {
    let begun = "<tool_calls>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n{\"name\": \"g\", \"arguments\": {\"b\": \"x";
    assert_eq!(parsed(begun), (String::new(), calls(&[("f", "{\"a\": 1}"), ("g", "{\"b\": \"x")])));
    for unfinished in
        ["<tool_c", "<tool_calls>", "<tool_calls>\n{\"name\": \"f\", \"argu", "<tool_calls>{\"name\": \"f\""]
    {
        assert_eq!(parsed(unfinished), (unfinished.to_owned(), Vec::new()));
    }
}

#[test]
fn what_is_no_call_comes_out_as_content() {
    for inside in [
        "",
        "none",
        "[1]",
        "{}",
        "{\"name\": 1}",
        "{\"name\": \"\"}",
        "{\"arguments\": {}}",
        "{\"tool\": \"f\"}",
        "{\"name\": \"f\", \"arguments\": [1]}",
        "{\"name\": \"f\", \"arguments\": \"{}\"}",
        "{'name': 'f'}",
        "{\"name\": \"f\", \"name\": \"g\", \"arguments\": {}}",
        "{\"name\": \"f\" oops",
        "{\"name\": \"\\ud800\"}",
    ] {
        let text = format!("a {} b", block(inside));
        assert_eq!(parsed(&text), (text.clone(), Vec::new()), "{inside}");
    }
}

#[test]
fn after_text_that_is_no_call_the_next_line_may_be_one() {
    let text = block("{\"name\": \"f\"}\noops {\"name\": \"x\"}\n  {\"name\": \"g\"}");
    assert_eq!(
        parsed(&text),
        ("\noops {\"name\": \"x\"}\n  ".to_owned(), calls(&[("f", "{}"), ("g", "{}")]))
    );
    let text = block("oops\n{\"name\": \"g\"}");
    let content = "<tool_calls>\noops\n\n</tool_calls>".to_owned();
    assert_eq!(parsed(&text), (content, calls(&[("g", "{}")])));
}

#[test]
fn arguments_that_go_astray_end_there_and_content_goes_on() {
    let text = block("{\"name\": \"f\", \"arguments\": {\"a\": oops}}\n{\"name\": \"g\"}");
    assert_eq!(parsed(&text), ("oops}}\n".to_owned(), calls(&[("f", "{\"a\": "), ("g", "{}")])));
    let text = block("{\"name\": \"f\", \"arguments\": {}, \"id\": 3}");
    assert_eq!(parsed(&text), (", \"id\": 3}\n".to_owned(), calls(&[("f", "{}")])));
}

#[test]
fn calls_inside_thinking_are_none() {
    let inside = block(r#"{"name": "f"}"#);
    let divided = divide([&format!("<think>\nI could {inside}\n</think>\nNo.")[..]]);
    assert_eq!(divided.reasoning, format!("I could {inside}"));
    assert_eq!(parse([&divided.answer[..]]), ("No.".to_owned(), Vec::new()));
    let divided = divide([&format!("<think>\nI could {inside}")[..]]);
    assert_eq!((divided.reasoning, divided.answer), (format!("I could {inside}"), String::new()));
}

#[test]
fn a_prompt_without_thinking_ends_in_a_block_that_is_over() {
    for prompt in ["ai\n", "ai\n<think>", "ai\n<think>\n"] {
        let text = format!("{prompt}{}", arges_text::without_thinking(prompt));
        let (_, block) = text.split_once("ai\n").unwrap();
        let divided = divide([&format!("{block}42")[..]]);
        assert_eq!(
            (divided.reasoning.as_str(), divided.answer.as_str()),
            ("That is enough thinking; now the answer.", "42")
        );
    }
}

#[test]
fn a_call_is_given_out_as_soon_as_it_is_certain_and_its_arguments_as_they_come() {
    let mut parser = ToolCallParser::new();
    let argument = |text: &str| AnswerPart::CallArguments { index: 0, text: text.to_owned() };
    assert_eq!(parser.push("Hm<"), [AnswerPart::Content("Hm".to_owned())]);
    assert_eq!(parser.push("tool_calls>\n{\"name\": \"f\", \"arguments\": "), []);
    assert_eq!(parser.push("{"), [AnswerPart::CallStart { index: 0, name: "f".to_owned() }, argument("{")]);
    assert_eq!(parser.push("\"a\": \"x"), [argument("\"a\": \"x")]);
    assert_eq!(parser.push("y\"}}\n</tool_"), [argument("y\"}")]);
    assert_eq!(parser.push("calls>"), []);
    assert_eq!(parser.finish(), []);
}

/// Text of markup, whole and in parts, and of other characters.
fn any_answer() -> impl Strategy<Value = String> {
    let markup = prop::sample::select(vec![
        "<think>",
        "</think>",
        "<tool_calls>",
        "</tool_calls>",
        "<tool_calls>\n",
        "\n</tool_calls>",
        "<",
        "</",
        "tool_",
        "{\"name\": \"F\", \"arguments\": ",
        "{\"name\": \"G\"}",
        "\"name\"",
        "\"arguments\"",
        "{",
        "}",
        "{\"A\":",
        "\"",
        ":",
        ",",
        "[",
        "]",
        "\n",
        " ",
        "1",
        "0.5",
        "true",
        "\\",
        "\\\"",
        "\\u00e9",
    ]);
    let piece = prop_oneof![4 => markup.prop_map(String::from), 1 => "[A-Zé日0-9]{1,4}", 1 => any::<char>().prop_map(String::from)];
    prop::collection::vec(piece, 0..32).prop_map(|pieces| pieces.concat())
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "(\\PC|[\n\t\"\\\\{}<>]){0,8}".prop_map(Value::from),
        Just(json!("</tool_calls>")),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("\\PC{0,6}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_cut_of_any_text_gives_what_the_whole_gives_and_nothing_is_lost(cut: u8, text in any_answer()) {
        let data = [&[cut], text.as_bytes()].concat();
        entries::thinking(&data);
        entries::tool_calls(&data);
        entries::tool_calls(&[&[cut], "<tool_calls>".as_bytes(), text.as_bytes()].concat());
    }

    #[test]
    fn calls_come_out_as_they_were_written(
        names in prop::collection::vec("\\PC{1,8}", 1..4),
        arguments in any_json(),
        pretty: bool,
        cut: u8,
    ) {
        let arguments = match arguments {
            Value::Object(fields) => Value::Object(fields),
            other => json!({ "value": other }),
        };
        let objects = names.iter().map(|name| {
            let call = json!({"name": name, "arguments": arguments});
            if pretty { serde_json::to_string_pretty(&call).unwrap() } else { call.to_string() }
        });
        let text = block(&objects.collect::<Vec<_>>().join("\n"));
        entries::tool_calls(&[&[cut], text.as_bytes()].concat());
        let (content, calls) = parse([&text[..]]);
        prop_assert_eq!(content, "");
        prop_assert_eq!(calls.iter().map(|(name, _)| name).collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
        for (_, written) in &calls {
            prop_assert_eq!(&serde_json::from_str::<Value>(written).unwrap(), &arguments);
        }
    }
}
