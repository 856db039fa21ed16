//! The server end to end, in process: requests to the router, a tiny random model behind the engine.

mod admin;
mod answers;
mod anthropic;
mod errors;
mod lifecycle;
mod operators;
mod page;
mod responses;
mod scoring;
mod support;
mod thinking;
mod tools;
