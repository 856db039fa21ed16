//! Configurations and checkpoints: what is read, what is refused and how it is named, what is
//! written.

mod accounting;
mod config;
mod reader;
mod support;
mod synth;
mod writer;
