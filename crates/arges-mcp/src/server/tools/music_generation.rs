//! `music_generation`: a song.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::super::content::audio_mime;
use super::super::outcome::{Outcome, Place, ToolError};
use super::super::{Call, ResourceMode};
use super::saving::{Named, prepare, save};
use super::{Tool, default};
use crate::minimax::Repeat;

pub struct MusicGeneration;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Arguments {
    /// Style, mood and scene, in 10 to 300 characters
    #[schemars(length(min = 1))]
    prompt: String,
    /// What is sung, in 10 to 600 characters: lines, with [Intro], [Verse], [Chorus], [Bridge] and [Outro] where parts
    /// begin
    #[schemars(length(min = 1))]
    lyrics: String,
    /// Samples a second
    #[serde(default = "default::sample_rate")]
    #[schemars(extend("enum" = [16000, 24000, 32000, 44100]))]
    sample_rate: i64,
    /// Bits a second
    #[serde(default = "default::bitrate")]
    #[schemars(extend("enum" = [32000, 64000, 128000, 256000]))]
    bitrate: i64,
    /// Format of the audio
    #[serde(default = "default::format")]
    #[schemars(extend("enum" = ["mp3", "wav", "pcm"]))]
    format: String,
    /// Folder for the file, below the server's base path
    output_directory: Option<String>,
}

impl Tool for MusicGeneration {
    const NAME: &'static str = "music_generation";
    const TITLE: &'static str = "Generate music";
    const DESCRIPTION: &'static str =
        "Makes a song of up to a minute from a description and lyrics. Takes a minute or more.";
    type Arguments = Arguments;

    async fn run(call: &Call, arguments: Arguments) -> Result<Outcome, ToolError> {
        prepare(call, arguments.output_directory.as_deref())?;
        let by_address = call.settings().resource_mode == ResourceMode::Url;
        let mut body = json!({
            "model": default::MUSIC_MODEL,
            "prompt": arguments.prompt,
            "lyrics": arguments.lyrics,
            "audio_setting": {
                "sample_rate": arguments.sample_rate,
                "bitrate": arguments.bitrate,
                "format": arguments.format,
            },
        });
        if by_address {
            body["output_format"] = "url".into();
        }
        let request = call.api(Self::NAME)?.post("/v1/music_generation", &body, Repeat::IfRefused);
        let reply = call.progress.wait("making music", call.limits().report, request).await?;
        let mime = audio_mime(&arguments.format);
        let audio = ["data", "audio"];
        if by_address {
            let address = reply.text(&audio).ok_or_else(|| reply.missing("data.audio"))?;
            return Ok(Outcome::text(format!("Success. Music url: {address}"))
                .with(mime, Place::Address(address.to_owned())));
        }
        let bytes = reply.bytes(&audio, "data.audio")?;
        drop(reply);
        let named = Named {
            directory: arguments.output_directory.as_deref(),
            tool: "music",
            text: &arguments.prompt,
            whole_text: false,
            extension: &arguments.format,
        };
        let path = save(call, named, &bytes).await?;
        let text = format!("Success. Music saved as: {}", path.display());
        Ok(Outcome::text(text).with(mime, Place::File(path)))
    }
}
