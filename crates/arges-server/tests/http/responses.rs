//! OpenAI's responses.

use serde_json::{Value, json};

use crate::support::{MODEL, server, weather, with};

fn tool() -> Value {
    with(weather(), json!({"type": "function", "strict": true}))
}

/// A request whose model thinks, then calls.
fn body() -> Value {
    json!({"model": MODEL, "input": "How is the weather?", "instructions": "Be brief.", "tools": [tool()],
        "tool_choice": {"type": "function", "name": "get_weather"}, "temperature": 0, "thinking_budget": 9,
        "max_output_tokens": 600, "metadata": {"a": "b"}, "store": true, "include": ["reasoning.encrypted_content"]})
}

#[tokio::test]
async fn a_response_has_the_shape_of_the_api() {
    let server = server();
    let response = server.post("/v1/responses", body()).await.ok();
    assert!(response["id"].as_str().unwrap().starts_with("resp_"));
    for (field, value) in [
        ("object", json!("response")),
        ("status", json!("completed")),
        ("store", json!(false)),
        ("error", json!(null)),
        ("instructions", json!("Be brief.")),
        ("metadata", json!({"a": "b"})),
        ("text", json!({"format": {"type": "text"}})),
    ] {
        assert_eq!(response[field], value, "{field}");
    }
    let call = response["output"].as_array().unwrap().last().unwrap();
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("get_weather")));
    assert!(call["call_id"].as_str().unwrap().starts_with("call_") && call["id"] != call["call_id"]);
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["city"].is_string());
    let usage = &response["usage"];
    let sum = usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], sum);
}

#[tokio::test]
async fn a_response_that_is_cut_off_says_why() {
    let server = server();
    let cut = json!({"input": "hi", "temperature": 0, "max_output_tokens": 3, "seed": 1});
    let response = server.post("/v1/responses", cut).await.ok();
    assert_eq!(response["status"], "incomplete");
    assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(response["output"].as_array().unwrap().last().unwrap()["status"], "incomplete");
}

#[tokio::test]
async fn events_open_fill_and_close_each_item_and_end_with_the_whole_response() {
    let server = server();
    // `<` opens thinking, which its budget closes.
    let streamed = server.post("/v1/responses", with(body(), json!({"stream": true}))).await.events();
    let names: Vec<&str> = streamed.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(names[..3], ["response.created", "response.in_progress", "response.output_item.added"]);
    for (number, event) in streamed.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    let response = &streamed.last().unwrap()["response"];
    assert_eq!((names.last().unwrap(), &response["status"]), (&"response.completed", &json!("completed")));
    assert_eq!(response["id"], streamed[0]["response"]["id"]);
    for (index, item) in response["output"].as_array().unwrap().iter().enumerate() {
        let of_item: Vec<&Value> = streamed.iter().filter(|event| event["output_index"] == index).collect();
        let (first, last) = (of_item.first().unwrap(), of_item.last().unwrap());
        assert_eq!(
            (&first["type"], &last["type"]),
            (&json!("response.output_item.added"), &json!("response.output_item.done"))
        );
        assert_eq!((&last["item"], &first["item"]["id"]), (item, &item["id"]));
        assert_eq!(first["item"]["status"], "in_progress");
        let between = &of_item[1..of_item.len() - 1];
        assert!(between.iter().all(|event| event["item_id"] == item["id"]));
        let deltas: String = between.iter().filter_map(|event| event["delta"].as_str()).collect();
        let (done, text) = match item["type"].as_str().unwrap() {
            "function_call" => ("response.function_call_arguments.done", &item["arguments"]),
            "reasoning" => ("response.reasoning_text.done", &item["content"][0]["text"]),
            _ => ("response.output_text.done", &item["content"][0]["text"]),
        };
        assert_eq!(deltas, text.as_str().unwrap());
        let done = between.iter().find(|event| event["type"] == done).unwrap();
        assert_eq!(done.get("arguments").or_else(|| done.get("text")), Some(text));
    }
    let whole = server.post("/v1/responses", body()).await.ok();
    assert_eq!(
        whole["output"].as_array().unwrap().last().unwrap()["arguments"],
        response["output"].as_array().unwrap().last().unwrap()["arguments"]
    );
}

#[tokio::test]
async fn the_whole_conversation_may_be_sent_again() {
    let server = server();
    let response = server.post("/v1/responses", body()).await.ok();
    let mut input = vec![json!({"role": "user", "content": "How is the weather?"})];
    input.extend(response["output"].as_array().unwrap().clone());
    let call = input.last().unwrap()["call_id"].clone();
    input.push(json!({"type": "function_call_output", "call_id": call, "output": "sunny"}));
    let format = json!({"format": {"type": "json_schema", "name": "x", "schema": {"enum": ["good", "bad"]}}});
    let next = with(body(), json!({"input": input, "text": format, "tool_choice": "none"}));
    let next = server.post("/v1/responses", next).await.ok();
    let text = next["output"].as_array().unwrap().last().unwrap()["content"][0]["text"].as_str().unwrap();
    assert!(["\"good\"", "\"bad\""].contains(&text), "{text}");
    let first = with(body(), json!({"tool_choice": "none", "max_output_tokens": 1}));
    let first = server.post("/v1/responses", first).await.ok();
    assert!(next["usage"]["input_tokens"].as_u64() > first["usage"]["input_tokens"].as_u64());
}

#[tokio::test]
async fn an_error_names_the_field_of_this_api() {
    let server = server();
    let reply = server.post("/v1/responses", json!({"input": [{"role": "user", "content": 3}]})).await;
    let expected = (400, Some("input[0].content".to_owned()), Some("invalid_value".to_owned()));
    assert_eq!(reply.error(), expected);
}
