//! What an answer may be, as grammars in llguidance's variant of Lark.

use std::fmt::Write;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Value, json};

use super::GrammarError;
use crate::{CALLS_CLOSE, CALLS_OPEN};

/// Longest schemas of one answer, together and as JSON, in bytes.
const MAX_SCHEMAS: usize = 256 << 10;
/// Longest regular expression, grammar or list of choices, in bytes.
const MAX_TEXT: usize = 32 << 10;
/// Most calls in one answer: a model that writes call after call is stuck.
const MAX_CALLS: usize = 32;

/// Most properties of one object: any of them may come next, and the work grows with their square.
const MAX_PROPERTIES: usize = 1500;

/// White space between the items of a document: a model that may write as much as it likes sometimes does.
const DOCUMENT_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

/// A format that an answer can have.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// JSON by a schema.
    JsonSchema {
        /// The schema.
        schema: Value,
        /// Whether parts of the schema that cannot be enforced are an error; otherwise they are passed over.
        strict: bool,
    },
    /// Any JSON object.
    JsonObject,
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// Text of a grammar in llguidance's variant of Lark.
    Lark(String),
    /// One of several texts.
    Choice(Vec<String>),
}

/// A tool that may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolShape {
    /// Its name.
    pub name: String,
    /// Schema of its arguments, `null` for one without.
    pub parameters: Value,
    /// As in [`Format::JsonSchema`].
    pub strict: bool,
}

/// Calls that an answer may or must have.
#[derive(Debug, Clone, PartialEq)]
pub struct CallGrammar {
    /// The tools that may be called; at least one.
    pub tools: Vec<ToolShape>,
    /// Whether there must be a call.
    pub required: bool,
    /// Whether there may be several.
    pub parallel: bool,
}

/// What an answer may be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AnswerGrammar {
    /// The format of what is not calls.
    pub format: Option<Format>,
    /// Calls; with a format the answer is either.
    pub calls: Option<CallGrammar>,
}

impl AnswerGrammar {
    /// A call of this tool and nothing else.
    pub fn call_of(tool: ToolShape) -> Self {
        let calls = CallGrammar { tools: vec![tool], required: true, parallel: false };
        Self { format: None, calls: Some(calls) }
    }

    /// The grammar, its parts under names of their own.
    pub(super) fn lower(&self) -> Result<TopLevelGrammar, GrammarError> {
        let mut parts = vec![GrammarWithLexer::default()];
        let mut main = String::from("%llguidance {}\n");
        let alternatives = match (&self.calls, &self.format) {
            (Some(calls), _) if calls.required => "calls",
            (Some(_), Some(_)) => "calls | @answer",
            (Some(_), None) => "text_with_calls | TEXT",
            (None, _) => "@answer",
        };
        line(&mut main, format_args!("start: {alternatives}"));
        if let Some(calls) = &self.calls {
            calls.lower(&mut main, &mut parts)?;
        }
        let required = self.calls.as_ref().is_some_and(|calls| calls.required);
        if let (Some(format), false) = (&self.format, required) {
            parts.push(GrammarWithLexer { name: Some("answer".to_owned()), ..format.lower()? });
        }
        let schemas = || parts.iter().filter_map(|part| part.json_schema.as_ref());
        within(schemas().map(|schema| schema.to_string().len()).sum(), MAX_SCHEMAS)?;
        if let Some(properties) = schemas().map(most_properties).max().filter(|most| *most > MAX_PROPERTIES) {
            let reason =
                format!("an object has {properties} properties; at most {MAX_PROPERTIES} are compiled");
            return Err(GrammarError::Invalid(reason));
        }
        parts[0] = GrammarWithLexer::from_lark(main);
        Ok(TopLevelGrammar { grammars: parts, max_tokens: None })
    }
}

impl CallGrammar {
    fn lower(&self, main: &mut String, parts: &mut Vec<GrammarWithLexer>) -> Result<(), GrammarError> {
        let more =
            if self.parallel { format!(" (\"\\n\" call){{0,{}}}", MAX_CALLS - 1) } else { String::new() };
        let (open, close) = (quoted(&format!("{CALLS_OPEN}\n")), quoted(&format!("\n{CALLS_CLOSE}")));
        line(main, format_args!("calls: {open} call{more} {close}"));
        // The first opening tag in a text ends it: from there on there must be calls.
        line(main, format_args!("text_with_calls: before \"\\n\" call{more} {close}"));
        line(main, format_args!("before[lazy]: /(?s:.*){CALLS_OPEN}/"));
        line(main, format_args!("TEXT: /(?s:.*)/"));
        let names: Vec<String> = (0..self.tools.len()).map(|index| format!("call_{index}")).collect();
        line(main, format_args!("call: {}", names.join(" | ")));
        for (index, tool) in self.tools.iter().enumerate() {
            let name = Value::from(tool.name.as_str());
            let head = quoted(&format!("{{\"name\": {name}, \"arguments\": "));
            line(main, format_args!("call_{index}: {head} @arguments_{index} \"}}\""));
            let schema = tool.schema()?;
            let part = GrammarWithLexer::from_json_schema(schema);
            parts.push(GrammarWithLexer { name: Some(format!("arguments_{index}")), ..part });
        }
        Ok(())
    }
}

impl ToolShape {
    /// The schema of the arguments, spaced as the model was taught to write them.
    fn schema(&self) -> Result<Value, GrammarError> {
        let mut schema = match &self.parameters {
            Value::Null => json!({}),
            Value::Object(schema) => Value::Object(schema.clone()),
            _ => return Err(GrammarError::Invalid("a schema of arguments is an object".to_owned())),
        };
        if schema.get("type").is_none() {
            schema["type"] = json!("object");
        }
        schema["x-guidance"] = json!({
            "item_separator": ", ", "key_separator": ": ", "whitespace_flexible": false,
            "coerce_one_of": true, "lenient": !self.strict,
        });
        Ok(schema)
    }
}

impl Format {
    fn lower(&self) -> Result<GrammarWithLexer, GrammarError> {
        Ok(match self {
            Format::JsonSchema { schema, strict } => document(schema.clone(), *strict)?,
            Format::JsonObject => document(json!({"type": "object"}), true)?,
            Format::Regex(pattern) => {
                within(pattern.len(), MAX_TEXT)?;
                GrammarWithLexer::from_regex(pattern)
            }
            Format::Lark(grammar) => {
                within(grammar.len(), MAX_TEXT)?;
                GrammarWithLexer::from_lark(grammar.clone())
            }
            Format::Choice(choices) => {
                within(choices.iter().map(String::len).sum(), MAX_TEXT)?;
                let choices: Vec<String> = choices.iter().map(|choice| quoted(choice)).collect();
                // One lexeme: as alternatives of a rule, thousands would be followed each by itself.
                GrammarWithLexer::from_lark(format!("start: CHOICE\nCHOICE: {}", choices.join(" | ")))
            }
        })
    }
}

/// A JSON document by a schema, in any layout.
fn document(schema: Value, strict: bool) -> Result<GrammarWithLexer, GrammarError> {
    let Value::Object(mut schema) = schema else {
        return Err(GrammarError::Invalid("a JSON schema is an object".to_owned()));
    };
    let options = json!({ "whitespace_pattern": DOCUMENT_SPACE, "coerce_one_of": true, "lenient": !strict });
    schema.insert("x-guidance".to_owned(), options);
    Ok(GrammarWithLexer::from_json_schema(Value::Object(schema)))
}

/// The properties of the object that has most of them, anywhere in a schema. Nesting is limited where JSON is read.
fn most_properties(schema: &Value) -> usize {
    let within = |value: &Value| match value {
        Value::Array(items) => items.iter().map(most_properties).max(),
        value => Some(most_properties(value)),
    };
    let Value::Object(fields) = schema else { return 0 };
    let own = fields.get("properties").and_then(Value::as_object).map_or(0, |properties| properties.len());
    fields.values().filter_map(within).max().unwrap_or(0).max(own)
}

/// A text as a literal of the grammar, whose escapes are JSON's.
fn quoted(text: &str) -> String {
    // DEL is the one character that JSON may hold as it is and the grammar may not.
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn line(grammar: &mut String, text: std::fmt::Arguments) {
    // Writing to a string does not fail.
    let _ = writeln!(grammar, "{text}");
}

fn within(bytes: usize, limit: usize) -> Result<(), GrammarError> {
    if bytes > limit { Err(GrammarError::TooLarge { bytes, limit }) } else { Ok(()) }
}
