//! The protocol around the tools: progress, cancellation, versions, and both transports.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arges_mcp::Limits;
use arges_mcp::client::{CallLimits, Config, ConnectError, Toolbox, ToolboxError};
use arges_mcp::server::transport::{Access, serve_http, serve_streams};
use arges_mcp::server::{MiniMaxServer, Settings};
use axum::body::Body;
use axum::response::IntoResponse;
use common::{StandIn, call, connect, settings, text};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::oneshot;

/// A server whose lines are written and read one by one.
struct Lines {
    read: tokio::io::Lines<BufReader<tokio::io::ReadHalf<tokio::io::DuplexStream>>>,
    write: tokio::io::WriteHalf<tokio::io::DuplexStream>,
}

impl Lines {
    fn new(settings: Settings) -> Lines {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (input, output) = tokio::io::split(theirs);
        let server = MiniMaxServer::new(settings).unwrap();
        tokio::spawn(serve_streams(server, input, output, std::future::pending()));
        let (read, write) = tokio::io::split(ours);
        Lines { read: BufReader::new(read).lines(), write }
    }

    async fn send(&mut self, message: Value) {
        self.write.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(Duration::from_secs(20), self.read.next_line()).await;
        serde_json::from_str(&line.unwrap().unwrap().unwrap()).unwrap()
    }

    /// Says hello in a version of the protocol and returns the one that the server chose.
    async fn initialize(&mut self, version: &str) -> String {
        let client = json!({ "name": "test", "version": "1" });
        let params = json!({ "protocolVersion": version, "capabilities": {}, "clientInfo": client });
        self.send(json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params })).await;
        let answer = self.next().await;
        assert_eq!(answer["result"]["serverInfo"]["name"], "Minimax", "{answer}");
        self.send(json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })).await;
        answer["result"]["protocolVersion"].as_str().unwrap().to_owned()
    }

    async fn call(&mut self, id: u64, tool: &str, arguments: Value, token: Option<&str>) {
        let mut params = json!({ "name": tool, "arguments": arguments });
        if let Some(token) = token {
            params["_meta"] = json!({ "progressToken": token });
        }
        self.send(json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params })).await;
    }
}

#[tokio::test]
async fn clients_of_every_version_are_served() {
    let stand_in = StandIn::start().await;
    let base = tempfile::tempdir().unwrap();
    for (version, kinds) in [
        ("2024-11-05", vec!["text"]),
        ("2025-03-26", vec!["text"]),
        ("2025-06-18", vec!["text", "resource_link"]),
        ("2025-11-25", vec!["text", "resource_link"]),
    ] {
        let mut lines = Lines::new(settings(&stand_in.url, base.path(), "url"));
        assert_eq!(lines.initialize(version).await, version);
        lines.call(1, "text_to_audio", json!({ "text": "x" }), None).await;
        let answer = lines.next().await;
        let blocks = answer["result"]["content"].as_array().unwrap().iter();
        let found: Vec<&str> = blocks.map(|block| block["type"].as_str().unwrap()).collect();
        assert_eq!(found, kinds, "{version}");
        lines.call(2, "no_such_tool", json!({}), None).await;
        let answer = lines.next().await;
        assert_eq!(answer["error"]["message"], "there is no tool \"no_such_tool\"");
    }
}

/// A stand-in whose films take that many questions.
async fn slow_films(questions: usize) -> StandIn {
    let asked = AtomicUsize::new(0);
    StandIn::answering(move |_, request| {
        let is_question = request.path.starts_with("/v1/query/");
        (is_question && asked.fetch_add(1, Ordering::SeqCst) < questions)
            .then(|| common::ok(json!({ "status": "Processing" })))
    })
    .await
}

#[tokio::test]
async fn progress_is_told_while_a_film_is_made() {
    let stand_in = slow_films(3).await;
    let base = tempfile::tempdir().unwrap();
    let mut lines = Lines::new(settings(&stand_in.url, base.path(), "url"));
    lines.initialize("2025-06-18").await;
    lines.call(1, "generate_video", json!({ "prompt": "x" }), Some("token-1")).await;
    for number in 1..=3 {
        let report = lines.next().await;
        assert_eq!(report["method"], "notifications/progress", "{report}");
        assert_eq!(report["params"]["progressToken"], "token-1");
        assert_eq!(
            (report["params"]["progress"].as_f64(), report["params"]["total"].as_f64()),
            (Some(f64::from(number)), Some(30.0))
        );
        assert_eq!(report["params"]["message"], "video task task-5: Processing");
    }
    assert!(
        lines.next().await["result"]["content"][0]["text"]
            .as_str()
            .unwrap()
            .starts_with("Success. Video URL")
    );
}

#[tokio::test]
async fn progress_is_told_while_music_is_made() {
    let stand_in = StandIn::answering(|_, _| {
        let later = futures_util::stream::once(async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            let body = json!({ "data": { "audio": "https://x/y" }, "base_resp": { "status_code": 0 } });
            Ok::<_, std::convert::Infallible>(body.to_string())
        });
        Some(Body::from_stream(later).into_response())
    })
    .await;
    let base = tempfile::tempdir().unwrap();
    let mut lines = Lines::new(settings(&stand_in.url, base.path(), "url"));
    lines.initialize("2025-06-18").await;
    lines.call(1, "music_generation", json!({ "prompt": "x", "lyrics": "y" }), Some("t")).await;
    let report = lines.next().await;
    assert!(report["params"]["message"].as_str().unwrap().starts_with("making music, "), "{report}");
}

#[tokio::test]
async fn a_film_that_does_not_come_is_given_up_with_its_task() {
    let stand_in = slow_films(usize::MAX).await;
    let base = tempfile::tempdir().unwrap();
    let client = connect(settings(&stand_in.url, base.path(), "url")).await;
    let message = common::error(&call(&client, "generate_video", json!({ "prompt": "x" })).await);
    assert!(message.contains("task-5") && message.contains("query_video_generation"), "{message}");
    assert_eq!(stand_in.received().len(), 31);
}

#[tokio::test]
async fn a_cancelled_call_asks_no_more() {
    let stand_in = slow_films(usize::MAX).await;
    let base = tempfile::tempdir().unwrap();
    let mut lines = Lines::new(settings(&stand_in.url, base.path(), "url"));
    lines.initialize("2025-06-18").await;
    lines.call(7, "generate_video", json!({ "prompt": "x" }), Some("t")).await;
    lines.next().await;
    lines
        .send(json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 7 } }))
        .await;
    // A call after it is answered, so that the cancellation has arrived.
    lines.call(8, "list_voices", json!({}), None).await;
    while lines.next().await["id"] != 8 {}
    tokio::time::sleep(Duration::from_millis(50)).await;
    let asked = stand_in.received().len();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(stand_in.received().len(), asked);
}

/// A server over HTTP: its address, and what ends it.
async fn over_http(settings: Settings, token: Option<&str>) -> (String, oneshot::Sender<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let (stop, stopped) = oneshot::channel();
    let access = Access { token: token.map(str::to_owned), hosts: vec!["tools.example.com".to_owned()] };
    let server = MiniMaxServer::new(settings).unwrap();
    tokio::spawn(serve_http(server, listener, access, async {
        let _ = stopped.await;
    }));
    (url, stop)
}

async fn toolbox(url: &str, token: &str) -> Result<Toolbox, ToolboxError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp.json");
    let headers = json!({ "Authorization": format!("Bearer {token}") });
    let config = json!({ "mcpServers": { "tools": { "url": url, "headers": headers, "alwaysAllow": ["play_audio"] } } });
    std::fs::write(&path, config.to_string()).unwrap();
    Toolbox::open(&Config::read(&path).unwrap(), &[], CallLimits::default()).await
}

#[tokio::test]
async fn a_toolbox_calls_a_server_over_http() {
    let stand_in = slow_films(2).await;
    let base = tempfile::tempdir().unwrap();
    let unhurried = settings(&stand_in.url, base.path(), "url");
    let limits = Limits { poll: Duration::from_millis(60), ..unhurried.limits.clone() };
    let (url, _stop) = over_http(Settings { limits, ..unhurried }, Some("right")).await;
    let mut toolbox = toolbox(&url, "right").await.unwrap();
    assert_eq!(toolbox.tools().len(), 10);
    let reports = Arc::new(std::sync::Mutex::new(Vec::new()));
    let report = |message: &str| reports.lock().unwrap().push(message.to_owned());
    let result = toolbox.call("generate_video", "{\"prompt\": \"x\"}", &report).await;
    assert!(!result.is_error && result.text.starts_with("Success. Video URL: "), "{result:?}");
    assert!(result.text.contains("film.mp4]"), "{result:?}");
    assert!(!reports.lock().unwrap().is_empty());
    let result = toolbox.call("text_to_audio", "{\"text\": \"x\", \"speed\": 9}", &report).await;
    assert!(result.is_error && result.text.contains("`speed` must be"), "{result:?}");
    let mut withheld = toolbox.retain_allowed();
    withheld.sort();
    assert_eq!(withheld.len(), 7);
    let left: Vec<&str> = toolbox.tools().iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(left, ["list_voices", "play_audio", "query_video_generation"]);
    toolbox.close().await;
}

#[tokio::test]
async fn a_server_over_http_wants_its_token_and_its_own_name() {
    let stand_in = StandIn::start().await;
    let base = tempfile::tempdir().unwrap();
    let (url, _stop) = over_http(settings(&stand_in.url, base.path(), "url"), Some("right")).await;
    let error = toolbox(&url, "wrong").await.unwrap_err();
    assert!(matches!(error, ToolboxError::Connect(ConnectError::Initialize { .. })), "{error}");

    let client = arges_mcp::http::client(Duration::from_secs(5)).unwrap();
    let asked = |host: &'static str, origin: Option<&'static str>, token: &'static str| {
        let (client, url) = (client.clone(), url.clone());
        async move {
            let info = json!({ "name": "t", "version": "1" });
            let params = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": info });
            let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params });
            let mut request = client
                .post(url)
                .header("host", host)
                .header("accept", "application/json, text/event-stream")
                .bearer_auth(token)
                .json(&body);
            if let Some(origin) = origin {
                request = request.header("origin", origin);
            }
            request.send().await.unwrap().status().as_u16()
        }
    };
    assert_eq!(asked("localhost", None, "right").await, 200);
    assert_eq!(asked("tools.example.com", None, "right").await, 200);
    assert_eq!(asked("localhost", Some("http://localhost:3000"), "right").await, 200);
    assert_eq!(asked("localhost", None, "wrong").await, 401);
    assert_eq!(asked("evil.example.com", None, "right").await, 403);
    assert_eq!(asked("localhost", Some("http://evil.example.com"), "right").await, 403);
}

#[tokio::test]
async fn files_outside_of_the_base_path_are_not_sent_for_clients_over_http() {
    let stand_in = StandIn::start().await;
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base");
    std::fs::create_dir(&base).unwrap();
    std::fs::write(folder.path().join("private.mp3"), "x").unwrap();
    let confined = Settings { confined: true, ..settings(&stand_in.url, &base, "url") };
    let client = connect(confined).await;
    let private = folder.path().join("private.mp3");
    for (tool, arguments) in [
        ("voice_clone", json!({ "voice_id": "v", "file": private })),
        ("play_audio", json!({ "input_file_path": private })),
        ("image_to_video", json!({ "prompt": "p", "first_frame_image": "../private.mp3" })),
    ] {
        let message = common::error(&call(&client, tool, arguments).await);
        assert!(message.contains("is not below the server's base path"), "{message}");
    }
    assert_eq!(stand_in.received().len(), 0);
}

#[tokio::test]
async fn without_a_key_the_other_tools_say_which_one_they_need() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().to_str().unwrap().to_owned();
    let variable = |name: &str| (name == "MINIMAX_MCP_BASE_PATH").then(|| path.clone());
    let client = connect(Settings::from_environment(variable, true).unwrap()).await;
    for (tool, arguments) in [
        ("generate_video", json!({ "prompt": "x" })),
        ("image_to_video", json!({ "prompt": "x", "first_frame_image": "y" })),
        ("query_video_generation", json!({ "task_id": "x" })),
        ("text_to_image", json!({ "prompt": "x" })),
        ("music_generation", json!({ "prompt": "x", "lyrics": "y" })),
        ("voice_design", json!({ "prompt": "x", "preview_text": "y" })),
        ("voice_clone", json!({ "voice_id": "x", "file": "y" })),
    ] {
        let message = common::error(&call(&client, tool, arguments).await);
        assert!(
            message.contains("set MINIMAX_API_KEY and MINIMAX_API_HOST in the `env`"),
            "{tool}: {message}"
        );
    }
}

#[tokio::test]
async fn this_machine_speaks_where_it_can() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().to_str().unwrap().to_owned();
    let variable = |name: &str| (name == "MINIMAX_MCP_BASE_PATH").then(|| path.clone());
    let client = connect(Settings::from_environment(variable, true).unwrap()).await;
    let arguments = json!({ "text": "Hello from here.", "output_directory": "speech" });
    let result = call(&client, "text_to_audio", arguments).await;
    if text(&result).contains("espeak-ng is not installed") {
        assert_eq!(result.is_error, Some(true));
        println!("skipped: espeak-ng is not installed");
        return;
    }
    let told = text(&result);
    assert!(
        told.contains("Voice used: en. Spoken by espeak-ng on this machine and not by MiniMax"),
        "{told}"
    );
    let [name] = &common::files(base.path())[..] else { panic!("{:?}", common::files(base.path())) };
    assert!(name.starts_with("speech/t2a_Hello_from_") && name.ends_with(".wav"), "{name}");
    let sound = std::fs::read(base.path().join(name)).unwrap();
    assert!(sound.starts_with(b"RIFF") && sound.len() > 10_000, "{} bytes", sound.len());
    let voices = text(&call(&client, "list_voices", json!({})).await);
    assert!(voices.contains("ID: en-gb") && voices.ends_with("not of MiniMax."), "{voices}");
    let arguments = json!({ "text": "x", "voice_id": "-w /tmp/x" });
    let message = common::error(&call(&client, "text_to_audio", arguments).await);
    assert!(message.contains("espeak-ng has no voice"), "{message}");
}
