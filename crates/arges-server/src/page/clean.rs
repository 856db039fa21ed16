//! What HTML may have. What is rendered holds nothing else, and if it did, it would end here.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use ammonia::Builder;

const HTML: [&str; 27] = [
    "a",
    "blockquote",
    "br",
    "code",
    "del",
    "em",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "li",
    "ol",
    "p",
    "pre",
    "span",
    "strong",
    "sub",
    "sup",
    "table",
    "tbody",
    "td",
    "th",
    "thead",
    "tr",
];

const MATH: [&str; 31] = [
    "math",
    "menclose",
    "merror",
    "mfrac",
    "mi",
    "mmultiscripts",
    "mn",
    "mo",
    "mover",
    "mpadded",
    "mphantom",
    "mprescripts",
    "mroot",
    "mrow",
    "ms",
    "mspace",
    "msqrt",
    "mstyle",
    "msub",
    "msubsup",
    "msup",
    "mtable",
    "mtd",
    "mtext",
    "mtr",
    "munder",
    "munderover",
    "none",
    "semantics",
    "ul",
    "annotation",
];

const MATH_ATTRIBUTES: [&str; 25] = [
    "accent",
    "accentunder",
    "class",
    "columnalign",
    "columnspan",
    "depth",
    "display",
    "displaystyle",
    "fence",
    "form",
    "height",
    "largeop",
    "linethickness",
    "lspace",
    "mathvariant",
    "maxsize",
    "minsize",
    "movablelimits",
    "notation",
    "rspace",
    "scriptlevel",
    "separator",
    "stretchy",
    "symmetric",
    "width",
];

/// Beginnings of the classes that formulas and code have.
const CLASSES: [&str; 7] = ["cell-", "language-", "menv-", "mop-", "small", "center", "right"];

static CLEANER: LazyLock<Builder<'static>> = LazyLock::new(|| {
    let mut attributes: HashMap<&str, HashSet<&str>> =
        MATH.into_iter().map(|tag| (tag, HashSet::from(MATH_ATTRIBUTES))).collect();
    attributes.insert("a", HashSet::from(["href", "title"]));
    attributes.insert("ol", HashSet::from(["start"]));
    for tag in ["code", "th", "td"] {
        attributes.insert(tag, HashSet::from(["class"]));
    }
    let mut builder = Builder::new();
    builder
        .tags(HTML.into_iter().chain(MATH).collect())
        .tag_attributes(attributes)
        .generic_attributes(HashSet::new())
        .url_schemes(HashSet::from(["http", "https", "mailto"]))
        .link_rel(Some("noopener noreferrer nofollow"))
        .set_tag_attribute_value("a", "target", "_blank")
        .attribute_filter(|_, name, value| match name {
            "class" => classes(value).map(Cow::Owned),
            _ => Some(Cow::Borrowed(value)),
        });
    builder
});

/// The HTML without anything that is not text, its structure or a formula.
pub(super) fn clean(html: &str) -> String {
    CLEANER.clean(html).to_string()
}

fn classes(value: &str) -> Option<String> {
    let known = |class: &&str| CLASSES.iter().any(|beginning| class.starts_with(beginning));
    let kept: Vec<&str> = value.split_ascii_whitespace().filter(known).collect();
    (!kept.is_empty()).then(|| kept.join(" "))
}
