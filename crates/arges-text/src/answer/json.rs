//! JSON, read a character at a time.

/// Deepest nesting of objects and arrays. Deeper text is no JSON to this reader: what reads the value afterwards has
/// a limit too, and a model that opens bracket after bracket is stuck.
const MAX_DEPTH: usize = 100;

/// Reads one string or object and says where it ends. Its text is JSON by RFC 8259, or it is refused at the first
/// character with which it cannot be.
#[derive(Debug, Clone)]
pub(super) struct JsonReader {
    state: State,
    /// The containers that are open, the innermost last.
    open: Vec<Container>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Object,
    Array,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The reader's string or object.
    Start,
    /// After `{`.
    KeyOrEnd,
    /// After `,` in an object.
    Key,
    Colon,
    /// After `[`.
    ValueOrEnd,
    Value,
    CommaOrEnd,
    /// Whether a key, and what of it was last.
    String {
        key: bool,
        part: StringPart,
    },
    Number(NumberPart),
    /// The rest of `true`, `false` or `null`.
    Word(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StringPart {
    Plain,
    Backslash,
    /// Hexadecimal digits still to come.
    Unicode(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NumberPart {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    E,
    Sign,
    Exponent,
}

/// The character cannot stand where it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Invalid;

impl JsonReader {
    pub fn new() -> Self {
        Self { state: State::Start, open: Vec::new() }
    }

    /// Takes the next character; whether the value ends with it.
    ///
    /// # Errors
    /// A character with which the text is no JSON any more.
    pub fn push(&mut self, c: char) -> Result<bool, Invalid> {
        self.state = match self.state {
            State::Start => match c {
                '"' => State::String { key: false, part: StringPart::Plain },
                '{' => self.open(Container::Object)?,
                _ => return Err(Invalid),
            },
            State::Word(rest) => match rest.strip_prefix(c) {
                Some("") => State::CommaOrEnd,
                Some(rest) => State::Word(rest),
                None => return Err(Invalid),
            },
            State::String { key, part } => match string(part, c)? {
                Some(part) => State::String { key, part },
                None if key => State::Colon,
                None if self.open.is_empty() => return Ok(true),
                None => State::CommaOrEnd,
            },
            State::Number(part) => match number(part, c) {
                Some(part) => State::Number(part),
                None if part.may_end() => self.after_value(c)?,
                None => return Err(Invalid),
            },
            state if is_space(c) => state,
            State::KeyOrEnd if c == '}' => self.close(Container::Object)?,
            State::KeyOrEnd | State::Key if c == '"' => State::String { key: true, part: StringPart::Plain },
            State::Colon if c == ':' => State::Value,
            State::ValueOrEnd if c == ']' => self.close(Container::Array)?,
            State::ValueOrEnd | State::Value => self.value(c)?,
            State::CommaOrEnd => self.after_value(c)?,
            State::KeyOrEnd | State::Key | State::Colon => return Err(Invalid),
        };
        Ok(self.open.is_empty() && self.state == State::CommaOrEnd)
    }

    fn open(&mut self, container: Container) -> Result<State, Invalid> {
        if self.open.len() == MAX_DEPTH {
            return Err(Invalid);
        }
        self.open.push(container);
        Ok(if container == Container::Object { State::KeyOrEnd } else { State::ValueOrEnd })
    }

    fn close(&mut self, container: Container) -> Result<State, Invalid> {
        if self.open.pop() == Some(container) { Ok(State::CommaOrEnd) } else { Err(Invalid) }
    }

    fn value(&mut self, c: char) -> Result<State, Invalid> {
        Ok(match c {
            '"' => State::String { key: false, part: StringPart::Plain },
            '{' => self.open(Container::Object)?,
            '[' => self.open(Container::Array)?,
            '-' => State::Number(NumberPart::Minus),
            '0' => State::Number(NumberPart::Zero),
            '1'..='9' => State::Number(NumberPart::Integer),
            't' => State::Word("rue"),
            'f' => State::Word("alse"),
            'n' => State::Word("ull"),
            _ => return Err(Invalid),
        })
    }

    fn after_value(&mut self, c: char) -> Result<State, Invalid> {
        match (c, self.open.last()) {
            (',', Some(Container::Object)) => Ok(State::Key),
            (',', Some(Container::Array)) => Ok(State::Value),
            ('}', _) => self.close(Container::Object),
            (']', _) => self.close(Container::Array),
            (c, _) if is_space(c) => Ok(State::CommaOrEnd),
            _ => Err(Invalid),
        }
    }
}

/// White space of JSON, which is less than Unicode's.
pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\n' | '\r' | '\t')
}

/// Where a string is after `c`; `None` at its end.
fn string(part: StringPart, c: char) -> Result<Option<StringPart>, Invalid> {
    let next = match (part, c) {
        (StringPart::Plain, '"') => return Ok(None),
        (StringPart::Plain, '\\') => StringPart::Backslash,
        (StringPart::Plain, '\0'..='\x1f') => return Err(Invalid),
        (StringPart::Plain, _) => StringPart::Plain,
        (StringPart::Backslash, 'u') => StringPart::Unicode(4),
        (StringPart::Backslash, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => StringPart::Plain,
        (StringPart::Unicode(1), c) if c.is_ascii_hexdigit() => StringPart::Plain,
        (StringPart::Unicode(digits), c) if c.is_ascii_hexdigit() => StringPart::Unicode(digits - 1),
        _ => return Err(Invalid),
    };
    Ok(Some(next))
}

/// Where a number is after `c`; `None` where `c` is no part of it.
fn number(part: NumberPart, c: char) -> Option<NumberPart> {
    use NumberPart::{E, Exponent, Fraction, Integer, Minus, Point, Sign, Zero};
    Some(match (part, c) {
        (Minus, '0') => Zero,
        (Minus, '1'..='9') | (Integer, '0'..='9') => Integer,
        (Zero | Integer, '.') => Point,
        (Point | Fraction, '0'..='9') => Fraction,
        (Zero | Integer | Fraction, 'e' | 'E') => E,
        (E, '+' | '-') => Sign,
        (E | Sign | Exponent, '0'..='9') => Exponent,
        _ => return None,
    })
}

impl NumberPart {
    fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Integer | Self::Fraction | Self::Exponent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    /// How many bytes of the text are its value; `None` where it is none, or does not end.
    fn read(text: &str) -> Option<usize> {
        let mut reader = JsonReader::new();
        for (at, c) in text.char_indices() {
            match reader.push(c) {
                Ok(true) => return Some(at + c.len_utf8()),
                Ok(false) => {}
                Err(Invalid) => return None,
            }
        }
        None
    }

    #[test]
    fn values_end_where_they_end() {
        for (value, rest) in [
            (r#""a\"}\\""#, "\""),
            (r#"{}"#, "}"),
            (r#"{"a": {"b": "}"}, "c": [1, -0.5e+3, [true,false , null]]}"#, "\n{"),
            ("{\n  \"a\" : [ ]\n}", " "),
            (r#"{"é\u00e9": "日"}"#, ""),
        ] {
            assert_eq!(read(&format!("{value}{rest}")), Some(value.len()), "{value}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in [
            "[1]",
            "1",
            "{'a': 1}",
            "{a: 1}",
            r#"{"a" 1}"#,
            r#"{"a": 1,}"#,
            r#"{"a": [1,]}"#,
            r#"{,}"#,
            r#"{"a": 01}"#,
            r#"{"a": 1.}"#,
            r#"{"a": -}"#,
            r#"{"a": 1e}"#,
            r#"{"a": nul}"#,
            r#"{"a": [}"#,
            r#"{"a": 1]"#,
            "{\"a\": \"\n\"}",
            r#"{"a": "\x"}"#,
            r#"{"a": "\u12g4"}"#,
            "{\u{a0}}",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn nesting_has_a_limit() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert!(read(&nested(MAX_DEPTH)).is_some());
        assert!(read(&nested(MAX_DEPTH + 1)).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_reader_takes_what_serde_takes(
            text in r#"[{"]((\{|\}|\[|\]|"[a\\]?"?|:|,|[ \n]|[-+.eE0-9]|true|null|\\u00e9|\\[nx]|é)){0,14}"#,
        ) {
            let mut values = serde_json::Deserializer::from_str(&text).into_iter::<IgnoredAny>();
            let expected = match values.next() {
                Some(Ok(_)) => Some(values.byte_offset()),
                _ => None,
            };
            prop_assert_eq!(read(&text), expected);
        }
    }
}
