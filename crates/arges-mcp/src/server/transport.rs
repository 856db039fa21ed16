//! The server over stdio and over streamable HTTP.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use rmcp::ServiceExt;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use subtle::ConstantTimeEq;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use super::MiniMaxServer;

/// The path of the HTTP endpoint.
pub const PATH: &str = "/mcp";
/// Bytes of a request at most: texts and, in a data address, a picture.
const REQUEST_BYTES: usize = 96 << 20;
/// Silence after which a session ends. The longest call must not, of which nothing may be heard until it is done.
const SESSION: Duration = Duration::from_secs(3600);

/// A server that ended by an error.
#[derive(Debug, Error)]
pub enum ServeError {
    /// A client that does not speak the protocol.
    #[error("the client did not begin as MCP wants it: {0}")]
    Initialize(String),
    /// The server's own task failed.
    #[error("the server failed: {0}")]
    Failed(String),
    /// The network failed.
    #[error("the network failed: {0}")]
    Network(#[from] io::Error),
}

/// Who may use the server over HTTP.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// What requests must carry as `Authorization: Bearer`.
    pub token: Option<String>,
    /// Names, with or without a port, by which the server may be addressed beside the loopback's. They keep pages of
    /// other sites from reaching it through a browser of this machine.
    pub hosts: Vec<String>,
}

/// Serves one client over a pair of streams, until it closes its own or `stop` completes.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve_streams(
    server: MiniMaxServer,
    input: impl AsyncRead + Send + Unpin + 'static,
    output: impl AsyncWrite + Send + Unpin + 'static,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let mut stop = std::pin::pin!(stop);
    let served = tokio::select! {
        served = server.serve((input, output)) => served,
        () = &mut stop => return Ok(()),
    };
    let running = match served {
        Ok(running) => running,
        // A client that looked and left.
        Err(rmcp::service::ServerInitializeError::ConnectionClosed(_)) => return Ok(()),
        Err(error) => return Err(ServeError::Initialize(error.to_string())),
    };
    let end = running.cancellation_token();
    tokio::select! {
        ended = running.waiting() => ended.map(|_| ()).map_err(|error| ServeError::Failed(error.to_string())),
        () = stop => {
            end.cancel();
            Ok(())
        }
    }
}

/// Serves clients over HTTP at [`PATH`] until `stop` completes. Sessions then end.
///
/// # Errors
/// Those of the listener.
pub async fn serve_http(
    server: MiniMaxServer,
    listener: TcpListener,
    access: Access,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let mut hosts =
        vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "[::1]".to_owned(), "::1".to_owned()];
    hosts.extend(access.hosts);
    let origins: Vec<String> = hosts.iter().flat_map(|host| origins_of(host)).collect();
    let config = StreamableHttpServerConfig::default()
        .with_allowed_hosts(hosts)
        .with_allowed_origins(origins)
        .with_max_request_body_bytes(REQUEST_BYTES);
    let sessions = config.cancellation_token.clone();
    let mut manager = LocalSessionManager::default();
    manager.session_config.keep_alive = Some(SESSION);
    let service = StreamableHttpService::new(move || Ok(server.clone()), Arc::new(manager), config);
    let token = access.token.map(Arc::<str>::from);
    let router = Router::new().nest_service(PATH, service).layer(from_fn_with_state(token, require_token));
    let stop = async move {
        stop.await;
        sessions.cancel();
    };
    axum::serve(listener, router).with_graceful_shutdown(stop).await?;
    Ok(())
}

/// Origins of pages that are served by that host itself, on any port where it names none.
fn origins_of(host: &str) -> [String; 2] {
    let has_port = host.rsplit_once(':').is_some_and(|(name, port)| {
        port.parse::<u16>().is_ok() && (!name.contains(':') || name.ends_with(']'))
    });
    let host = if host.contains(':') && !has_port && !host.starts_with('[') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let host = if has_port { host } else { format!("{host}:*") };
    [format!("http://{host}"), format!("https://{host}")]
}

async fn require_token(
    State(token): State<Option<Arc<str>>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let Some(token) = token else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let given = given.and_then(|value| {
        let (scheme, given) = value.split_at_checked("bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(given)
    });
    if given.is_some_and(|given| bool::from(given.ct_eq(token.as_bytes()))) {
        return next.run(request).await;
    }
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    (StatusCode::UNAUTHORIZED, challenge, "this server needs its token, as `Authorization: Bearer TOKEN`\n")
        .into_response()
}
