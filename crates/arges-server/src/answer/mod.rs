//! Answers as they come: one stream of events, which each API writes in its own words.

pub(crate) mod events;
pub(crate) mod ids;
pub(crate) mod sse;
pub(crate) mod whole;
