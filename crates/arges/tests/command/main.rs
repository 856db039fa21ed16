//! The built command, run as a user runs it, on small models.

mod bench_serve;
mod errors;
mod flow;
mod golden;
#[cfg(feature = "hub")]
mod hub;
mod mcp;
mod nano;
mod plot;
mod rl;
#[cfg(unix)]
mod serve;
mod serve_config;
mod support;
mod tasks;
mod tokenizer;
mod train;
mod workspace;
