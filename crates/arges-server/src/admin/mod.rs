//! Verbs of a trainer: hold the engine still, give it new weights, let it go on. They are shaped like the engine controls
//! of NVIDIA Dynamo, SGLang and vLLM, and have a key of their own; without one they are not there.

mod fetch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arges_engine::{ControlError, Engine, NewWeights, PauseMode, RunningCaches, UpdateError};
use arges_model::publication::{Applied, Kind, PublicationError, Snapshot, latest};
use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, Uri};
use axum::middleware::Next;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::sync::Mutex;

use crate::auth::given_key;
use crate::error::ApiError;
use crate::extract::parse_json;
use crate::state::AppState;
use fetch::Spool;

/// What the server knows of the weights in force.
#[derive(Default)]
pub(crate) struct Weights {
    /// One update at a time.
    updating: Mutex<Updates>,
}

#[derive(Default)]
struct Updates {
    applied: Option<Applied>,
    /// Publications that came over the network.
    spool: Option<Spool>,
}

/// Lets a request pass that carries the admin key.
///
/// # Errors
/// 404 where the server has no such key, 401 for a missing or wrong one.
pub(crate) async fn require_key(
    State(state): State<Arc<AppState>>,
    method: Method,
    uri: Uri,
    request: Request<Body>,
    next: Next,
) -> Result<Response, ApiError> {
    let Some(key) = &state.frontend.options.admin_key else {
        return Err(ApiError::unknown_path(method.as_str(), uri.path()));
    };
    let given = given_key(&request).ok_or_else(|| {
        ApiError::unauthorized("This path needs the admin key, as `Authorization: Bearer KEY`.")
    })?;
    if !bool::from(given.ct_eq(key.as_bytes())) {
        return Err(ApiError::unauthorized("The admin key is wrong."));
    }
    Ok(next.run(request).await)
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct PauseFields {
    mode: Option<Mode>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Abort,
    Wait,
    Keep,
}

/// `POST /admin/pause`: answers when the engine stands still.
pub(crate) async fn pause(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
) -> Result<Json<Value>, ApiError> {
    let fields: PauseFields = read(&state, request).await?;
    let mode = match fields.mode.unwrap_or(Mode::Abort) {
        Mode::Abort => PauseMode::Abort,
        Mode::Wait => PauseMode::Wait,
        Mode::Keep => PauseMode::Keep,
    };
    order(&state, move |engine| engine.pause(mode)).await?;
    Ok(status(&state))
}

/// `POST /admin/resume`.
pub(crate) async fn resume(State(state): State<Arc<AppState>>) -> Result<Json<Value>, ApiError> {
    order(&state, Engine::resume).await?;
    Ok(status(&state))
}

/// `GET /admin/weight_version`.
pub(crate) async fn weight_version(State(state): State<Arc<AppState>>) -> Json<Value> {
    status(&state)
}

fn status(state: &AppState) -> Json<Value> {
    let stats = state.engine.stats();
    Json(json!({
        "weight_version": state.engine.weight_version(),
        "instance": format!("{}-{}", state.started, std::process::id()),
        "paused": stats.paused,
        "running": stats.running,
        "waiting": stats.waiting,
    }))
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct UpdateFields {
    /// A directory of publications on this machine.
    path: Option<PathBuf>,
    /// Where the same files are served.
    url: Option<String>,
    /// The newest when absent.
    version: Option<u64>,
    caches: Option<Caches>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Caches {
    Recompute,
    Keep,
}

/// `POST /admin/update_weights`: checks a publication whole, then brings it into the model between two steps.
pub(crate) async fn update_weights(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
) -> Result<Json<Value>, ApiError> {
    let fields: UpdateFields = read(&state, request).await?;
    let caches = match fields.caches.unwrap_or(Caches::Recompute) {
        Caches::Recompute => RunningCaches::Recompute,
        Caches::Keep => RunningCaches::Keep,
    };
    let start = Instant::now();
    let mut updates = state.weights.updating.lock().await;
    let Updates { applied, spool } = &mut *updates;
    // Weights may have come from elsewhere since.
    applied.take_if(|applied| applied.version != state.engine.weight_version());
    let (directory, version) = match (fields.path, fields.url) {
        (Some(path), None) => (path, fields.version),
        (None, Some(url)) => {
            let spool = match &mut *spool {
                Some(spool) => spool,
                none => none.insert(Spool::new().map_err(|error| refused("url", &error))?),
            };
            let limit = 2 * state.engine.memory().weights as u64 + (64 << 20);
            let version =
                spool.fetch(&url, fields.version, limit).await.map_err(|error| refused("url", &error))?;
            (spool.directory().to_owned(), Some(version))
        }
        _ => return Err(ApiError::invalid_param("path", "Exactly one of `path` and `url` is needed.")),
    };
    let known = applied.take();
    let engine = state.engine.clone();
    let taken = tokio::task::spawn_blocking(move || take(&engine, &directory, version, known, caches));
    let taken = taken.await.map_err(|error| ApiError::internal(format!("The update failed: {error}.")))?;
    let (result, known) = taken;
    *applied = known;
    let (kind, bytes) = result?;
    if let (Some(spool), Some(applied)) = (spool, applied) {
        spool.keep_only(&[applied.version, applied.base_version()]);
    }
    let Json(mut answer) = status(&state);
    answer["kind"] = json!(kind);
    answer["bytes"] = json!(bytes);
    answer["seconds"] = json!(start.elapsed().as_secs_f64());
    Ok(Json(answer))
}

type Taken = (Result<(Kind, u64), ApiError>, Option<Applied>);

/// Checks a version and hands it to the engine. Also what the model has afterwards, as far as that is known.
fn take(
    engine: &Engine,
    directory: &Path,
    version: Option<u64>,
    known: Option<Applied>,
    caches: RunningCaches,
) -> Taken {
    let open = || -> Result<Snapshot, PublicationError> {
        let version = version.map_or_else(|| latest(directory), Ok)?;
        Snapshot::open(directory, version, known.as_ref())
    };
    let snapshot = match open() {
        Ok(snapshot) => snapshot,
        Err(error) => return (Err(refused("version", &error)), known),
    };
    let (kind, bytes, applied) = (snapshot.kind(), snapshot.published_bytes(), snapshot.applied());
    match engine.update_weights(NewWeights::Source(Arc::new(snapshot)), applied.version, caches) {
        Ok(()) => (Ok((kind, bytes)), Some(applied)),
        Err(error) => {
            let torn = matches!(error, ControlError::Update(UpdateError::Torn(_)));
            (Err(control_error(&error)), known.filter(|_| !torn))
        }
    }
}

/// The old weights are in force still.
fn refused(param: &'static str, error: &dyn std::fmt::Display) -> ApiError {
    ApiError::invalid_param(param, format!("The weights were refused, the old ones stay: {error}."))
        .with_code("weights_refused")
}

fn control_error(error: &ControlError) -> ApiError {
    match error {
        ControlError::Update(UpdateError::Torn(_)) | ControlError::Torn(_) => {
            ApiError::internal(format!("{error}.")).with_code("weights_incomplete")
        }
        ControlError::Update(error) => refused("version", error),
        ControlError::Resumed => ApiError::conflict(format!("{error}.")),
        ControlError::ShutDown => ApiError::shutting_down(),
    }
}

/// Gives the engine an order, which may take its time.
async fn order(
    state: &AppState,
    order: impl FnOnce(&Engine) -> Result<(), ControlError> + Send + 'static,
) -> Result<(), ApiError> {
    let engine = state.engine.clone();
    let done = tokio::task::spawn_blocking(move || order(&engine)).await;
    done.map_err(|error| ApiError::internal(format!("The order failed: {error}.")))?
        .map_err(|error| control_error(&error))
}

/// A body of JSON; none at all is an object without fields.
async fn read<T: serde::de::DeserializeOwned>(
    state: &AppState,
    request: Request<Body>,
) -> Result<T, ApiError> {
    let body = state.bodies.read(request).await?;
    parse_json(if body.bytes.is_empty() { b"{}" } else { &body.bytes })
}
