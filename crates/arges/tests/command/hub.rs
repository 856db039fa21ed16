//! Models by id, from a server that behaves like Hugging Face's as far as downloads go.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::support::{TinyModel, command, ran};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves the files of one directory as the model `owner/tiny`.
struct Hub {
    address: String,
    requests: Arc<AtomicUsize>,
}

impl Hub {
    fn start(directory: PathBuf) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                counter.fetch_add(1, Ordering::SeqCst);
                // A client that hangs up is the client's affair.
                let _ = answer(stream.unwrap(), &directory);
            }
        });
        Hub { address, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream, directory: &Path) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut range = None;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(bytes) = header.strip_prefix("range: bytes=") {
            let (start, end) = bytes.split_once('-').unwrap();
            range = Some((start.parse::<usize>().unwrap(), end.parse::<usize>().ok()));
        }
    }
    let path = request.split(' ').nth(1).unwrap();
    if path == "/api/models/owner/tiny/revision/main" {
        let files = std::fs::read_dir(directory)?.flatten();
        let siblings: Vec<_> =
            files.map(|file| json!({"rfilename": file.file_name().to_str().unwrap()})).collect();
        let body = json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return respond(&mut stream, "200 OK", "", body.as_bytes());
    }
    let prefix = format!("/owner/tiny/resolve/{COMMIT}/");
    let Some(name) = path.strip_prefix(&prefix) else {
        return respond(&mut stream, "404 Not Found", "", b"{}");
    };
    let bytes = std::fs::read(directory.join(name))?;
    let (start, end) = range.unwrap_or((0, None));
    let end = end.map_or(bytes.len(), |end| (end + 1).min(bytes.len()));
    let headers = format!(
        "etag: \"etag-of-{name}\"\r\nx-repo-commit: {COMMIT}\r\ncontent-range: bytes {start}-{}/{}\r\n",
        end - 1,
        bytes.len()
    );
    respond(&mut stream, "206 Partial Content", &headers, &bytes[start..end])
}

fn respond(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) -> std::io::Result<()> {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n")?;
    stream.write_all(body)
}

fn generate(model: &str, home: &Path) -> Command {
    let mut command = command();
    command.args(["generate", "--model", model, "--ids", "1,2,3", "-n", "8", "--json"]).env("HF_HOME", home);
    command
}

#[test]
fn an_id_is_downloaded_once_and_then_needs_no_network() {
    let model = TinyModel::new(&["--shard-bytes", "100000"]);
    let hub = Hub::start(model.path().to_owned());
    let home = tempfile::tempdir().unwrap();
    let online =
        |mut command: Command| ran(command.env("HF_ENDPOINT", &hub.address).env("HF_HUB_OFFLINE", "0"));

    let expected = ran(&mut generate(model.dir(), home.path())).json();
    assert_eq!(online(generate("owner/tiny", home.path())).json(), expected);
    let requests = hub.requests();
    assert!(requests > 8, "{requests}");
    assert_eq!(online(generate("owner/tiny", home.path())).json(), expected);
    assert_eq!(hub.requests(), requests, "a model in the cache asks for nothing");
    assert_eq!(ran(&mut generate("owner/tiny", home.path())).json(), expected, "without a network too");

    // A cache that lacks a weight file is completed.
    let snapshot = home.path().join("hub/models--owner--tiny/snapshots").join(COMMIT);
    let shard = std::fs::read_dir(&snapshot)
        .unwrap()
        .flatten()
        .find(|entry| entry.file_name().to_str().unwrap().ends_with(".safetensors"))
        .unwrap()
        .path();
    std::fs::remove_file(shard).unwrap();
    let stderr = ran(&mut generate("owner/tiny", home.path())).failed(1);
    assert!(stderr.contains("HF_HUB_OFFLINE"), "{stderr}");
    assert_eq!(online(generate("owner/tiny", home.path())).json(), expected);
}

#[test]
fn only_the_configuration_is_downloaded_to_inspect_an_id() {
    let model = TinyModel::new(&[]);
    let hub = Hub::start(model.path().to_owned());
    let home = tempfile::tempdir().unwrap();
    let mut command = command();
    command.args(["inspect", "owner/tiny"]).env("HF_HOME", home.path());
    let text = ran(command.env("HF_ENDPOINT", &hub.address).env("HF_HUB_OFFLINE", "0")).ok();
    assert!(text.contains("parameters"), "{text}");
    let blobs = std::fs::read_dir(home.path().join("hub/models--owner--tiny/blobs")).unwrap().flatten();
    let names: Vec<_> =
        blobs.map(|blob| blob.file_name()).filter(|n| !n.to_str().unwrap().ends_with(".lock")).collect();
    assert_eq!(names, ["etag-of-config.json"]);
}

#[test]
fn an_id_that_does_not_exist_is_said_with_what_to_do() {
    let model = TinyModel::new(&[]);
    let hub = Hub::start(model.path().to_owned());
    let home = tempfile::tempdir().unwrap();
    let mut missing = generate("owner/other", home.path());
    let stderr = ran(missing.env("HF_ENDPOINT", &hub.address).env("HF_HUB_OFFLINE", "0")).failed(1);
    assert!(stderr.contains("there is no directory owner/other"), "{stderr}");
    assert!(stderr.contains("404") && stderr.contains("HF_TOKEN"), "{stderr}");
}
