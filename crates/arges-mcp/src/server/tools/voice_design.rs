//! `voice_design`: a new voice from a description.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::super::outcome::{Outcome, Place, ToolError};
use super::super::{Call, ResourceMode};
use super::Tool;
use super::saving::{Named, prepare, save};
use crate::minimax::Repeat;

const MIME: &str = "audio/mpeg";
const TRIAL: &str = "trial_audio";

pub struct VoiceDesign;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Arguments {
    /// What the voice is like
    #[schemars(length(min = 1))]
    prompt: String,
    /// What it says as a sample
    #[schemars(length(min = 1))]
    preview_text: String,
    /// The id that the new voice is to have
    voice_id: Option<String>,
    /// Folder for the sample, below the server's base path
    output_directory: Option<String>,
}

impl Tool for VoiceDesign {
    const NAME: &'static str = "voice_design";
    const TITLE: &'static str = "Design a voice";
    const DESCRIPTION: &'static str =
        "Makes a voice from a description, for text_to_audio, with a sample of it.";
    type Arguments = Arguments;

    async fn run(call: &Call, arguments: Arguments) -> Result<Outcome, ToolError> {
        prepare(call, arguments.output_directory.as_deref())?;
        let mut body = json!({ "prompt": arguments.prompt, "preview_text": arguments.preview_text });
        if let Some(voice_id) = arguments.voice_id.as_deref().filter(|id| !id.is_empty()) {
            body["voice_id"] = voice_id.into();
        }
        let reply = call.api(Self::NAME)?.post("/v1/voice_design", &body, Repeat::IfRefused).await?;
        let voice = reply.id(&["voice_id"]).ok_or_else(|| reply.missing("voice_id"))?;
        let bytes = match reply.bytes(&[TRIAL], TRIAL) {
            Ok(bytes) => bytes,
            // The voice is there all the same.
            Err(error) => {
                let text = format!("Success. Voice ID generated: {voice}. There is no sample: {error}");
                return Ok(Outcome::text(text));
            }
        };
        drop(reply);
        if call.settings().resource_mode == ResourceMode::Url {
            // The API has no address for the sample: it comes as bytes in either mode.
            return Ok(Outcome::text(format!("Success. Voice ID generated: {voice}"))
                .with(MIME, Place::Bytes(bytes)));
        }
        let named = Named {
            directory: arguments.output_directory.as_deref(),
            tool: "voice_design",
            text: &arguments.preview_text,
            whole_text: false,
            extension: "mp3",
        };
        let path = save(call, named, &bytes).await?;
        let text = format!("Success. File saved as: {}. Voice ID generated: {voice}", path.display());
        Ok(Outcome::text(text).with(MIME, Place::File(path)))
    }
}
