//! The tools: one file each, all of one trait.

mod default;
mod generate_video;
mod image_to_video;
mod list_voices;
mod music_generation;
mod play_audio;
mod query_video_generation;
mod saving;
mod text_to_audio;
mod text_to_image;
mod video;
mod voice_clone;
mod voice_design;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rmcp::model::{JsonObject, ToolAnnotations};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::outcome::{Outcome, ToolError};
use super::{Call, ResourceMode, Settings};
use crate::arguments::schema_of;

/// Put before the description of every tool that MiniMax charges for.
const COSTS: &str = "Costs money: call it when the user has asked for it. ";

/// A tool of the server.
trait Tool {
    /// What clients call it by.
    const NAME: &'static str;
    /// What it is shown as.
    const TITLE: &'static str;
    /// What it does, for the model that decides whether to call it.
    const DESCRIPTION: &'static str;
    /// Whether MiniMax charges for it.
    const COSTS: bool = true;
    /// What it is told.
    type Arguments: DeserializeOwned + JsonSchema + Send;

    /// Does it.
    fn run(
        call: &Call,
        arguments: Self::Arguments,
    ) -> impl Future<Output = Result<Outcome, ToolError>> + Send;
}

type Run = Box<dyn Fn(Call, JsonObject) -> BoxFuture<'static, Result<Outcome, ToolError>> + Send + Sync>;

/// A tool as the server keeps it.
pub(super) struct Definition {
    pub tool: rmcp::model::Tool,
    pub run: Run,
}

impl fmt::Debug for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Definition").field("tool", &self.tool.name).finish_non_exhaustive()
    }
}

/// All tools, in the order in which they are listed.
pub(super) fn definitions(settings: &Settings) -> Vec<Definition> {
    // A file that is written is a change; asking alone is none.
    let query_only_reads = settings.resource_mode == ResourceMode::Url;
    vec![
        define::<text_to_audio::TextToAudio>(false),
        define::<list_voices::ListVoices>(true),
        define::<voice_clone::VoiceClone>(false),
        define::<voice_design::VoiceDesign>(false),
        define::<play_audio::PlayAudio>(false),
        define::<generate_video::GenerateVideo>(false),
        define::<image_to_video::ImageToVideo>(false),
        define::<query_video_generation::QueryVideoGeneration>(query_only_reads),
        define::<text_to_image::TextToImage>(false),
        define::<music_generation::MusicGeneration>(false),
    ]
}

fn define<T: Tool>(read_only: bool) -> Definition {
    let description = format!("{}{}", if T::COSTS { COSTS } else { "" }, T::DESCRIPTION);
    let annotations = ToolAnnotations::with_title(T::TITLE)
        .read_only(read_only)
        .destructive(false)
        .idempotent(read_only)
        .open_world(true);
    let tool = rmcp::model::Tool::new(T::NAME, description, Arc::new(schema_of::<T::Arguments>()))
        .with_title(T::TITLE)
        .with_annotations(annotations);
    let run = |call: Call, arguments: JsonObject| {
        async move {
            let arguments = serde_json::from_value(Value::Object(arguments))
                .map_err(|error| ToolError::Arguments(error.to_string()))?;
            T::run(&call, arguments).await
        }
        .boxed()
    };
    Definition { tool, run: Box::new(run) }
}
