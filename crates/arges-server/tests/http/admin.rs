//! A trainer's verbs: who may use them, and what they do to answers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arges_kernels::device::cpu::{Cpu, CpuOptions};
use arges_model::publication::{PublishOptions, Publisher, version_name};
use arges_model::training::Parameters;
use arges_model::{Checkpoint, DType};
use arges_server::ServerOptions;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::{Method, Request, StatusCode};
use axum::routing::get;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{MODEL, Reply, TestServer, engine_options, server, server_with};

const KEY: &str = "of the trainer";
const PATHS: [(Method, &str); 4] = [
    (Method::POST, "/admin/pause"),
    (Method::POST, "/admin/update_weights"),
    (Method::POST, "/admin/resume"),
    (Method::GET, "/admin/weight_version"),
];

fn admin_server() -> TestServer {
    let admin_key = Some(KEY.to_owned());
    server_with(engine_options(), ServerOptions { admin_key, ..ServerOptions::new(MODEL) })
}

fn request(method: Method, path: &str, key: Option<&str>, body: Value) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    request.body(Body::from(body.to_string())).unwrap()
}

async fn order(server: &TestServer, verb: &str, body: Value) -> Reply {
    server.send(request(Method::POST, &format!("/admin/{verb}"), Some(KEY), body)).await
}

/// A trainer's publications.
struct Trainer {
    directory: TempDir,
    parameters: Parameters,
    cpu: Arc<Cpu>,
    publisher: Publisher,
}

impl Trainer {
    fn new() -> Self {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../arges-model/tests/data/tiny-m1/fp32");
        let directory = tempfile::tempdir().unwrap();
        let options = PublishOptions { dtype: DType::F32, ..PublishOptions::default() };
        let publisher = Publisher::new(directory.path(), options).unwrap();
        let parameters = Parameters::full(&Checkpoint::open(&golden).unwrap()).unwrap();
        let cpu = Arc::new(Cpu::new(CpuOptions { threads: Some(1), isa: None }).unwrap());
        Self { directory, parameters, cpu, publisher }
    }

    /// Publishes with every `step`th weight changed.
    fn publish(&mut self, version: u64, step: usize) {
        self.parameters.values_mut().iter_mut().step_by(step).for_each(|value| *value *= 0.7);
        self.publisher.publish(version, &self.parameters.weights(&self.cpu)).unwrap();
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The answer of a server that has a version and never had another.
    async fn fresh_answer(&self, version: u64) -> Value {
        let server = admin_server();
        order(&server, "update_weights", json!({"path": self.path(), "version": version})).await.ok();
        answer(&server).await
    }
}

fn question() -> Value {
    json!({"prompt": [5, 6, 7, 8], "max_tokens": 12, "temperature": 1, "top_p": 1, "seed": 3, "ignore_eos": true,
        "logprobs": 0, "return_token_ids": true})
}

async fn answer(server: &TestServer) -> Value {
    server.completion(question()).await.ok()["choices"][0].clone()
}

/// Tokens and log-probabilities alone.
fn sampled(choice: &Value) -> [&Value; 2] {
    [&choice["token_ids"], &choice["logprobs"]["token_logprobs"]]
}

#[tokio::test]
async fn without_an_admin_key_there_are_no_admin_paths() {
    let server = server();
    for (method, path) in PATHS {
        let reply = server.send(request(method, path, Some("anything"), json!({}))).await;
        assert_eq!((reply.status, reply.error().2.as_deref()), (StatusCode::NOT_FOUND, Some("unknown_url")));
    }
}

#[tokio::test]
async fn only_the_admin_key_opens_them_and_it_opens_nothing_else() {
    let options = ServerOptions {
        api_keys: vec!["of clients".to_owned()],
        admin_key: Some(KEY.to_owned()),
        ..ServerOptions::new(MODEL)
    };
    let server = server_with(engine_options(), options);
    for (method, path) in PATHS {
        for key in [None, Some("of clients"), Some("of the trainer "), Some("")] {
            let reply = server.send(request(method.clone(), path, key, json!({}))).await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{path} {key:?}");
        }
        let reply = server.send(request(method, path, Some(KEY), json!({}))).await;
        assert_ne!(reply.status, StatusCode::UNAUTHORIZED);
    }
    let reply = server.send(request(Method::POST, "/v1/completions", Some(KEY), question())).await;
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn new_weights_answer_as_if_they_had_always_been_there() {
    let (server, mut trainer) = (admin_server(), Trainer::new());
    let old = answer(&server).await;
    assert_eq!(old["weight_version"], 0);
    trainer.publish(4, 2);
    let done = order(&server, "update_weights", json!({"path": trainer.path()})).await.ok();
    assert_eq!((&done["weight_version"], &done["kind"]), (&json!(4), &json!("full")));
    let full = answer(&server).await;
    assert_ne!(sampled(&full), sampled(&old));
    trainer.publish(5, 40);
    let done = order(&server, "update_weights", json!({"path": trainer.path(), "version": 5})).await.ok();
    assert_eq!((&done["weight_version"], &done["kind"]), (&json!(5), &json!("delta")));
    let delta = answer(&server).await;
    assert_eq!(delta, trainer.fresh_answer(5).await);
    // And back again.
    order(&server, "update_weights", json!({"path": trainer.path(), "version": 4})).await.ok();
    assert_eq!(answer(&server).await, full);
    let version = server.send(request(Method::GET, "/admin/weight_version", Some(KEY), json!({}))).await.ok();
    assert_eq!((&version["weight_version"], &version["paused"]), (&json!(4), &json!(false)));
}

#[tokio::test]
async fn every_token_carries_the_version_that_sampled_it() {
    let (server, mut trainer) = (admin_server(), Trainer::new());
    trainer.publish(9, 2);
    order(&server, "update_weights", json!({"path": trainer.path()})).await.ok();
    let whole = answer(&server).await;
    assert_eq!(whole["weight_version"], 9);
    assert_eq!(whole["token_weight_versions"], json!(vec![9; 12]));
    let mut streamed = question();
    streamed["stream"] = json!(true);
    for chunk in server.completion(streamed).await.chunks().iter().skip(1) {
        assert_eq!(chunk["choices"][0]["weight_version"], 9, "{chunk}");
    }
    let chat =
        json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "return_token_ids": true});
    let choice = server.chat(chat.clone()).await.ok()["choices"][0].clone();
    let tokens = choice["token_ids"].as_array().unwrap().len();
    assert_eq!(
        (&choice["weight_version"], &choice["token_weight_versions"]),
        (&json!(9), &json!(vec![9; tokens]))
    );
    let mut streamed = chat;
    streamed["stream"] = json!(true);
    let chunks = server.chat(streamed).await.chunks();
    let versions = chunks.iter().filter(|chunk| chunk["choices"][0]["weight_version"] == 9).count();
    assert_eq!(versions, tokens + 1, "one for every token and one for the end");
}

#[tokio::test]
async fn log_probabilities_arrive_bit_for_bit() {
    let server = admin_server();
    let mut body = question();
    body["max_tokens"] = json!(200);
    let choice = server.completion(body).await.ok()["choices"][0].clone();
    let read: Vec<f32> = serde_json::from_value(choice["logprobs"]["token_logprobs"].clone()).unwrap();
    let sampling = arges_engine::SamplingParams { seed: Some(3), ..Default::default() };
    let stop = arges_engine::StopConditions { ignore_eos: true, ..Default::default() };
    let prompt = vec![5, 6, 7, 8];
    let request =
        arges_engine::GenerateRequest { prompt, max_tokens: Some(200), sampling, stop, ..Default::default() };
    let mut generation = server.engine.submit(request).unwrap();
    let mut exact = Vec::new();
    while let Some(event) = generation.next().await {
        if let arges_engine::Event::Token(token) = event {
            exact.push(token.logprob.to_bits());
        }
    }
    assert_eq!(read.iter().map(|logprob| logprob.to_bits()).collect::<Vec<_>>(), exact);
}

#[tokio::test]
async fn a_frozen_answer_goes_on_with_the_new_weights() {
    let (server, mut trainer) = (admin_server(), Trainer::new());
    trainer.publish(1, 2);
    let mut body = question();
    body["max_tokens"] = json!(1500);
    let router = server.router.clone();
    let running = tokio::spawn(async move {
        let request = request(Method::POST, "/v1/completions", None, body);
        let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
        axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap()
    });
    server.wait_for("tokens", |stats| stats.generated_tokens > 20).await;
    let state = order(&server, "pause", json!({"mode": "keep"})).await.ok();
    assert_eq!((&state["paused"], &state["running"]), (&json!(true), &json!(1)));
    order(&server, "update_weights", json!({"path": trainer.path()})).await.ok();
    order(&server, "resume", json!({})).await.ok();
    let choice: Value = serde_json::from_slice(&running.await.unwrap()).unwrap();
    let versions: Vec<u64> =
        serde_json::from_value(choice["choices"][0]["token_weight_versions"].clone()).unwrap();
    let changed = versions.iter().position(|version| *version == 1).unwrap();
    assert!(changed > 20 && versions.len() == 1500);
    assert!(versions[..changed].iter().all(|v| *v == 0) && versions[changed..].iter().all(|v| *v == 1));
}

#[tokio::test]
async fn an_aborted_answer_says_so() {
    let server = admin_server();
    let mut body = question();
    body["max_tokens"] = json!(1800);
    let router = server.router.clone();
    let running = tokio::spawn(async move {
        let request = request(Method::POST, "/v1/completions", None, body);
        let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
        axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap()
    });
    server.wait_for("tokens", |stats| stats.generated_tokens > 5).await;
    assert_eq!(order(&server, "pause", json!({})).await.ok()["running"], 0);
    let choice: Value = serde_json::from_slice(&running.await.unwrap()).unwrap();
    assert_eq!(choice["choices"][0]["finish_reason"], "abort");
    order(&server, "resume", json!({})).await.ok();
    let error = order(&server, "pause", json!({"mode": "gently"})).await.error();
    assert_eq!((error.0, error.1.as_deref()), (400, Some("mode")));
}

#[tokio::test]
async fn refused_weights_leave_the_old_ones_in_force() {
    let (server, mut trainer) = (admin_server(), Trainer::new());
    trainer.publish(1, 2);
    order(&server, "update_weights", json!({"path": trainer.path()})).await.ok();
    let before = answer(&server).await;
    trainer.publish(2, 30);
    let file = trainer.path().join(version_name(2)).join("changes.safetensors.zst");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let path = trainer.path();
    for body in [
        json!({"path": path}),
        json!({"path": path, "version": 3}),
        json!({"path": path.join("nowhere")}),
        json!({"url": "http://127.0.0.1:1/weights"}),
    ] {
        let error = order(&server, "update_weights", body.clone()).await.error();
        assert_eq!((error.0, error.2.as_deref()), (400, Some("weights_refused")), "{body}");
    }
    for body in [json!({}), json!({"path": path, "url": "http://127.0.0.1:1/"})] {
        assert_eq!(order(&server, "update_weights", body).await.error().1.as_deref(), Some("path"));
    }
    assert_eq!(answer(&server).await, before);
    // The fault is gone, and so is the refusal.
    std::fs::write(&file, &whole).unwrap();
    order(&server, "update_weights", json!({"path": path})).await.ok();
    assert_eq!(answer(&server).await, trainer.fresh_answer(2).await);
}

/// A web server over a directory, which cuts off the names that end so.
async fn files(directory: PathBuf, cut: &'static str) -> String {
    async fn file(
        State((directory, cut)): State<(PathBuf, &'static str)>,
        UrlPath(path): UrlPath<String>,
    ) -> Result<Vec<u8>, StatusCode> {
        let mut bytes = std::fs::read(directory.join(&path)).map_err(|_| StatusCode::NOT_FOUND)?;
        if !cut.is_empty() && path.ends_with(cut) {
            bytes.truncate(bytes.len() / 2);
        }
        Ok(bytes)
    }
    let router = Router::new().route("/weights/{*path}", get(file)).with_state((directory, cut));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let state = server().state;
    let serve = arges_server::serve_with(listener, state, |_| router, std::future::pending());
    tokio::spawn(serve);
    format!("http://{address}/weights/")
}

#[tokio::test]
async fn weights_can_come_over_the_network() {
    let (server, mut trainer) = (admin_server(), Trainer::new());
    let url = files(trainer.path().to_owned(), "").await;
    for (version, step) in [(1, 2), (2, 30), (3, 50)] {
        trainer.publish(version, step);
        let done = order(&server, "update_weights", json!({"url": url})).await.ok();
        assert_eq!(done["weight_version"], version);
        assert_eq!(answer(&server).await, trainer.fresh_answer(version).await);
    }
    let before = answer(&server).await;
    trainer.publish(4, 60);
    for cut in ["changes.safetensors.zst", "manifest.json", "latest.json"] {
        let url = files(trainer.path().to_owned(), cut).await;
        let error = order(&server, "update_weights", json!({"url": url})).await.error();
        assert_eq!((error.0, error.2.as_deref()), (400, Some("weights_refused")), "{cut}");
        assert_eq!(answer(&server).await, before);
    }
    order(&server, "update_weights", json!({"url": url, "version": 4})).await.ok();
    assert_eq!(answer(&server).await, trainer.fresh_answer(4).await);
}
