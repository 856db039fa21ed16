//! A server over the tiny golden model, and what tests need to talk to it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arges_engine::{Engine, EngineOptions, EngineStats};
use arges_kernels::device::cpu::{Cpu, CpuOptions};
use arges_model::{Checkpoint, LoadOptions, Model};
use arges_server::{AppState, ServerOptions, router};
use arges_text::{ChatTemplate, Tokenizer, synthetic};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt;

pub const MODEL: &str = "tiny/m1";
pub const CONTEXT: usize = 2048;

/// The parts of a server.
pub struct TestServer {
    pub engine: Engine,
    pub state: Arc<AppState>,
    pub router: Router,
    pub tokenizer: Tokenizer,
}

pub fn engine_options() -> EngineOptions {
    EngineOptions {
        max_sequences: 8,
        max_tokens: 4 * CONTEXT,
        step_tokens: 256,
        max_queue: 64,
        max_context: CONTEXT,
        max_logit_rows: 64,
        prefix_cache: None,
        max_drafts: 8,
        exact: false,
    }
}

pub fn server() -> TestServer {
    server_with(engine_options(), ServerOptions::new(MODEL))
}

pub fn server_with(engine: EngineOptions, options: ServerOptions) -> TestServer {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../arges-model/tests/data/tiny-m1/fp32");
    let checkpoint = Checkpoint::open(&data).unwrap();
    let load = LoadOptions::for_checkpoint(&checkpoint);
    let cpu = Cpu::new(CpuOptions { threads: Some(2), isa: None }).unwrap();
    let model = Model::load(&checkpoint, load, Arc::new(cpu), &mut |_| {}).unwrap();
    let dir = tempfile::tempdir().unwrap();
    synthetic::write_tokenizer(dir.path(), 512).unwrap();
    let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let template = ChatTemplate::from_dir(dir.path()).unwrap();
    let engine = Engine::start(Arc::new(model), Some(tokenizer.clone()), engine).unwrap();
    let state = AppState::new(engine.clone(), tokenizer.clone(), template, options);
    TestServer { engine, router: router(Arc::clone(&state)), state, tokenizer }
}

/// A response read whole.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The JSON of a response that must be 200.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.body);
        self.json()
    }

    /// Status, param and code of an error, whose shape is checked.
    pub fn error(&self) -> (u16, Option<String>, Option<String>) {
        let body = self.json();
        let error = body["error"].as_object().unwrap_or_else(|| panic!("no error: {body}"));
        let keys: Vec<&str> = error.keys().map(String::as_str).collect();
        assert_eq!(keys, ["message", "type", "param", "code"]);
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        let text = |key: &str| error[key].as_str().map(str::to_owned);
        (self.status.as_u16(), text("param"), text("code"))
    }

    /// The events of a stream in which each has a name, which its data repeat.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, StatusCode::OK, "{}", self.body);
        let blocks = self.body.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':'));
        let event = |block: &str| {
            let (name, data) = block.split_once("\ndata: ").unwrap_or_else(|| panic!("{block}"));
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!(Some(name), data["type"].as_str().map(|name| format!("event: {name}")).as_deref());
            data
        };
        blocks.map(event).collect()
    }

    /// The chunks of a stream, which must end with `[DONE]`.
    pub fn chunks(&self) -> Vec<Value> {
        assert_eq!(self.status, StatusCode::OK, "{}", self.body);
        assert_eq!(self.headers["content-type"], "text/event-stream");
        let mut data: Vec<&str> = self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.into_iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
    }
}

/// A tool whose arguments even a random model gets to an end with.
pub fn weather() -> Value {
    let city = json!({"type": "string", "enum": ["Paris", "Rome"]});
    let parameters = json!({"type": "object", "properties": {"city": city}, "required": ["city"],
        "additionalProperties": false});
    json!({"name": "get_weather", "description": "The weather now.", "parameters": parameters})
}

/// Fields with more of them.
pub fn with(mut body: Value, fields: Value) -> Value {
    let fields = fields.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    body
}

pub fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::builder().method(Method::POST).uri(path).body(body.into()).unwrap()
}

impl TestServer {
    pub async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    pub async fn completion(&self, body: Value) -> Reply {
        self.send(post("/v1/completions", body.to_string())).await
    }

    pub async fn chat(&self, body: Value) -> Reply {
        self.send(post("/v1/chat/completions", body.to_string())).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(post(path, body.to_string())).await
    }

    /// Waits until the engine's counters say so.
    pub async fn wait_for(&self, what: &str, reached: impl Fn(EngineStats) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while !reached(self.engine.stats()) {
            assert!(tokio::time::Instant::now() < deadline, "{what} never came: {:?}", self.engine.stats());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}
