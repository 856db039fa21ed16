//! Chat templates: the built-in one, the shapes of messages, and what goes wrong.

mod common;

use arges_text::{ChatTemplate, TextError};
use common::data;
use serde_json::{Value, json};

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::from_source("test", source).unwrap()
}

fn user(content: Value) -> Value {
    json!({"role": "user", "content": content})
}

fn render_error(messages: &[Value], tools: Option<&[Value]>) -> String {
    ChatTemplate::default_m1().render(messages, tools, true).unwrap_err().to_string()
}

/// The text between `from` and the next `to` after it.
fn between<'t>(text: &'t str, from: &str, to: &str) -> &'t str {
    text.split_once(from).and_then(|(_, rest)| rest.split_once(to)).map_or("", |(inner, _)| inner)
}

#[test]
fn the_built_in_template_has_the_turns_of_the_official_one() {
    let conversations: Vec<Value> = data("chat_template.json");
    let template = ChatTemplate::default_m1();
    for conversation in conversations {
        let messages = conversation["messages"].as_array().unwrap();
        let tools = conversation["tools"].as_array().map(Vec::as_slice);
        let prompt = conversation["add_generation_prompt"].as_bool().unwrap();
        let text = template.render(messages, tools, prompt).unwrap();
        let official = conversation["expected_text"].as_str().unwrap();
        // The words around the tools are our own; the tools and everything else are the same.
        let (open, close) = ("<tools>\n", "</tools>");
        assert_eq!(between(&text, open, close), between(official, open, close));
        let without_words = |text: &str| {
            let words = between(text, "tool_setting=tools\n", "<end_of_sentence>").to_owned();
            if words.is_empty() { text.to_owned() } else { text.replace(&words, "") }
        };
        assert_eq!(without_words(&text), without_words(official), "{}", conversation["name"]);
    }
}

#[test]
fn tool_calls_are_written_by_the_built_in_template_and_results_share_a_turn() {
    let call = |id: &str, arguments: Value| json!({"id": id, "type": "function", "function": {"name": format!("f_{id}"), "arguments": arguments}});
    let messages = [
        user(json!("go")),
        json!({"role": "assistant", "content": null, "tool_calls": [
            call("a", json!("{\"z\": 1, \"a\": {\"b\": [true]}}")), call("b", json!({})), call("c", json!("")),
        ]}),
        json!({"role": "tool", "tool_call_id": "b", "content": "two"}),
        json!({"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "one"}]}),
    ];
    let text = ChatTemplate::default_m1().render(&messages, None, true).unwrap();
    assert_eq!(
        text,
        "<begin_of_document><beginning_of_sentence>user name=user\ngo<end_of_sentence>\n\
         <beginning_of_sentence>ai name=assistant\n<tool_calls>\n\
         {\"name\": \"f_a\", \"arguments\": {\"z\": 1, \"a\": {\"b\": [true]}}}\n\
         {\"name\": \"f_b\", \"arguments\": {}}\n{\"name\": \"f_c\", \"arguments\": {}}\n\
         </tool_calls><end_of_sentence>\n<beginning_of_sentence>tool name=tools\n\
         tool name: f_b\ntool result: two\n\ntool name: f_a\ntool result: one\n\n<end_of_sentence>\n\
         <beginning_of_sentence>ai name=assistant\n"
    );
}

#[test]
fn a_template_that_reads_strings_gets_strings() {
    let template = template("{% for m in messages %}[{{ m.role }}] {{ m.content.strip() }}\n{% endfor %}");
    let parts = json!([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]);
    let messages = [user(json!(" a ")), user(parts), json!({"role": "assistant", "content": null})];
    assert_eq!(template.render(&messages, None, false).unwrap(), "[user] a\n[user] one\ntwo\n[assistant] \n");
}

#[test]
fn parts_a_template_would_not_read_are_joined_to_the_first() {
    let first = template("{% for m in messages %}{{ m['content'][0]['text'] }}|{% endfor %}");
    let every =
        template("{% for m in messages %}{% for c in m.content %}{{ c['text'] }}|{% endfor %}{% endfor %}");
    let parts = json!([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]);
    let messages = [user(parts.clone()), json!({"role": "assistant", "content": parts})];
    assert_eq!(first.render(&messages, None, false).unwrap(), "one\ntwo|onetwo|");
    assert_eq!(every.render(&messages, None, false).unwrap(), "one|two|one|two|");
}

#[test]
fn tool_calls_a_template_does_not_read_become_text() {
    let deaf = template("{% for m in messages %}{{ m['content'][0]['text'] }}|{% endfor %}");
    let call = json!({"function": {"name": "f", "arguments": "{\"b\":1,\"a\":2.50}"}});
    let broken = json!({"function": {"name": "g", "arguments": "{oops"}});
    let messages = [json!({"role": "assistant", "content": "Wait.", "tool_calls": [call, broken]})];
    assert_eq!(
        deaf.render(&messages, None, false).unwrap(),
        "Wait.\n<tool_calls>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": 2.5}}\n\
         {\"name\": \"g\", \"arguments\": \"{oops\"}\n</tool_calls>|"
    );
}

/// M1's own template reads its content as these do, and knows nothing of thinking and tool calls.
const DEAF: &str = "{% for m in messages %}{{ m['role'] }}|{{ m['content'][0]['text'] }}\n{% endfor %}";

/// A question, a tool's call and result, an answer, each with thinking; then another such answer.
fn thoughtful() -> Vec<Value> {
    let call = json!({"id": "0", "function": {"name": "f", "arguments": {"a": 1}}});
    vec![
        user(json!("one")),
        json!({"role": "assistant", "content": "1", "reasoning_content": "old"}),
        user(json!("two")),
        json!({"role": "assistant", "content": "", "reasoning_content": "call\nf", "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": "0", "content": "3"}),
        json!({"role": "assistant", "content": "2", "reasoning_content": "done"}),
    ]
}

#[test]
fn thinking_since_the_last_question_stands_before_the_answer() {
    let call = "<think>\ncall\nf\n</think>\n<tool_calls>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_calls>";
    let turn = |name: &str, text: &str| format!("<beginning_of_sentence>{name}\n{text}<end_of_sentence>\n");
    let expected = [
        "<begin_of_document>".to_owned(),
        turn("user name=user", "one"),
        turn("ai name=assistant", "1"),
        turn("user name=user", "two"),
        turn("ai name=assistant", call),
        turn("tool name=tools", "tool name: f\ntool result: 3\n\n"),
        turn("ai name=assistant", "<think>\ndone\n</think>\n2"),
    ];
    let text = ChatTemplate::default_m1().render(&thoughtful(), None, false).unwrap();
    assert_eq!(text, expected.concat());
    assert_eq!(
        template(DEAF).render(&thoughtful(), None, false).unwrap(),
        format!(
            "user|one\nassistant|1\nuser|two\nassistant|{call}\ntool|3\nassistant|<think>\ndone\n</think>\n2\n"
        )
    );
}

#[test]
fn an_answer_that_is_trained_goes_on_from_its_prompt() {
    let template = ChatTemplate::default_m1();
    let messages = thoughtful();
    for answer in [3, 5] {
        let prompt = template.render(&messages[..answer], None, true).unwrap();
        let whole = template.render(&messages[..=answer], None, false).unwrap();
        let rest = whole.strip_prefix(&prompt).unwrap();
        assert!(rest.starts_with("<think>\n") && rest.ends_with("<end_of_sentence>\n"), "{rest}");
    }
}

#[test]
fn a_template_that_reads_thinking_gets_all_of_it() {
    let source = "{% for m in messages %}{{ m.reasoning_content or '-' }};{{ m.content }}|{% endfor %}";
    let messages = &thoughtful()[..3];
    assert_eq!(template(source).render(messages, None, false).unwrap(), "-;one|old;1|-;two|");
}

#[test]
fn absent_or_empty_thinking_leaves_no_trace() {
    for nothing in [json!(null), json!("")] {
        let messages = [json!({"role": "assistant", "content": "2", "reasoning_content": nothing})];
        for template in [ChatTemplate::default_m1(), template(DEAF)] {
            let text = template.render(&messages, None, false).unwrap();
            assert!(!text.contains("think") && text.contains('2'), "{text}");
        }
    }
}

#[test]
fn tools_lose_their_wrapper_and_keep_the_order_of_their_keys() {
    let template = template("{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}");
    let bare = json!({"name": "z", "description": "é", "parameters": {"b": 1, "a": {"d": null, "c": []}}});
    let mut function = bare.clone();
    function["strict"] = json!(true);
    let wrapped = json!({"type": "function", "function": function});
    let text = template.render(&[user(json!("x"))], Some(&[bare, wrapped]), false).unwrap();
    let line = "{\"name\": \"z\", \"description\": \"é\", \
                \"parameters\": {\"b\": 1, \"a\": {\"d\": null, \"c\": []}}}\n";
    assert_eq!(text, line.repeat(2));
}

#[test]
fn an_empty_list_of_tools_is_no_tools() {
    let template = template("{% if tools is none %}none{% endif %}");
    assert_eq!(template.render(&[], Some(&[]), false).unwrap(), "none");
}

#[test]
fn templates_find_what_transformers_gives_them() {
    let source = "{%- set ns = namespace(n=0) -%}\n\
        {% for m in messages %}\n\
        {% if loop.index > 2 %}{% break %}{% endif %}\n\
        {%- set ns.n = ns.n + 1 -%}\n\
        {% endfor %}\n\
        {{ ns.n }} {{ strftime_now('%Y') | length }} {{ {'a': 1}.items() | list | length }} \
        {{ 'x=1'.split('=')[1] }} {{ {'b': [1, 0.5], 'a': '<é>'} | tojson }} \
        {{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }} \
        {{ [1] | tojson(indent=2) }} {{ 'a' 'b' }}";
    let messages = [user(json!("1")), user(json!("2")), user(json!("3"))];
    assert_eq!(
        template(source).render(&messages, None, false).unwrap(),
        "2 4 1 1 {\"b\": [1, 0.5], \"a\": \"<é>\"} {\"a\":2,\"b\":1} [\n  1\n] ab"
    );
}

#[test]
fn a_refusal_by_the_template_keeps_its_words() {
    let template = template("{{ raise_exception('roles must alternate') }}");
    let error = template.render(&[user(json!("x"))], None, false).unwrap_err();
    assert!(
        matches!(&error, TextError::TemplateRefused { message } if message == "roles must alternate"),
        "{error}"
    );
}

#[test]
fn a_failing_template_is_reported_with_its_line() {
    let template = template("\n\n{{ nothing.at.all }}");
    let error = template.render(&[user(json!("x"))], None, false).unwrap_err();
    assert!(matches!(error, TextError::TemplateRender { .. }));
    assert!(error.to_string().contains(":3"), "{error}");
    let dated = ChatTemplate::from_source("test", "{{ strftime_now('%!') }}").unwrap();
    let error = dated.render(&[], None, false).unwrap_err().to_string();
    assert!(error.contains("date format"), "{error}");
}

#[test]
fn a_template_that_does_not_parse_is_reported_with_its_origin() {
    let error = ChatTemplate::from_source("some/file", "{% if %}").unwrap_err();
    assert!(matches!(error, TextError::TemplateSyntax { .. }));
    assert!(error.to_string().contains("some/file"), "{error}");
}

#[test]
fn messages_of_the_wrong_shape_are_named_by_position() {
    let good = user(json!("x"));
    let cases = [
        (json!("text"), "object"),
        (json!({"content": "x"}), "role"),
        (json!({"role": "wizard", "content": "x"}), "wizard"),
        (user(json!(7)), "content"),
        (user(json!([{"type": "image_url", "image_url": {}}])), "image_url"),
        (user(json!([{"type": "text"}])), "content[0]"),
        (user(json!(["bare"])), "content[0]"),
        (json!({"role": "assistant", "tool_calls": 3}), "tool_calls"),
        (json!({"role": "assistant", "tool_calls": [{}]}), "tool_calls[0]"),
        (json!({"role": "tool", "tool_call_id": "lost", "content": "x"}), "lost"),
        (json!({"role": "tool", "content": "x"}), "tool_call_id"),
        (json!({"role": "assistant", "content": "x", "reasoning_content": [1]}), "reasoning_content"),
    ];
    for (message, word) in cases {
        let error = render_error(&[good.clone(), message], None);
        assert!(error.starts_with("messages[1]: ") && error.contains(word), "{error}");
    }
    let error =
        render_error(&[good], Some(&[json!({"name": "f"}), json!({"type": "function", "function": 3})]));
    assert!(error.starts_with("tools[1]: "), "{error}");
}

#[test]
fn nesting_without_bound_is_an_error() {
    let deep = |levels: usize| (0..levels).fold(json!(1), |inner, _| Value::Array(vec![inner]));
    let call = |levels: usize| {
        json!({"role": "assistant", "content": "", "tool_calls": [
            {"function": {"name": "f", "arguments": {"deep": deep(levels)}}},
        ]})
    };
    let template = ChatTemplate::default_m1();
    assert!(template.render(&[call(100)], None, true).is_ok());
    assert!(render_error(&[call(200)], None).contains("deep"));
    let tool = json!({"name": "f", "parameters": deep(200)});
    assert!(render_error(&[user(json!("x"))], Some(&[tool])).contains("deep"));
}

#[test]
fn the_template_of_a_directory_is_found_wherever_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let render = || {
        let template = ChatTemplate::from_dir(dir.path()).unwrap()?;
        let plain = template.render(&[], None, false).unwrap();
        Some((plain, template.render(&[], Some(&[json!({"name": "f"})]), false).unwrap()))
    };
    let both = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
    let config =
        |value: Value| std::fs::write(dir.path().join("tokenizer_config.json"), value.to_string()).unwrap();
    assert_eq!(render(), None);
    config(json!({"bos_token": "<s>", "chat_template": null}));
    assert_eq!(render(), None);
    config(json!({"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token }}one"}));
    assert_eq!(render(), both("<s>one", "<s>one"));
    config(json!({"chat_template": [
        {"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"},
    ]}));
    assert_eq!(render(), both("plain", "tools"));
    std::fs::write(dir.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(render(), both("file", "file"));
}

#[test]
fn a_directory_with_a_broken_template_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for (config, word) in [
        ("{", "tokenizer_config.json"),
        ("{\"chat_template\": 3}", "neither"),
        ("{\"chat_template\": [{\"name\": \"rag\", \"template\": \"x\"}]}", "default"),
        ("{\"chat_template\": \"{{\"}", "parse"),
    ] {
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let error = ChatTemplate::from_dir(dir.path()).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("tokenizer_config.json"), "{error}");
    }
}
