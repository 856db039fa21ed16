//! What every handler shares.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arges_engine::Engine;
use arges_text::{ChatTemplate, Tokenizer};

use crate::admin::Weights;
use crate::answer::ids::unix_time;
use crate::extract::BodyReader;
use crate::frontend::Frontend;
use crate::metrics::Metrics;
use crate::options::ServerOptions;

/// The engine, the text side and the limits of one server.
pub struct AppState {
    pub(crate) engine: Engine,
    pub(crate) frontend: Arc<Frontend>,
    pub(crate) bodies: BodyReader,
    pub(crate) metrics: Arc<Metrics>,
    /// When the server started, in seconds since 1970.
    pub(crate) started: u64,
    pub(crate) weights: Weights,
    draining: AtomicBool,
}

impl AppState {
    /// State of a server for the model behind `engine`. Without a template, chat requests are refused.
    pub fn new(
        engine: Engine,
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        options: ServerOptions,
    ) -> Arc<AppState> {
        let bodies = BodyReader::new(options.body_limit, options.body_budget, options.body_timeout);
        let frontend = Arc::new(Frontend::new(options, tokenizer, template, engine.max_context()));
        Arc::new(AppState {
            engine,
            frontend,
            bodies,
            metrics: Arc::default(),
            started: unix_time(),
            weights: Weights::default(),
            draining: AtomicBool::new(false),
        })
    }

    /// From now on `/ready` says no.
    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}
