//! `arges mcp`, and tools in `arges chat` and `arges serve`. One small server stands in for the model and for
//! MiniMax's API.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::support::{command, ran};

/// Paths and bodies that were received, in order.
type Received = Arc<Mutex<Vec<(String, Value)>>>;

/// Answers one request a connection by `answer`, which gets path and body. It ends with the test.
fn stand_in(answer: impl Fn(&str, &Value) -> (&'static str, String) + Send + 'static) -> (String, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let received = Received::default();
    let recording = Arc::clone(&received);
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            if let Some((path, body)) = request(&connection) {
                recording.lock().unwrap().push((path.clone(), body.clone()));
                let (kind, text) = answer(&path, &body);
                let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n");
                let _ = (&connection).write_all((head + &text).as_bytes());
            }
        }
    });
    (url, received)
}

fn request(connection: &TcpStream) -> Option<(String, Value)> {
    let mut reader = BufReader::new(connection);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        match header.trim().to_ascii_lowercase().split_once(':') {
            None => break,
            Some(("content-length", value)) => length = value.trim().parse().ok()?,
            Some(_) => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, serde_json::from_slice(&body).unwrap_or_default()))
}

/// A model that asks for the voices, says something with the last of them, and tells where that is; and the API.
fn model_and_api(path: &str, body: &Value) -> (&'static str, String) {
    let api = |fields: Value| {
        let mut fields = fields;
        fields["base_resp"] = json!({ "status_code": 0 });
        ("application/json", fields.to_string())
    };
    match path {
        "/v1/models" => ("application/json", json!({ "data": [{ "id": "a-model" }] }).to_string()),
        "/v1/get_voice" => api(json!({ "system_voice": [{ "voice_name": "Ann", "voice_id": "ann-7" }] })),
        "/v1/t2a_v2" => api(json!({ "data": { "audio": "https://example.com/speech.mp3" } })),
        _ => ("text/event-stream", turn(&body["messages"])),
    }
}

fn turn(messages: &Value) -> String {
    let results: Vec<&str> = messages
        .as_array()
        .unwrap()
        .iter()
        .filter(|message| message["role"] == "tool")
        .map(|message| message["content"].as_str().unwrap())
        .collect();
    let call = |name: &str, arguments: Value| {
        let function = json!({ "name": name, "arguments": arguments.to_string() });
        json!({ "tool_calls": [{ "index": 0, "id": format!("call-{}", results.len()), "function": function }] })
    };
    let delta = match results.as_slice() {
        [] => call("list_voices", json!({})),
        [voices] => {
            let id = voices.split("ID: ").last().unwrap().split('\'').next().unwrap();
            call("text_to_audio", json!({ "text": "Good evening", "voice_id": id }))
        }
        [.., last] => json!({ "content": format!("Listen: {}", last.lines().next().unwrap()) }),
    };
    let reason = if delta["content"].is_string() { "stop" } else { "tool_calls" };
    let chunk = |delta: Value, reason: Value| {
        format!(
            "data: {}\n\n",
            json!({ "choices": [{ "index": 0, "delta": delta, "finish_reason": reason }] })
        )
    };
    chunk(delta, Value::Null) + &chunk(json!({}), reason.into()) + "data: [DONE]\n\n"
}

/// A configuration with this program's server, whose API is at an address.
fn config(folder: &tempfile::TempDir, api: &str) -> String {
    let path = folder.path().join("mcp.json");
    let env = json!({
        "MINIMAX_API_KEY": "key",
        "MINIMAX_API_HOST": api,
        "MINIMAX_MCP_BASE_PATH": folder.path().join("out"),
    });
    let server = json!({ "command": env!("CARGO_BIN_EXE_arges"), "args": ["mcp", "serve"], "env": env });
    std::fs::write(&path, json!({ "mcpServers": { "MiniMax": server } }).to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_conversation_uses_two_tools_in_order() {
    let (url, received) = stand_in(model_and_api);
    let folder = tempfile::tempdir().unwrap();
    let config = config(&folder, &url);
    let args = ["chat", "--endpoint", &url, "--mcp", &config, "--yes", "Say good evening."];
    let ran = ran(command().args(args));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(ran.stdout, "Listen: Success. Audio URL: https://example.com/speech.mp3\n");
    assert!(
        ran.stderr.contains("[text_to_audio {\"text\":\"Good evening\",\"voice_id\":\"ann-7\"}]"),
        "{}",
        ran.stderr
    );
    let received = received.lock().unwrap();
    let paths: Vec<&str> = received.iter().map(|(path, _)| path.as_str()).collect();
    let chat = "/v1/chat/completions";
    assert_eq!(paths, ["/v1/models", chat, "/v1/get_voice", chat, "/v1/t2a_v2", chat]);
    assert_eq!(received[1].1["tools"].as_array().unwrap().len(), 10);
    assert_eq!(received[1].1["model"], "a-model");
    assert_eq!(received[4].1["voice_setting"]["voice_id"], "ann-7");
}

#[test]
fn a_tool_that_changes_something_is_not_run_where_nobody_can_be_asked() {
    let (url, received) = stand_in(model_and_api);
    let folder = tempfile::tempdir().unwrap();
    let config = config(&folder, &url);
    let ran = ran(command().args(["chat", "--endpoint", &url, "--mcp", &config, "Say good evening."]));
    assert_eq!(ran.stdout, "Listen: the user did not allow this call\n", "{}", ran.stderr);
    assert!(ran.stderr.contains("--yes allows it"), "{}", ran.stderr);
    assert!(!received.lock().unwrap().iter().any(|(path, _)| path == "/v1/t2a_v2"));
}

#[test]
fn the_embedded_model_is_offered_tools_and_answers() {
    let args = ["chat", "--tool", "clock", "--temperature", "0", "-n", "20", "Who are you?"];
    let ran = ran(command().args(args));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(!ran.stdout.trim().is_empty());
}

/// Tokens of the prompt of a question to `arges serve` with these flags.
fn prompt_tokens(flags: &[&str]) -> u64 {
    let mut command = command();
    command.args(["serve", "--port", "0"]).args(flags).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on http://").expect("the address");
    let messages = json!([{ "role": "user", "content": "Who are you?" }]);
    let body = json!({ "messages": messages, "max_tokens": 5, "temperature": 0 }).to_string();
    let mut stream = TcpStream::connect(address).unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close";
    write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{reply}");
    let answer: Value = serde_json::from_str(body).unwrap();
    answer["usage"]["prompt_tokens"].as_u64().unwrap()
}

#[test]
fn a_server_shows_its_model_the_tools() {
    let without = prompt_tokens(&[]);
    let with_clock = prompt_tokens(&["--tool", "clock"]);
    assert!(with_clock > without + 50, "{with_clock} and {without} tokens");
}

/// A server over standard streams, line by line.
struct Lines {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Lines {
    fn start(command: &mut Command) -> Lines {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Lines { child, output }
    }

    fn send(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line:?}"))
    }
}

#[test]
fn nothing_but_json_rpc_is_on_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    let mut served = command();
    served.args(["--log", "trace", "mcp", "serve", "--backend", "local"]);
    served.env("MINIMAX_MCP_BASE_PATH", folder.path());
    let mut lines = Lines::start(&mut served);
    let info = json!({ "name": "test", "version": "1" });
    let params = json!({ "protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": info });
    lines.send(&json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params }).to_string());
    let hello = lines.next();
    assert_eq!(hello["result"]["serverInfo"]["name"], "Minimax");
    lines.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }).to_string());
    let call = json!({ "name": "text_to_image", "arguments": { "prompt": "x" } });
    lines.send(&json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call }).to_string());
    let answer = lines.next();
    assert_eq!((&answer["id"], &answer["result"]["isError"]), (&json!(2), &json!(true)));
    // Closing its input ends it, with nothing more said.
    drop(lines.child.stdin.take());
    assert!(lines.child.wait().unwrap().success());
    let mut rest = String::new();
    lines.output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn wrong_settings_and_arguments_are_named() {
    let with_key = |command: &mut Command| {
        command.env("MINIMAX_API_KEY", "k").env("MINIMAX_API_HOST", "http://127.0.0.1:9");
    };
    let without_key = |command: &mut Command| {
        command.env_remove("MINIMAX_API_KEY").env_remove("MINIMAX_API_HOST");
    };
    type Prepare<'a> = &'a dyn Fn(&mut Command);
    let cases: [(Prepare, &[&str], &str); 5] = [
        (&without_key, &["mcp", "serve"], "MINIMAX_API_KEY is not set"),
        (&with_key, &["mcp", "serve", "--http", "9593"], "--http 9593 is not of the form HOST:PORT"),
        (
            &with_key,
            &["mcp", "serve", "--http", "0.0.0.0:0"],
            "--http 0.0.0.0:0 lets other machines in: that needs --token",
        ),
        (
            &with_key,
            &["mcp", "serve", "--http", "127.0.0.1:0", "--token", ""],
            "--token (or ARGES_MCP_TOKEN) is empty",
        ),
        (&with_key, &["mcp", "tools", "--mcp", "/no/such.json"], "cannot read /no/such.json"),
    ];
    for (prepare, args, expected) in cases {
        let mut command = command();
        prepare(command.args(args));
        let stderr = ran(&mut command).failed(2);
        assert!(stderr.contains(expected), "{stderr}");
    }
}

#[test]
fn a_server_that_cannot_be_started_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mcp.json");
    std::fs::write(&path, r#"{"mcpServers": {"broken": {"command": "/no/such/program"}}}"#).unwrap();
    let stderr = ran(command().args(["mcp", "tools", "--mcp", path.to_str().unwrap()])).failed(1);
    assert!(stderr.contains("MCP server \"broken\": cannot start \"/no/such/program\""), "{stderr}");
}
