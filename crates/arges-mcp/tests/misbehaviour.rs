//! An API that misbehaves: bounded time and memory, and errors that say what happened.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arges_mcp::Limits;
use arges_mcp::server::Settings;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use common::{
    HEX, StandIn, call, connect, error, files, ok, settings, short_limits, status, text, usual_limits,
};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Answer = fn() -> Response;

/// Calls text_to_audio with results as files, and gives the error and the number of requests.
async fn failing(stand_in: &StandIn) -> (String, usize) {
    failing_within(stand_in, usual_limits()).await
}

async fn failing_within(stand_in: &StandIn, limits: Limits) -> (String, usize) {
    let base = tempfile::tempdir().unwrap();
    let client = connect(Settings { limits, ..settings(&stand_in.url, base.path(), "local") }).await;
    let started = Instant::now();
    let message = error(&call(&client, "text_to_audio", json!({ "text": "x" })).await);
    assert!(started.elapsed() < Duration::from_secs(10), "{message}");
    assert_eq!(files(base.path()), [""; 0], "{message}");
    (message, stand_in.received().len())
}

#[tokio::test]
async fn pages_and_broken_bodies_are_told_for_what_they_are() {
    let answers: [(Answer, &str); 6] = [
        (
            || status(200, "<html><body>Log in\n to the proxy</body></html>"),
            "is not a JSON object: <html><body>Log in to the proxy</body></html>",
        ),
        (|| status(200, ""), "is not a JSON object"),
        (|| status(200, "[1, 2]"), "is not a JSON object: [1, 2]"),
        (|| status(200, "{\"data\": {\"audio\": \"0"), "is not a JSON object"),
        (|| status(200, "{\"data\": {}}"), "has no base_resp.status_code"),
        (
            || ok(json!({ "data": { "audio": "49443x" } })),
            "data.audio is not hexadecimal (Trace-Id: trace-1)",
        ),
    ];
    for (answer, expected) in answers {
        let stand_in = StandIn::answering(move |_, _| Some(answer())).await;
        let (message, requests) = failing(&stand_in).await;
        assert!(message.contains(expected), "{message}");
        assert_eq!(requests, 1);
    }
}

#[tokio::test]
async fn a_refused_request_is_sent_again_after_a_pause() {
    for code in [429, 503] {
        let stand_in = StandIn::answering(move |number, _| (number < 2).then(|| status(code, "busy"))).await;
        let base = tempfile::tempdir().unwrap();
        let client = connect(settings(&stand_in.url, base.path(), "url")).await;
        assert!(text(&call(&client, "text_to_audio", json!({ "text": "x" })).await).starts_with("Success."));
        assert_eq!(stand_in.received().len(), 3);
    }
    let stand_in = StandIn::answering(|_, _| Some(common::api_error(1002, "rate limit"))).await;
    let (message, requests) = failing(&stand_in).await;
    assert!(message.contains("API error 1002: rate limit"), "{message}");
    assert_eq!(requests, 3);
    let much_later = || ([("retry-after", "3600")], status(429, "tomorrow")).into_response();
    let stand_in = StandIn::answering(move |_, _| Some(much_later())).await;
    assert_eq!(failing(&stand_in).await.1, 1);
}

#[tokio::test]
async fn nobody_there_is_told_after_some_attempts() {
    let base = tempfile::tempdir().unwrap();
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = connect(settings(&format!("http://{free}"), base.path(), "url")).await;
    let message = error(&call(&client, "text_to_audio", json!({ "text": "x" })).await);
    assert!(message.contains("POST /v1/t2a_v2: cannot connect"), "{message}");
}

/// Answers every connection with these bytes, and then closes it or drips one byte after the other.
async fn raw(head: &'static str, drip: Option<Duration>) -> StandIn {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = connection.read(&mut [0; 4096]).await;
                let _ = connection.write_all(head.as_bytes()).await;
                while let Some(pause) = drip {
                    tokio::time::sleep(pause).await;
                    if connection.write_all(b" ").await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    StandIn::elsewhere(url)
}

#[tokio::test]
async fn a_body_shorter_than_it_says_is_an_error() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"base_resp\": {\"status_code\": 0}}";
    let (message, _) = failing(&raw(head, None).await).await;
    assert!(message.contains("the response broke off"), "{message}");
}

#[tokio::test]
async fn a_body_that_drips_without_end_is_given_up() {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\n{";
    let (message, _) =
        failing_within(&raw(head, Some(Duration::from_millis(100))).await, short_limits()).await;
    assert!(message.contains("no complete response within 2 s"), "{message}");
}

#[tokio::test]
async fn a_body_that_stops_is_given_up() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{";
    let (message, _) =
        failing_within(&raw(head, Some(Duration::from_secs(3600))).await, short_limits()).await;
    assert!(message.contains("no more of the response within 0.4 s"), "{message}");
}

/// A body of 3 GB, and how much of it was taken.
fn endless(sent: &Arc<AtomicU64>) -> Body {
    const PIECE: usize = 1 << 20;
    let piece = Bytes::from(vec![b' '; PIECE]);
    let sent = Arc::clone(sent);
    Body::from_stream(stream::iter(0..3_000).map(move |_| {
        sent.fetch_add(PIECE as u64, Ordering::Relaxed);
        Ok::<_, std::convert::Infallible>(piece.clone())
    }))
}

#[tokio::test]
async fn three_gigabytes_are_not_taken() {
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let stand_in = StandIn::answering(move |_, request| {
        let is_wanted = request.path.starts_with("/v1/t2a") || request.path.starts_with("/files/");
        is_wanted.then(|| endless(&counted).into_response())
    })
    .await;
    let base = tempfile::tempdir().unwrap();
    let limits = Limits { json_bytes: 8 << 20, download_bytes: 16 << 20, ..usual_limits() };
    let limited = Settings { limits, ..settings(&stand_in.url, base.path(), "local") };
    let client = connect(limited).await;
    let message = error(&call(&client, "text_to_audio", json!({ "text": "x" })).await);
    assert!(message.contains("larger than 8388608 bytes"), "{message}");
    let message = error(&call(&client, "generate_video", json!({ "prompt": "x" })).await);
    assert!(message.contains("larger than 16777216 bytes"), "{message}");
    assert!(message.contains("What was made is at"), "{message}");
    assert_eq!(files(base.path()), [""; 0]);
    // What was under way when the limit was reached comes on top.
    assert!(sent.load(Ordering::Relaxed) < 64 << 20, "{}", sent.load(Ordering::Relaxed));
}

#[tokio::test]
async fn few_large_responses_are_held_at_once() {
    const LARGE: usize = 600 << 10;
    let stand_in = StandIn::answering(|_, _| {
        let hex = HEX.repeat(LARGE / HEX.len());
        Some(ok(json!({ "data": { "audio": hex } })))
    })
    .await;
    let base = tempfile::tempdir().unwrap();
    let limits = Limits { large_responses: 1, ..usual_limits() };
    let limited = Settings { limits, ..settings(&stand_in.url, base.path(), "local") };
    let client = connect(limited).await;
    let calls = (0..10).map(|number| call(&client, "text_to_audio", json!({ "text": number.to_string() })));
    for result in futures_util::future::join_all(calls).await {
        assert!(text(&result).starts_with("Success."), "{result:?}");
    }
    assert_eq!(files(base.path()).len(), 10);
}

#[tokio::test]
async fn two_hundred_calls_at_once_are_all_answered() {
    let busy = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (counting, peak) = (Arc::clone(&busy), Arc::clone(&most));
    let stand_in = StandIn::answering(move |_, request| {
        let busy = counting.fetch_add(1, Ordering::SeqCst) + 1;
        peak.fetch_max(busy, Ordering::SeqCst);
        let text = request.json()["text"].as_str().unwrap().to_owned();
        let counting = Arc::clone(&counting);
        let body: Value = json!({
            "data": { "audio": format!("https://example.com/{text}.mp3") },
            "base_resp": { "status_code": 0 },
        });
        let later = stream::once(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            counting.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, std::convert::Infallible>(body.to_string())
        });
        Some(Body::from_stream(later).into_response())
    })
    .await;
    let base = tempfile::tempdir().unwrap();
    let limits = Limits { concurrent: 16, ..usual_limits() };
    let limited = Settings { limits, ..settings(&stand_in.url, base.path(), "url") };
    let client = connect(limited).await;
    let calls = (0..200).map(|number| {
        let client = &client;
        async move {
            let arguments = json!({ "text": format!("number-{number}") });
            let told = text(&call(client, "text_to_audio", arguments).await);
            assert_eq!(told, format!("Success. Audio URL: https://example.com/number-{number}.mp3"));
        }
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(stand_in.received().len(), 200);
    assert!((2..=16).contains(&most.load(Ordering::SeqCst)), "{most:?}");
}
