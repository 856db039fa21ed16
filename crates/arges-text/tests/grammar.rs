//! Grammars: what they allow and what they do not, and what becomes of hostile ones.

mod common;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use arges_text::Tokenizer;
use arges_text::grammar::{AnswerGrammar, CallGrammar, Format, GrammarCompiler, GrammarError, ToolShape};
use common::synthetic;
use serde_json::{Value, json};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| synthetic(512));
static COMPILER: LazyLock<GrammarCompiler> = LazyLock::new(|| GrammarCompiler::new(&TOKENIZER).unwrap());

/// Whether an answer may begin with the text, and whether it may end there.
fn allowed(grammar: &AnswerGrammar, text: &str) -> (bool, bool) {
    let mut state = COMPILER.compile(grammar).unwrap().start();
    for id in TOKENIZER.encode(text).unwrap() {
        state.mask().unwrap();
        if state.is_finished() || !state.allows(id) {
            return (false, false);
        }
        state.accept(id).unwrap();
    }
    state.mask().unwrap();
    (true, state.allows(TOKENIZER.end_token().unwrap()))
}

fn may_be(grammar: &AnswerGrammar, text: &str) -> bool {
    allowed(grammar, text) == (true, true)
}

fn format(format: Format) -> AnswerGrammar {
    AnswerGrammar { format: Some(format), calls: None }
}

fn schema(schema: Value) -> AnswerGrammar {
    format(Format::JsonSchema { schema, strict: true })
}

fn weather() -> ToolShape {
    let parameters = json!({"properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": false});
    ToolShape { name: "weather".to_owned(), parameters, strict: true }
}

fn calls(required: bool, parallel: bool, format: Option<Format>) -> AnswerGrammar {
    let tools =
        vec![weather(), ToolShape { name: "now\"".to_owned(), parameters: Value::Null, strict: false }];
    AnswerGrammar { format, calls: Some(CallGrammar { tools, required, parallel }) }
}

const CALL: &str = "<tool_calls>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"x\"}}\n</tool_calls>";
const TWO: &str = "<tool_calls>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"x\"}}\n\
                   {\"name\": \"now\\\"\", \"arguments\": {}}\n</tool_calls>";

#[test]
fn documents_keep_to_their_schema_in_any_layout() {
    let grammar = schema(json!({
        "type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"],
        "additionalProperties": false,
    }));
    for text in ["{\"a\": 3}", "{\"a\":12}", "{\n  \"a\": 3\n}"] {
        assert!(may_be(&grammar, text), "{text}");
    }
    for text in ["{\"a\": 2}", "{\"b\"", "{}", "[", " {", "{\"a\": 3}}", &format!("{{{}", " ".repeat(80))] {
        assert!(!may_be(&grammar, text), "{text}");
    }
    assert!(
        may_be(&format_of_object(), "{\"any\": [1, {\"thing\": null}]}")
            && !may_be(&format_of_object(), "[]")
    );
}

fn format_of_object() -> AnswerGrammar {
    format(Format::JsonObject)
}

#[test]
fn texts_keep_to_expressions_grammars_and_choices() {
    let regex = format(Format::Regex("[ab]{2}/(c|d)".to_owned()));
    assert!(may_be(&regex, "ab/d") && !may_be(&regex, "abc/d") && !may_be(&regex, "ab/"));
    let lark = format(Format::Lark("start: \"a\" more\nmore: \"b\"*".to_owned()));
    assert!(may_be(&lark, "abb") && !may_be(&lark, "b"));
    let choice = format(Format::Choice(vec!["yes".to_owned(), "no \"\u{7f}\n".to_owned()]));
    assert!(may_be(&choice, "yes") && may_be(&choice, "no \"\u{7f}\n") && !may_be(&choice, "ye"));
}

#[test]
fn many_choices_and_properties_are_followed_to_the_end() {
    let choices = (0..2500).map(|number| format!("choice {number}")).collect();
    assert!(may_be(&format(Format::Choice(choices)), "choice 2499"));
    let names = (0..1000).map(|number| (format!("k{number}"), json!({"type": "integer"})));
    let properties = Value::Object(names.collect());
    let grammar = schema(json!({"type": "object", "properties": properties, "additionalProperties": false}));
    assert!(may_be(&grammar, "{\"k0\": 1, \"k17\": 2, \"k999\": 3}"));
}

#[test]
fn required_calls_are_all_there_may_be() {
    let grammar = calls(true, true, Some(Format::JsonObject));
    assert!(may_be(&grammar, CALL) && may_be(&grammar, TWO));
    assert!(
        !may_be(&grammar, "{}") && !may_be(&grammar, "I") && !may_be(&grammar, "<tool_calls>\n</tool_calls>")
    );
    assert!(!allowed(&grammar, "<tool_calls>\n{\"name\": \"nothing").0);
    assert!(!allowed(&grammar, "<tool_calls>\n{\"name\": \"weather\", \"arguments\": {\"town").0);
    assert!(!may_be(&calls(true, false, None), TWO));
}

#[test]
fn calls_that_may_be_leave_the_format_or_any_text() {
    let either = calls(false, true, Some(Format::JsonObject));
    assert!(may_be(&either, CALL) && may_be(&either, "{\"a\": 1}") && !may_be(&either, "text"));
    let text = calls(false, true, None);
    assert!(
        may_be(&text, CALL) && may_be(&text, "text <tool_") && may_be(&text, &format!("Let me see.\n{TWO}"))
    );
    assert!(!allowed(&text, "so: <tool_calls>\n{\"name\": \"nothing").0);
}

#[test]
fn special_tokens_are_never_part_of_an_answer() {
    let mut state = COMPILER.compile(&format(Format::Regex("(?s:.*)".to_owned()))).unwrap().start();
    state.mask().unwrap();
    let specials = ["<beginning_of_sentence>", "<end_of_document>", "<begin_of_document>"];
    assert!(specials.iter().all(|token| !state.allows(TOKENIZER.id_of(token).unwrap())));
    assert!(state.allows(u32::from(b'<')) && state.allows(TOKENIZER.end_token().unwrap()));
}

#[test]
fn an_answer_ends_where_nothing_may_follow_and_starts_again_from_the_beginning() {
    let mut state = COMPILER.compile(&format(Format::Choice(vec!["ab".to_owned()]))).unwrap().start();
    for _ in 0..2 {
        for id in "ab".bytes().map(u32::from) {
            state.mask().unwrap();
            assert!(!state.is_finished() && state.allows(id));
            state.accept(id).unwrap();
        }
        assert!(state.is_finished());
        state.restart().unwrap();
    }
}

#[test]
fn what_cannot_be_enforced_is_an_error_only_where_it_is_strict() {
    let odd = json!({"type": "object", "properties": {"a": {"type": "string", "format": "nonsense"}}});
    let strict = |strict| format(Format::JsonSchema { schema: odd.clone(), strict });
    assert!(
        matches!(COMPILER.compile(&strict(true)), Err(GrammarError::Invalid(reason)) if reason.contains("nonsense"))
    );
    assert!(COMPILER.compile(&strict(false)).is_ok());
}

#[test]
fn malformed_and_oversized_grammars_are_refused() {
    for grammar in [
        schema(json!([1])),
        schema(json!({"type": "potato"})),
        schema(json!({"$ref": "#/nowhere"})),
        schema(json!({"type": "integer", "minimum": 5, "maximum": 3})),
        format(Format::Regex("(".to_owned())),
        format(Format::Lark("no start".to_owned())),
        format(Format::Lark("start: nothing".to_owned())),
    ] {
        assert!(matches!(COMPILER.compile(&grammar), Err(GrammarError::Invalid(_))), "{grammar:?}");
    }
    let large = schema(json!({"enum": vec!["x".repeat(1000); 300]}));
    assert!(matches!(COMPILER.compile(&large), Err(GrammarError::TooLarge { .. })));
    let properties: serde_json::Map<String, Value> =
        (0..6000).map(|n| (format!("k{n}"), json!({}))).collect();
    let wide = schema(json!({"anyOf": [{"type": "object", "properties": properties}]}));
    assert!(matches!(COMPILER.compile(&wide), Err(GrammarError::Invalid(reason)) if reason.contains("6000")));
    let long = format(Format::Regex("a".repeat(40_000)));
    assert!(matches!(COMPILER.compile(&long), Err(GrammarError::TooLarge { .. })));
}

#[test]
fn hostile_grammars_take_bounded_time() {
    let nested = |open: &str, close: &str| format!("start: {}\"a\"{}", open.repeat(4000), close.repeat(4000));
    let chain: String = (0..1500).map(|rule| format!("r{rule}: r{}\n", rule + 1)).collect();
    let refs: serde_json::Map<String, Value> =
        (0..2000).map(|n| (format!("d{n}"), json!({"$ref": format!("#/$defs/d{}", n + 1)}))).collect();
    let all_of: Vec<Value> =
        (0..40).map(|n| json!({"anyOf": [{"minLength": n}, {"maxLength": 100 + n}]})).collect();
    let properties: serde_json::Map<String, Value> =
        (0..1500).map(|n| (format!("k{n}"), json!({}))).collect();
    for grammar in [
        schema(json!({"type": "object", "properties": properties})),
        format(Format::Regex("(((a{1,1000}){1,1000}){1,1000})".to_owned())),
        format(Format::Regex("(a|b|ab)*c(a?){500}a{500}".to_owned())),
        format(Format::Regex(format!("{}a{}", "(".repeat(10_000), ")".repeat(10_000)))),
        format(Format::Regex("(?s:.*)a(?s:.){200}b".to_owned())),
        format(Format::Lark(nested("(", ")"))),
        format(Format::Lark(nested("[", "]"))),
        format(Format::Lark(format!("start: r0\n{chain}r1500: \"a\""))),
        format(Format::Lark("start: start start | \"a\"".to_owned())),
        schema(json!({"$defs": refs, "$ref": "#/$defs/d0"})),
        schema(json!({"type": "string", "allOf": all_of})),
        schema(
            json!({"type": "array", "minItems": 1_000_000, "items": {"type": "array", "minItems": 1_000_000}}),
        ),
        schema(json!({"type": "string", "pattern": "^((a+)+)+$", "minLength": 100_000})),
    ] {
        let start = Instant::now();
        // Whether it compiles is llguidance's to say; that it comes back is ours.
        if let Ok(grammar) = COMPILER.compile(&grammar) {
            let mut state = grammar.start();
            for _ in 0..16 {
                let Ok(mask) = state.mask() else { break };
                let first = mask.iter().position(|word| *word != 0).map(|at| (at, mask[at].trailing_zeros()));
                let Some((at, bit)) = first.filter(|_| !state.is_finished()) else { break };
                if state.accept(at as u32 * 32 + bit).is_err() {
                    break;
                }
            }
        }
        let took = start.elapsed();
        println!("{took:?}: {:.60?}", format!("{grammar:?}"));
        assert!(took < Duration::from_secs(20), "{took:?}: {grammar:?}");
    }
}
