//! Calls of tools and answers of a given form, in chat.

use serde_json::{Value, json};

use crate::support::{server, weather, with};

fn body() -> Value {
    let now = json!({"type": "function", "function": {"name": "now"}});
    json!({"messages": [{"role": "user", "content": "How is the weather?"}], "temperature": 0, "max_tokens": 600,
        "tools": [{"type": "function", "function": weather()}, now]})
}

fn named(name: &str) -> Value {
    json!({"tool_choice": {"type": "function", "function": {"name": name}}})
}

/// Name and arguments of each call of a message.
fn calls(message: &Value) -> Vec<(String, Value)> {
    let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
    let call = |call: &Value| {
        assert_eq!(call["type"], "function");
        assert!(call["id"].as_str().unwrap().starts_with("call_"));
        let function = &call["function"];
        let arguments = serde_json::from_str(function["arguments"].as_str().unwrap()).unwrap();
        (function["name"].as_str().unwrap().to_owned(), arguments)
    };
    calls.iter().map(call).collect()
}

#[tokio::test]
async fn a_call_that_is_required_is_made_and_keeps_to_its_schema() {
    let server = server();
    let required = json!({"tool_choice": "required", "parallel_tool_calls": false});
    let answer = server.chat(with(body(), required)).await.ok();
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&Value::Null, &json!("tool_calls"))
    );
    assert_eq!(calls(&choice["message"]).len(), 1);
    let answer = server.chat(with(body(), named("get_weather"))).await.ok();
    let [(name, arguments)] = &calls(&answer["choices"][0]["message"])[..] else { panic!("{answer}") };
    assert_eq!(name, "get_weather");
    assert!(["Paris", "Rome"].contains(&arguments["city"].as_str().unwrap()), "{arguments}");
}

#[tokio::test]
async fn calls_may_be_limited_to_some_of_the_tools() {
    let server = server();
    let tools = json!([{"type": "function", "function": {"name": "now"}}]);
    let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": tools}});
    let fields = json!({"tool_choice": allowed, "parallel_tool_calls": false});
    let answer = server.chat(with(body(), fields)).await.ok();
    assert_eq!(calls(&answer["choices"][0]["message"])[0].0, "now");
}

#[tokio::test]
async fn streamed_calls_add_up_to_the_whole_ones() {
    let server = server();
    let fields = with(named("get_weather"), json!({"stream": true}));
    let whole = server.chat(with(body(), named("get_weather"))).await.ok();
    let chunks = server.chat(with(body(), fields)).await.chunks();
    let deltas: Vec<&Value> =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0)).collect();
    let (first, rest) = deltas.split_first().unwrap();
    assert_eq!((&first["index"], &first["type"]), (&json!(0), &json!("function")));
    assert_eq!(
        (&first["function"]["name"], &first["function"]["arguments"]),
        (&json!("get_weather"), &json!(""))
    );
    assert!(first["id"].as_str().unwrap().starts_with("call_"));
    assert!(rest.len() > 3);
    for delta in rest {
        let keys: Vec<&str> = delta.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!((keys, &delta["index"]), (vec!["index", "function"], &json!(0)), "{delta}");
    }
    let arguments: String =
        rest.iter().map(|delta| delta["function"]["arguments"].as_str().unwrap()).collect();
    let expected = &whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"];
    assert_eq!(arguments, expected.as_str().unwrap());
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn a_call_and_its_result_are_part_of_the_conversation_that_goes_on() {
    let server = server();
    let answer = server.chat(with(body(), named("get_weather"))).await.ok();
    let message = answer["choices"][0]["message"].clone();
    let id = message["tool_calls"][0]["id"].clone();
    let mut next = body();
    next["messages"]
        .as_array_mut()
        .unwrap()
        .extend([message, json!({"role": "tool", "tool_call_id": id, "content": "sunny"})]);
    let next = with(next, json!({"max_tokens": 1, "return_token_ids": true}));
    let ids: Vec<u32> =
        serde_json::from_value(server.chat(next).await.ok()["prompt_token_ids"].clone()).unwrap();
    let text = server.tokenizer.decode(&ids);
    assert!(
        text.contains("<tool_calls>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \""),
        "{text}"
    );
    assert!(text.contains("tool name: get_weather\ntool result: sunny"), "{text}");
}

#[tokio::test]
async fn an_answer_has_the_format_asked_for_or_is_a_call() {
    let server = server();
    let schema = json!({"type": "object", "properties": {"kind": {"enum": ["a", "b"]}, "sure": {"type": "boolean"}},
        "required": ["kind", "sure"], "additionalProperties": false});
    let format =
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    let mut alone = with(with(body(), format.clone()), json!({"thinking_budget": 5}));
    alone.as_object_mut().unwrap().remove("tools");
    let answer = server.chat(alone).await.ok();
    let content: Value =
        serde_json::from_str(answer["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
    assert!(content["sure"].is_boolean() && content["kind"].is_string(), "{content}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    for (bias, is_call) in [("60", true), ("123", false)] {
        // The first character decides: `<` or `{`.
        let both =
            with(with(body(), format.clone()), json!({"logit_bias": {bias: 50}, "thinking_budget": 3}));
        let answer = server.chat(both).await.ok();
        let message = &answer["choices"][0]["message"];
        assert!(is_call || calls(message).is_empty(), "{message}");
        assert!(
            !calls(message).is_empty()
                || serde_json::from_str::<Value>(message["content"].as_str().unwrap()).is_ok()
        );
    }
}

#[tokio::test]
async fn expressions_grammars_and_choices_hold_in_chat_and_completions() {
    let server = server();
    let fits = |text: &str| text.len() == 4 && text.chars().all(|c| ('a'..='d').contains(&c));
    for outputs in [json!({"regex": "[a-d]{4}"}), json!({"grammar": "start: D D D D\nD: /[a-d]/"})] {
        let fields = json!({"structured_outputs": outputs, "temperature": 1, "seed": 3, "max_tokens": 50});
        let chat = with(
            json!({"messages": [{"role": "user", "content": "hi"}], "thinking_budget": 0}),
            fields.clone(),
        );
        let answer = server.chat(chat).await.ok();
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(fits(content), "{content}");
        let answer = server.completion(with(json!({"prompt": "hi"}), fields)).await.ok();
        assert!(fits(answer["choices"][0]["text"].as_str().unwrap()), "{answer}");
    }
}

#[tokio::test]
async fn hostile_and_wrong_schemas_are_refused_by_name_and_leave_the_server_as_it_was() {
    let server = server();
    let nested = (0..10_000).fold("{}".to_owned(), |inner, _| format!("{{\"items\":{inner}}}"));
    let deep = body().to_string().replacen('{', &format!("{{\"response_format\":{nested},"), 1);
    let reply = server.send(crate::support::post("/v1/chat/completions", deep)).await;
    assert_eq!(reply.error().0, 400);
    let schema =
        |schema: Value| json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let large: Vec<String> = (0..20_000).map(|n| format!("value number {n}")).collect();
    for (field, value) in [
        ("response_format", schema(json!({"type": "potato"}))),
        ("response_format", schema(json!({"enum": large}))),
        ("structured_outputs", json!({"regex": "a{1000}{1000}{1000}("})),
        ("structured_outputs", json!({"grammar": format!("start: {}", "(".repeat(20_000))})),
        ("tool_choice", json!({"type": "function", "function": {"name": "nothing"}})),
    ] {
        let reply = server.chat(with(body(), json!({ field: value }))).await;
        let (status, param, _) = reply.error();
        assert_eq!((status, param.as_deref()), (400, Some(field)), "{}", reply.body);
        assert!(reply.body.len() < 2000, "{}", reply.body);
    }
    let wrong = json!({"type": "function", "function": {"name": "x", "parameters": {"type": "potato"}}});
    let mut tools = body()["tools"].clone();
    tools.as_array_mut().unwrap().push(wrong);
    let format = json!({"type": "json_object"});
    let reply = server.chat(with(body(), json!({"tools": tools, "response_format": format}))).await;
    assert_eq!(reply.error().1.as_deref(), Some("tools[2]"), "{}", reply.body);
    server.completion(json!({"prompt": "a", "max_tokens": 1})).await.ok();
}
