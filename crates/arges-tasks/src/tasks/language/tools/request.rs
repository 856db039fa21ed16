//! Requests in words, which say exactly what a tool is to be called with.

use serde_json::{Map, Value, json};

use super::super::words;
use super::parameter::{Kind, Parameter, draw_arguments};
use super::spaced_json;
use super::tool::Tool;
use super::vocabulary::Text;
use crate::Random;

/// A call that is wanted, and the text that asks for it.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) text: String,
    pub(super) name: String,
    pub(super) arguments: Map<String, Value>,
}

/// Said beside some requests, so that a model has to see for itself whether there is a tool.
pub(super) const NO_TOOL_CLAUSE: &str = " If no tool can do this, end with a line `Answer: no tool`.";

impl Request {
    pub(super) fn draw(random: &mut Random, difficulty: u32, tool: &Tool) -> Self {
        let arguments = draw_arguments(random, difficulty, &tool.parameters);
        let mut mentions = mentions(random, difficulty, &tool.parameters, &arguments);
        if difficulty >= 3 {
            random.shuffle(&mut mentions);
        }
        let capital = |text: &str| text[..1].to_uppercase() + &text[1..];
        let style = if mentions.is_empty() || difficulty == 1 { 0 } else { random.index(3) };
        let text = match style {
            0 => {
                let parts = mentions.iter().map(|mention| match mention {
                    Mention::Value(phrase, value) => format!(" {}: {value}.", capital(phrase)),
                    Mention::Boolean(adjective, true) => format!(" {}: yes.", capital(adjective)),
                    Mention::Boolean(adjective, false) => format!(" {}: no.", capital(adjective)),
                });
                format!("{}.{}", capital(&tool.action), parts.collect::<String>())
            }
            1 => {
                let parts: Vec<String> = mentions.iter().map(Mention::inline).collect();
                format!("Please {} with {}.", tool.action, words::enumeration(&parts, "and"))
            }
            _ => {
                let parts = mentions.iter().map(|mention| match mention {
                    Mention::Value(phrase, value) => format!(" For the {phrase} take {value}."),
                    Mention::Boolean(adjective, true) => format!(" It should be {adjective}."),
                    Mention::Boolean(adjective, false) => format!(" It should not be {adjective}."),
                });
                format!("I want you to {}.{}", tool.action, parts.collect::<String>())
            }
        };
        Self { text, name: tool.name.clone(), arguments }
    }

    /// The call as the model writes it.
    pub(super) fn call(&self) -> Value {
        json!({ "name": self.name, "arguments": self.arguments })
    }

    /// The line of a trace: the function and its arguments.
    pub(super) fn thought(&self) -> String {
        let argument = |(name, value): (&String, &Value)| format!(" {name} = {}", spaced_json(value));
        let arguments: Vec<String> = self.arguments.iter().map(argument).collect();
        format!(
            "{}:{}",
            self.name,
            if arguments.is_empty() { " nothing".to_owned() } else { arguments.join(",") }
        )
    }
}

/// A part of a request.
enum Mention {
    /// What it is called, and its value as text.
    Value(String, String),
    Boolean(String, bool),
}

impl Mention {
    fn inline(&self) -> String {
        match self {
            Self::Value(phrase, value) => format!("{phrase} {value}"),
            Self::Boolean(adjective, true) => adjective.clone(),
            Self::Boolean(adjective, false) => format!("not {adjective}"),
        }
    }
}

fn mentions(
    random: &mut Random,
    difficulty: u32,
    parameters: &[Parameter],
    arguments: &Map<String, Value>,
) -> Vec<Mention> {
    let mut mentions = Vec::new();
    for parameter in parameters {
        if let Some(value) = arguments.get(&parameter.name) {
            let phrases = parameter.phrases();
            let phrase = if difficulty < 4 { phrases[0].clone() } else { random.choose(&phrases).clone() };
            mentions.push(match (&parameter.kind, value) {
                (Kind::Boolean, Value::Bool(value)) => Mention::Boolean(phrase, *value),
                (kind, value) => Mention::Value(phrase, spoken(random, difficulty, kind, value)),
            });
        }
    }
    mentions
}

/// A value as it is said in a request.
fn spoken(random: &mut Random, difficulty: u32, kind: &Kind, value: &Value) -> String {
    match (kind, value) {
        (Kind::Text(Text::Words | Text::Path), Value::String(text)) => match text.contains('"') {
            true => format!("`{text}`"),
            false => format!("\"{text}\""),
        },
        (_, Value::String(text)) => text.clone(),
        (Kind::List(items), Value::Array(values)) => {
            let values: Vec<String> =
                values.iter().map(|value| spoken(random, difficulty, items, value)).collect();
            match &values[..] {
                [only] => only.clone(),
                values => format!("({})", values.join(", ")),
            }
        }
        (Kind::Object(parameters), Value::Object(arguments)) => {
            let parts = mentions(random, difficulty, parameters, arguments);
            format!("({})", parts.iter().map(Mention::inline).collect::<Vec<_>>().join(", "))
        }
        (Kind::Integer { .. }, value) => {
            let word = value.as_u64().and_then(|number| words::NUMBERS.get(usize::try_from(number).ok()?));
            match word.filter(|_| difficulty >= 6 && random.chance(1, 2)) {
                Some(word) => (*word).to_owned(),
                None => value.to_string(),
            }
        }
        (_, value) => value.to_string(),
    }
}
