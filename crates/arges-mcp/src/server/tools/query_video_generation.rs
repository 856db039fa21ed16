//! `query_video_generation`: whether a film is there.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::Call;
use super::super::outcome::{Outcome, ToolError};
use super::Tool;
use super::video::{Status, ask, give};

pub struct QueryVideoGeneration;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Arguments {
    /// The id that generate_video gave
    #[schemars(length(min = 1))]
    task_id: String,
    /// Folder for the file, below the server's base path
    output_directory: Option<String>,
}

impl Tool for QueryVideoGeneration {
    const NAME: &'static str = "query_video_generation";
    const TITLE: &'static str = "Query a video task";
    const DESCRIPTION: &'static str =
        "Tells whether a film that generate_video began in async_mode is there, and gives it if so.";
    const COSTS: bool = false;
    type Arguments = Arguments;

    async fn run(call: &Call, arguments: Arguments) -> Result<Outcome, ToolError> {
        let api = call.api(Self::NAME)?;
        let task_id = &arguments.task_id;
        match ask(api, task_id).await? {
            Status::Working(_) => {
                Ok(Outcome::text(format!("Video generation task is still processing: Task ID: {task_id}")))
            }
            Status::Done { file_id } => {
                give(call, api, task_id, &file_id, arguments.output_directory.as_deref()).await
            }
        }
    }
}
