//! `text_to_audio`: speech.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::super::content::audio_mime;
use super::super::outcome::{Outcome, Place, ToolError};
use super::super::{Backend, Call, ResourceMode};
use super::saving::{Named, prepare, save};
use super::{Tool, default};
use crate::minimax::Repeat;
use crate::speech::{Synthesiser, Utterance, voice_of_language};

pub struct TextToAudio;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Arguments {
    /// What to say
    #[schemars(length(min = 1))]
    text: String,
    /// Folder for the file, below the server's base path
    output_directory: Option<String>,
    /// The voice, by an id of list_voices
    #[serde(default = "default::voice")]
    voice_id: String,
    /// The speech model
    #[serde(default = "default::speech_model")]
    model: String,
    /// How fast: 1 is usual
    #[serde(default = "default::one")]
    #[schemars(range(min = 0.5, max = 2.0))]
    speed: f64,
    /// How loud: 1 is usual
    #[serde(default = "default::one")]
    #[schemars(range(min = 0.0, max = 10.0))]
    vol: f64,
    /// How high: 0 is usual
    #[serde(default)]
    #[schemars(range(min = -12, max = 12))]
    pitch: i64,
    /// The mood, such as happy, sad, angry, fearful, disgusted, surprised or neutral
    #[serde(default = "default::emotion")]
    emotion: String,
    /// Samples a second
    #[serde(default = "default::sample_rate")]
    #[schemars(extend("enum" = [8000, 16000, 22050, 24000, 32000, 44100]))]
    sample_rate: i64,
    /// Bits a second, for mp3
    #[serde(default = "default::bitrate")]
    #[schemars(extend("enum" = [32000, 64000, 96000, 128000, 160000, 192000, 224000, 256000, 320000]))]
    bitrate: i64,
    /// 1 is mono, 2 is stereo
    #[serde(default = "default::one_channel")]
    #[schemars(extend("enum" = [1, 2]))]
    channel: i64,
    /// Format of the audio
    #[serde(default = "default::format")]
    #[schemars(extend("enum" = ["mp3", "pcm", "flac", "wav"]))]
    format: String,
    /// Language to pronounce best, such as English, Chinese, "Chinese,Yue", Arabic, Russian, Spanish, French,
    /// Portuguese, German, Japanese or Korean; or auto
    #[serde(default = "default::language_boost")]
    language_boost: String,
}

impl Tool for TextToAudio {
    const NAME: &'static str = "text_to_audio";
    const TITLE: &'static str = "Text to audio";
    const DESCRIPTION: &'static str =
        "Says a text with a voice, and gives the audio's address or the path of its file.";
    type Arguments = Arguments;

    async fn run(call: &Call, arguments: Arguments) -> Result<Outcome, ToolError> {
        if call.settings().backend == Backend::Local {
            return speak(call, &arguments).await;
        }
        prepare(call, arguments.output_directory.as_deref())?;
        let by_address = call.settings().resource_mode == ResourceMode::Url;
        let mut body = json!({
            "model": arguments.model,
            "text": arguments.text,
            "voice_setting": {
                "voice_id": arguments.voice_id,
                "speed": arguments.speed,
                "vol": arguments.vol,
                "pitch": arguments.pitch,
                "emotion": arguments.emotion,
            },
            "audio_setting": {
                "sample_rate": arguments.sample_rate,
                "bitrate": arguments.bitrate,
                "format": arguments.format,
                "channel": arguments.channel,
            },
            "language_boost": arguments.language_boost,
        });
        if by_address {
            body["output_format"] = "url".into();
        }
        let reply = call.api(Self::NAME)?.post("/v1/t2a_v2", &body, Repeat::IfRefused).await?;
        let mime = audio_mime(&arguments.format);
        let audio = ["data", "audio"];
        if by_address {
            let address = reply.text(&audio).ok_or_else(|| reply.missing("data.audio"))?;
            return Ok(Outcome::text(format!("Success. Audio URL: {address}"))
                .with(mime, Place::Address(address.to_owned())));
        }
        let bytes = reply.bytes(&audio, "data.audio")?;
        drop(reply);
        let path = save(call, named(&arguments, &arguments.format), &bytes).await?;
        let voice = &arguments.voice_id;
        let text = format!("Success. File saved as: {}. Voice used: {voice}", path.display());
        Ok(Outcome::text(text).with(mime, Place::File(path)))
    }
}

fn named<'a>(arguments: &'a Arguments, extension: &'a str) -> Named<'a> {
    let directory = arguments.output_directory.as_deref();
    Named { directory, tool: "t2a", text: &arguments.text, whole_text: false, extension }
}

/// Speech of this machine. It has neither moods nor formats, and says so.
async fn speak(call: &Call, arguments: &Arguments) -> Result<Outcome, ToolError> {
    let synthesiser = Synthesiser::find(call.limits().local)?;
    // The API's own default stands for none.
    let voice = match arguments.voice_id.as_str() {
        default::VOICE => voice_of_language(&arguments.language_boost),
        asked => asked,
    };
    let utterance = Utterance {
        text: &arguments.text,
        voice,
        speed: arguments.speed,
        volume: arguments.vol,
        pitch: arguments.pitch,
    };
    let Named { directory, tool, text, whole_text, extension } = named(arguments, "wav");
    let file = call.settings().folder.begin(directory, tool, text, whole_text, extension)?;
    synthesiser.speak(&utterance, file.path()).await?;
    let path = file.finish()?;
    let text = format!(
        "Success. File saved as: {}. Voice used: {voice}. Spoken by espeak-ng on this machine and not by MiniMax: \
         WAV at the synthesiser's own rate, without moods.",
        path.display()
    );
    Ok(Outcome::text(text).with("audio/wav", Place::File(path)))
}
