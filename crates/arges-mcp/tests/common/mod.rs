//! A stand-in for MiniMax's API that records what it is asked, and a client connected to a server of the tools.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arges_mcp::Limits;
use arges_mcp::server::transport::serve_streams;
use arges_mcp::server::{MiniMaxServer, Settings};
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use rmcp::model::{CallToolRequestParams, CallToolResult};
use rmcp::service::{RoleClient, RunningService};
use serde_json::{Value, json};

/// A request as it was received.
#[derive(Debug, Clone)]
pub struct Received {
    pub method: String,
    /// With the query.
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Received {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// The stand-in. It ends with the test's runtime.
#[derive(Clone)]
pub struct StandIn {
    pub url: String,
    received: Arc<Mutex<Vec<Received>>>,
}

impl StandIn {
    /// Answers as the API does; addresses of files lead back to it.
    pub async fn start() -> StandIn {
        Self::answering(|_, _| None).await
    }

    /// Answers by `answer`, which gets the number of the request, from 0, and as the API where it gives nothing.
    pub async fn answering(
        answer: impl Fn(usize, &Received) -> Option<Response> + Send + Sync + 'static,
    ) -> StandIn {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let received = Arc::new(Mutex::new(Vec::new()));
        let stand_in = StandIn { url: url.clone(), received: Arc::clone(&received) };
        let answer = Arc::new(answer);
        let handler = move |request: Request| {
            let (received, answer, url) = (Arc::clone(&received), Arc::clone(&answer), url.clone());
            async move {
                let (head, body) = request.into_parts();
                let request = Received {
                    method: head.method.to_string(),
                    path: head.uri.to_string(),
                    headers: head.headers,
                    body: to_bytes(body, usize::MAX).await.unwrap_or_default(),
                };
                let number = {
                    let mut received = received.lock().unwrap();
                    received.push(request.clone());
                    received.len() - 1
                };
                answer(number, &request).unwrap_or_else(|| usual(&request, &url))
            }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handler)).await });
        stand_in
    }

    /// Something else at an address, which records nothing.
    pub fn elsewhere(url: String) -> StandIn {
        StandIn { url, received: Arc::default() }
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }
}

/// A success of the API with these fields.
pub fn ok(mut fields: Value) -> Response {
    fields["base_resp"] = json!({ "status_code": 0, "status_msg": "success" });
    ([("Trace-Id", "trace-1"), ("content-type", "application/json")], fields.to_string()).into_response()
}

/// An error of the API.
pub fn api_error(code: i64, message: &str) -> Response {
    let body = json!({ "base_resp": { "status_code": code, "status_msg": message } });
    ([("Trace-Id", "trace-9")], body.to_string()).into_response()
}

pub fn status(code: u16, body: &'static str) -> Response {
    (StatusCode::from_u16(code).unwrap(), body).into_response()
}

pub const FILE: &[u8] = b"the bytes of a file";
pub const HEX: &str = "4944330400ff";
pub const SOUND: &[u8] = b"ID3\x04\x00\xff";

fn usual(request: &Received, url: &str) -> Response {
    let path = request.path.split('?').next().unwrap();
    let by_address = request.json()["output_format"] == "url";
    let audio = if by_address { format!("{url}/files/a.mp3?sign=x%2Fy") } else { HEX.to_owned() };
    match path {
        "/v1/t2a_v2" | "/v1/music_generation" => ok(json!({ "data": { "audio": audio } })),
        "/v1/get_voice" => ok(json!({
            "system_voice": [{ "voice_name": "Ann's", "voice_id": "ann" }, { "voice_name": "Bo", "voice_id": "bo" }],
            "voice_cloning": [{ "voice_id": "mine" }],
        })),
        "/v1/files/upload" => ok(json!({ "file": { "file_id": 77 } })),
        "/v1/voice_clone" => ok(json!({ "demo_audio": format!("{url}/files/demo.wav") })),
        "/v1/voice_design" => ok(json!({ "voice_id": "designed", "trial_audio": HEX })),
        "/v1/video_generation" => ok(json!({ "task_id": "task-5" })),
        "/v1/query/video_generation" => ok(json!({ "status": "Success", "file_id": "file-6" })),
        "/v1/files/retrieve" => ok(json!({ "file": { "download_url": format!("{url}/files/film.mp4") } })),
        "/v1/image_generation" => ok(json!({
            "data": { "image_urls": [format!("{url}/files/0.jpg"), format!("{url}/files/1.jpg")] },
        })),
        path if path.starts_with("/files/") => {
            ([("content-type", "application/octet-stream")], Body::from(FILE)).into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// The usual limits, with pauses that are over at once.
pub fn usual_limits() -> Limits {
    Limits {
        backoff: Duration::from_millis(5),
        poll: Duration::from_millis(5),
        report: Duration::from_millis(20),
        ..Limits::default()
    }
}

/// Limits that something is to reach.
pub fn short_limits() -> Limits {
    Limits {
        answer: Duration::from_millis(400),
        idle: Duration::from_millis(400),
        total: Duration::from_secs(2),
        ..usual_limits()
    }
}

/// Settings for the API at an address, with results as files below `base` or as addresses.
pub fn settings(url: &str, base: &Path, mode: &str) -> Settings {
    let variables = [
        ("MINIMAX_API_KEY", "the-key"),
        ("MINIMAX_API_HOST", url),
        ("MINIMAX_MCP_BASE_PATH", base.to_str().unwrap()),
        ("MINIMAX_API_RESOURCE_MODE", mode),
    ];
    let variable =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    Settings { limits: usual_limits(), ..Settings::from_environment(variable, false).unwrap() }
}

pub type Client = RunningService<RoleClient, ()>;

/// A client of a server with these settings, over streams in memory.
pub async fn connect(settings: Settings) -> Client {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (input, output) = tokio::io::split(theirs);
    let server = MiniMaxServer::new(settings).unwrap();
    tokio::spawn(serve_streams(server, input, output, std::future::pending()));
    rmcp::serve_client((), ours).await.unwrap()
}

/// Calls a tool.
pub async fn call(client: &Client, tool: &'static str, arguments: Value) -> CallToolResult {
    let arguments = arguments.as_object().unwrap().clone();
    client.call_tool(CallToolRequestParams::new(tool).with_arguments(arguments)).await.unwrap()
}

/// The first text of a result.
pub fn text(result: &CallToolResult) -> String {
    result.content[0].as_text().unwrap().text.clone()
}

/// The text of a result that is an error.
pub fn error(result: &CallToolResult) -> String {
    assert_eq!(result.is_error, Some(true), "{result:?}");
    text(result)
}

/// The names of all files below a folder, relative to it and sorted.
pub fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(folder).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}
