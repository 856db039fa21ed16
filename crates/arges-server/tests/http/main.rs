//! The server end to end, in process: requests to the router, a tiny random model behind the engine.

mod answers;
mod errors;
mod lifecycle;
mod scoring;
mod support;
