//! The server's life: accept, answer, drain.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::router::router;
use crate::state::AppState;

/// How long connections may take to carry the last bytes once the engine has been told to stop.
const CLOSING_TIME: Duration = Duration::from_secs(2);

/// Pause after a connection could not be accepted, as when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves on `listener` until `shutdown` comes. Then no connection is accepted any more, running requests may
/// finish within the options' `drain_limit`, what is left is failed, and the engine is shut down.
///
/// # Errors
/// None at present: a connection that cannot be accepted is passed over.
pub async fn serve(
    listener: TcpListener,
    state: Arc<AppState>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    serve_with(listener, state, |router| router, shutdown).await
}

/// As [`serve`], with something around the routes.
///
/// # Errors
/// As there.
pub async fn serve_with(
    listener: TcpListener,
    state: Arc<AppState>,
    around: impl FnOnce(Router) -> Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = around(router(Arc::clone(&state)));
    let connections = GracefulShutdown::new();
    tokio::select! {
        () = shutdown => {}
        () = accept(&listener, router, &state, &connections) => {}
    }
    drop(listener);
    state.start_draining();
    let limit = state.frontend.options.drain_limit;
    let mut closing = std::pin::pin!(connections.shutdown());
    if tokio::time::timeout(limit, &mut closing).await.is_err() {
        tracing::warn!(?limit, "requests still run at the end of the time to drain; they are ended");
        stop_engine(&state).await;
        // Streams now send their error and end. A client that does not read is not waited for.
        let _ = tokio::time::timeout(CLOSING_TIME, closing).await;
    }
    stop_engine(&state).await;
    Ok(())
}

/// Accepts connections for ever, as many at once as the options allow.
async fn accept(
    listener: &TcpListener,
    router: Router,
    state: &Arc<AppState>,
    connections: &GracefulShutdown,
) {
    let places = Arc::new(Semaphore::new(state.frontend.options.max_connections.max(1)));
    let header_timeout = state.frontend.options.header_timeout;
    // The semaphore is never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => connect(stream, place, router.clone(), header_timeout, connections),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers the requests of one connection, on a task of its own.
fn connect(
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    router: Router,
    header_timeout: Duration,
    connections: &GracefulShutdown,
) {
    // A token is a small write that must not wait for the next.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let mut http = http1::Builder::new();
    // A client that sends its request's head a byte at a time does not hold the connection for ever.
    http.timer(TokioTimer::new()).header_read_timeout(header_timeout);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let connection = connections.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection broke off");
        }
        drop(place);
    });
}

/// Joining the engine's thread blocks, for a step at most.
async fn stop_engine(state: &Arc<AppState>) {
    let engine = state.engine.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || engine.shutdown()).await {
        tracing::error!(%error, "the engine did not shut down");
    }
}
