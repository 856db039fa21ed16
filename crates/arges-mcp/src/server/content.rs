//! Outcomes as MCP content, as far as the client's version of the protocol knows it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rmcp::model::{CallToolResult, ContentBlock, ProtocolVersion, Resource};

use std::path::Path;

use super::outcome::{Media, Outcome, Place};

/// The result of a call that succeeded. Pictures and sound are in it as long as they have `inline` bytes at most all
/// together; others, and video, are linked to.
pub async fn result(outcome: Outcome, version: Option<&ProtocolVersion>, inline: u64) -> CallToolResult {
    let mut content = vec![ContentBlock::text(outcome.text)];
    let mut left = inline;
    for media in &outcome.media {
        content.extend(block(media, version, &mut left).await);
    }
    CallToolResult::success(content)
}

async fn block(media: &Media, version: Option<&ProtocolVersion>, left: &mut u64) -> Option<ContentBlock> {
    let (uri, name, bytes) = match &media.place {
        Place::Address(address) => (address.clone(), file_part(address), None),
        Place::File(path) => (file_uri(path), name_of(path), small_file(path, *left).await),
        Place::Bytes(bytes) => return embedded(media.mime, bytes, version),
    };
    if let Some(bytes) = bytes
        && let Some(block) = embedded(media.mime, &bytes, version)
    {
        *left -= bytes.len() as u64;
        return Some(block);
    }
    let knows_links = knows(version, &ProtocolVersion::V_2025_06_18);
    knows_links.then(|| ContentBlock::resource_link(Resource::new(uri, name).with_mime_type(media.mime)))
}

/// The bytes themselves, if there is a kind of content for them.
fn embedded(mime: &str, bytes: &[u8], version: Option<&ProtocolVersion>) -> Option<ContentBlock> {
    if mime.starts_with("image/") {
        return Some(ContentBlock::image(STANDARD.encode(bytes), mime));
    }
    let is_sound = mime.starts_with("audio/") && knows(version, &ProtocolVersion::V_2025_03_26);
    is_sound.then(|| ContentBlock::audio(STANDARD.encode(bytes), mime))
}

/// Versions are dates, so that their order is that of their texts. A client that names none is taken for an old one.
fn knows(version: Option<&ProtocolVersion>, since: &ProtocolVersion) -> bool {
    version.is_some_and(|version| version.as_str() >= since.as_str())
}

async fn small_file(path: &Path, limit: u64) -> Option<Vec<u8>> {
    let length = tokio::fs::metadata(path).await.ok()?.len();
    if length <= limit { tokio::fs::read(path).await.ok() } else { None }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn file_uri(path: &Path) -> String {
    reqwest::Url::from_file_path(path).map_or_else(|()| path.display().to_string(), String::from)
}

/// The last part of an address's path, which is the name of a file as a rule.
fn file_part(address: &str) -> String {
    let url = reqwest::Url::parse(address).ok();
    let part = url.as_ref().and_then(|url| url.path_segments()?.next_back());
    part.filter(|part| !part.is_empty()).unwrap_or("file").to_owned()
}

/// The MIME type of audio in a format of the API.
pub fn audio_mime(format: &str) -> &'static str {
    match format {
        "wav" => "audio/wav",
        "flac" => "audio/flac",
        "pcm" => "audio/L16",
        _ => "audio/mpeg",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn kinds(outcome: Outcome, version: &ProtocolVersion) -> Vec<String> {
        let result = result(outcome, Some(version), 20).await;
        let value = serde_json::to_value(result).unwrap();
        let blocks = value["content"].as_array().unwrap().iter();
        blocks.map(|block| block["type"].as_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn old_clients_get_no_content_that_they_do_not_know() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: usize| {
            let path = folder.path().join(name);
            std::fs::write(&path, vec![0; bytes]).unwrap();
            Place::File(path)
        };
        let outcome = || {
            Outcome::text("x")
                .with("image/jpeg", write("small.jpg", 10))
                .with("audio/mpeg", write("small.mp3", 10))
                .with("audio/mpeg", write("third.mp3", 1))
                .with("video/mp4", Place::Address("https://example.com/a.mp4?b".into()))
        };
        assert_eq!(kinds(outcome(), &ProtocolVersion::V_2024_11_05).await, ["text", "image"]);
        // The third does not fit into the result with the others, and its link is not known either.
        assert_eq!(kinds(outcome(), &ProtocolVersion::V_2025_03_26).await, ["text", "image", "audio"]);
        assert_eq!(
            kinds(outcome(), &ProtocolVersion::V_2025_06_18).await,
            ["text", "image", "audio", "resource_link", "resource_link"]
        );
    }
}
