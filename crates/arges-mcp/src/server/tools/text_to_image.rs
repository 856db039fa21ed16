//! `text_to_image`: pictures from a description.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::outcome::{Outcome, Place, ToolError};
use super::super::{Call, ResourceMode};
use super::saving::{Named, download, prepare, python_list};
use super::{Tool, default};
use crate::minimax::Repeat;

const MIME: &str = "image/jpeg";

pub struct TextToImage;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct Arguments {
    /// The image model
    #[serde(default = "default::image_model")]
    model: String,
    /// What is in the picture
    #[schemars(length(min = 1))]
    prompt: String,
    /// Width to height
    #[serde(default = "default::square")]
    #[schemars(extend("enum" = ["1:1", "16:9", "4:3", "3:2", "2:3", "3:4", "9:16", "21:9"]))]
    aspect_ratio: String,
    /// How many pictures
    #[serde(default = "default::one_image")]
    #[schemars(range(min = 1, max = 9))]
    n: i64,
    /// Whether MiniMax may better the prompt
    #[serde(default = "default::yes")]
    prompt_optimizer: bool,
    /// Folder for the files, below the server's base path
    output_directory: Option<String>,
}

impl Tool for TextToImage {
    const NAME: &'static str = "text_to_image";
    const TITLE: &'static str = "Text to image";
    const DESCRIPTION: &'static str =
        "Makes pictures from a description, and gives their addresses or the paths of their files.";
    type Arguments = Arguments;

    async fn run(call: &Call, arguments: Arguments) -> Result<Outcome, ToolError> {
        prepare(call, arguments.output_directory.as_deref())?;
        let body = json!({
            "model": arguments.model,
            "prompt": arguments.prompt,
            "aspect_ratio": arguments.aspect_ratio,
            "n": arguments.n,
            "prompt_optimizer": arguments.prompt_optimizer,
        });
        let reply = call.api(Self::NAME)?.post("/v1/image_generation", &body, Repeat::IfRefused).await?;
        let addresses = reply.list(&["data", "image_urls"]).iter().filter_map(Value::as_str);
        let addresses: Vec<String> = addresses.map(str::to_owned).collect();
        if addresses.is_empty() {
            return Err(reply.missing("data.image_urls").into());
        }
        if call.settings().resource_mode == ResourceMode::Url {
            let text = format!("Success. Image URLs: {}", python_list(&addresses));
            let places = addresses.into_iter().map(Place::Address);
            return Ok(places.fold(Outcome::text(text), |outcome, place| outcome.with(MIME, place)));
        }
        let (mut paths, mut failures) = (Vec::new(), Vec::new());
        for (number, address) in addresses.iter().enumerate() {
            let text = format!("{number}_{}", arguments.prompt);
            let directory = arguments.output_directory.as_deref();
            let named = Named { directory, tool: "image", text: &text, whole_text: false, extension: "jpg" };
            match download(call, named, address).await {
                Ok(path) => paths.push(path),
                Err(error) => failures.push(error.to_string()),
            }
        }
        let saved = python_list(paths.iter().map(|path| path.display().to_string()));
        if !failures.is_empty() {
            return Err(ToolError::PartlySaved { saved, failures: failures.join(". ") });
        }
        let text = format!("Success. Images saved as: {saved}");
        Ok(paths.into_iter().fold(Outcome::text(text), |outcome, path| outcome.with(MIME, Place::File(path))))
    }
}
