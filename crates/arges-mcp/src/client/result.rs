//! The result of a call as a text that a model reads.

use rmcp::model::{CallToolResult, ContentBlock, ResourceContents};

/// All of a result's content, in order, in at most `limit` bytes. Pictures and sound are named, as the model reads
/// text alone.
pub fn text(result: &CallToolResult, limit: usize) -> String {
    let blocks: Vec<String> = result.content.iter().map(block).collect();
    let mut text = blocks.join("\n");
    if text.is_empty()
        && let Some(structured) = &result.structured_content
    {
        text = structured.to_string();
    }
    if text.is_empty() {
        text =
            if result.is_error == Some(true) { "the tool failed without a word" } else { "done" }.to_owned();
    }
    cut(text, limit)
}

fn block(block: &ContentBlock) -> String {
    match block {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => binary(&image.mime_type, image.data.len()),
        ContentBlock::Audio(audio) => binary(&audio.mime_type, audio.data.len()),
        ContentBlock::ResourceLink(link) => format!("[{}]", link.uri),
        ContentBlock::Resource(resource) => match &resource.resource {
            ResourceContents::TextResourceContents { text, .. } => text.clone(),
            ResourceContents::BlobResourceContents { blob, mime_type, .. } => {
                binary(mime_type.as_deref().unwrap_or("data"), blob.len())
            }
            _ => "[a resource of an unknown kind]".to_owned(),
        },
        _ => "[content of an unknown kind]".to_owned(),
    }
}

/// Four characters of base64 are three bytes.
fn binary(mime: &str, base64_length: usize) -> String {
    format!("[{mime}, {} bytes]", base64_length / 4 * 3)
}

/// The text, or its beginning with a note of how much is missing.
pub fn cut(mut text: String, limit: usize) -> String {
    if text.len() <= limit {
        return text;
    }
    let all = text.len();
    text.truncate(text.floor_char_boundary(limit));
    text.push_str(&format!("\n[cut: {} of {all} bytes]", text.len()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_result_is_cut_between_characters() {
        assert_eq!(cut("ééé".into(), 3), "é\n[cut: 2 of 6 bytes]");
        assert_eq!(cut("ééé".into(), 6), "ééé");
    }

    #[test]
    fn what_is_no_text_is_named() {
        let content = vec![ContentBlock::text("a"), ContentBlock::image("AAAA", "image/png")];
        assert_eq!(text(&CallToolResult::success(content), 100), "a\n[image/png, 3 bytes]");
        assert_eq!(text(&CallToolResult::success(vec![]), 100), "done");
    }
}
