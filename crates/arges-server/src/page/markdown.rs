//! Markdown to HTML, with the formulas that models write.
//!
//! CommonMark with tables, strikethrough and task lists. HTML in it is text. Formulas are `$…$` and `\(…\)` in a line,
//! `$$…$$` and `\[…\]` on their own.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use pulldown_cmark::{Alignment, CowStr, Event, Options, Parser, Tag, TagEnd, html};

use super::math::Formulas;

/// Quotes, lists and emphasis within each other; deeper ones are as if they were not there.
const MAX_DEPTH: usize = 32;

/// A block that is within no other.
pub(super) struct Block {
    /// Where its first line begins, in bytes.
    pub start: usize,
    /// Not cleaned.
    pub html: String,
}

/// The blocks of a text. If it is `partial`, a formula that is open at its end is left out.
pub(super) fn blocks(text: &str, partial: bool) -> Vec<Block> {
    let source = Source::new(text, partial);
    let mut formulas = Formulas::of(text.len());
    let mut blocks: Vec<Block> = Vec::new();
    let mut events: Vec<Event> = Vec::new();
    let mut start = 0;
    let mut open = 0usize;
    let mut writer = Writer::default();
    for (event, range) in Parser::new_ext(&source.text, options() | Options::ENABLE_MATH).into_offset_iter() {
        if open == 0 {
            start = source.text[..range.start].rfind('\n').map_or(0, |at| at + 1);
        }
        match event {
            Event::Start(_) => open += 1,
            Event::End(_) => open -= 1,
            _ => {}
        }
        writer.push(event, &range, &source, &mut formulas, &mut events);
        if open == 0 {
            let mut html = String::new();
            html::push_html(&mut html, events.drain(..));
            blocks.push(Block { start, html });
        }
    }
    blocks
}

fn options() -> Options {
    Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS
}

/// A text in which all formulas are between dollars. It is as long as the original, but for what is cut off its end.
struct Source<'a> {
    text: Cow<'a, str>,
    /// Where formulas begin that were written `\(`.
    inline: HashSet<usize>,
}

impl<'a> Source<'a> {
    fn new(text: &'a str, partial: bool) -> Source<'a> {
        let mut inline = HashSet::new();
        if !text.contains(['\\', '$']) {
            return Source { text: Cow::Borrowed(text), inline };
        }
        let code: Vec<Range<usize>> = Parser::new_ext(text, options())
            .into_offset_iter()
            .filter(|(event, _)| matches!(event, Event::Code(_) | Event::Start(Tag::CodeBlock(_))))
            .map(|(_, range)| range)
            .collect();
        let mut code = code.into_iter().peekable();
        let mut closings = Closings::default();
        let mut out = text.as_bytes().to_vec();
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            while code.next_if(|range| range.end <= at).is_some() {}
            if let Some(range) = code.peek().filter(|range| range.start <= at) {
                at = range.end;
                continue;
            }
            let closing = match bytes.get(at..at + 2) {
                Some(b"\\(") => "\\)",
                Some(b"\\[") => "\\]",
                Some(b"$$") => "$$",
                // A backslash at the very end may become anything.
                None if partial && bytes[at] == b'\\' => {
                    out.truncate(at);
                    break;
                }
                Some([b'\\', _]) => {
                    at += 2;
                    continue;
                }
                _ => {
                    at += 1;
                    continue;
                }
            };
            match closings.find(text, at + 2, closing) {
                Closing::At(end) => {
                    if closing == "\\)" {
                        inline.insert(at);
                    }
                    for place in [at, end] {
                        out[place..place + 2].copy_from_slice(b"$$");
                    }
                    // A line of a formula that begins like a list or a quote would be one.
                    for byte in &mut out[at..end] {
                        if matches!(byte, b'\n' | b'\r') {
                            *byte = b' ';
                        }
                    }
                    at = end + 2;
                }
                Closing::None => at += 2,
                Closing::Open if partial => {
                    out.truncate(at);
                    break;
                }
                Closing::Open => at += 2,
            }
        }
        // Only ASCII was replaced by ASCII, and cut before it.
        let text = String::from_utf8(out).map_or(Cow::Borrowed(text), Cow::Owned);
        Source { text, inline }
    }
}

enum Closing {
    At(usize),
    /// Its paragraph ends without one.
    None,
    /// The text does.
    Open,
}

/// Where paragraphs end, so that nothing is searched for twice.
#[derive(Default)]
struct Closings {
    /// The first blank line after a place that was asked for.
    blank: Option<usize>,
    /// For each delimiter, a place from which on there is none in this paragraph.
    none_from: [Option<(usize, bool)>; 3],
}

impl Closings {
    fn find(&mut self, text: &str, from: usize, closing: &str) -> Closing {
        let kind = ["\\)", "\\]", "$$"].iter().position(|known| *known == closing).unwrap_or(0);
        let blank = match self.blank {
            Some(blank) if blank >= from => blank,
            _ => {
                let blank = blank_line(text, from);
                self.blank = Some(blank);
                self.none_from = [None; 3];
                blank
            }
        };
        let missing = |is_last: bool| if is_last { Closing::Open } else { Closing::None };
        if let Some((_, is_last)) = self.none_from[kind].filter(|&(none, _)| none <= from) {
            return missing(is_last);
        }
        match text[from..blank].find(closing) {
            Some(at) => Closing::At(from + at),
            None => {
                let is_last = blank == text.len();
                self.none_from[kind] = Some((from, is_last));
                missing(is_last)
            }
        }
    }
}

/// Where the paragraph that goes on at `from` ends.
fn blank_line(text: &str, from: usize) -> usize {
    let mut at = from;
    for line in text[from..].split_inclusive('\n') {
        if at > from && line.ends_with('\n') && line.trim().is_empty() {
            return at;
        }
        at += line.len();
    }
    text.len()
}

/// Writes events that HTML is made of.
#[derive(Default)]
struct Writer {
    /// For each tag that is open, whether it was written.
    open: Vec<bool>,
    /// How the columns of a table are aligned, and which is next.
    columns: Vec<Alignment>,
    column: usize,
    in_head: bool,
}

impl Writer {
    fn push<'a>(
        &mut self,
        event: Event<'a>,
        range: &Range<usize>,
        source: &Source,
        formulas: &mut Formulas,
        out: &mut Vec<Event<'a>>,
    ) {
        let event = match event {
            Event::Start(tag) => {
                let written = self.open.len() < MAX_DEPTH;
                self.open.push(written);
                return if written {
                    self.start(tag, out)
                };
            }
            Event::End(tag) => {
                let written = self.open.pop().unwrap_or(false);
                return if written {
                    self.end(tag, out)
                };
            }
            Event::InlineMath(text) => formula(&text, false, formulas),
            Event::DisplayMath(text) => formula(&text, !source.inline.contains(&range.start), formulas),
            Event::InlineHtml(tag) if is_break(&tag) => Event::HardBreak,
            Event::Html(text) | Event::InlineHtml(text) => Event::Text(text),
            Event::TaskListMarker(done) => Event::Text(if done { "☑ " } else { "☐ " }.into()),
            event => event,
        };
        out.push(event);
    }

    fn start<'a>(&mut self, tag: Tag<'a>, out: &mut Vec<Event<'a>>) {
        out.push(match tag {
            Tag::HtmlBlock => Event::Start(Tag::Paragraph),
            Tag::Image { link_type, dest_url, title, id } => {
                Event::Start(Tag::Link { link_type, dest_url, title, id })
            }
            Tag::Table(columns) => {
                self.columns = columns;
                Event::Html("<table>".into())
            }
            Tag::TableHead => {
                (self.column, self.in_head) = (0, true);
                Event::Html("<thead><tr>".into())
            }
            Tag::TableRow => {
                (self.column, self.in_head) = (0, false);
                Event::Html("<tr>".into())
            }
            Tag::TableCell => {
                let alignment = self.columns.get(self.column);
                self.column += 1;
                let class = match alignment {
                    Some(Alignment::Center) => " class=\"center\"",
                    Some(Alignment::Right) => " class=\"right\"",
                    _ => "",
                };
                Event::Html(format!("<{}{class}>", self.cell()).into())
            }
            tag => Event::Start(tag),
        });
    }

    fn end<'a>(&mut self, tag: TagEnd, out: &mut Vec<Event<'a>>) {
        out.push(match tag {
            TagEnd::HtmlBlock => Event::End(TagEnd::Paragraph),
            TagEnd::Image => Event::End(TagEnd::Link),
            TagEnd::Table => Event::Html("</tbody></table>\n".into()),
            TagEnd::TableHead => Event::Html("</tr></thead><tbody>".into()),
            TagEnd::TableRow => Event::Html("</tr>".into()),
            TagEnd::TableCell => Event::Html(format!("</{}>", self.cell()).into()),
            tag => Event::End(tag),
        });
    }

    fn cell(&self) -> &'static str {
        if self.in_head { "th" } else { "td" }
    }
}

/// A formula, or its source where it is none.
fn formula<'a>(source: &str, display: bool, formulas: &mut Formulas) -> Event<'a> {
    match formulas.mathml(source, display) {
        Some(mathml) => Event::InlineHtml(mathml.into()),
        None => Event::Code(CowStr::from(source.to_owned())),
    }
}

fn is_break(tag: &str) -> bool {
    let name = tag.trim_start_matches('<').trim_end_matches('>').trim_end_matches('/').trim();
    name.eq_ignore_ascii_case("br")
}
