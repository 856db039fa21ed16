//! OpenAI's API: chat completions, completions, models.

mod answer;
pub(crate) mod chat;
pub(crate) mod completions;
mod fields;
mod input;
mod job;
mod logprobs;
mod messages;
pub(crate) mod models;
mod response;
mod stream;

pub(crate) use response::unix_time;
