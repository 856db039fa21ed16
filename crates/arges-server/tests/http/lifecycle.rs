//! Connections that break, streams that are silent, and the server's end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arges_server::{ServerOptions, serve};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::ServiceExt;

use crate::support::{CONTEXT, MODEL, TestServer, engine_options, post, server, server_with};

/// A request that runs for as long as the context allows.
fn endless(stream: bool) -> String {
    json!({"prompt": "a", "max_tokens": CONTEXT, "ignore_eos": true, "stream": stream}).to_string()
}

struct Served {
    server: TestServer,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

async fn served(options: ServerOptions) -> Served {
    let server = server_with(engine_options(), options);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let shutdown = async {
        let _ = stopped.await;
    };
    let task = tokio::spawn(serve(listener, Arc::clone(&server.state), shutdown));
    Served { server, address, stop, task }
}

async fn open(address: SocketAddr, body: &str) -> TcpStream {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    connection
}

async fn rest_of(mut connection: TcpStream) -> String {
    let mut received = Vec::new();
    connection.read_to_end(&mut received).await.unwrap();
    String::from_utf8(received).unwrap()
}

#[tokio::test]
async fn dropping_a_streamed_answer_cancels_its_request() {
    let server = server();
    let response = server.router.clone().oneshot(post("/v1/completions", endless(true))).await.unwrap();
    server.wait_for("the request", |stats| stats.running == 1).await;
    drop(response);
    server.wait_for("the cancellation", |stats| stats.cancelled == 1 && stats.running == 0).await;
}

#[tokio::test]
async fn a_client_that_hangs_up_frees_its_slot_streamed_or_not() {
    let served = served(ServerOptions::new(MODEL)).await;
    for (count, stream) in [(1, true), (2, false)] {
        let connection = open(served.address, &endless(stream)).await;
        served.server.wait_for("the request", |stats| stats.running == 1).await;
        drop(connection);
        let gone = |stats: arges_engine::EngineStats| stats.cancelled == count && stats.running == 0;
        served.server.wait_for("the cancellation", gone).await;
    }
}

#[tokio::test]
async fn a_silent_stream_sends_comments() {
    let mut options = ServerOptions::new(MODEL);
    options.keep_alive = Duration::from_millis(1);
    let server = server_with(engine_options(), options);
    let body = json!({"prompt": vec![7; CONTEXT - 8], "max_tokens": 2, "stream": true});
    let reply = server.completion(body).await;
    assert!(reply.body.lines().any(|line| line.starts_with(':')), "{}", reply.body);
    reply.chunks();
}

#[tokio::test]
async fn a_shutdown_lets_running_requests_finish_and_takes_no_new_ones() {
    let Served { server, address, stop, task } = served(ServerOptions::new(MODEL)).await;
    let body = json!({"prompt": "a", "max_tokens": 200, "ignore_eos": true, "stream": true}).to_string();
    let connection = open(address, &body).await;
    server.wait_for("the request", |stats| stats.running == 1).await;
    stop.send(()).unwrap();
    let received = rest_of(connection).await;
    assert!(received.contains("\"finish_reason\":\"length\""), "{received}");
    assert!(received.contains("data: [DONE]"));
    task.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    assert_eq!(server.engine.stats().finished, 1);
    assert_eq!(server.get("/ready").await.error().0, 503);
    assert_eq!(server.completion(json!({"prompt": "a"})).await.error().0, 503);
}

#[tokio::test]
async fn a_request_that_outlasts_the_drain_limit_ends_with_an_error() {
    let mut options = ServerOptions::new(MODEL);
    options.drain_limit = Duration::ZERO;
    let Served { server, address, stop, task } = served(options).await;
    let connection = open(address, &endless(true)).await;
    server.wait_for("the request", |stats| stats.running == 1).await;
    stop.send(()).unwrap();
    let received = rest_of(connection).await;
    assert!(received.contains("\"error\""), "{received}");
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_sends_its_request_a_byte_at_a_time_is_disconnected() {
    let mut options = ServerOptions::new(MODEL);
    options.header_timeout = Duration::from_millis(200);
    let Served { server: _server, address, stop: _stop, task: _task } = served(options).await;
    let mut connection = TcpStream::connect(address).await.unwrap();
    let start = std::time::Instant::now();
    let mut received = Vec::new();
    for byte in b"GET /health HTTP/1.1\r\nhost: x\r\na: ".iter().chain(std::iter::repeat(&b'a')) {
        let sent = connection.write_all(&[*byte]).await;
        let more = tokio::time::timeout(Duration::from_millis(20), connection.read_buf(&mut received)).await;
        if sent.is_err() || matches!(more, Ok(Ok(0) | Err(_))) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "the connection is still open");
    }
}

#[tokio::test]
async fn no_more_connections_are_served_at_once_than_the_options_allow() {
    let mut options = ServerOptions::new(MODEL);
    options.max_connections = 1;
    let Served { server: _server, address, stop: _stop, task: _task } = served(options).await;
    let request = b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let idle = TcpStream::connect(address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(request).await.unwrap();
    let mut received = Vec::new();
    let waited = tokio::time::timeout(Duration::from_millis(100), second.read_buf(&mut received)).await;
    assert!(waited.is_err(), "{}", String::from_utf8_lossy(&received));
    drop(idle);
    assert!(rest_of(second).await.starts_with("HTTP/1.1 200"));
}
