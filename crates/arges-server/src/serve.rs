//! The server's life: accept, answer, drain.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::router::router;
use crate::state::AppState;

/// How long connections may take to carry the last bytes once the engine has been told to stop.
const CLOSING_TIME: Duration = Duration::from_secs(2);

/// Serves on `listener` until `shutdown` comes. Then no connection is accepted any more, running requests may
/// finish within the options' `drain_limit`, what is left is failed, and the engine is shut down.
///
/// # Errors
/// Those of the listener.
pub async fn serve(
    listener: TcpListener,
    state: Arc<AppState>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    // A token is a small write that must not wait for the next.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    let (told, stopping) = oneshot::channel();
    let draining = Arc::clone(&state);
    let stop = async move {
        shutdown.await;
        draining.start_draining();
        // The receiver is only gone when the server has already ended.
        let _ = told.send(());
    };
    let server = axum::serve(listener, router(Arc::clone(&state))).with_graceful_shutdown(stop);
    let mut server = std::pin::pin!(async move { server.await });

    let limit = state.frontend.options.drain_limit;
    let out_of_time = async {
        // Only ever completes by the shutdown; a dropped sender means that the server has ended.
        let _ = stopping.await;
        tokio::time::sleep(limit).await;
    };
    let result = tokio::select! {
        result = &mut server => result,
        () = out_of_time => {
            tracing::warn!(?limit, "requests still run at the end of the time to drain; they are ended");
            stop_engine(&state).await;
            // Streams now send their error and end. A client that does not read is not waited for.
            tokio::time::timeout(CLOSING_TIME, server).await.unwrap_or(Ok(()))
        }
    };
    stop_engine(&state).await;
    result
}

/// Joining the engine's thread blocks, for a step at most.
async fn stop_engine(state: &Arc<AppState>) {
    let engine = state.engine.clone();
    if let Err(error) = tokio::task::spawn_blocking(move || engine.shutdown()).await {
        tracing::error!(%error, "the engine did not shut down");
    }
}
