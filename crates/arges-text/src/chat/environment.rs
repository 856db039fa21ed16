//! The Jinja environment transformers gives its chat templates, rebuilt on minijinja.

use std::fmt::Write;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;

use crate::TextError;
use crate::python_json::{DumpStyle, dumps};

/// An environment without templates: block trimming as in transformers, Python's string, list and
/// dictionary methods, `raise_exception`, `strftime_now` and Python's `tojson`.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the standard delimiters are valid"));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

/// Renders the named template.
pub(super) fn render(
    environment: &Environment<'static>,
    name: &str,
    context: &impl Serialize,
) -> Result<String, TextError> {
    let template = environment.get_template(name);
    let text = template.and_then(|template| template.render(Serde(context)));
    text.map_err(|error| match refusal(&error) {
        Some(message) => TextError::TemplateRefused { message },
        None => TextError::TemplateRender { reason: explain(&error) },
    })
}

/// An error with its causes on one line.
pub(super) fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A template's own refusal of a conversation.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn refusal(error: &Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Refusal(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        cause = error.source();
    }
    None
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(message)))
}

fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    write!(text, "{}", chrono::Local::now().format(format))
        .map_err(|_| invalid(format!("{format:?} is not a date format")))?;
    Ok(text)
}

/// `json.dumps` with the arguments transformers lets a template give.
fn tojson(value: &Value, arguments: Kwargs) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(invalid("an undefined value has no JSON form".to_owned()));
    }
    let mut style = DumpStyle {
        ensure_ascii: arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: indentation(arguments.get("indent")?)?,
        ..DumpStyle::default()
    };
    if style.indent.is_some() {
        style.item_separator = ",".to_owned();
    }
    if let Some(separators) = arguments.get::<Option<Serde<(String, String)>>>("separators")? {
        (style.item_separator, style.key_separator) = separators.0;
    }
    let sort_keys = arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    arguments.assert_all_used()?;
    let mut json = serde_json::to_value(value).map_err(|error| invalid(error.to_string()))?;
    if sort_keys {
        json.sort_all_objects();
    }
    dumps(&json, &style).map(Value::from).map_err(|error| invalid(error.to_string()))
}

/// Python's `indent`: a number of spaces, or the text itself.
fn indentation(indent: Option<Value>) -> Result<Option<String>, Error> {
    const MAX_SPACES: usize = 64;
    let Some(indent) = indent.filter(|indent| !indent.is_none()) else {
        return Ok(None);
    };
    if let Some(text) = indent.as_str() {
        return Ok(Some(text.to_owned()));
    }
    let spaces = usize::try_from(indent)?;
    if spaces > MAX_SPACES {
        return Err(invalid(format!("an indentation of {spaces} spaces is too deep")));
    }
    Ok(Some(" ".repeat(spaces)))
}

fn invalid(reason: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}
