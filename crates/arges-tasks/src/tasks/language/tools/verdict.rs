//! Judging calls: the block is read as JSON, checked against the schemas and compared with what was asked for.

use serde_json::{Map, Value};

use super::super::answer::quoted;
use crate::response::visible;
use crate::{Instance, Verdict};

const OPEN: &str = "<tool_calls>";
const CLOSE: &str = "</tool_calls>";
/// Longest block that is read, in bytes.
const MAX_BLOCK: usize = 1 << 16;
/// Most calls that are read.
const MAX_CALLS: usize = 16;

/// Why calls earn nothing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("no call")]
    NoCall,
    #[error("malformed block: {0}")]
    Malformed(String),
    #[error("unknown function: {0}")]
    UnknownFunction(String),
    #[error("schema violation: {0}")]
    SchemaViolation(String),
    #[error("wrong function: {0}")]
    WrongFunction(String),
    #[error("wrong arguments: {0}")]
    WrongArguments(String),
    #[error("extra call: there are {given}, not {wanted}")]
    ExtraCall { given: usize, wanted: usize },
    #[error("missing call: there are {given}, not {wanted}")]
    MissingCall { given: usize, wanted: usize },
}

/// A call as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) arguments: Map<String, Value>,
}

/// Whether the visible text begins a block of calls.
pub(crate) fn has_block(visible: &str) -> bool {
    visible.contains(OPEN)
}

/// Judges a response by the calls its instance holds as the answer.
pub(super) fn verify(instance: &Instance, response: &str) -> Verdict {
    let Some(visible) = visible(response) else {
        return Verdict::no_answer();
    };
    let wanted: Option<Vec<Call>> =
        instance.answer.as_array().and_then(|calls| calls.iter().map(|call| read_call(call).ok()).collect());
    let Some(wanted) = wanted.filter(|calls| !calls.is_empty()) else {
        return Verdict::wrong("malformed instance: its answer is no list of calls");
    };
    match read_block(visible).and_then(|given| judge(&instance.tools, &wanted, given)) {
        Ok(()) => Verdict::right(),
        Err(fault) => Verdict::wrong(fault.to_string()),
    }
}

/// Reads the calls of the one block that stands in a text.
pub(crate) fn read_block(visible: &str) -> Result<Vec<Call>, Fault> {
    let malformed = |reason: &str| Fault::Malformed(reason.to_owned());
    let (_, rest) = visible.split_once(OPEN).ok_or(Fault::NoCall)?;
    let length = rest.find(CLOSE).ok_or_else(|| malformed("it is not closed"))?;
    let (block, after) = rest.split_at(length);
    if block.len() > MAX_BLOCK {
        return Err(malformed("it is too long"));
    }
    if has_block(after) {
        return Err(malformed("there is more than one"));
    }
    let mut calls = Vec::new();
    // The reader bounds how deep values may nest.
    for value in serde_json::Deserializer::from_str(block).into_iter::<Value>() {
        let value = value.map_err(|error| Fault::Malformed(error.to_string()))?;
        calls.push(read_call(&value).map_err(malformed)?);
        if calls.len() > MAX_CALLS {
            return Err(malformed("too many calls"));
        }
    }
    if calls.is_empty() { Err(Fault::NoCall) } else { Ok(calls) }
}

fn read_call(value: &Value) -> Result<Call, &'static str> {
    let fields = value.as_object().ok_or("a call is an object")?;
    match (fields.get("name"), fields.get("arguments"), fields.len()) {
        (Some(Value::String(name)), Some(Value::Object(arguments)), 2) => {
            Ok(Call { name: name.clone(), arguments: arguments.clone() })
        }
        _ => Err("a call has a name, a string, and arguments, an object, and nothing else"),
    }
}

/// Compares the calls, whatever their order.
fn judge(tools: &[Value], wanted: &[Call], given: Vec<Call>) -> Result<(), Fault> {
    for call in &given {
        let schema = parameters_of(tools, &call.name);
        let schema = schema.ok_or_else(|| Fault::UnknownFunction(quoted(&call.name)))?;
        let arguments = Value::Object(call.arguments.clone());
        conform(&arguments, schema, "arguments").map_err(Fault::SchemaViolation)?;
    }
    let counts = (given.len(), wanted.len());
    let mut left = given;
    let mut missed = Vec::new();
    for call in wanted {
        match left.iter().position(|other| same_call(tools, call, other)) {
            Some(place) => drop(left.swap_remove(place)),
            None => missed.push(call),
        }
    }
    match counts {
        (given, wanted) if given > wanted => return Err(Fault::ExtraCall { given, wanted }),
        (given, wanted) if given < wanted => return Err(Fault::MissingCall { given, wanted }),
        _ => {}
    }
    let Some(call) = missed.first() else {
        return Ok(());
    };
    match left.iter().find(|other| other.name == call.name) {
        Some(other) => Err(Fault::WrongArguments(difference(tools, call, other))),
        None => Err(Fault::WrongFunction(left.first().map_or_else(String::new, |other| quoted(&other.name)))),
    }
}

fn same_call(tools: &[Value], wanted: &Call, given: &Call) -> bool {
    let schema = parameters_of(tools, &wanted.name).unwrap_or(&Value::Null);
    wanted.name == given.name && same_object(&wanted.arguments, &given.arguments, schema)
}

/// The schema of a tool's arguments.
pub(crate) fn parameters_of<'t>(tools: &'t [Value], name: &str) -> Option<&'t Value> {
    let tool = tools.iter().find(|tool| tool.get("name").and_then(Value::as_str) == Some(name))?;
    Some(tool.get("parameters").unwrap_or(&Value::Null))
}

/// The first argument that is not what it should be.
fn difference(tools: &[Value], wanted: &Call, given: &Call) -> String {
    let schema = parameters_of(tools, &wanted.name).unwrap_or(&Value::Null);
    let names = wanted.arguments.keys().chain(given.arguments.keys());
    let differs = |name: &&String| !same_field(name, &wanted.arguments, &given.arguments, schema);
    let shown = |arguments: &Map<String, Value>, name: &str| {
        arguments.get(name).map_or_else(|| "not there".to_owned(), |value| quoted(&value.to_string()))
    };
    match { names }.find(differs) {
        Some(name) => format!(
            "{} is {}, not {}",
            quoted(name),
            shown(&given.arguments, name),
            shown(&wanted.arguments, name)
        ),
        None => "they differ".to_owned(),
    }
}

/// Whether two objects have the same fields; one that is not there has its schema's default.
fn same_object(a: &Map<String, Value>, b: &Map<String, Value>, schema: &Value) -> bool {
    a.keys().chain(b.keys()).all(|name| same_field(name, a, b, schema))
}

fn same_field(name: &str, a: &Map<String, Value>, b: &Map<String, Value>, schema: &Value) -> bool {
    let schema = schema.get("properties").and_then(|properties| properties.get(name)).unwrap_or(&Value::Null);
    let default = schema.get("default");
    match (a.get(name).or(default), b.get(name).or(default)) {
        (Some(a), Some(b)) => same(a, b, schema),
        _ => false,
    }
}

/// Whether two values are the same: numbers by their value, objects whatever the order of their fields.
fn same(a: &Value, b: &Value, schema: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || (a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64()
        }
        (Value::Array(a), Value::Array(b)) => {
            let items = schema.get("items").unwrap_or(&Value::Null);
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b, items))
        }
        (Value::Object(a), Value::Object(b)) => same_object(a, b, schema),
        _ => a == b,
    }
}

/// Checks a value against the keywords that made-up tools use: type, enum, items, properties, required and
/// additionalProperties. `path` says where the value stands.
pub(crate) fn conform(value: &Value, schema: &Value, path: &str) -> Result<(), String> {
    let kind = schema.get("type").and_then(Value::as_str);
    let fits = match kind {
        Some("string") => value.is_string(),
        Some("integer") => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        _ => true,
    };
    if let (false, Some(kind)) = (fits, kind) {
        return Err(format!("{path} is no {kind}"));
    }
    let allowed = schema.get("enum").and_then(Value::as_array);
    if allowed.is_some_and(|allowed| !allowed.iter().any(|other| same(value, other, &Value::Null))) {
        return Err(format!("{path} is not of its enum"));
    }
    match value {
        Value::Array(values) => {
            let items = schema.get("items").unwrap_or(&Value::Null);
            values
                .iter()
                .enumerate()
                .try_for_each(|(place, value)| conform(value, items, &format!("{path}[{place}]")))
        }
        Value::Object(fields) => conform_fields(fields, schema, path),
        _ => Ok(()),
    }
}

fn conform_fields(fields: &Map<String, Value>, schema: &Value, path: &str) -> Result<(), String> {
    let required = schema.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if let Some(name) = required.iter().filter_map(Value::as_str).find(|name| !fields.contains_key(*name)) {
        return Err(format!("{path} has no {name:?}"));
    }
    let closed = schema.get("additionalProperties") == Some(&Value::Bool(false));
    for (name, value) in fields {
        match schema.get("properties").and_then(|properties| properties.get(name)) {
            // The name is one of the schema's, so that the path stays short.
            Some(schema) => conform(value, schema, &format!("{path}.{name}"))?,
            None if closed => return Err(format!("{path} may not have {}", quoted(name))),
            None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn instance() -> Instance {
        let address = json!({
            "type": "object",
            "properties": { "city": { "type": "string" }, "zip": { "type": "integer", "default": 1 } },
            "required": ["city"]
        });
        let book = json!({
            "type": "object",
            "properties": {
                "seats": { "type": "integer" },
                "price": { "type": "number" },
                "class": { "type": "string", "enum": ["first", "second"] },
                "urgent": { "type": "boolean", "default": false },
                "tags": { "type": "array", "items": { "type": "string" } },
                "address": address
            },
            "required": ["seats"],
            "additionalProperties": false
        });
        let answer = json!([{ "name": "book", "arguments": {
            "seats": 2, "price": 12.5, "class": "first", "tags": ["a", "b"], "address": { "city": "x}" }
        } }]);
        let tools = vec![json!({ "name": "book", "parameters": book }), json!({ "name": "stop" })];
        Instance {
            task: "tool_call".into(),
            seed: 0,
            difficulty: 1,
            prompt: String::new(),
            tools,
            answer,
            data: json!({}),
        }
    }

    const ARGUMENTS: &str =
        r#""seats": 2, "price": 12.5, "class": "first", "tags": ["a", "b"], "address": {"city": "x}"}"#;

    fn reason(calls: &str) -> String {
        verify(&instance(), &format!("<tool_calls>\n{calls}\n</tool_calls>")).reason
    }

    fn book(arguments: &str) -> String {
        reason(&format!("{{\"name\": \"book\", \"arguments\": {{{arguments}}}}}"))
    }

    #[test]
    fn the_right_call_is_right_however_it_is_written() {
        assert_eq!(book(ARGUMENTS), "right");
        assert_eq!(book(&ARGUMENTS.replace("12.5", "1.25e1").replace(": 2", ": 2.0")), "right");
        let reordered =
            r#""address": {"city": "\u0078}"}, "tags": ["a","b"], "class":"first","price":12.5,"seats":2"#;
        assert_eq!(book(reordered), "right");
        assert_eq!(book(&format!("{ARGUMENTS}, \"urgent\": false")), "right");
        assert_eq!(book(&ARGUMENTS.replace("x}\"", "x}\", \"zip\": 1")), "right");
        let call = format!("{{\"name\": \"book\", \"arguments\": {{{ARGUMENTS}}}}}");
        let response =
            format!("<think>\n<tool_calls>\n{{}}\n</think>\nOne moment.\n<tool_calls>{call}</tool_calls>\n");
        assert_eq!(verify(&instance(), &response).reward, 1.0);
    }

    #[test]
    fn each_fault_has_its_reason() {
        let starts = |text: String, start: &str| assert!(text.starts_with(start), "{text}, not {start}");
        starts(verify(&instance(), "book(seats=2)").reason, "no call");
        starts(reason(""), "no call");
        starts(verify(&instance(), "<tool_calls>\n{}").reason, "malformed block: it is not closed");
        starts(reason("{'name': 'book', 'arguments': {}}"), "malformed block: ");
        starts(reason("[]"), "malformed block: a call is an object");
        starts(reason(r#"{"name": "book", "arguments": "{}"}"#), "malformed block: a call has");
        starts(reason(r#"{"name": "book", "arguments": {}, "id": 1}"#), "malformed block: a call has");
        starts(reason(r#"{"name": "bok", "arguments": {}}"#), "unknown function: \"bok\"");
        starts(book(r#""price": 12.5"#), "schema violation: arguments has no \"seats\"");
        starts(book(&ARGUMENTS.replace(": 2", ": 2.5")), "schema violation: arguments.seats is no integer");
        starts(
            book(&ARGUMENTS.replace("first", "third")),
            "schema violation: arguments.class is not of its enum",
        );
        starts(book(&ARGUMENTS.replace("\"b\"", "1")), "schema violation: arguments.tags[1] is no string");
        starts(
            book(&ARGUMENTS.replace("city", "town")),
            "schema violation: arguments.address has no \"city\"",
        );
        starts(book(&format!("{ARGUMENTS}, \"x\": 1")), "schema violation: arguments may not have \"x\"");
        starts(reason(r#"{"name": "stop", "arguments": {}}"#), "wrong function: \"stop\"");
        starts(book(&ARGUMENTS.replace(": 2", ": 3")), "wrong arguments: \"seats\" is \"3\", not \"2\"");
        starts(book(r#""seats": 2"#), "wrong arguments: \"price\" is not there, not \"12.5\"");
        starts(
            book(&format!("{ARGUMENTS}, \"urgent\": true")),
            "wrong arguments: \"urgent\" is \"true\", not not there",
        );
        let call = format!("{{\"name\": \"book\", \"arguments\": {{{ARGUMENTS}}}}}");
        starts(reason(&format!("{call}\n{call}")), "extra call: there are 2, not 1");
        let two = format!("<tool_calls>\n{call}\n</tool_calls>\n<tool_calls>\n{call}\n</tool_calls>");
        starts(verify(&instance(), &two).reason, "malformed block: there is more than one");
        let mut both = instance();
        let answer = both.answer[0].clone();
        both.answer = json!([answer.clone(), answer]);
        let one = format!("<tool_calls>\n{call}\n</tool_calls>");
        starts(verify(&both, &one).reason, "missing call: there are 1, not 2");
    }

    #[test]
    fn hostile_blocks_are_malformed_and_their_reasons_short() {
        for block in ["[".repeat(1 << 16), "{\"a\":".repeat(1000), "{}".repeat(30_000), "\0".repeat(100)] {
            let reason = reason(&block);
            assert!(reason.starts_with("malformed block: ") && reason.len() < 200, "{reason}");
        }
        assert_eq!(reason(&" ".repeat(1 << 20)), "malformed block: it is too long");
        let long = format!("\"seats\": 2, \"{}\": 1", "\u{1b}".repeat(1000));
        assert!(book(&long).len() < 1000);
    }

    #[test]
    fn whole_numbers_are_compared_exactly() {
        let number = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let same = |a: &str, b: &str| same(&number(a), &number(b), &Value::Null);
        assert!(
            same("3", "3.0") && same("-0.0", "0") && same("18446744073709551615", "18446744073709551615")
        );
        assert!(!same("9007199254740993", "9007199254740992") && !same("1", "true") && !same("1", "\"1\""));
    }
}
