//! Typed access to the fields of a JSON object, with errors that name the field.

use std::path::Path;

use serde_json::{Map, Value};

use super::ConfigError;

/// One JSON object of a configuration file. `null` counts as absent.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    file: &'a Path,
    /// Put before field names in errors: empty, or the enclosing object's name and a dot.
    prefix: &'static str,
}

impl<'a> Fields<'a> {
    pub fn new(object: &'a Map<String, Value>, file: &'a Path) -> Self {
        Fields { object, file, prefix: "" }
    }

    fn field(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn missing(&self, name: &str) -> ConfigError {
        ConfigError::Missing { file: self.file.to_owned(), field: self.field(name) }
    }

    pub fn wrong_type(&self, name: &str, expected: &'static str, found: &Value) -> ConfigError {
        ConfigError::WrongType {
            file: self.file.to_owned(),
            field: self.field(name),
            expected,
            found: shortened(found),
        }
    }

    pub fn invalid(&self, name: &str, value: impl ToString, reason: impl Into<String>) -> ConfigError {
        ConfigError::Invalid {
            file: self.file.to_owned(),
            field: self.field(name),
            value: value.to_string(),
            reason: reason.into(),
        }
    }

    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        self.get(name)
            .map(|value| convert(value).ok_or_else(|| self.wrong_type(name, expected, value)))
            .transpose()
    }

    fn required<T>(&self, name: &str, found: Option<T>) -> Result<T, ConfigError> {
        found.ok_or_else(|| self.missing(name))
    }

    pub fn optional_size(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        self.typed(name, "a whole number from 0", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    pub fn size(&self, name: &str) -> Result<usize, ConfigError> {
        self.required(name, self.optional_size(name)?)
    }

    pub fn optional_number(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        self.typed(name, "a number", Value::as_f64)
    }

    pub fn number(&self, name: &str) -> Result<f64, ConfigError> {
        self.required(name, self.optional_number(name)?)
    }

    pub fn optional_flag(&self, name: &str) -> Result<Option<bool>, ConfigError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub fn flag(&self, name: &str) -> Result<bool, ConfigError> {
        self.required(name, self.optional_flag(name)?)
    }

    pub fn optional_text(&self, name: &str) -> Result<Option<&'a str>, ConfigError> {
        self.typed(name, "a string", Value::as_str)
    }

    pub fn text(&self, name: &str) -> Result<&'a str, ConfigError> {
        self.required(name, self.optional_text(name)?)
    }

    pub fn optional_list(&self, name: &str) -> Result<Option<&'a [Value]>, ConfigError> {
        self.typed(name, "a list", |v| v.as_array().map(Vec::as_slice))
    }

    pub fn list(&self, name: &str) -> Result<&'a [Value], ConfigError> {
        self.required(name, self.optional_list(name)?)
    }

    /// An object inside this one; `prefix` is its name with a dot.
    pub fn optional_object(
        &self,
        name: &str,
        prefix: &'static str,
    ) -> Result<Option<Fields<'a>>, ConfigError> {
        let object = self.typed(name, "an object", Value::as_object)?;
        Ok(object.map(|object| Fields { object, file: self.file, prefix }))
    }

    pub fn optional_token(&self, name: &str) -> Result<Option<u32>, ConfigError> {
        self.typed(name, "a token id or null", as_token)
    }

    /// One token id, a list of them, or none.
    pub fn tokens(&self, name: &str) -> Result<Vec<u32>, ConfigError> {
        const EXPECTED: &str = "a token id, a list of token ids or null";
        let found = self.typed(name, EXPECTED, |value| match value {
            Value::Array(ids) => ids.iter().map(as_token).collect(),
            id => as_token(id).map(|id| vec![id]),
        })?;
        Ok(found.unwrap_or_default())
    }
}

fn as_token(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// A JSON value for an error message, cut where it gets long.
pub(super) fn shortened(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
