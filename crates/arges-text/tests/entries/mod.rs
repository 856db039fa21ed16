//! What the fuzz targets and the randomised tests feed with bytes.

use arges_text::{AnswerPart, Divided, ThinkingParser, ToolCallParser};

/// Content, then name and arguments of each call.
pub type Parsed = (String, Vec<(String, String)>);

/// Divides bytes as an answer, cut at places that the first byte chooses, and as a whole.
pub fn thinking(data: &[u8]) {
    let [cut, text @ ..] = data else { return };
    let text = String::from_utf8_lossy(text);
    let whole = divide([&text[..]]);
    assert_eq!(divide(pieces(&text, *cut)), whole, "{text:?}");
    assert_eq!(divide(text.split_inclusive(|_| true)), whole, "{text:?}");
    let parts = whole.reasoning + &whole.answer;
    assert_eq!(kept(&parts, "<think>/"), kept(&text, "<think>/"), "{text:?}");
}

/// Parses bytes as an answer with calls, cut at places that the first byte chooses, and as a whole.
pub fn tool_calls(data: &[u8]) {
    let [cut, text @ ..] = data else { return };
    let text = String::from_utf8_lossy(text);
    let whole = parse([&text[..]]);
    assert_eq!(parse(pieces(&text, *cut)), whole, "{text:?}");
    assert_eq!(parse(text.split_inclusive(|_| true)), whole, "{text:?}");
    // An escape in a name is given out as what it stands for.
    if !text.contains('\\') {
        let calls = whole.1.iter().flat_map(|(name, arguments)| [name.as_str(), arguments]);
        let parts: String = std::iter::once(whole.0.as_str()).chain(calls).collect();
        let markup = "<tool_calls>/{\"name\": \"arguments\"},";
        assert_eq!(kept(&parts, markup), kept(&text, markup), "{text:?}");
    }
}

/// A text's thinking and answer, parsed in these pieces.
pub fn divide<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Divided {
    let mut parser = ThinkingParser::new();
    let mut parts: Vec<Divided> = pieces.into_iter().map(|piece| parser.push(piece)).collect();
    parts.push(parser.finish());
    let of = |text: fn(&Divided) -> &str| parts.iter().map(text).collect();
    Divided { reasoning: of(|part| &part.reasoning), answer: of(|part| &part.answer) }
}

/// A text's content and calls, parsed in these pieces.
pub fn parse<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Parsed {
    let mut parser = ToolCallParser::new();
    let mut parts: Vec<AnswerPart> = pieces.into_iter().flat_map(|piece| parser.push(piece)).collect();
    parts.extend(parser.finish());
    let (mut content, mut calls) = (String::new(), Vec::new());
    for part in parts {
        match part {
            AnswerPart::Content(text) => content += &text,
            AnswerPart::CallStart { index, name } => {
                assert_eq!(index, calls.len(), "calls are counted from 0");
                calls.push((name, String::new()));
            }
            AnswerPart::CallArguments { index, text } => {
                assert_eq!(index + 1, calls.len(), "arguments follow their call");
                calls[index].1 += &text;
            }
        }
    }
    assert_eq!(parser.calls(), calls.len());
    (content, calls)
}

/// The text in pieces of a few characters, their lengths drawn from `seed`.
fn pieces(text: &str, seed: u8) -> Vec<&str> {
    let mut state = u32::from(seed).wrapping_mul(2_654_435_761).wrapping_add(1);
    let (mut pieces, mut start, mut left) = (Vec::new(), 0, 0u32);
    for (at, _) in text.char_indices() {
        if left == 0 {
            pieces.push(&text[start..at]);
            start = at;
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            left = 1 + (state >> 24) % 9;
        }
        left -= 1;
    }
    pieces.push(&text[start..]);
    pieces
}

/// The characters of a text in order of value, without white space and those of the markup.
fn kept(text: &str, markup: &str) -> Vec<char> {
    let mut kept: Vec<char> = text.chars().filter(|&c| !c.is_whitespace() && !markup.contains(c)).collect();
    kept.sort_unstable();
    kept
}
