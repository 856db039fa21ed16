//! Tags in text that comes in pieces.

/// How many bytes at the end of `text` begin `tag` without being all of it.
pub(super) fn begun(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|&length| text.ends_with(&tag[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_end_that_begins_the_tag_counts() {
        for (text, length) in
            [("", 0), ("a", 0), ("a<", 1), ("<t<t", 2), ("<tag", 4), ("<tag>", 0), ("é<ta", 3)]
        {
            assert_eq!(begun(text, "<tag>"), length, "{text}");
        }
    }
}
