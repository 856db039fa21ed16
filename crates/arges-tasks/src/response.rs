//! A model's response, taken apart: `<think>…</think>` first, then the visible text with the final answer.

const THINK: &str = "<think>";
const END_OF_THINK: &str = "</think>";

/// The response without its leading thinking; `None` where the thinking never ends.
///
/// A response may begin within the thinking, where the prompt ended with `<think>`.
pub fn visible(response: &str) -> Option<&str> {
    match response.split_once(END_OF_THINK) {
        Some((_, visible)) => Some(visible.trim()),
        None if response.trim_start().starts_with(THINK) => None,
        None => Some(response.trim()),
    }
}

/// The final answer: what follows the last line that starts with `Answer:`, to the end of the text; without such a
/// line the whole visible text. Markup around it is taken off: bold, one code fence, `$…$`, `\boxed{…}`.
///
/// `None` where the thinking never ends.
pub fn final_answer(response: &str) -> Option<&str> {
    let visible = visible(response)?;
    let answer = after_last_marker(visible).unwrap_or(visible);
    Some(without_markup(answer))
}

/// The words `Answer` or `Final answer` at the start of a line, a colon, and all that follows.
fn after_last_marker(text: &str) -> Option<&str> {
    let mut found = None;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let rest = line.trim_start_matches([' ', '\t', '*', '#', '_']);
        if let Some(length) = marker_length(rest) {
            found = Some(&text[start + (line.len() - rest.len()) + length..]);
        }
        start += line.len();
    }
    found
}

/// Bytes of a marker at the start of the line, its colon and closing bold included.
fn marker_length(line: &str) -> Option<usize> {
    let after = |text: &str, word: &str| {
        text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word)).then_some(word.len())
    };
    let mut length = after(line, "final ").unwrap_or(0);
    length += after(&line[length..], "answer")?;
    let bold = |text: &str| text.len() - text.trim_start_matches('*').len();
    length += bold(&line[length..]);
    length += after(&line[length..], ":")?;
    Some(length + bold(&line[length..]))
}

/// Layers of markup that are taken off.
const MAX_LAYERS: usize = 8;

fn without_markup(answer: &str) -> &str {
    let mut answer = answer.trim();
    for _ in 0..MAX_LAYERS {
        let inner = layer(answer);
        if inner.len() == answer.len() {
            break;
        }
        answer = inner;
    }
    answer
}

/// The text without its outermost layer of markup.
fn layer(text: &str) -> &str {
    if let Some(inner) = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```")) {
        // The fence's first line may name a language.
        return inner.split_once('\n').map_or(inner, |(_, content)| content).trim();
    }
    for (open, close) in
        [("**", "**"), ("`", "`"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("\\boxed{", "}")]
    {
        let inner = text.strip_prefix(open).and_then(|rest| rest.strip_suffix(close));
        if let Some(inner) = inner.filter(|inner| !inner.contains(open)) {
            return inner.trim();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_is_no_part_of_the_answer() {
        assert_eq!(final_answer("<think>\nAnswer: 1\n</think>\nAnswer: 2"), Some("2"));
        assert_eq!(final_answer("half a thought </think> 3 "), Some("3"));
        assert_eq!(final_answer("<think>Answer: 1"), None);
        assert_eq!(final_answer("4"), Some("4"));
        assert_eq!(final_answer(""), Some(""));
    }

    #[test]
    fn the_last_marker_counts_and_all_lines_after_it() {
        assert_eq!(final_answer("Answer: 1\nNo, wait.\n answer:\n1 2\n3 4\n"), Some("1 2\n3 4"));
        assert_eq!(final_answer("The answer: 5"), Some("The answer: 5"));
        assert_eq!(final_answer("so\n**Final Answer:** 6"), Some("6"));
        assert_eq!(final_answer("**Answer**: 7"), Some("7"));
    }

    #[test]
    fn markup_around_the_answer_is_taken_off() {
        assert_eq!(final_answer("Answer:\n```text\n1 2\n3 4\n```"), Some("1 2\n3 4"));
        assert_eq!(final_answer("Answer: $\\boxed{12}$"), Some("12"));
        assert_eq!(final_answer("Answer: **a** or **b**"), Some("**a** or **b**"));
    }
}
