//! Names of output files: tool, beginning of the text, time.

use chrono::{DateTime, Local};

/// Characters of a text that go into a name.
const TEXT: usize = 10;
/// Bytes of the middle of a name at most; with the rest it stays below the 255 that file systems allow.
const BYTES: usize = 150;

/// `{tool}_{text}_{date}_{time}.{extension}`, with the first ten characters of the text, or all of it where it is an
/// identifier. Spaces, and all that could lead out of a folder or that some file system refuses, become `_`.
pub fn file_name(tool: &str, text: &str, whole: bool, extension: &str, now: DateTime<Local>) -> String {
    let count = if whole { usize::MAX } else { TEXT };
    let mut middle: String = text.chars().take(count).map(harmless).collect();
    while middle.len() > BYTES {
        middle.pop();
    }
    format!("{tool}_{middle}_{}.{extension}", now.format("%Y%m%d_%H%M%S"))
}

fn harmless(c: char) -> char {
    if c.is_control() || " /\\<>:\"|?*".contains(c) { '_' } else { c }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;

    fn name(text: &str, whole: bool) -> String {
        let now = Local.with_ymd_and_hms(2025, 3, 4, 5, 6, 7).unwrap();
        file_name("t2a", text, whole, "mp3", now)
    }

    #[test]
    fn a_name_has_ten_characters_of_the_text_and_the_time() {
        assert_eq!(name("hello big world", false), "t2a_hello_big__20250304_050607.mp3");
        assert_eq!(name("你好，世界！一二三四五", false), "t2a_你好，世界！一二三四_20250304_050607.mp3");
        assert_eq!(name("", false), "t2a__20250304_050607.mp3");
        assert_eq!(name("1234567890123", true), "t2a_1234567890123_20250304_050607.mp3");
    }

    #[test]
    fn no_text_leads_out_of_the_folder() {
        for text in ["../../../etc", "..\\..\\x", "a/b", "/etc/passwd", "a\0b\nc", "C:\\x"] {
            let name = name(text, true);
            assert!(!name.contains(['/', '\\', '\0', '\n', ':']), "{name}");
        }
    }

    #[test]
    fn a_long_identifier_is_cut_to_what_file_systems_allow() {
        assert!(name(&"é".repeat(1000), true).len() <= 255);
    }
}
