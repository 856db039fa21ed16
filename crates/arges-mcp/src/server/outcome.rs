//! What a tool gives, and the error where it gives nothing.

use std::path::PathBuf;

use thiserror::Error;

use crate::files::FileError;
use crate::minimax::CallError;
use crate::player::PlayError;
use crate::speech::SpeechError;

/// The result of a tool: a line of text, and what was made.
#[derive(Debug, Default)]
pub struct Outcome {
    pub text: String,
    pub media: Vec<Media>,
}

/// Something that was made.
#[derive(Debug)]
pub struct Media {
    /// Its MIME type.
    pub mime: &'static str,
    pub place: Place,
}

/// Where it is.
#[derive(Debug)]
pub enum Place {
    File(PathBuf),
    Address(String),
    /// Nowhere else than in the result.
    Bytes(Vec<u8>),
}

impl Outcome {
    /// A text alone.
    pub fn text(text: impl Into<String>) -> Outcome {
        Outcome { text: text.into(), media: Vec::new() }
    }

    /// Adds something that was made.
    pub fn with(mut self, mime: &'static str, place: Place) -> Outcome {
        self.media.push(Media { mime, place });
        self
    }
}

/// A call that failed, as its client is told.
#[derive(Debug, Error)]
pub enum ToolError {
    /// Arguments that cannot be meant.
    #[error("{0}")]
    Arguments(String),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Play(#[from] PlayError),
    #[error(transparent)]
    Speech(#[from] SpeechError),
    /// A tool that has no form on this machine.
    #[error(
        "{tool} is made by MiniMax alone and needs a key: set MINIMAX_API_KEY and MINIMAX_API_HOST in the `env` of \
         this server's entry in the client's configuration, and leave out `--backend local`. Keys come from \
         https://www.minimax.io/platform (host https://api.minimax.io) or https://platform.minimaxi.com \
         (host https://api.minimaxi.com)"
    )]
    NeedsKey { tool: &'static str },
    /// A video that MiniMax says has failed.
    #[error("MiniMax could not make the video of task {task_id}{}", .reason)]
    VideoFailed { task_id: String, reason: String },
    /// A video that is not there yet.
    #[error(
        "the video of task {task_id} is not there after {minutes} minutes; it may still come: \
         query_video_generation tells"
    )]
    VideoLate { task_id: String, minutes: u64 },
    /// Something that was made and paid for, and could not be saved.
    #[error("{source}. What was made is at {address}")]
    Unsaved { address: String, source: Box<ToolError> },
    /// As before, of several things.
    #[error("saved as: {saved}. Of the others: {failures}")]
    PartlySaved { saved: String, failures: String },
    /// The client does not want the result any more.
    #[error("the call was cancelled")]
    Cancelled,
}
