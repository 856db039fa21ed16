//! Anthropic's messages.

use arges_server::ServerOptions;
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::{CONTEXT, MODEL, Reply, engine_options, post, server, server_with, weather, with};

fn tool() -> Value {
    let weather = weather();
    json!({"name": "get_weather", "description": weather["description"], "input_schema": weather["parameters"]})
}

/// A request whose model calls.
fn body() -> Value {
    json!({"model": MODEL, "max_tokens": 600, "messages": [{"role": "user", "content": "How is the weather?"}],
        "tools": [tool()], "tool_choice": {"type": "tool", "name": "get_weather"}, "temperature": 0,
        "thinking": {"type": "enabled", "budget_tokens": 20}})
}

/// Status, kind and param of an error, whose shape is checked.
fn error(reply: &Reply) -> (u16, String, Option<String>) {
    let body = reply.json();
    assert_eq!(body["type"], "error", "{body}");
    let error = &body["error"];
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()));
    let kind = error["type"].as_str().unwrap().to_owned();
    (reply.status.as_u16(), kind, error["param"].as_str().map(str::to_owned))
}

#[tokio::test]
async fn a_message_has_the_shape_of_the_api() {
    let server = server();
    let message = server.post("/v1/messages", body()).await.ok();
    assert!(message["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("tool_use"), &json!(null)));
    let call = message["content"].as_array().unwrap().last().unwrap();
    assert_eq!((&call["type"], &call["name"]), (&json!("tool_use"), &json!("get_weather")));
    assert!(["Paris", "Rome"].contains(&call["input"]["city"].as_str().unwrap()));
}

#[tokio::test]
async fn events_open_fill_and_close_each_block() {
    let server = server();
    let whole = server.post("/v1/messages", body()).await.ok();
    let events = server.post("/v1/messages", with(body(), json!({"stream": true}))).await.events();
    let names: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(
        (names[0], names[names.len() - 2], names[names.len() - 1]),
        ("message_start", "message_delta", "message_stop")
    );
    let start = &events[0]["message"];
    assert_eq!((&start["content"], &start["stop_reason"]), (&json!([]), &json!(null)));
    assert_eq!(start["usage"]["input_tokens"], whole["usage"]["input_tokens"]);
    let end = &events[events.len() - 2];
    assert_eq!(end["delta"]["stop_reason"], "tool_use");
    assert_eq!(end["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
    for (index, block) in whole["content"].as_array().unwrap().iter().enumerate() {
        let of_block: Vec<&Value> = events.iter().filter(|event| event["index"] == index).collect();
        let (first, last) = (of_block.first().unwrap(), of_block.last().unwrap());
        assert_eq!(
            (&first["type"], &last["type"]),
            (&json!("content_block_start"), &json!("content_block_stop"))
        );
        assert_eq!(first["content_block"]["type"], block["type"]);
        let joined = |field: &str| -> String {
            of_block.iter().filter_map(|event| event["delta"][field].as_str()).collect()
        };
        match block["type"].as_str().unwrap() {
            "tool_use" => {
                let input: Value = serde_json::from_str(&joined("partial_json")).unwrap();
                assert_eq!(input, block["input"]);
            }
            "thinking" => {
                assert_eq!(joined("thinking"), block["thinking"].as_str().unwrap());
                assert_eq!(joined("signature"), block["signature"].as_str().unwrap());
            }
            _ => assert_eq!(joined("text"), block["text"].as_str().unwrap()),
        }
    }
}

#[tokio::test]
async fn the_tokens_counted_are_those_of_the_answer() {
    let server = server();
    let conversation = json!([
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "unsigned"},
            {"type": "tool_use", "id": "a", "name": "get_weather", "input": {"city": "Rome"}},
        ]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "sunny"}]},
    ]);
    let body = with(body(), json!({"messages": conversation, "max_tokens": 30, "system": "Be brief."}));
    let message = server.post("/v1/messages", body.clone()).await.ok();
    let mut counted = body;
    counted.as_object_mut().unwrap().remove("max_tokens");
    let count = server.post("/v1/messages/count_tokens", counted).await.ok();
    assert_eq!(count["input_tokens"], message["usage"]["input_tokens"]);
}

#[tokio::test]
async fn a_stop_sequence_is_named() {
    let server = server();
    let open =
        json!({"max_tokens": 40, "messages": [{"role": "user", "content": "hello"}], "temperature": 0});
    let message = server.post("/v1/messages", open.clone()).await.ok();
    let text = message["content"][0]["text"].as_str().unwrap();
    let characters: Vec<char> = text.chars().collect();
    let stop: String = characters[characters.len() / 2..][..2].iter().collect();
    let stopped =
        server.post("/v1/messages", with(open, json!({"stop_sequences": ["never there", stop]}))).await.ok();
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    let before = text.split(&stop).next().unwrap();
    assert_eq!(stopped["content"][0]["text"].as_str().unwrap_or_default(), before);
}

#[tokio::test]
async fn errors_are_in_the_apis_own_shape_wherever_they_arise() {
    let mut options = ServerOptions::new(MODEL);
    options.api_keys = vec!["other".to_owned(), "right".to_owned()];
    options.body_limit = 4000;
    let server = server_with(engine_options(), options);
    let refused = server.post("/v1/messages", body()).await;
    assert_eq!(error(&refused), (401, "authentication_error".to_owned(), None));
    let send = async |path: &str, body: String| {
        let mut request = post(path, body);
        request.headers_mut().insert("x-api-key", "right".parse().unwrap());
        server.send(request).await
    };
    assert_eq!(send("/v1/messages", body().to_string()).await.status, StatusCode::OK);
    let invalid = "invalid_request_error".to_owned();
    let long = json!({"max_tokens": 1, "messages": [{"role": "user", "content": "q ".repeat(CONTEXT / 2)}]});
    for (body, expected) in [
        ("{".to_owned(), (400, invalid.clone(), None)),
        (
            with(body(), json!({"temperature": 9})).to_string(),
            (400, invalid.clone(), Some("temperature".to_owned())),
        ),
        (
            with(body(), json!({"model": "x"})).to_string(),
            (404, "not_found_error".to_owned(), Some("model".to_owned())),
        ),
        (long.to_string() + &" ".repeat(4000), (413, "request_too_large".to_owned(), None)),
    ] {
        assert_eq!(error(&send("/v1/messages", body).await), expected);
    }
    let wrong_method = server.get("/v1/messages").await;
    assert_eq!(error(&wrong_method).1, "authentication_error");
}
