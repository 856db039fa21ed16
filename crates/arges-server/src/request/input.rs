//! Request values that come in several shapes: `stop` and `prompt`.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

/// `stop`: one string or a list of strings.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct StopInput(pub Vec<String>);

impl<'de> Deserialize<'de> for StopInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<StopInput, D::Error> {
        deserializer.deserialize_any(StopVisitor)
    }
}

struct StopVisitor;

impl<'de> Visitor<'de> for StopVisitor {
    type Value = StopInput;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<StopInput, E> {
        Ok(StopInput(vec![text.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<StopInput, A::Error> {
        collect(Vec::new(), &mut sequence).map(StopInput)
    }
}

/// `prompt` of `/v1/completions`: a text, the token ids of one prompt, or a list of either.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PromptInput {
    Texts(Vec<String>),
    Tokens(Vec<Vec<u32>>),
}

impl<'de> Deserialize<'de> for PromptInput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PromptInput, D::Error> {
        deserializer.deserialize_any(PromptVisitor)
    }
}

struct PromptVisitor;

impl<'de> Visitor<'de> for PromptVisitor {
    type Value = PromptInput;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string, a list of strings, a list of token ids, or a list of lists of token ids")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<PromptInput, E> {
        Ok(PromptInput::Texts(vec![text.to_owned()]))
    }

    /// The first element decides what the rest must be, so that a million ids are read as plain numbers.
    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<PromptInput, A::Error> {
        match sequence.next_element::<PromptElement>()? {
            None => Ok(PromptInput::Texts(Vec::new())),
            Some(PromptElement::Text(first)) => collect(vec![first], &mut sequence).map(PromptInput::Texts),
            Some(PromptElement::Tokens(first)) => {
                collect(vec![first], &mut sequence).map(PromptInput::Tokens)
            }
            Some(PromptElement::Token(first)) => {
                Ok(PromptInput::Tokens(vec![collect(vec![first], &mut sequence)?]))
            }
        }
    }
}

enum PromptElement {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

impl<'de> Deserialize<'de> for PromptElement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PromptElement, D::Error> {
        deserializer.deserialize_any(PromptElementVisitor)
    }
}

struct PromptElementVisitor;

impl<'de> Visitor<'de> for PromptElementVisitor {
    type Value = PromptElement;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string, a token id, or a list of token ids")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<PromptElement, E> {
        Ok(PromptElement::Text(text.to_owned()))
    }

    fn visit_u64<E: de::Error>(self, id: u64) -> Result<PromptElement, E> {
        u32::try_from(id)
            .map(PromptElement::Token)
            .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(id), &"a token id"))
    }

    fn visit_i64<E: de::Error>(self, id: i64) -> Result<PromptElement, E> {
        Err(E::invalid_value(de::Unexpected::Signed(id), &"a token id"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<PromptElement, A::Error> {
        collect(Vec::new(), &mut sequence).map(PromptElement::Tokens)
    }
}

/// Appends the rest of `sequence` to `items`.
fn collect<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    mut items: Vec<T>,
    sequence: &mut A,
) -> Result<Vec<T>, A::Error> {
    while let Some(item) = sequence.next_element()? {
        items.push(item);
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(json: &str) -> Result<PromptInput, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_prompt_is_read_in_all_four_shapes() {
        let texts = |texts: &[&str]| Ok(PromptInput::Texts(texts.iter().map(|t| t.to_string()).collect()));
        assert_eq!(prompt(r#""ab""#), texts(&["ab"]));
        assert_eq!(prompt(r#"["a", "b"]"#), texts(&["a", "b"]));
        assert_eq!(prompt("[1, 2]"), Ok(PromptInput::Tokens(vec![vec![1, 2]])));
        assert_eq!(prompt("[[1], [2, 3]]"), Ok(PromptInput::Tokens(vec![vec![1], vec![2, 3]])));
        assert_eq!(prompt("[]"), texts(&[]));
    }

    #[test]
    fn a_prompt_of_mixed_or_foreign_elements_is_refused() {
        for json in [r#"[1, "a"]"#, r#"["a", 1]"#, "[[1], 2]", "[-1]", "[4294967296]", "[1.5]", "{}", "7"] {
            assert!(prompt(json).is_err(), "{json} was accepted");
        }
    }

    #[test]
    fn stop_is_read_as_a_string_or_a_list() {
        assert_eq!(serde_json::from_str::<StopInput>(r#""x""#).unwrap().0, ["x"]);
        assert_eq!(serde_json::from_str::<StopInput>(r#"["x", "y"]"#).unwrap().0, ["x", "y"]);
        assert!(serde_json::from_str::<StopInput>("[1]").is_err());
    }
}
