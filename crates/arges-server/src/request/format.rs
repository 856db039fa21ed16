//! What an answer has to be.

use arges_text::grammar::{Format, GrammarError};
use serde::Deserialize;
use serde_json::Value;

use crate::error::ApiError;

/// `response_format` of chat, or `text.format` of responses: the two differ in where the schema stands.
///
/// # Errors
/// 400 that names `param` for a format there is not, or a schema that is missing.
pub(crate) fn openai_format(param: &'static str, format: Option<&Value>) -> Result<Option<Format>, ApiError> {
    let Some(format) = format.filter(|format| !format.is_null()) else { return Ok(None) };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Format::JsonObject)),
        Some("json_schema") => {
            let inner = format.get("json_schema").unwrap_or(format);
            let schema =
                inner.get("schema").filter(|schema| schema.is_object()).cloned().ok_or_else(|| {
                    ApiError::invalid_param(
                        param,
                        format!("`{param}` of type `json_schema` needs a `schema`."),
                    )
                })?;
            let strict = inner.get("strict").is_some_and(|strict| strict == true);
            Ok(Some(Format::JsonSchema { schema, strict }))
        }
        _ => {
            let message = format!(
                "`{param}` must be an object whose `type` is `text`, `json_object` or `json_schema`."
            );
            Err(ApiError::invalid_param(param, message))
        }
    }
}

/// 400: what `param` asks for cannot be enforced.
pub(crate) fn not_enforceable(param: &str, error: &GrammarError) -> ApiError {
    let message = match error {
        GrammarError::TooLarge { .. } => format!("`{param}` is too large: {error}."),
        _ => format!("`{param}` cannot be enforced: {error}."),
    };
    ApiError::invalid_param(param, message)
}

/// `structured_outputs`, an extension as in vLLM: exactly one of its fields.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(expecting = "a JSON object", deny_unknown_fields)]
pub(crate) struct StructuredOutputs {
    json: Option<Value>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
}

impl StructuredOutputs {
    /// The format.
    ///
    /// # Errors
    /// 400 unless exactly one field is given.
    pub fn format(self) -> Result<Format, ApiError> {
        let wrong = |message: &str| ApiError::invalid_param("structured_outputs", message);
        let schema = |json| match json {
            // Clients that speak vLLM's dialect may send the schema as text.
            Value::String(text) => {
                serde_json::from_str(&text).map_err(|_| wrong("`json` is not valid JSON."))
            }
            json => Ok(json),
        };
        let formats = [
            self.json.map(|json| Ok(Format::JsonSchema { schema: schema(json)?, strict: true })),
            self.json_object.filter(|wanted| *wanted).map(|_| Ok(Format::JsonObject)),
            self.regex.map(|regex| Ok(Format::Regex(regex))),
            self.choice.map(|choice| match choice.is_empty() {
                true => Err(wrong("`choice` must not be empty.")),
                false => Ok(Format::Choice(choice)),
            }),
            self.grammar.map(|grammar| Ok(Format::Lark(grammar))),
        ];
        let mut given = formats.into_iter().flatten();
        match (given.next(), given.next()) {
            (Some(format), None) => format,
            _ => Err(wrong(
                "Exactly one of `json`, `json_object`, `regex`, `choice` and `grammar` must be given.",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_schema_is_found_in_both_apis_shapes() {
        let schema = json!({"type": "object"});
        let expected = Format::JsonSchema { schema: schema.clone(), strict: true };
        for format in [
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}}),
            json!({"type": "json_schema", "name": "x", "schema": schema, "strict": true}),
        ] {
            assert_eq!(openai_format("p", Some(&format)), Ok(Some(expected.clone())));
        }
        assert_eq!(openai_format("p", Some(&json!({"type": "text"}))), Ok(None));
        assert_eq!(openai_format("p", Some(&json!({"type": "json_object"}))), Ok(Some(Format::JsonObject)));
        for wrong in [json!("json"), json!({"type": "xml"}), json!({"type": "json_schema"})] {
            assert_eq!(openai_format("p", Some(&wrong)).unwrap_err().param(), Some("p"), "{wrong}");
        }
    }

    #[test]
    fn exactly_one_structured_output_is_wanted() {
        let format = |value: Value| serde_json::from_value::<StructuredOutputs>(value).unwrap().format();
        assert_eq!(format(json!({"regex": "a"})), Ok(Format::Regex("a".to_owned())));
        assert_eq!(format(json!({"choice": ["a"], "json": null})), Ok(Format::Choice(vec!["a".to_owned()])));
        let object = Format::JsonSchema { schema: json!({}), strict: true };
        assert_eq!(format(json!({"json": "{}"})), Ok(object));
        for wrong in
            [json!({}), json!({"regex": "a", "grammar": "b"}), json!({"json": "{"}), json!({"choice": []})]
        {
            assert_eq!(format(wrong).unwrap_err().param(), Some("structured_outputs"));
        }
    }
}
