//! `list_voices`: what voices there are.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::outcome::{Outcome, ToolError};
use super::super::{Backend, Call};
use super::saving::python_list;
use super::{Tool, default};
use crate::minimax::Repeat;
use crate::speech::Synthesiser;

pub struct ListVoices;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Arguments {
    /// Which voices: those of MiniMax, those cloned by the user, or all
    #[serde(default = "default::all")]
    #[schemars(extend("enum" = ["all", "system", "voice_cloning"]))]
    voice_type: String,
}

impl Tool for ListVoices {
    const NAME: &'static str = "list_voices";
    const TITLE: &'static str = "List voices";
    const DESCRIPTION: &'static str = "Names the voices that text_to_audio can use, with their ids.";
    const COSTS: bool = false;
    type Arguments = Arguments;

    async fn run(call: &Call, arguments: Arguments) -> Result<Outcome, ToolError> {
        if call.settings().backend == Backend::Local {
            let voices = Synthesiser::find(call.limits().local)?.voices().await?;
            let voices =
                python_list(voices.iter().map(|voice| format!("Name: {}, ID: {}", voice.name, voice.id)));
            let note = "Voices of espeak-ng on this machine, not of MiniMax.";
            return Ok(Outcome::text(format!(
                "Success. System Voices: {voices}, Voice Cloning Voices: []. {note}"
            )));
        }
        let body = json!({ "voice_type": arguments.voice_type });
        let reply = call.api(Self::NAME)?.post("/v1/get_voice", &body, Repeat::Always).await?;
        let list = |key| python_list(reply.list(&[key]).iter().map(described));
        let (system, cloned) = (list("system_voice"), list("voice_cloning"));
        Ok(Outcome::text(format!("Success. System Voices: {system}, Voice Cloning Voices: {cloned}")))
    }
}

/// Cloned voices have no name.
fn described(voice: &Value) -> String {
    let text = |key: &str| voice[key].as_str().unwrap_or("None").to_owned();
    format!("Name: {}, ID: {}", text("voice_name"), text("voice_id"))
}
