//! The server's process: start, answers, end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{TinyModel, command};

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(flags: &[&str]) -> Server {
        let mut command = command();
        command.args(["serve", "--port", "0"]).args(flags);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
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
