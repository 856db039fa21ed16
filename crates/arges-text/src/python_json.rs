//! JSON text as Python's `json.dumps` writes it, which is what chat templates were made with:
//! `", "` and `": "` between items, non-ASCII kept, floats as `repr` writes them.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// The arguments of `json.dumps` that templates use.
#[derive(Clone, Debug)]
pub(crate) struct DumpStyle {
    pub(crate) ensure_ascii: bool,
    /// Text of one level of indentation, `None` for one line.
    pub(crate) indent: Option<String>,
    pub(crate) item_separator: String,
    pub(crate) key_separator: String,
}

impl Default for DumpStyle {
    fn default() -> Self {
        Self { ensure_ascii: false, indent: None, item_separator: ", ".into(), key_separator: ": ".into() }
    }
}

/// Writes `value` as JSON text in the order its maps have.
pub(crate) fn dumps(value: &impl Serialize, style: &DumpStyle) -> Result<String, serde_json::Error> {
    let mut out = Vec::new();
    let formatter = PythonFormatter { style, depth: 0, empty: true };
    value.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
    String::from_utf8(out).map_err(serde::ser::Error::custom)
}

struct PythonFormatter<'s> {
    style: &'s DumpStyle,
    depth: usize,
    /// Whether the array or object being written has no item yet.
    empty: bool,
}

impl PythonFormatter<'_> {
    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.break_line(writer)?;
        }
        self.empty = false;
        writer.write_all(bracket)
    }

    fn begin_item<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.style.item_separator.as_bytes())?;
        }
        self.break_line(writer)
    }

    fn break_line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = &self.style.indent else {
            return Ok(());
        };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }
}

impl Formatter for PythonFormatter<'_> {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_item(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_item(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.style.key_separator.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(python_float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, text: &str) -> io::Result<()> {
        if !self.style.ensure_ascii {
            return writer.write_all(text.as_bytes());
        }
        for char in text.chars() {
            // Python escapes DEL and everything above in this mode, in UTF-16 units.
            if matches!(char, ' '..='~') {
                write!(writer, "{char}")?;
            } else {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// `repr(value)`: the shortest digits that read back as `value`; an exponent below 1e-4 and from
/// 1e16 on, with a sign and two digits at least.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_line_has_pythons_separators_order_and_characters() {
        let value = json!({"b": [1, -2.5, true, null], "a": {}, "空": "\"日\u{7f}\u{1}\n</x>'&\\", "e": []});
        let text = dumps(&value, &DumpStyle::default()).unwrap();
        assert_eq!(
            text,
            "{\"b\": [1, -2.5, true, null], \"a\": {}, \"空\": \
             \"\\\"日\u{7f}\\u0001\\n</x>'&\\\\\", \"e\": []}"
        );
    }

    #[test]
    fn indentation_breaks_lines_as_python_does() {
        let style = DumpStyle { indent: Some("  ".into()), item_separator: ",".into(), ..Default::default() };
        let text = dumps(&json!({"a": [1, {"b": []}], "c": {}}), &style).unwrap();
        assert_eq!(text, "{\n  \"a\": [\n    1,\n    {\n      \"b\": []\n    }\n  ],\n  \"c\": {}\n}");
    }

    #[test]
    fn ascii_mode_escapes_in_utf16_units() {
        let style = DumpStyle { ensure_ascii: true, ..Default::default() };
        assert_eq!(dumps(&"é😀a\u{7f}", &style).unwrap(), "\"\\u00e9\\ud83d\\ude00a\\u007f\"");
    }

    #[test]
    fn floats_are_written_as_repr_writes_them() {
        let cases = [
            (0.5, "0.5"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (100.0, "100.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-1.25e-7, "-1.25e-07"),
            (123456789.125, "123456789.125"),
        ];
        for (value, text) in cases {
            assert_eq!(python_float(value), text);
        }
    }
}
