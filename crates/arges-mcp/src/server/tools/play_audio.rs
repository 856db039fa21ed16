//! `play_audio`: plays a file on the server's machine.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::outcome::{Outcome, ToolError};
use super::super::{Backend, Call};
use super::Tool;
use super::voice_clone::fetched;
use crate::player;

pub struct PlayAudio;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Arguments {
    /// The audio: a path, or an address if is_url is true
    #[schemars(length(min = 1))]
    input_file_path: String,
    /// Whether input_file_path is an address
    #[serde(default)]
    is_url: bool,
}

impl Tool for PlayAudio {
    const NAME: &'static str = "play_audio";
    const TITLE: &'static str = "Play audio";
    const DESCRIPTION: &'static str =
        "Plays an audio file, such as WAV or MP3, on the machine of this server.";
    const COSTS: bool = false;
    type Arguments = Arguments;

    async fn run(call: &Call, arguments: Arguments) -> Result<Outcome, ToolError> {
        let limits = call.limits();
        let asked = &arguments.input_file_path;
        let (file, _temporary) = if arguments.is_url {
            let temporary = fetched(call, asked).await?;
            (temporary.path().to_owned(), Some(temporary))
        } else {
            (call.shared.inputs.find_audio(asked, u64::MAX)?, None)
        };
        call.progress.wait("playing", limits.report, player::play(&file, limits.local)).await?;
        let named = if arguments.is_url { asked.clone() } else { file.display().to_string() };
        let note = match call.settings().backend {
            Backend::Local => ". Played by this machine, without MiniMax",
            Backend::Api { .. } => "",
        };
        Ok(Outcome::text(format!("Successfully played audio file: {named}{note}")))
    }
}
