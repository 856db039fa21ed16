//! A server within another subcommand, on a free port of the loopback.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use arges_server::{AppState, ServerOptions};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{NEEDS, listen, runtime};
use crate::args::{EngineArgs, ModelArgs};
use crate::loading::Opened;

/// A running server. Dropping it stops it.
pub struct InProcess {
    runtime: Runtime,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    server: Option<JoinHandle<()>>,
}

impl InProcess {
    /// Loads the model and serves it, with the sizes and options that `arges serve` would choose.
    ///
    /// # Errors
    /// A model that cannot be loaded or has no tokenizer.
    pub fn start(model: &ModelArgs, sizes: &EngineArgs) -> Result<Self> {
        let listener = listen("127.0.0.1", 0)?;
        let opened = Opened::open(model)?;
        let (tokenizer, template) = (opened.tokenizer()?, opened.chat_template()?);
        let engine = opened.start(model, sizes, NEEDS)?;
        let options = ServerOptions::new(opened.source.name());
        let state = AppState::new(engine, tokenizer, Some(template), options);
        let runtime = runtime()?;
        let address = listener.local_addr()?;
        let guard = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        drop(guard);
        let (stop, stopped) = oneshot::channel();
        let server = runtime.spawn(async move {
            let stopped = async move {
                // An error says that the sender is gone, which means the same.
                let _ = stopped.await;
            };
            if let Err(error) = arges_server::serve(listener, Arc::clone(&state), stopped).await {
                tracing::error!(%error, "the server failed");
            }
        });
        Ok(Self { runtime, address, stop: Some(stop), server: Some(server) })
    }

    /// The address for clients of OpenAI's API.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        // An error says that the server has ended already.
        let _ = self.stop.take().map(|stop| stop.send(()));
        if let Some(server) = self.server.take() {
            let _ = self.runtime.block_on(server);
        }
    }
}
