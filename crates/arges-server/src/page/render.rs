//! `POST /render`: Markdown with formulas to HTML with MathML, block by block.
//!
//! Blocks are what makes a growing answer cheap: those that are finished stay as they are, so that the page keeps them
//! and sends only the text from the first other one on.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use serde::{Deserialize, Serialize};

use super::{clean, markdown};
use crate::error::ApiError;
use crate::extract::parse_json;
use crate::frontend::Frontend;
use crate::state::AppState;

/// Bytes of a text at most. The longest answers, of 80,000 tokens, have about 300,000.
const MAX_TEXT: usize = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(expecting = "a JSON object")]
struct RenderFields {
    text: Option<String>,
    /// Whether more will come: a formula that has not ended is then left out.
    #[serde(default)]
    partial: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Rendered {
    blocks: Vec<Block>,
    /// How many of them will stay as they are whatever comes.
    finished: usize,
}

/// A paragraph, list, table or the like.
#[derive(Debug, Serialize)]
pub(crate) struct Block {
    /// Where it begins in the text, in UTF-16 units, which JavaScript counts in.
    start: usize,
    html: String,
}

/// Handles the request.
pub(crate) async fn render(
    State(state): State<Arc<AppState>>,
    request: Request<Body>,
) -> Result<Json<Rendered>, ApiError> {
    let body = state.bodies.read(request).await?;
    state.frontend.run(body, rendered).await.map(Json)
}

fn rendered(_: &Frontend, body: &[u8]) -> Result<Rendered, ApiError> {
    let RenderFields { text, partial } = parse_json(body)?;
    let text = text.ok_or_else(|| ApiError::missing_param("text"))?;
    if text.len() > MAX_TEXT {
        let message = format!("`text` has {} bytes; at most {MAX_TEXT} are rendered.", text.len());
        return Err(ApiError::invalid_param("text", message));
    }
    Ok(blocks(&text, partial))
}

fn blocks(text: &str, partial: bool) -> Rendered {
    let rendered = markdown::blocks(text, partial);
    let starts: Vec<usize> = rendered.iter().map(|block| block.start).collect();
    let finished = if partial { finished(text, &starts) } else { starts.len() };
    let (mut bytes, mut units) = (0, 0);
    let block = |markdown::Block { start, html }| {
        units += text[bytes..start].encode_utf16().count();
        bytes = start;
        Block { start: units, html: clean::clean(&html) }
    };
    Rendered { blocks: rendered.into_iter().map(block).collect(), finished }
}

/// How many of the blocks that begin at `starts` are finished in a text that goes on: all but the last. Where that is a
/// line that has not ended, the one before it is not finished either, unless a blank line parts them: `1.` begins a
/// list, and `1.5 apples` goes on with the paragraph.
fn finished(text: &str, starts: &[usize]) -> usize {
    let Some((&last, before)) = starts.split_last() else { return 0 };
    let is_one_line = !text[last..].contains('\n');
    let is_apart = text[..last].lines().next_back().is_some_and(|line| line.trim().is_empty());
    if is_one_line && !is_apart { before.len().saturating_sub(1) } else { before.len() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// The HTML of a whole text.
    fn html(text: &str) -> String {
        htmls(blocks(text, false)).concat()
    }

    fn htmls(rendered: Rendered) -> Vec<String> {
        rendered.blocks.into_iter().map(|block| block.html).collect()
    }

    #[test]
    fn markdown_becomes_html() {
        for (text, expected) in [
            ("Hello *you*\nand **me**", "<p>Hello <em>you</em>\nand <strong>me</strong></p>"),
            ("# A\n\n- b\n- [x] c", "<h1>A</h1>\n<ul>\n<li>b</li>\n<li>☑ c</li>\n</ul>"),
            (
                "```rust\nlet a = \"<b>\";\n```",
                "<pre><code class=\"language-rust\">let a = \"&lt;b&gt;\";\n</code></pre>",
            ),
            ("~~a~~ `b`", "<p><del>a</del> <code>b</code></p>"),
            ("a<br>b", "<p>a<br>\nb</p>"),
        ] {
            assert_eq!(
                html(text).replace(">\n<", "><"),
                format!("{expected}\n").replace(">\n<", "><"),
                "{text}"
            );
        }
        assert!(
            html("|a|b|\n|-|-:|\n|1|2|").contains("<td class=\"right\">2</td>"),
            "{}",
            html("|a|b|\n|-|-:|\n|1|2|")
        );
    }

    #[test]
    fn formulas_become_mathml_in_each_of_their_notations() {
        for (text, display) in [
            ("so $x^2$ is", false),
            ("so \\(x^2\\) is", false),
            ("$$x^2$$", true),
            ("\\[x^2\\]", true),
            ("\\[\nx^2\n\\]", true),
            ("- a\n  \\[ x^2 \\]", true),
        ] {
            let html = html(text);
            assert!(html.contains("<msup><mi>x</mi><mn>2</mn></msup>"), "{text}: {html}");
            assert_eq!(html.contains("display=\"block\""), display, "{text}: {html}");
        }
        // A line that begins like an item of a list is none within a formula.
        assert!(!html("\\[\na\n- b\n\\]").contains("<li>"));
    }

    #[test]
    fn what_is_no_formula_stays_text() {
        for (text, expected) in [
            ("costs $5 and $10", "costs $5 and $10"),
            ("`\\(x\\)`", "<code>\\(x\\)</code>"),
            ("```\n\\[x\\]\n```", "\\[x\\]"),
            ("\\\\(x", "\\(x"),
            ("$\\nosuchcommand{x}$", "<code>\\nosuchcommand{x}</code>"),
            ("$\\def\\a{b}\\a$", "<code>\\def\\a{b}\\a</code>"),
        ] {
            let html = html(text);
            assert!(html.contains(expected) && !html.contains("<math"), "{text}: {html}");
        }
    }

    #[test]
    fn scripts_do_not_survive() {
        for text in [
            "<script>alert(1)</script>",
            "a <img src=x onerror=alert(1)> b",
            "<svg/onload=alert(1)>",
            "[a](javascript:alert(1))",
            "[a](  java\nscript:alert(1))",
            "[a](JaVaScRiPt:alert(1))",
            "[a](data:text/html,<script>alert(1)</script>)",
            "[a](vbscript:x)",
            "![a](javascript:alert(1))",
            "![a\" onerror=\"alert(1)](x)",
            "[a](x \"\\\" onmouseover=alert(1)\")",
            "<javascript:alert(1)>",
            "```\"><script>alert(1)</script>\nx\n```",
            "$\\text{<script>alert(1)</script>}$",
            "$\\text{</math><img src=x onerror=alert(1)>}$",
            "$\\href{javascript:alert(1)}{x}$",
            "$\\color{red;background:url(//x)}{x}$",
            "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror=alert(1)&gt;\">",
            "<a href=\"&#106;avascript:alert(1)\">x</a>",
            "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
            "<style>@import url(//x)</style><link rel=stylesheet href=//x>",
            "<form action=//x><input name=a><button>b</button></form>",
            "[a]: javascript:alert(1)\n\n[a]",
        ] {
            let html = html(text);
            let tags: Vec<&str> = html.split('<').skip(1).map(|tag| tag.split('>').next().unwrap()).collect();
            for tag in tags {
                let tag = tag.to_lowercase();
                let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or_default();
                let bad = [
                    "script", "img", "svg", "iframe", "style", "link", "form", "input", "button", "object",
                    "embed",
                ];
                assert!(!bad.contains(&name), "{text}: {html}");
                let attributes = tag.split_once(' ').map_or("", |(_, attributes)| attributes);
                let names: Vec<&str> =
                    attributes.split('"').step_by(2).map(|name| name.trim().trim_end_matches('=')).collect();
                assert!(
                    !names.iter().any(|name| name.starts_with("on") || name.contains("style")),
                    "{text}: {html}"
                );
                for scheme in ["javascript:", "data:", "vbscript:"] {
                    assert!(!attributes.contains(&format!("href=\"{scheme}")), "{text}: {html}");
                }
            }
        }
    }

    #[test]
    fn links_open_apart_and_tell_nothing() {
        let html = html("[a](https://example.com/?q=1&b=2 \"t\") <https://example.com>");
        assert_eq!(html.matches("rel=\"noopener noreferrer nofollow\"").count(), 2, "{html}");
        assert_eq!(html.matches("target=\"_blank\"").count(), 2, "{html}");
        // A picture is a link to it: the page asks no other server for anything.
        assert!(super::tests::html("![cat](https://example.com/cat.png)").contains(">cat</a>"));
    }

    #[test]
    fn rendering_from_the_first_unfinished_block_on_gives_what_rendering_all_does() {
        let text = "# Höhe 𝕏\n\nOne *two*\nthree\n\n1. a\n\n   b\n2. c\n\n    code 𝕏\n\n> q\n\n---\n\n| a |\n|-|\n| b |\n\npara\n1.5 apples\n#tag\n1. one\n# Head\n- a\n1.2\n\n$$x$$\n\n```\nlast\n\nblock\n```\n\nend";
        let whole = htmls(blocks(text, false));
        assert!(whole.len() >= 9, "{whole:?}");
        // As the page does it, a character at a time.
        let (mut kept, mut tail) = (Vec::new(), 0);
        let units: Vec<u16> = text.encode_utf16().collect();
        for end in 1..=units.len() {
            let Ok(sent) = String::from_utf16(&units[tail..end]) else { continue };
            let Rendered { mut blocks, finished } = blocks(&sent, true);
            let Some(first) = blocks.get(finished) else { continue };
            tail += first.start;
            kept.extend(blocks.drain(..finished).map(|block| block.html));
        }
        kept.extend(htmls(blocks(&String::from_utf16(&units[tail..]).unwrap(), false)));
        assert_eq!(kept, whole);
    }

    #[test]
    fn a_formula_that_has_not_ended_waits() {
        let of = |text| htmls(blocks(text, true)).concat();
        for text in ["so \\(x^", "so \\[ x +", "so $$x\n+", "so \\"] {
            assert_eq!(of(text).trim(), "<p>so</p>", "{text}");
        }
        // A paragraph has ended, and so has what looked like one.
        assert!(of("so $$x\n\nmore").contains("$$x"), "{}", of("so $$x\n\nmore"));
        assert_eq!(of("a $5").trim(), "<p>a $5</p>");
        assert_eq!(of("```\n\\(x").trim(), "<pre><code>\\(x</code></pre>");
    }

    #[test]
    fn any_mixture_renders_to_what_is_allowed() {
        let pieces = [
            "a",
            " ",
            "\n",
            "\n\n",
            "*",
            "**",
            "_",
            "`",
            "```",
            "~~",
            "[",
            "](",
            ")",
            "![",
            "<",
            ">",
            "> ",
            "- ",
            "1. ",
            "    ",
            "#",
            "|",
            "|-|",
            "$",
            "$$",
            "\\(",
            "\\)",
            "\\[",
            "\\]",
            "\\",
            "{",
            "}",
            "\\frac",
            "\\text{",
            "^",
            "_",
            "&",
            "&lt;",
            "<script>",
            "<!--",
            "-->",
            "javascript:",
            "\"",
            "'",
            "<math>",
            "</math>",
            "<br>",
            "---",
            "===",
            "é",
            "𝕏",
            "\u{0}",
            "\r\n",
            "\t",
            ":",
            "[x] ",
            "\\begin{align}",
            "\\end{align}",
            "\\\\",
            "\\left(",
            "\\right)",
        ];
        let mut state = 1u64;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for _ in 0..2000 {
            let text: String = (0..next(30)).map(|_| pieces[next(pieces.len())]).collect();
            for partial in [false, true] {
                let Rendered { blocks, finished } = blocks(&text, partial);
                assert!(finished <= blocks.len(), "{text:?}");
                let units = text.encode_utf16().count();
                assert!(blocks.iter().all(|block| block.start <= units), "{text:?}");
                assert!(blocks.is_sorted_by_key(|block| block.start), "{text:?}");
                for bad in ["<script", "<!--", "<style", "<img"] {
                    assert!(blocks.iter().all(|block| !block.html.contains(bad)), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn huge_and_deep_texts_take_bounded_time() {
        let deep = 20_000;
        for text in [
            "> ".repeat(deep),
            "- ".repeat(deep),
            "*a ".repeat(deep),
            "[".repeat(deep),
            "![".repeat(deep) + &"](x)".repeat(deep),
            "`".repeat(deep),
            "$".repeat(deep),
            "\\(".repeat(deep),
            "\\[ x ".repeat(deep),
            "<a>".repeat(deep),
            "_*".repeat(deep) + "a" + &"*_".repeat(deep),
            format!("${}x{}$", "{".repeat(deep), "}".repeat(deep)),
            format!("${}x$", "\\sqrt".repeat(1000)),
            format!("${}x$", "\\frac{1}".repeat(500)),
            format!("${}x{}$", "\\left(".repeat(500), "\\right)".repeat(500)),
            format!("${}$", "x^".repeat(1000)),
            "$\\begin{array}{*{99999}{c}}x\\end{array}$".to_owned(),
            "$x^2$ ".repeat(deep / 4),
            "|a".repeat(deep) + "\n" + &"|-".repeat(deep),
            "a\n".repeat(deep),
            "a\n\n".repeat(deep),
            "&#x10ffff;".repeat(deep),
            "\u{0}".repeat(deep),
        ] {
            let start = Instant::now();
            let html = html(&text);
            let excerpt: String = text.chars().take(20).collect();
            assert!(start.elapsed() < Duration::from_secs(20), "{excerpt} took {:?}", start.elapsed());
            assert!(html.len() < 60 * text.len() + 1000, "{excerpt} became {} bytes", html.len());
        }
    }
}
