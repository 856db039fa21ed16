//! `image_to_video`: a film that begins with a picture. It is the JavaScript server's.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::Call;
use super::super::outcome::{Outcome, ToolError};
use super::video::{Order, make};
use super::{Tool, default};

pub struct ImageToVideo;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Arguments {
    /// The video model, such as I2V-01, I2V-01-Director or I2V-01-live
    #[serde(default = "default::image_to_video_model")]
    model: String,
    /// What happens in the film
    #[schemars(length(min = 1))]
    prompt: String,
    /// The picture: a path, an address or a data address
    #[schemars(length(min = 1))]
    first_frame_image: String,
    /// Folder for the file, below the server's base path
    output_directory: Option<String>,
    /// Whether to return at once with a task id for query_video_generation
    #[serde(default)]
    async_mode: bool,
}

impl Tool for ImageToVideo {
    const NAME: &'static str = "image_to_video";
    const TITLE: &'static str = "Image to video";
    const DESCRIPTION: &'static str = "Makes a short film that begins with a picture. Takes minutes; with async_mode it gives a task id at once.";
    type Arguments = Arguments;

    async fn run(call: &Call, arguments: Arguments) -> Result<Outcome, ToolError> {
        let order = Order {
            tool: Self::NAME,
            model: arguments.model,
            prompt: arguments.prompt,
            first_frame_image: Some(arguments.first_frame_image),
            duration: None,
            resolution: None,
            output_directory: arguments.output_directory,
            async_mode: arguments.async_mode,
        };
        make(call, order).await
    }
}
