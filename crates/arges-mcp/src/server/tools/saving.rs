//! From what the API gives to files below the base path.

use std::path::PathBuf;

use super::super::outcome::ToolError;
use super::super::{Call, ResourceMode};

/// What a file is called by, and where it goes.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    pub directory: Option<&'a str>,
    pub tool: &'a str,
    pub text: &'a str,
    /// Whether all of the text goes into the name.
    pub whole_text: bool,
    pub extension: &'a str,
}

/// Finds out, before anything is paid for, whether there is a place for it. In URL mode none is needed.
pub fn prepare(call: &Call, directory: Option<&str>) -> Result<(), ToolError> {
    match call.settings().resource_mode {
        ResourceMode::Url => Ok(()),
        ResourceMode::Local => Ok(call.settings().folder.check(directory)?),
    }
}

/// Writes bytes into a file.
pub async fn save(call: &Call, named: Named<'_>, bytes: &[u8]) -> Result<PathBuf, ToolError> {
    let file = begin(call, named)?;
    file.write(bytes).await?;
    Ok(file.finish()?)
}

/// Downloads an address into a file. An error tells the address, as what is there has been paid for.
pub async fn download(call: &Call, named: Named<'_>, address: &str) -> Result<PathBuf, ToolError> {
    let unsaved = |source| ToolError::Unsaved { address: address.to_owned(), source: Box::new(source) };
    download_into(call, named, address).await.map_err(unsaved)
}

async fn download_into(call: &Call, named: Named<'_>, address: &str) -> Result<PathBuf, ToolError> {
    let file = begin(call, named)?;
    let mut writer = file.writer()?;
    call.shared.transfer.download(address, &mut writer).await?;
    drop(writer);
    Ok(file.finish()?)
}

fn begin(call: &Call, named: Named<'_>) -> Result<crate::files::Partial, ToolError> {
    let Named { directory, tool, text, whole_text, extension } = named;
    Ok(call.settings().folder.begin(directory, tool, text, whole_text, extension)?)
}

/// A list of texts as the original servers write it, which is Python's way.
pub fn python_list(items: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| python_text(item.as_ref())).collect();
    format!("[{}]", items.join(", "))
}

fn python_text(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut quoted = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c == quote => quoted.extend(['\\', c]),
            c if c.is_control() && u32::from(c) < 0x100 => {
                quoted.push_str(&format!("\\x{:02x}", u32::from(c)))
            }
            c => quoted.push(c),
        }
    }
    quoted.push(quote);
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_as_in_python() {
        let items = ["Name: A, ID: a", "it's", "say \"it's\"", "a\\b\n\u{1}ü"];
        let expected = r#"['Name: A, ID: a', "it's", 'say "it\'s"', 'a\\b\n\x01ü']"#;
        assert_eq!(python_list(items), expected);
        assert_eq!(python_list([""; 0]), "[]");
    }
}
