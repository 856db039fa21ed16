//! The built command, run as a user runs it, on small models.

mod errors;
mod flow;
mod golden;
#[cfg(feature = "hub")]
mod hub;
#[cfg(unix)]
mod serve;
mod support;
