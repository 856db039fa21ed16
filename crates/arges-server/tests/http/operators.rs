//! Tokens, metrics and the description of the API.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use crate::support::{CONTEXT, server};

#[tokio::test]
async fn text_becomes_tokens_and_tokens_text() {
    let server = server();
    let prompt = "hello <end_of_sentence> é";
    let tokens = server.post("/tokenize", json!({"prompt": prompt, "return_token_strs": true})).await.ok();
    assert_eq!(tokens["tokens"], json!(server.tokenizer.encode(prompt).unwrap()));
    assert_eq!(
        (&tokens["count"], &tokens["max_model_len"]),
        (&json!(tokens["tokens"].as_array().unwrap().len()), &json!(CONTEXT))
    );
    let strings = tokens["token_strs"].as_array().unwrap();
    assert_eq!(strings.len(), tokens["tokens"].as_array().unwrap().len());
    assert!(strings.contains(&json!("<end_of_sentence>")), "{tokens}");
    let text = server.post("/detokenize", json!({"tokens": tokens["tokens"]})).await.ok();
    assert_eq!(text, json!({ "prompt": prompt }));
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]});
    let tokens = server.post("/tokenize", chat.clone()).await.ok();
    let mut answered = chat;
    answered["max_tokens"] = json!(1);
    assert_eq!(tokens["count"], server.chat(answered).await.ok()["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn wrong_tokens_are_refused_by_name() {
    let server = server();
    for body in [json!({}), json!({"tokens": [1, 5000]}), json!({"tokens": "hi"})] {
        assert_eq!(server.post("/detokenize", body).await.error().1.as_deref(), Some("tokens"));
    }
    assert_eq!(server.post("/tokenize", json!({})).await.error().1.as_deref(), Some("messages"));
}

#[tokio::test]
async fn the_tokenizer_is_described() {
    let info = server().get("/tokenizer_info").await.ok();
    assert_eq!((&info["vocab_size"], &info["eos_token"]), (&json!(512), &json!("<end_of_sentence>")));
}

#[tokio::test]
async fn requests_and_their_tokens_are_counted() {
    let server = server();
    server.completion(json!({"prompt": [1, 2, 3], "max_tokens": 5, "ignore_eos": true})).await.ok();
    server.completion(json!({"prompt": ""})).await.error();
    server.get("/of/no/route").await.error();
    // The engine counts after it has answered.
    server.wait_for("the end", |stats| stats.running == 0 && stats.finished == 1).await;
    let reply = server.get("/metrics").await;
    assert!(reply.headers["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    for line in [
        "arges_requests_running 0",
        "arges_tokens_total{kind=\"prompt\"} 3",
        "arges_tokens_total{kind=\"answer\"} 5",
        "arges_time_to_first_token_seconds_count 1",
        "arges_inter_token_latency_seconds_count 4",
        "arges_http_requests_total{route=\"/v1/completions\",status=\"200\"} 1",
        "arges_http_requests_total{route=\"/v1/completions\",status=\"400\"} 1",
        "arges_http_requests_total{route=\"none\",status=\"404\"} 1",
    ] {
        assert!(reply.body.lines().any(|found| found == line), "{line} is not in\n{}", reply.body);
    }
}

#[tokio::test]
async fn the_description_is_served() {
    let document: Value = server().get("/openapi.json").await.ok();
    assert_eq!(document["openapi"], "3.1.0");
}

#[tokio::test]
async fn a_request_keeps_its_id_or_gets_one() {
    let server = server();
    let with_id =
        |id: &str| Request::get("/v1/models").header("x-request-id", id).body(Body::empty()).unwrap();
    let reply = server.send(with_id("trace-42")).await;
    assert_eq!(reply.headers["x-request-id"], "trace-42");
    // Ids that could forge a line of the log, or fill it, are replaced.
    let long = "x".repeat(129);
    for id in ["", "a b", &long] {
        let reply = server.send(with_id(id)).await;
        assert!(reply.headers["x-request-id"].to_str().unwrap().starts_with("req_"), "{id}");
    }
    let refused = server.completion(json!({"prompt": ""})).await;
    assert!(refused.headers["x-request-id"].to_str().unwrap().starts_with("req_"));
}

#[tokio::test]
async fn queueing_and_ends_are_counted() {
    let server = server();
    server.completion(json!({"prompt": [1, 2, 3], "max_tokens": 2, "ignore_eos": true})).await.ok();
    let body = server.get("/metrics").await.body;
    for line in ["arges_queue_seconds_count 1", "arges_finish_total{reason=\"length\"} 1"] {
        assert!(body.lines().any(|found| found == line), "{line} is not in\n{body}");
    }
    assert!(body.contains("arges_build_info{version="));
    let value = |name: &str| {
        let line = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in\n{body}")).to_owned()
    };
    assert_eq!(value("arges_step_sequences_count"), value("arges_steps_total"));
    assert_eq!(value("arges_step_tokens_sum"), value("arges_computed_tokens_total"));
}
