//! A successful response of the API, and what tools look for in it.

use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::CallError;

/// A successful response. While it lives, its share of the memory is taken.
#[derive(Debug)]
pub struct Reply {
    pub(super) what: String,
    pub(super) value: Value,
    pub(super) trace_id: Option<String>,
    pub(super) _share: Option<OwnedSemaphorePermit>,
}

impl Reply {
    /// The text at a path of keys, if there is one that is not empty.
    pub fn text(&self, path: &[&str]) -> Option<&str> {
        self.at(path)?.as_str().filter(|text| !text.is_empty())
    }

    /// As [`Self::text`], for ids, which the API gives as texts or as numbers.
    pub fn id(&self, path: &[&str]) -> Option<String> {
        match self.at(path)? {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) if number.as_i64() != Some(0) => Some(number.to_string()),
            _ => None,
        }
    }

    /// The list at a path of keys; empty if there is none.
    pub fn list(&self, path: &[&str]) -> &[Value] {
        self.at(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The value at a path of keys.
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(&self.value, |value, key| value.get(key))
    }

    /// The bytes that a text of hexadecimal digits at a path of keys stands for.
    ///
    /// # Errors
    /// No such text, and one with other characters.
    pub fn bytes(&self, path: &[&str], field: &'static str) -> Result<Vec<u8>, CallError> {
        let text = self.text(path).ok_or_else(|| self.missing(field))?;
        decode_hex(text).ok_or_else(|| CallError::Hex {
            what: self.what.clone(),
            field,
            trace_id: self.trace_id.clone(),
        })
    }

    /// The error that `field` is not there.
    pub fn missing(&self, field: &'static str) -> CallError {
        CallError::Missing { what: self.what.clone(), field, trace_id: self.trace_id.clone() }
    }
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_text_becomes_bytes_or_nothing() {
        assert_eq!(decode_hex("00fFa1"), Some(vec![0, 255, 161]));
        for wrong in ["0", "0g", "é0", " 00"] {
            assert_eq!(decode_hex(wrong), None, "{wrong}");
        }
    }
}
