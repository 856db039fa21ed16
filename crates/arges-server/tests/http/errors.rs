//! What a request that is wrong gets, and that the server goes on.

use arges_engine::{EngineOptions, EngineStats};
use arges_server::ServerOptions;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::json;

use crate::support::{CONTEXT, MODEL, engine_options, post, server, server_with};

fn said(status: u16, param: &str, code: &str) -> (u16, Option<String>, Option<String>) {
    (status, Some(param.to_owned()), Some(code.to_owned()))
}

#[tokio::test]
async fn wrong_requests_are_told_what_is_wrong_and_the_server_goes_on() {
    let server = server();
    let user = json!([{"role": "user", "content": "hi"}]);
    let long = json!(vec![1; CONTEXT]);
    for (body, expected) in [
        (json!({"prompt": "a", "model": "gpt-4"}), said(404, "model", "model_not_found")),
        (json!({"prompt": ""}), said(400, "prompt", "invalid_value")),
        (json!({}), said(400, "prompt", "missing_required_parameter")),
        (json!({ "prompt": long }), said(400, "prompt", "context_length_exceeded")),
        (json!({"prompt": [1, 512]}), said(400, "prompt", "invalid_value")),
        (json!({"prompt": "a", "logit_bias": {"512": 1}}), said(400, "logit_bias", "invalid_value")),
        (json!({"prompt": "a", "stop_token_ids": [512]}), said(400, "stop_token_ids", "invalid_value")),
        (json!({"prompt": "a", "temperature": 3}), said(400, "temperature", "invalid_value")),
        (json!({"prompt": "a", "temperature": "hot"}), said(400, "temperature", "invalid_value")),
    ] {
        assert_eq!(server.completion(body.clone()).await.error(), expected, "{body:.200}");
    }
    for (body, expected) in [
        (json!({"messages": []}), said(400, "messages", "invalid_value")),
        (json!({"messages": user, "model": "gpt-4"}), said(404, "model", "model_not_found")),
        (
            json!({"messages": [{"role": "user", "content": "x".repeat(100_000)}]}),
            said(400, "messages", "context_length_exceeded"),
        ),
        (json!({"messages": user, "tool_choice": "required"}), said(400, "tool_choice", "invalid_value")),
    ] {
        assert_eq!(server.chat(body.clone()).await.error(), expected, "{body:.200}");
    }
    let nothing_named = (400, None, Some("invalid_json".to_owned()));
    for broken in ["", "{\"prompt\": ", "[1,", "{\"prompt\": \"a\"} trailing"] {
        assert_eq!(server.send(post("/v1/completions", broken)).await.error(), nothing_named, "{broken}");
    }
    server.completion(json!({"prompt": [5], "max_tokens": 1})).await.ok();
    assert_eq!(server.engine.stats().failed, 0);
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_answered_in_the_errors_shape() {
    let server = server();
    assert_eq!(server.get("/v1/nothing").await.error().0, 404);
    assert_eq!(server.get("/v1/chat/completions").await.error().0, 405);
    assert_eq!(server.send(post("/v1/models", "")).await.error().0, 405);
    assert_eq!(server.send(post("/health", "")).await.error().0, 405);
}

#[tokio::test]
async fn with_a_key_everything_but_health_wants_it() {
    let mut options = ServerOptions::new(MODEL);
    options.api_keys = vec!["other".to_owned(), "right".to_owned()];
    let server = server_with(engine_options(), options);
    let get = |path: &str, key: Option<&str>| {
        let request = Request::builder().method(Method::GET).uri(path);
        let request = match key {
            Some(key) => request.header("authorization", key),
            None => request,
        };
        request.body(Body::empty()).unwrap()
    };
    for path in ["/v1/models", "/v1/nothing"] {
        for key in [None, Some("Bearer wrong"), Some("Bearer right2"), Some("Bearer "), Some("right")] {
            let refused = server.send(get(path, key)).await;
            assert_eq!(refused.error(), (401, None, Some("invalid_api_key".to_owned())), "{path} {key:?}");
        }
    }
    server.send(get("/v1/models", Some("Bearer right"))).await.ok();
    server.send(get("/health", None)).await.ok();
    server.send(get("/ready", None)).await.ok();
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused() {
    let mut options = ServerOptions::new(MODEL);
    options.body_limit = 1000;
    let server = server_with(engine_options(), options);
    let reply = server.completion(json!({"prompt": "a".repeat(1000)})).await;
    assert_eq!(reply.error(), (413, None, Some("body_too_large".to_owned())));
    server.completion(json!({"prompt": "a", "max_tokens": 1})).await.ok();
}

#[tokio::test]
async fn a_full_queue_is_said_with_the_time_to_come_back() {
    let options = EngineOptions { max_sequences: 1, max_queue: 1, ..engine_options() };
    let server = server_with(options, ServerOptions::new(MODEL));
    let long = json!({"prompt": "a", "max_tokens": CONTEXT, "ignore_eos": true, "stream": true}).to_string();
    let open = || async {
        use tower::ServiceExt;
        server.router.clone().oneshot(post("/v1/completions", long.clone())).await.unwrap()
    };
    let running = open().await;
    server.wait_for("the first request", |stats| stats.running == 1).await;
    let waiting = open().await;
    assert_eq!(waiting.status(), StatusCode::OK);
    let refused = server.send(post("/v1/completions", long.clone())).await;
    assert_eq!(refused.error(), (429, None, Some("rate_limit_exceeded".to_owned())));
    assert!(refused.headers.contains_key("retry-after"));
    drop((running, waiting));
    server.wait_for("room", |stats| stats.running == 0).await;
    server.completion(json!({"prompt": "a", "max_tokens": 1})).await.ok();
}

#[tokio::test]
async fn a_request_refused_half_way_leaves_nothing_behind() {
    let options = EngineOptions { max_sequences: 1, max_queue: 4, ..engine_options() };
    let server = server_with(options, ServerOptions::new(MODEL));
    let many = json!({"prompt": "a", "n": 100, "max_tokens": CONTEXT, "ignore_eos": true});
    assert_eq!(server.completion(many).await.error().0, 429);
    let idle = |stats: EngineStats| stats.cancelled >= 4 && stats.running == 0 && stats.waiting == 0;
    server.wait_for("an idle engine", idle).await;
    server.completion(json!({"prompt": "a", "max_tokens": 1})).await.ok();
}
