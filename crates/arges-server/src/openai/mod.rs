//! OpenAI's API: chat completions, completions, responses, models.

mod answer;
pub(crate) mod chat;
mod chat_answer;
pub(crate) mod completions;
mod logprobs;
pub(crate) mod models;
mod response;
pub(crate) mod responses;
mod stream;
