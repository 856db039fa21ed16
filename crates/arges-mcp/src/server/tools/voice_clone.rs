//! `voice_clone`: a new voice from a recording.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::super::outcome::{Outcome, Place, ToolError};
use super::super::{Call, ResourceMode};
use super::saving::{Named, download, prepare};
use super::{Tool, default};
use crate::files::FileError;
use crate::minimax::{Repeat, Upload};

pub struct VoiceClone;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Arguments {
    /// The id that the new voice is to have
    #[schemars(length(min = 1))]
    voice_id: String,
    /// The recording: a path, or an address if is_url is true
    #[schemars(length(min = 1))]
    file: String,
    /// What the new voice says as a sample; without it there is none
    #[serde(default)]
    text: String,
    /// Folder for the sample, below the server's base path
    output_directory: Option<String>,
    /// Whether file is an address
    #[serde(default)]
    is_url: bool,
}

impl Tool for VoiceClone {
    const NAME: &'static str = "voice_clone";
    const TITLE: &'static str = "Clone a voice";
    const DESCRIPTION: &'static str =
        "Makes a voice like that of a recording, for text_to_audio. It is charged when it is first used.";
    type Arguments = Arguments;

    async fn run(call: &Call, arguments: Arguments) -> Result<Outcome, ToolError> {
        prepare(call, arguments.output_directory.as_deref())?;
        let file_id = upload(call, &arguments).await?;
        let voice = &arguments.voice_id;
        let mut body = json!({ "file_id": file_id, "voice_id": voice });
        if !arguments.text.is_empty() {
            body["text"] = arguments.text.clone().into();
            body["model"] = default::SPEECH_MODEL.into();
        }
        let reply = call.api(Self::NAME)?.post("/v1/voice_clone", &body, Repeat::IfRefused).await?;
        let Some(address) = reply.text(&["demo_audio"]) else {
            return Ok(Outcome::text(format!("Voice cloned successfully: Voice ID: {voice}")));
        };
        if call.settings().resource_mode == ResourceMode::Url {
            return Ok(Outcome::text(format!("Success. Demo audio URL: {address}"))
                .with("audio/wav", Place::Address(address.to_owned())));
        }
        let directory = arguments.output_directory.as_deref();
        let named = Named {
            directory,
            tool: "voice_clone",
            text: &arguments.text,
            whole_text: false,
            extension: "wav",
        };
        // The voice is there whatever becomes of the sample.
        let cloned = format!("Voice cloned successfully: Voice ID: {voice}");
        match download(call, named, address).await {
            Ok(path) => {
                let text = format!("{cloned}, demo audio saved as: {}", path.display());
                Ok(Outcome::text(text).with("audio/wav", Place::File(path)))
            }
            Err(error) => Ok(Outcome::text(format!("{cloned}. The demo audio could not be saved: {error}"))),
        }
    }
}

/// Sends the recording and gives its id at MiniMax, which is a number.
async fn upload(call: &Call, arguments: &Arguments) -> Result<Value, ToolError> {
    let api = call.api(VoiceClone::NAME)?;
    let (upload, _temporary) = if arguments.is_url {
        let temporary = fetched(call, &arguments.file).await?;
        let path = temporary.path().to_owned();
        (Upload { path, name: "audio_file.mp3".to_owned(), mime: Some("audio/mpeg") }, Some(temporary))
    } else {
        let path = call.shared.inputs.find(&arguments.file, call.limits().upload_bytes)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (Upload { path, name, mime: None }, None)
    };
    let reply = api.upload("/v1/files/upload", "voice_clone", &upload).await?;
    match reply.at(&["file", "file_id"]) {
        Some(id @ Value::Number(_)) => Ok(id.clone()),
        Some(Value::String(id)) if !id.is_empty() => Ok(id.clone().into()),
        _ => Err(reply.missing("file.file_id").into()),
    }
}

/// What is at an address, as a file that is gone when it is dropped.
pub async fn fetched(call: &Call, address: &str) -> Result<NamedTempFile, ToolError> {
    let failed = |source| FileError::Write { path: std::env::temp_dir(), source };
    let temporary = NamedTempFile::new().map_err(failed)?;
    let mut writer = temporary.reopen().map(tokio::fs::File::from_std).map_err(failed)?;
    call.shared.transfer.download(address, &mut writer).await?;
    Ok(temporary)
}
