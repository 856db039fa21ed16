//! Arguments against the schema that the client was shown.

use rmcp::model::JsonObject;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

/// The schema of a tool's arguments, with everything in its place.
pub fn schema_of<Arguments: JsonSchema>() -> JsonObject {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<Arguments>();
    let mut schema = schema.as_object().cloned().unwrap_or_default();
    for detail in ["$schema", "title", "description"] {
        schema.remove(detail);
    }
    schema
}

/// Checks arguments and brings them to the types of the schema: numbers and truth values that came as texts, as
/// models write them, become what they stand for; `null` is as good as absent. Arguments that the schema does not
/// know stay as they are.
///
/// # Errors
/// All that is wrong, each argument by its name.
pub fn check(schema: &JsonObject, arguments: &mut JsonObject) -> Result<(), String> {
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    let mut wrong = Vec::new();
    for (name, property) in properties {
        if arguments.get(name).is_some_and(Value::is_null) {
            arguments.remove(name);
        }
        match arguments.get_mut(name) {
            None if required.contains(&name.as_str()) => wrong.push(format!("`{name}` is required")),
            None => {}
            Some(value) => {
                coerce(property, value);
                if !fits(property, value) {
                    wrong.push(format!("`{name}` must be {}; got {}", expected(property), shortened(value)));
                }
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join(". ")) }
}

/// The type of a property; of several, the one that is not `null`.
fn kind(property: &Value) -> &str {
    match &property["type"] {
        Value::String(kind) => kind,
        Value::Array(kinds) => {
            kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or("")
        }
        _ => "",
    }
}

fn coerce(property: &Value, value: &mut Value) {
    let replacement = match (kind(property), &*value) {
        ("number" | "integer", Value::String(text)) => text.trim().parse().ok().map(Value::Number),
        ("boolean", Value::String(text)) => text.trim().to_ascii_lowercase().parse().ok().map(Value::Bool),
        _ => None,
    };
    if let Some(replacement) = replacement {
        *value = replacement;
    }
    // A whole number that was written with a point.
    if kind(property) == "integer"
        && let Some(number) = value.as_f64()
        && value.is_f64()
        && number.fract() == 0.0
        && number.abs() < 1e15
    {
        *value = Value::from(number as i64);
    }
}

fn fits(property: &Value, value: &Value) -> bool {
    let is_of_kind = match kind(property) {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        _ => true,
    };
    let is_in_range = value.as_f64().is_none_or(|number| {
        property["minimum"].as_f64().is_none_or(|minimum| number >= minimum)
            && property["maximum"].as_f64().is_none_or(|maximum| number <= maximum)
    });
    let is_long_enough = value.as_str().is_none_or(|text| {
        property["minLength"].as_u64().is_none_or(|minimum| text.chars().count() as u64 >= minimum)
    });
    let is_listed = property["enum"].as_array().is_none_or(|values| values.contains(value));
    is_of_kind && is_in_range && is_long_enough && is_listed
}

fn expected(property: &Value) -> String {
    if let Some(values) = property["enum"].as_array() {
        let values: Vec<String> =
            values.iter().filter(|value| !value.is_null()).map(Value::to_string).collect();
        return format!("one of {}", values.join(", "));
    }
    let range = match (&property["minimum"], &property["maximum"]) {
        (Value::Null, Value::Null) => String::new(),
        (minimum, Value::Null) => format!(" from {minimum}"),
        (Value::Null, maximum) => format!(" up to {maximum}"),
        (minimum, maximum) => format!(" from {minimum} to {maximum}"),
    };
    let kind = match kind(property) {
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        "string" if !property["minLength"].is_null() => "a text that is not empty",
        "string" => "a text",
        other => other,
    };
    format!("{kind}{range}")
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(arguments: Value) -> Result<Value, String> {
        let schema = json!({
            "properties": {
                "text": { "type": "string", "minLength": 1 },
                "speed": { "type": "number", "minimum": 0.5, "maximum": 2.0 },
                "pitch": { "type": "integer", "minimum": -12, "maximum": 12 },
                "rate": { "type": ["integer", "null"], "enum": [8000, 16000, null] },
                "url": { "type": "boolean" },
            },
            "required": ["text"],
        });
        let mut arguments = arguments.as_object().unwrap().clone();
        check(schema.as_object().unwrap(), &mut arguments)?;
        Ok(Value::Object(arguments))
    }

    #[test]
    fn what_models_write_is_brought_to_its_type() {
        let arguments =
            json!({"text": "1", "speed": "1.5", "pitch": 3.0, "rate": "8000", "url": "True", "x": 1});
        let expected = json!({"text": "1", "speed": 1.5, "pitch": 3, "rate": 8000, "url": true, "x": 1});
        assert_eq!(checked(arguments).unwrap(), expected);
        assert_eq!(checked(json!({"text": "a", "rate": null})).unwrap(), json!({"text": "a"}));
    }

    #[test]
    fn every_wrong_argument_is_named_with_what_it_must_be() {
        for (arguments, expected) in [
            (json!({}), "`text` is required"),
            (json!({"text": null}), "`text` is required"),
            (json!({"text": ""}), "`text` must be a text that is not empty; got \"\""),
            (json!({"text": 3}), "`text` must be a text that is not empty; got 3"),
            (json!({"text": "a", "speed": 2.5}), "`speed` must be a number from 0.5 to 2.0; got 2.5"),
            (json!({"text": "a", "speed": "fast"}), "`speed` must be a number from 0.5 to 2.0; got \"fast\""),
            (json!({"text": "a", "pitch": 0.5}), "`pitch` must be a whole number from -12 to 12; got 0.5"),
            (json!({"text": "a", "rate": 1}), "`rate` must be one of 8000, 16000; got 1"),
            (json!({"text": "a", "url": 2}), "`url` must be true or false; got 2"),
        ] {
            assert_eq!(checked(arguments).unwrap_err(), expected);
        }
        let both = checked(json!({"speed": 0, "text": ""})).unwrap_err();
        assert!(both.contains("`text`") && both.contains("`speed`"), "{both}");
    }
}
