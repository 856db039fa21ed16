//! Calls of tools that are made up for every instance, so that a model has to read their schemas: the names of
//! functions and parameters come from a large vocabulary, their types and values from chance, and the request's text
//! says exactly which arguments are wanted.

mod parameter;
mod request;
mod tool;
pub(crate) mod tool_call;
pub(crate) mod tool_call_none;
pub(crate) mod tool_call_parallel;
pub(crate) mod verdict;
mod vocabulary;

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

use request::Request;

/// Calls as M1 writes them: a block with one JSON object a line.
pub(crate) fn block(calls: &[Value]) -> String {
    let lines: String = calls.iter().map(|call| spaced_json(call) + "\n").collect();
    format!("<tool_calls>\n{lines}</tool_calls>")
}

/// JSON on one line with a space after commas and colons, as chat templates write it.
fn spaced_json(value: &Value) -> String {
    let mut text = Vec::new();
    let written = value.serialize(&mut Serializer::with_formatter(&mut text, Spaced));
    debug_assert!(written.is_ok(), "values are written to memory");
    String::from_utf8_lossy(&text).into_owned()
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Blocks that differ from the right one in a single thing each.
fn wrong_blocks(requests: &[Request]) -> Vec<String> {
    let calls: Vec<Value> = requests.iter().map(Request::call).collect();
    let right = block(&calls);
    let mut wrong = vec![
        "Done.".to_owned(),
        right.replace("</tool_calls>", ""),
        right.replacen('"', "'", 2),
        block(&[&calls[..], &calls[..1]].concat()),
        block(&calls[1..]),
    ];
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut calls = calls.clone();
        change(&mut calls[0]);
        block(&calls)
    };
    wrong.push(changed(&|call| call["name"] = "no_such_function".into()));
    wrong.push(changed(&|call| call["arguments"]["no_such_parameter"] = 1.into()));
    for name in requests[0].arguments.keys() {
        wrong.push(changed(&|call| {
            let value = &mut call["arguments"][name];
            *value = other(value);
        }));
    }
    wrong
}

/// A value of the same type that is another one; for most values of enums it is not one of them.
fn other(value: &Value) -> Value {
    match value {
        Value::Null => Value::Bool(true),
        Value::Bool(value) => Value::Bool(!value),
        Value::Number(number) => {
            number.as_i64().map_or(Value::from(-0.125), |number| Value::from(number + 1))
        }
        Value::String(text) => Value::String(format!("{text}.")),
        Value::Array(items) => items[1..].iter().cloned().collect(),
        Value::Object(fields) => {
            let mut fields = fields.clone();
            fields.values_mut().take(1).for_each(|value| *value = other(value));
            Value::Object(fields)
        }
    }
}
