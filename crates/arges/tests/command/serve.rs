//! The server's process: start, answers, end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{TinyModel, command, ran};

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(flags: &[&str]) -> Server {
        Self::start_with(flags, Stdio::null())
    }

    fn start_with(flags: &[&str], stderr: Stdio) -> Server {
        let mut command = command();
        command.args(["serve", "--port", "0"]).args(flags);
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").expect("the address").to_owned();
        Server { child, address }
    }

    /// Status and body of a request.
    fn request(&self, head: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        write!(
            stream,
            "{head}\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap())
    }

    /// Sends a signal and waits for the end.
    fn stop(mut self, signal: &str) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

#[test]
fn the_server_answers_at_the_address_it_prints_and_ends_in_order_at_a_signal() {
    let model = TinyModel::new(&[]);
    for signal in ["-TERM", "-INT"] {
        let server = Server::start(&["--model", model.dir(), "--max-sequences", "4"]);
        assert_eq!(server.request("GET /health HTTP/1.1", "").0, 200);
        let (status, models) = server.request("GET /v1/models HTTP/1.1", "");
        assert_eq!((status, &models["data"][0]["id"]), (200, &json!("tiny")));
        let body = json!({"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 5, "temperature": 0});
        let (status, answer) = server.request("POST /v1/completions HTTP/1.1", &body.to_string());
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["usage"]["prompt_tokens"], 3);
        assert_eq!(server.stop(signal), Some(0));
    }
}

#[test]
fn without_a_model_the_server_has_the_embedded_one() {
    let server = Server::start(&["--max-sequences", "2", "--context", "256"]);
    assert_eq!(server.request("GET /v1/models HTTP/1.1", "").1["data"][0]["id"], "arges-nano");
    let body = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3});
    let (status, answer) = server.request("POST /v1/chat/completions HTTP/1.1", &body.to_string());
    assert_eq!((status, &answer["model"]), (200, &json!("arges-nano")), "{answer}");
    assert_eq!(server.stop("-TERM"), Some(0));
}

#[test]
fn a_key_is_wanted_where_one_is_set_and_the_name_is_the_one_given() {
    let model = TinyModel::new(&[]);
    let server = Server::start(&["--model", model.dir(), "--api-key", "sesame", "--model-name", "gate"]);
    assert_eq!(server.request("GET /v1/models HTTP/1.1", "").0, 401);
    let with_key = "GET /v1/models HTTP/1.1\r\nauthorization: Bearer sesame";
    assert_eq!(server.request(with_key, "").1["data"][0]["id"], "gate");
    assert_eq!(server.stop("-TERM"), Some(0));
}

#[test]
fn any_key_of_a_file_opens() {
    let model = TinyModel::new(&[]);
    let keys = model.file("keys");
    std::fs::write(&keys, "# of the team\n\nsesame\n  poppy \n").unwrap();
    let server = Server::start(&["--model", model.dir(), "--api-key-file", keys.to_str().unwrap()]);
    for (key, status) in [("sesame", 200), ("poppy", 200), ("# of the team", 401), ("", 401)] {
        let head = format!("GET /v1/models HTTP/1.1\r\nx-api-key: {key}");
        assert_eq!(server.request(&head, "").0, status, "{key}");
    }
    assert_eq!(server.stop("-TERM"), Some(0));
    std::fs::write(&keys, "# none\n").unwrap();
    let failed = ran(command().args(["serve", "--api-key-file", keys.to_str().unwrap()])).failed(2);
    assert!(failed.contains("has no key"), "{failed}");
}

#[test]
fn an_answer_is_a_line_of_the_log_without_what_was_said() {
    let model = TinyModel::new(&[]);
    let log = model.file("log");
    let stderr = std::fs::File::create(&log).unwrap();
    let flags = ["--model", model.dir(), "--log", "info", "--log-format", "json"];
    let server = Server::start_with(&flags, stderr.into());
    let body = json!({"prompt": "swordfish", "max_tokens": 3, "ignore_eos": true, "stop": ["marlin"]});
    let head = "POST /v1/completions HTTP/1.1\r\nx-request-id: order-66";
    assert_eq!(server.request(head, &body.to_string()).0, 200);
    assert_eq!(server.request(head, "{\"prompt\": \"\"}").0, 400);
    assert_eq!(server.stop("-TERM"), Some(0));
    let log = std::fs::read_to_string(log).unwrap();
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let line = |message: &str| {
        let line = lines.iter().find(|line| line["message"] == message);
        line.unwrap_or_else(|| panic!("no {message} in {log}"))
    };
    let answered = line("answered");
    assert_eq!((&answered["tokens"], &answered["finish_reason"]), (&json!(3), &json!("length")));
    assert!(answered["prompt_tokens"].as_u64() > Some(0));
    for time in ["queue_seconds", "first_token_seconds", "seconds"] {
        assert!(answered[time].as_f64() >= Some(0.0), "{answered}");
    }
    let span = &answered["span"];
    let of_request = (&span["id"], &span["api"], &span["model"]);
    assert_eq!(of_request, (&json!("order-66"), &json!("/v1/completions"), &json!("tiny")), "{answered}");
    assert_eq!((&line("refused")["status"], &line("refused")["level"]), (&json!(400), &json!("INFO")));
    assert!(!log.contains("swordfish") && !log.contains("marlin"), "{log}");
}
