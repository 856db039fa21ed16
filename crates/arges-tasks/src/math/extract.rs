//! The answer that a text states.

/// Longest text that counts as an answer by itself, in bytes.
const MAX_BARE: usize = 200;

/// The inside of the last `\boxed{…}`, else what follows the last `answer:` or `answer is` up to the end of its line,
/// else the whole text if it is one short line.
pub fn stated_answer(text: &str) -> Option<&str> {
    let text = text.trim();
    let answer = boxed(text).or_else(|| after_marker(text));
    let bare = || (text.len() <= MAX_BARE && !text.contains('\n')).then(|| trimmed(text));
    answer.or_else(bare).filter(|answer| !answer.is_empty())
}

/// The inside of the last `\boxed{…}` or `\fbox{…}`; `None` if there is none or it never ends.
fn boxed(text: &str) -> Option<&str> {
    let start =
        ["\\boxed", "\\fbox"].iter().filter_map(|name| text.rfind(name).map(|at| at + name.len())).max()?;
    let rest = text[start..].trim_start().strip_prefix('{')?;
    let (mut depth, mut escaped) = (1usize, false);
    for (at, c) in rest.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(rest[..at].trim());
        }
    }
    None
}

/// What follows the last `answer`, with `:` or `is` after it, on its line; on the next line if nothing follows.
fn after_marker(text: &str) -> Option<&str> {
    let mut found = None;
    let bytes = text.as_bytes();
    for at in 0..bytes.len() {
        if bytes[at..].len() >= 6 && bytes[at..at + 6].eq_ignore_ascii_case(b"answer") {
            found = marked(&text[at + 6..]).or(found);
        }
    }
    let rest = found?.trim_start();
    let line = rest.lines().next().unwrap_or("");
    Some(trimmed(line)).filter(|answer| !answer.is_empty())
}

/// What follows `:` or `is` right after the marker, bold and spaces aside.
fn marked(rest: &str) -> Option<&str> {
    let skipped = rest.trim_start_matches(['*', ' ']);
    let after = skipped.strip_prefix(':').or_else(|| {
        let after = skipped.strip_prefix("is")?;
        after.starts_with([' ', ':', '\n', '*', '$', '\\']).then(|| after.trim_start_matches([':', ' ']))
    })?;
    Some(after.trim_start_matches(['*', ' ', ':']))
}

/// An answer without the signs of a sentence or of markup around it.
fn trimmed(answer: &str) -> &str {
    let answer = answer.trim().trim_end_matches(['.', '*', '`', ' ']).trim_start_matches(['*', '`', ' ']);
    let inner = answer.strip_prefix("\\(").and_then(|rest| rest.strip_suffix("\\)"));
    inner
        .or_else(|| answer.strip_prefix("\\[").and_then(|rest| rest.strip_suffix("\\]")))
        .unwrap_or(answer)
        .trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_box_counts() {
        assert_eq!(stated_answer("\\boxed{1} or \\boxed{\\frac{1}{2}}."), Some("\\frac{1}{2}"));
        assert_eq!(stated_answer("\\boxed{\\{1, 2\\}} is it. The answer is 3"), Some("\\{1, 2\\}"));
        assert_eq!(stated_answer("so \\boxed {7}"), Some("7"));
    }

    #[test]
    fn without_a_box_the_stated_answer_counts() {
        assert_eq!(stated_answer("So the answer is 12.\nThe final answer is: **13**."), Some("13"));
        assert_eq!(stated_answer("We add.\n\n**Answer:** $x = 4$\n"), Some("$x = 4$"));
        assert_eq!(stated_answer("Answer:\n\\(5\\)"), Some("5"));
        assert_eq!(stated_answer("\\boxed{unended\nAnswer: 6"), Some("6"));
        assert_eq!(stated_answer("42"), Some("42"));
        assert_eq!(stated_answer("It is hard.\nI do not know."), None);
        assert_eq!(stated_answer(""), None);
    }
}
