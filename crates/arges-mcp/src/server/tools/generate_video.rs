//! `generate_video`: a film from a description.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::Call;
use super::super::outcome::{Outcome, ToolError};
use super::video::{Order, make};
use super::{Tool, default};

pub struct GenerateVideo;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Arguments {
    /// The video model: MiniMax-Hailuo-2.3, MiniMax-Hailuo-02, T2V-01 or T2V-01-Director; I2V-01, I2V-01-Director or
    /// I2V-01-live to go on from a picture
    #[serde(default = "default::video_model")]
    model: String,
    /// What happens in the film. Models with Director in their name follow camera movements in brackets: [Truck left],
    /// [Truck right], [Pan left], [Pan right], [Push in], [Pull out], [Pedestal up], [Pedestal down], [Tilt up],
    /// [Tilt down], [Zoom in], [Zoom out], [Shake], [Tracking shot], [Static shot]
    #[schemars(length(min = 1))]
    prompt: String,
    /// Picture that the film begins with: a path, an address or a data address
    first_frame_image: Option<String>,
    /// Length in seconds
    #[schemars(extend("enum" = [6, 10]))]
    duration: Option<i64>,
    /// Such as 768P or 1080P
    resolution: Option<String>,
    /// Folder for the file, below the server's base path
    output_directory: Option<String>,
    /// Whether to return at once with a task id for query_video_generation
    #[serde(default)]
    async_mode: bool,
}

impl Tool for GenerateVideo {
    const NAME: &'static str = "generate_video";
    const TITLE: &'static str = "Generate a video";
    const DESCRIPTION: &'static str =
        "Makes a short film from a description. Takes minutes; with async_mode it gives a task id at once.";
    type Arguments = Arguments;

    async fn run(call: &Call, arguments: Arguments) -> Result<Outcome, ToolError> {
        let order = Order {
            tool: Self::NAME,
            model: arguments.model,
            prompt: arguments.prompt,
            first_frame_image: arguments.first_frame_image,
            duration: arguments.duration,
            resolution: arguments.resolution,
            output_directory: arguments.output_directory,
            async_mode: arguments.async_mode,
        };
        make(call, order).await
    }
}
