//! Formulas in LaTeX's notation to MathML.

use std::io::{self, Write};

use pulldown_latex::config::{DisplayMode, RenderConfig};
use pulldown_latex::{Event, Parser, ParserError, Storage, write_mathml};

/// Bytes of a formula at most, and braces within braces.
const MAX_FORMULA: usize = 8 << 10;
const MAX_DEPTH: usize = 100;

/// Macros are not defined in answers, and are the way to make much of little.
const DEFINITIONS: [&str; 6] = ["\\def", "\\edef", "\\gdef", "\\xdef", "\\let", "command"];

/// The formulas of one text, which have a number of bytes of MathML together.
pub(super) struct Formulas {
    left: usize,
}

impl Formulas {
    /// For a text of so many bytes. Formulas are some twenty times as long in MathML.
    pub fn of(text: usize) -> Formulas {
        Formulas { left: 50 * text + 4096 }
    }

    /// The MathML of a formula; `None` for what is none, or is too long or too deep.
    pub fn mathml(&mut self, source: &str, display: bool) -> Option<String> {
        if source.len() > MAX_FORMULA
            || depth(source) > MAX_DEPTH
            || DEFINITIONS.iter().any(|word| source.contains(word))
        {
            return None;
        }
        let storage = Storage::new();
        let events: Result<Vec<Event>, _> = Parser::new(source, &storage).collect();
        let events = events.ok()?.into_iter().map(Ok::<_, ParserError>);
        let display_mode = if display { DisplayMode::Block } else { DisplayMode::Inline };
        let config = RenderConfig { display_mode, ..RenderConfig::default() };
        let mut mathml = Bounded { bytes: Vec::new(), left: self.left };
        write_mathml(&mut mathml, events, config).ok()?;
        self.left = mathml.left;
        String::from_utf8(mathml.bytes).ok()
    }
}

/// The most that opens without having been closed.
fn depth(source: &str) -> usize {
    let (mut depth, mut most) = (0usize, 0);
    for byte in source.bytes() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        most = most.max(depth);
    }
    most
}

/// Takes so many bytes and no more.
struct Bounded {
    bytes: Vec<u8>,
    left: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let too_long = || io::Error::other("the formula is too long");
        self.left = self.left.checked_sub(bytes.len()).ok_or_else(too_long)?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
