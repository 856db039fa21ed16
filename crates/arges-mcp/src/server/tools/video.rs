//! What the tools of video share: asking for one, waiting, and giving it out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::super::outcome::{Outcome, Place, ToolError};
use super::super::{Call, ResourceMode};
use super::saving::{Named, download, prepare};
use crate::files::FileError;
use crate::minimax::{Api, Repeat, Reply};

/// Times that a video is asked after: 10 minutes at 20 seconds each.
const QUESTIONS: u64 = 30;
/// The same for a model that takes longer.
const QUESTIONS_OF_SLOW_MODEL: u64 = 60;
const SLOW_MODEL: &str = "MiniMax-Hailuo-02";
const MIME: &str = "video/mp4";

/// A video to be made.
#[derive(Debug)]
pub struct Order {
    pub tool: &'static str,
    pub model: String,
    pub prompt: String,
    pub first_frame_image: Option<String>,
    pub duration: Option<i64>,
    pub resolution: Option<String>,
    pub output_directory: Option<String>,
    /// Whether the task's id is enough.
    pub async_mode: bool,
}

/// How a task stands.
pub enum Status {
    Working(String),
    Done { file_id: String },
}

/// Orders a video and waits for it, unless the client wants to ask for itself.
pub async fn make(call: &Call, order: Order) -> Result<Outcome, ToolError> {
    let api = call.api(order.tool)?;
    if !order.async_mode {
        prepare(call, order.output_directory.as_deref())?;
    }
    let mut body = json!({ "model": order.model, "prompt": order.prompt });
    if let Some(image) = order.first_frame_image.as_deref().filter(|image| !image.is_empty()) {
        body["first_frame_image"] = picture(call, image).await?.into();
    }
    if let Some(duration) = order.duration {
        body["duration"] = duration.into();
    }
    if let Some(resolution) = order.resolution.filter(|resolution| !resolution.is_empty()) {
        body["resolution"] = resolution.into();
    }
    let reply = api.post("/v1/video_generation", &body, Repeat::IfRefused).await?;
    let task_id = reply.id(&["task_id"]).ok_or_else(|| reply.missing("task_id"))?;
    if order.async_mode {
        return Ok(Outcome::text(format!(
            "Success. Video generation task submitted: Task ID: {task_id}. Please use `query_video_generation` tool \
             to check the status of the task and get the result."
        )));
    }
    let questions = if order.model == SLOW_MODEL { QUESTIONS_OF_SLOW_MODEL } else { QUESTIONS };
    let file_id = wait(call, api, &task_id, questions).await?;
    give(call, api, &task_id, &file_id, order.output_directory.as_deref()).await
}

async fn wait(call: &Call, api: &Api, task_id: &str, questions: u64) -> Result<String, ToolError> {
    let pause = call.limits().poll;
    for question in 1..=questions {
        match ask(api, task_id).await? {
            Status::Done { file_id } => return Ok(file_id),
            Status::Working(status) => {
                let message = format!("video task {task_id}: {status}");
                call.progress.report(question as f64, Some(questions as f64), message).await;
            }
        }
        if question < questions {
            tokio::time::sleep(pause).await;
        }
    }
    let minutes = (pause * questions as u32).as_secs() / 60;
    Err(ToolError::VideoLate { task_id: task_id.to_owned(), minutes })
}

/// Asks how a task stands.
pub async fn ask(api: &Api, task_id: &str) -> Result<Status, ToolError> {
    let reply = api.get("/v1/query/video_generation", ("task_id", task_id)).await?;
    match reply.text(&["status"]) {
        Some("Fail") => {
            let task_id = task_id.to_owned();
            Err(ToolError::VideoFailed { task_id, reason: reason(&reply) })
        }
        Some("Success") => {
            Ok(Status::Done { file_id: reply.id(&["file_id"]).ok_or_else(|| reply.missing("file_id"))? })
        }
        status => Ok(Status::Working(status.unwrap_or("waiting").to_owned())),
    }
}

/// What the API says about a failure, if it does.
fn reason(reply: &Reply) -> String {
    match reply.text(&["error_message"]) {
        Some(message) => format!(": {message}"),
        None => String::new(),
    }
}

/// A finished video's address or file.
pub async fn give(
    call: &Call,
    api: &Api,
    task_id: &str,
    file_id: &str,
    output_directory: Option<&str>,
) -> Result<Outcome, ToolError> {
    let reply = api.get("/v1/files/retrieve", ("file_id", file_id)).await?;
    let address = reply.text(&["file", "download_url"]).ok_or_else(|| reply.missing("file.download_url"))?;
    if call.settings().resource_mode == ResourceMode::Url {
        return Ok(Outcome::text(format!("Success. Video URL: {address}"))
            .with(MIME, Place::Address(address.to_owned())));
    }
    let named = Named {
        directory: output_directory,
        tool: "video",
        text: task_id,
        whole_text: true,
        extension: "mp4",
    };
    let report = call.limits().report;
    let path = call.progress.wait("downloading the video", report, download(call, named, address)).await?;
    let text = format!("Success. Video saved as: {}", path.display());
    Ok(Outcome::text(text).with(MIME, Place::File(path)))
}

/// An address as it is; the contents of a file as a data address.
async fn picture(call: &Call, image: &str) -> Result<String, ToolError> {
    if ["http://", "https://", "data:"].iter().any(|scheme| image.starts_with(scheme)) {
        return Ok(image.to_owned());
    }
    let path = call.shared.inputs.find(image, call.limits().upload_bytes)?;
    let bytes =
        tokio::fs::read(&path).await.map_err(|source| FileError::Read { path: image.to_owned(), source })?;
    Ok(format!("data:{};base64,{}", picture_type(&bytes), STANDARD.encode(bytes)))
}

/// The type of a picture by its first bytes. JPEG where it is not known, which the API finds out.
fn picture_type(bytes: &[u8]) -> &'static str {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => "image/png",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
        _ => "image/jpeg",
    }
}
